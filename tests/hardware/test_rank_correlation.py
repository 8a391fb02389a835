"""Rank correlation against scipy's, and chance counted by hand."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata, spearmanr

from hardware.rank_correlation import (
    bootstrap,
    chance,
    drawn_cases,
    interval,
    kendall,
    kendall_drawn,
    ranks,
    spearman,
    spearman_drawn,
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 3, 8, 30])
def test_it_is_scipys_with_ties_and_without(seed, count):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, count, count) / 2, rng.standard_normal(count)
    np.testing.assert_array_equal(ranks(first), rankdata(first))
    if len(set(first)) > 1:
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_without_an_order_there_is_no_correlation():
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1], [2]) is None
    assert chance([1, 1, 1], [1, 2, 3]) is None


def test_chance_is_the_share_of_orders_that_agree_as_well():
    # Of the six orders of three, only the same and the reversed one reach a correlation of 1.
    assert chance([1, 2, 3], [10, 20, 30]) == pytest.approx(2 / 6)
    assert chance([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == pytest.approx(2 / math.factorial(5))
    # 1, 3, 2 and its like have 0.5; only the two with 0.5, two with -0.5 and two with 1 reach it: all six.
    assert chance([1, 2, 3], [1, 3, 2]) == pytest.approx(1.0)


def test_chance_of_many_points_is_near_that_of_scipy():
    rng = np.random.default_rng(1)
    first = rng.standard_normal(12)
    second = first + 1.5 * rng.standard_normal(12)
    assert chance(first, second) == pytest.approx(spearmanr(first, second).pvalue, abs=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_kendall_is_scipys_tau_b(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 6, 30) / 2  # many ties
    second = first + rng.normal(0, 2, 30) if seed % 2 else rng.integers(0, 3, 30)
    assert kendall(first, second) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)


def test_kendall_by_hand():
    # Of the three pairs of 1, 2, 3 and 1, 3, 2 two agree.
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall([1, 1], [1, 2]) is None
    assert kendall([1], [1]) is None


def test_the_bootstrap_of_a_mean_is_the_normal_one_for_many_cases():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap(lambda cases: float(values[cases].mean()), 400)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_bootstrap_repeats_itself_and_leaves_out_what_is_not_defined():
    values = [0.0, 0.0, 1.0]

    def statistic(cases):
        return spearman([values[each] for each in cases], cases.tolist())

    assert bootstrap(statistic, 3, samples=50) == bootstrap(statistic, 3, samples=50)
    assert bootstrap(lambda cases: None, 3) is None


def test_correlations_of_draws_are_those_of_each_draw():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 9).astype(float), rng.random(9)
    draws = drawn_cases(9, samples=50, seed=3)
    draws[7] = 4  # one case nine times over
    for whole, drawn in ((spearman, spearman_drawn), (kendall, kendall_drawn)):
        found = drawn(first, second, draws)
        for places, value in zip(draws, found, strict=True):
            expected = whole(first[places].tolist(), second[places].tolist())
            assert math.isnan(value) if expected is None else value == pytest.approx(expected)
        assert math.isnan(found[7])
    assert set(draws.flatten()) == set(range(9))


def test_an_interval_leaves_out_what_is_no_number():
    values = np.array([np.nan, *np.arange(101.0)])
    assert interval(values, share=0.9) == pytest.approx((5.0, 95.0))
    assert interval(np.array([np.nan])) is None
