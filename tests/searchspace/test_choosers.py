"""Ways to answer a space's questions."""

import itertools
import random

import pytest

from searchspace.choosers import UnknownGene, every_outcome, prefixed, random_choice, recording, replay


def conditional(choose):
    """Asks further questions depending on the answers, and offers other options too."""
    kind = choose("kind", ("a", "b", "c"))
    if kind == "a":
        return (kind,)
    size = choose("size", (1, 2) if kind == "b" else (3, 4, 5))
    if size in (2, 4):
        return (kind, size, choose("deep", (False, True)), choose("last", (7,)))
    return (kind, size)


def test_every_outcome_comes_once_the_last_answer_varying_fastest():
    expected = [
        ("a",),
        ("b", 1),
        ("b", 2, False, 7),
        ("b", 2, True, 7),
        ("c", 3),
        ("c", 4, False, 7),
        ("c", 4, True, 7),
        ("c", 5),
    ]
    assert [outcome for _, outcome in every_outcome(conditional)] == expected


def test_every_outcome_of_independent_questions_is_their_product():
    options = {"w": (1, 2), "x": ("p",), "y": (True, False, 3), "z": (0.5, 1.5)}

    def ask(choose):
        return tuple(choose(name, values) for name, values in options.items())

    found = list(every_outcome(ask))
    assert [outcome for _, outcome in found] == list(itertools.product(*options.values()))
    assert [tuple(genes.values()) for genes, _ in found] == list(itertools.product(*options.values()))
    assert all(list(genes) == list(options) for genes, _ in found)


def test_the_answers_that_come_with_an_outcome_lead_to_it_again():
    for genes, outcome in every_outcome(conditional):
        assert conditional(replay(genes)) == outcome
        assert set(genes) <= {"kind", "size", "deep", "last"}


def test_a_function_without_questions_has_one_outcome():
    assert list(every_outcome(lambda choose: 3)) == [({}, 3)]


def test_outcomes_can_be_left_off_and_begun_again():
    first = next(every_outcome(conditional))
    assert first == ({"kind": "a"}, ("a",))
    assert len(list(itertools.islice(every_outcome(conditional), 3))) == 3


def test_a_record_answers_only_what_is_offered():
    choose = replay({"width": 8, "on": 1, "share": 2})
    assert choose("width", (8, 16)) == 8
    with pytest.raises(UnknownGene, match="gene 'width' must be one of 16, 32, got 8"):
        choose("width", (16, 32))
    with pytest.raises(UnknownGene, match="asks for the gene 'depth', which the record lacks"):
        choose("depth", (1,))


def test_a_record_tells_numbers_from_truth_values():
    # True == 1 in Python.
    with pytest.raises(UnknownGene, match="must be one of False, True, got 1"):
        replay({"on": 1})("on", (False, True))
    with pytest.raises(UnknownGene, match="must be one of 0, 1, got True"):
        replay({"n": True})("n", (0, 1))
    assert replay({"on": True})("on", (1, True)) is True


def test_random_answers_follow_the_generator_and_reach_every_option():
    def draw(seed):
        choose = random_choice(random.Random(seed))
        return [choose("x", (1, 2, 3)) for _ in range(60)]

    assert draw(1) == draw(1) != draw(2)
    assert set(draw(1)) == {1, 2, 3}


def test_recording_writes_down_what_was_answered():
    genes = {}
    choose = recording(prefixed(lambda name, options: options[-1], "stage1."), genes)
    assert choose("width", (8, 16)) == 16
    assert genes == {"width": 16}


def test_a_prefix_stands_before_the_name():
    asked = []

    def choose(name, options):
        asked.append(name)
        return options[0]

    prefixed(prefixed(choose, "a."), "b.")("x", (1,))
    assert asked == ["a.b.x"]
