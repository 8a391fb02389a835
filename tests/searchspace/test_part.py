"""Parts: every question is asked, and only what is read makes a difference."""

import pytest

from searchspace.choosers import replay
from searchspace.part import Part, Question, ask, fixed, one_of, outcomes

FAMILY_A = Question("a", (1, 2))
FAMILY_B = Question("b", (10, 20, 30))
SHARED = Question("width", (4, 8))


def chosen():
    first = Part((SHARED, FAMILY_A), lambda answer, given: ("a", given, answer(SHARED), answer(FAMILY_A)))
    second = Part((SHARED, FAMILY_B), lambda answer, given: ("b", given, answer(FAMILY_B)))
    return one_of("family", {"a": first, "b": second})


def test_every_question_is_asked_once_in_the_order_of_the_list_whatever_the_answers():
    for family in ("a", "b"):
        seen = []
        genes = {"s.family": family, "s.width": 8, "s.a": 2, "s.b": 30}

        def choose(name, options, seen=seen, genes=genes):
            seen.append(name)
            return replay(genes)(name, options)

        answer = ask(chosen(), choose, "s.")
        assert seen == ["s.family", "s.width", "s.a", "s.b"]
        assert chosen().build(answer, 5) == {"a": ("a", 5, 8, 2), "b": ("b", 5, 30)}[family]


def test_outcomes_are_the_sum_over_families_and_not_the_product():
    found = list(outcomes(chosen(), 5))
    assert len(found) == 2 * 2 + 3
    assert found[-1] == ({"family": "b", "b": 30}, ("b", 5, 30))
    assert len({outcome for _, outcome in found}) == len(found)


def test_a_question_that_is_read_twice_has_one_answer():
    part = Part((FAMILY_A,), lambda answer, given: (answer(FAMILY_A), answer(FAMILY_A)))
    assert [outcome for _, outcome in outcomes(part, None)] == [(1, 1), (2, 2)]


def test_a_fixed_part_has_one_outcome_and_asks_nothing():
    assert list(outcomes(fixed("stem"), None)) == [({}, "stem")]
    assert fixed("stem").questions == ()


def test_two_questions_of_one_name_are_refused():
    with pytest.raises(ValueError, match="asks each question once, got 'a' twice"):
        one_of("family", {"x": Part((FAMILY_A,), min), "y": Part((Question("a", (7,)),), min)})
    with pytest.raises(ValueError, match="got 'a' twice"):
        one_of("a", {"x": Part((FAMILY_A,), min)})


def test_a_question_without_options_is_refused():
    with pytest.raises(ValueError, match="question 'a' needs at least one option"):
        Question("a", ())
