"""Fronts against brute force, on points with many ties."""

import random

import pytest

from nas.pareto import dominates, front, fronts, spread_choice


def beaten(point, points):
    """The definition: somebody is as good in both and better in one."""
    return any(
        other[0] >= point[0] and other[1] <= point[1] and (other[0] > point[0] or other[1] < point[1])
        for other in points
    )


def random_points(seed):
    rng = random.Random(seed)
    # Few distinct values, so that ties in one axis, in both, and whole duplicates are common.
    values = rng.choice([2, 4, 9, 1000])
    return [(rng.randrange(values) - 1.0, float(rng.randrange(values))) for _ in range(rng.randrange(40))]


SEEDS = range(200)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((2, 1), (1, 2), True),
        ((2, 1), (2, 2), True),
        ((2, 1), (1, 1), True),
        ((2, 1), (2, 1), False),
        ((1, 1), (2, 2), False),
        ((2, 2), (1, 1), False),
        ((1, 2), (2, 1), False),
    ],
)
def test_one_point_dominates_another_by_being_better_in_one_and_worse_in_none(first, second, expected):
    assert dominates(first, second) is expected


def test_the_front_is_what_nobody_beats_each_point_once_by_rising_latency():
    for points in map(random_points, SEEDS):
        found = front(points)
        assert {points[index] for index in found} == {point for point in points if not beaten(point, points)}
        latencies = [points[index][1] for index in found]
        assert latencies == sorted(set(latencies))
        assert all(points.index(points[index]) == index for index in found), "of equal points the first"


def test_no_points_have_no_front():
    assert front([]) == []
    assert fronts([]) == []
    assert spread_choice([], 3) == []


def test_scores_below_zero_and_the_worst_of_all_have_a_front_too():
    assert front([(-1e9, 5.0), (-2e9, 1.0), (-2e9, 6.0)]) == [1, 0]


def test_fronts_take_every_point_once_and_a_later_front_never_beats_an_earlier():
    for points in map(random_points, SEEDS):
        layers = fronts(points)
        assert sorted(index for layer in layers for index in layer) == list(range(len(points)))
        for position, layer in enumerate(layers):
            left = [points[index] for later in layers[position:] for index in later]
            assert {points[index] for index in layer} == {point for point in left if not beaten(point, left)}


def test_a_choice_is_as_many_different_points_as_were_asked_for_the_best_fronts_first():
    for seed, points in zip(SEEDS, map(random_points, SEEDS), strict=True):
        count = seed % 9
        chosen = spread_choice(points, count)
        assert len(chosen) == len(set(chosen)) == min(count, len(points))
        layer_of = {index: number for number, layer in enumerate(fronts(points)) for index in layer}
        deepest = max((layer_of[index] for index in chosen), default=0)
        whole = [index for index, number in layer_of.items() if number < deepest]
        assert set(whole) <= set(chosen), "a front is used up before the next is touched"


def test_a_front_that_is_too_long_is_thinned_evenly_with_both_ends_kept():
    points = [(float(place), float(place)) for place in range(11)]
    assert spread_choice(points, 2) == [0, 10]
    assert spread_choice(points, 3) == [0, 5, 10]
    assert spread_choice(points, 6) == [0, 2, 4, 6, 8, 10]
    assert spread_choice(points, 11) == list(range(11))


def test_a_single_place_goes_to_the_best_score():
    assert spread_choice([(1.0, 1.0), (3.0, 3.0), (2.0, 2.0)], 1) == [1]
