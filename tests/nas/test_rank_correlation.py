"""Rank correlation against scipy's, and chance counted by hand."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from nas.rank_correlation import chance, ranks, spearman


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
