"""Which candidates are trained, on hand-made scores."""

from types import SimpleNamespace

import pytest

from evaluators.evaluator import Failure
from nas.shortlist import shortlist
from nas.study import Evaluated


def candidate(number, dispersion, loss, macs, latency):
    cost = SimpleNamespace(macs=macs, params=1, latency=SimpleNamespace(value_ms=latency))
    outcome = {"dispersion": dispersion, "dispersion_start": 0.0, "loss": loss}
    return Evaluated(number, None, str(number), cost, outcome, dispersion)


def failed(number):
    cost = SimpleNamespace(macs=10**9, params=1, latency=SimpleNamespace(value_ms=0.001))
    return Evaluated(number, None, str(number), cost, Failure("no"), None)


def numbers(finalists):
    return [each.candidate.number for each in finalists]


# Number 0 disperses best, 1 has the lowest loss, 2 the most multiply-adds, all as fast; 3 is worst and slow.
POOL = [
    candidate(0, 0.9, 3.0, 100, 1.0),
    candidate(1, 0.5, 1.0, 200, 1.0),
    candidate(2, 0.4, 2.0, 900, 1.0),
    candidate(3, 0.1, 4.0, 50, 2.0),
]


def test_each_score_names_its_best_and_the_leading_one_comes_first():
    found = shortlist(POOL, 3, "dispersion")
    assert numbers(found) == [0, 1, 2]
    assert [each.on_front_of for each in found] == [("dispersion",), ("loss",), ("macs",)]


@pytest.mark.parametrize("leading", ["loss", "macs"])
def test_a_baseline_that_leads_is_asked_once(leading):
    found = shortlist(POOL, 2, leading)
    assert sorted(numbers(found)) == [1, 2]
    assert numbers(found)[0] == {"loss": 1, "macs": 2}[leading]


def test_what_several_scores_agree_on_is_trained_once_and_names_them_all():
    pool = [candidate(0, 0.9, 1.0, 900, 1.0), candidate(1, 0.5, 2.0, 100, 2.0), candidate(2, 0.4, 3.0, 50, 3.0)]
    found = shortlist(pool, 2, "dispersion")
    assert numbers(found)[0] == 0
    assert found[0].on_front_of == ("dispersion", "loss", "macs")
    assert len(set(numbers(found))) == 2
    assert found[1].on_front_of == (), "it only fills a place"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 50])
def test_there_are_as_many_as_asked_for_or_as_there_are(count):
    found = numbers(shortlist(POOL, count, "dispersion"))
    assert len(found) == len(set(found)) == min(count, len(POOL))


def test_failed_candidates_are_never_finalists():
    assert sorted(numbers(shortlist([failed(9), *POOL, failed(8)], 50, "dispersion"))) == [0, 1, 2, 3]
    assert shortlist([failed(1)], 3, "dispersion") == []
    assert shortlist([], 3, "loss") == []
