"""Names of points that crowd: none on another, on a mark or outside the picture."""

import itertools
import random
import re
from xml.etree import ElementTree

import pytest
from PIL import ImageFont

from nas.front_picture import HEIGHT, WIDTH, front_picture, svg
from nas.label_places import Box, label_places

ROOM = Box(0, 0, 400, 300)
NAME = (24.0, 11.0)


def on_each_other(boxes):
    return [(first, second) for first, second in itertools.combinations(boxes, 2) if first.shared(second) > 0]


def around(point, reach=6):
    return Box(point[0] - reach, point[1] - reach, point[0] + reach, point[1] + reach)


def test_a_shared_area_is_that_of_the_rectangle_in_both():
    assert Box(0, 0, 4, 3).shared(Box(3, 1, 9, 9)) == 2
    assert Box(0, 0, 4, 3).shared(Box(4, 0, 9, 9)) == 0


def test_a_name_stands_above_to_the_right_of_a_point_that_is_alone():
    (place,) = label_places([(100, 100)], [NAME], [around((100, 100))], [], ROOM)
    assert (place.left, place.bottom) == (106, 94)


@pytest.mark.parametrize("corner", [(0, 0), (400, 0), (0, 300), (400, 300), (200, 0), (400, 150)])
def test_no_name_leaves_the_picture_or_lies_on_its_point(corner):
    (place,) = label_places([corner], [NAME], [around(corner)], [], ROOM)
    assert place.left >= 0
    assert place.top >= 0
    assert place.right <= 400
    assert place.bottom <= 300
    assert place.shared(around(corner)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_names_of_points_that_crowd_are_beside_each_other_and_not_far(seed):
    rng = random.Random(seed)
    points = [(200 + rng.uniform(-15, 15), 150 + rng.uniform(-15, 15)) for _ in range(10)]
    marks = [around(point) for point in points]
    places = label_places(points, [NAME] * len(points), marks, [], ROOM)
    assert on_each_other(places) == []
    assert [(place, mark) for place, mark in itertools.product(places, marks) if place.shared(mark)] == []
    for point, place in zip(points, places, strict=True):
        near = place.nearest(point)
        assert max(abs(near[0] - point[0]), abs(near[1] - point[1])) <= 75


def test_a_line_is_left_free_where_that_costs_no_way():
    line = Box(100, 80, 300, 92)
    (place,) = label_places([(100, 100)], [NAME], [around((100, 100))], [line], ROOM)
    assert place.shared(line) == 0


def finalist(trial, accuracy, latency_ms):
    return {
        "trial": trial,
        "accuracy": {"value": accuracy},
        "latency_ms": {"value": latency_ms, "low": 0.9 * latency_ms, "high": 1.2 * latency_ms},
    }


FRONTS = {
    "steep": [finalist(100 + number, 0.98 + 0.0004 * number, 1 + 0.004 * number) for number in range(9)],
    "flat": [finalist(7 * number, 0.98 + 1e-6 * number, 1 + 0.05 * number) for number in range(9)],
    "heap and an outlier": [
        finalist(0, 0.5, 0.1),
        *(finalist(38 + number, 0.980 + 0.002 * number, 1 + 0.02 * number) for number in range(5)),
    ],
    "at the budget": [finalist(1234 + number, 0.9 + 0.001 * number, 4.8 + 0.02 * number) for number in range(5)],
}


@pytest.mark.parametrize("name", FRONTS)
def test_no_words_of_a_picture_lie_on_others(name):
    finalists = FRONTS[name]
    picture = svg(front_picture(finalists, {each["trial"] for each in finalists}, 5.0), alone=True)
    font = ImageFont.load_default(14)
    boxes, words = [], []
    for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text"):
        x, y, width = float(each.get("x")), float(each.get("y")), font.getlength(each.text)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[each.get("text-anchor")]
        boxes.append(Box(left, y - 10, left + width, y))
        words.append(each.text)
    assert on_each_other(boxes) == []
    assert {str(each["trial"]) for each in finalists} <= set(words)
    assert min(box.left for box in boxes) >= 0
    assert max(box.right for box in boxes) <= WIDTH
    assert max(box.bottom for box in boxes) <= HEIGHT


def test_every_mark_of_an_axis_has_words_of_its_own():
    close = [finalist(number, 0.9800 + 0.0001 * number, 1 + number) for number in range(4)]
    picture = svg(front_picture(close, set(), 5.0), alone=True)
    percents = re.findall(r">([0-9.]+) %<", picture)
    assert len(percents) > 2
    assert len(set(percents)) == len(percents)
