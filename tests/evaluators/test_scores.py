"""What the search maximises, by hand."""

import math

import pytest

from evaluators.scores import SCORES

KNOWN = {"macs": 1e6, "params": 1e3, "dispersion": 0.75, "dispersion_start": 0.5, "loss": 2.25, "seconds": 9.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dispersion", 0.75),
        ("dispersion-gain", 0.25),
        ("loss", -2.25),
        ("macs", 6 * math.log(10)),
        ("params", 3 * math.log(10)),
    ],
)
def test_scores_by_hand(name, expected):
    assert SCORES[name].value(KNOWN) == pytest.approx(expected, rel=1e-12)


def test_every_score_is_tested_and_says_where_it_comes_from():
    assert set(SCORES) == {"dispersion", "dispersion-gain", "loss", "macs", "params"}
    assert all(score.source for score in SCORES.values())


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("dispersion", {"dispersion": 0.8}),
        ("dispersion-gain", {"dispersion_start": 0.4}),
        ("loss", {"loss": 2.0}),
        ("macs", {"macs": 2e6}),
        ("params", {"params": 2e3}),
    ],
)
def test_more_is_better(name, better):
    assert SCORES[name].value(KNOWN | better) > SCORES[name].value(KNOWN)


def test_a_score_does_not_make_up_what_is_not_known():
    for name in ("dispersion", "dispersion-gain", "loss"):
        with pytest.raises(KeyError):
            SCORES[name].value({"macs": 1.0, "params": 1.0})
