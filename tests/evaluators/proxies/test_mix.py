"""The rank mix: places by hand, and a choice among proxies of which the truth is known."""

import numpy as np
import pytest

from evaluators.proxies.mix import choose_mix, mean_ranks, rank_mix
from hardware.rank_correlation import spearman

NETWORKS = [{"a": 1.0, "b": 50.0}, {"a": 2.0, "b": 40.0}, {"a": 2.0, "b": 10.0}, {"a": 6.0, "b": 20.0}]


def test_places_by_hand():
    # Of four networks the first has a place of 1/8, the two that tie the mean of 3/8 and 5/8.
    mix = rank_mix(["a"], NETWORKS)
    assert [mix.score(each) for each in NETWORKS] == pytest.approx([1 / 8, 1 / 2, 1 / 2, 7 / 8])
    assert mix.score({"a": 4.0}) == pytest.approx((1 / 2 + 7 / 8) / 2)


def test_a_mix_is_the_mean_of_places_and_orders_its_references_as_mean_ranks_do():
    mix = rank_mix(["a", "b"], NETWORKS)
    assert mix.score({"a": 1.0, "b": 50.0}) == pytest.approx((1 / 8 + 7 / 8) / 2)
    found = mean_ranks([[each[name] for each in NETWORKS] for name in ("a", "b")])
    assert found == [2.5, 2.75, 1.75, 3.0]
    assert np.argsort([mix.score(each) for each in NETWORKS]).tolist() == np.argsort(found).tolist()


def test_what_is_better_than_all_references_is_still_told_apart():
    mix = rank_mix(["a", "b"], NETWORKS)
    scores = [mix.score({"a": a, "b": 30.0}) for a in (-10.0, 0.0, 1.0, 6.0, 7.0, 100.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 6


def test_equal_references_are_a_place_in_the_middle():
    mix = rank_mix(["a"], [{"a": 3.0}, {"a": 3.0}])
    assert [mix.score({"a": value}) for value in (2.0, 3.0, 4.0)] == [0.0, 0.5, 1.0]


def test_the_choice_finds_the_two_halves_of_the_truth():
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(2, 200))
    truth = halves.sum(0)
    columns = {"noise": rng.normal(size=200), "one": halves[0], "other": halves[1], "copy": 2 * halves[0] + 1}
    values = {name: column.tolist() for name, column in columns.items()}
    chosen = choose_mix(values, truth.tolist())
    assert set(chosen) in ({"one", "other"}, {"copy", "other"})
    assert spearman(mean_ranks([values[each] for each in chosen]), truth.tolist()) > 0.95


def test_a_single_proxy_that_is_the_truth_stays_alone():
    assert choose_mix({"good": [1, 2, 3, 4, 5], "bad": [5, 1, 4, 2, 3]}, [10, 20, 30, 40, 50]) == ("good",)


def test_nothing_to_mix_is_an_error():
    with pytest.raises(ValueError, match="got none"):
        rank_mix([], NETWORKS)
    with pytest.raises(ValueError, match="got none"):
        rank_mix(["a"], [])
    with pytest.raises(ValueError, match="got none"):
        choose_mix({}, [])
