"""The rungs of the ladder and their price, against sums by hand."""

import pytest

from nas.rungs import Rung, narrowed, price_s, rungs_for


@pytest.mark.parametrize(
    ("contenders", "finalists", "epochs", "expected"),
    [
        (8, 4, 12, [(3, 8), (12, 4)]),
        (4, 4, 12, [(12, 4)]),
        (3, 4, 12, [(12, 3)]),
        (5, 4, 12, [(3, 5), (12, 4)]),
        (16, 4, 64, [(4, 16), (16, 8), (64, 4)]),
        (8, 4, 1, [(1, 4)]),
        (9, 1, 2, [(1, 9), (2, 1)]),
    ],
)
def test_each_rung_doubles_the_candidates_for_a_quarter_of_the_epochs(contenders, finalists, epochs, expected):
    assert rungs_for(contenders, finalists, epochs) == [Rung(*each) for each in expected]


LADDER = [Rung(3, 4), Rung(12, 2)]


def test_a_price_counts_the_epochs_that_are_left_to_train():
    # Four to epoch 3, then two of them, nobody knows which, for nine more at a mean of 2.5 s.
    assert price_s(LADDER, [0, 0, 0, 0], [1.0, 2.0, 3.0, 4.0], workers=1) == 3 * 10 + 2 * 9 * 2.5
    assert price_s(LADDER, [0, 0, 0, 0], [1.0, 2.0, 3.0, 4.0], workers=2) == 37.5
    # What is trained already costs nothing; who has come further has less to go.
    assert price_s(LADDER, [3, 3, 0, 5], [1.0, 1.0, 1.0, 1.0], workers=1) == 3 + 2 * (9 + 9 + 9 + 7) / 4
    assert price_s(LADDER[1:], [3, 12], [2.0, 5.0], workers=1) == 9 * 2


@pytest.mark.parametrize(
    ("left_s", "places"),
    # One second an epoch: all cost 4 x 3 + 2 x 9 = 30, three 9 + 18 = 27, two 6 + 9 = 15.
    [(30, [4, 2]), (29, [3, 2]), (26, [2, 1]), (15, [2, 1]), (14, [1, 1]), (-5, [1, 1])],
)
def test_as_many_are_trained_as_can_be_paid_and_one_in_any_case(left_s, places):
    found = narrowed(LADDER, [0] * 4, [1.0] * 4, 1, left_s)
    assert [rung.places for rung in found] == places
    assert [rung.epochs for rung in found] == [3, 12]
