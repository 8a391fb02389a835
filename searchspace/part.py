"""What a space is made of: questions, and what is built from the answers that matter.

A part lists all of its questions, so that samplers are asked each of them in a fixed order whatever the answers. What
it builds reads answers one by one, when it needs them. A question that is never read had no say, which is how an
enumeration knows the combinations that differ in nothing and leaves them out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from searchspace.choosers import Choose, G, Gene, every_outcome

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Question(Generic[G]):
    """A gene and what it may be.

    `only_adds` says that each option makes what the one before it makes, and operations more, and leads to the same
    shape: the first that is allowed is the cheapest, whatever the device. That is so for a depth and for a part which
    is there or not; it is not for a width or a kernel, which a device may like better when they are larger.
    """

    name: str
    options: tuple[G, ...]
    only_adds: bool = False

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError(f"question {self.name!r} needs at least one option, got none")


class Answer(Protocol):
    """Reads the answer to one of a part's questions."""

    def __call__(self, question: Question[G], /) -> G: ...


@dataclass(frozen=True)
class Part(Generic[In, Out]):
    """Questions in the order of asking, and what follows from the answers and from what is there already.

    `build` reads what it needs and nothing more, late rather than early: where it makes block after block, the blocks
    before the next question tell a search for the cheapest what it will cost at least.
    """

    questions: tuple[Question[Any], ...]
    build: Callable[[Answer, In], Out]

    def __post_init__(self) -> None:
        names = [question.name for question in self.questions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"a part asks each question once, got {name!r} twice; share the question or rename it")

    @property
    def options(self) -> dict[str, tuple[Gene, ...]]:
        """What may be answered, by the name of the question; fewer than `build` knows of where a space is narrowed."""
        return {question.name: question.options for question in self.questions}

    @property
    def cheapest_options(self) -> dict[str, tuple[Gene, ...]]:
        """What may be answered without adding more than there must be."""
        return {each.name: each.options[:1] if each.only_adds else each.options for each in self.questions}


def ask(part: Part[In, Out], choose: Choose, prefix: str = "") -> Answer:
    """Asks every question of a part, each name behind the prefix, and returns what reads the answers."""
    answers: dict[str, Any] = {
        question.name: choose(prefix + question.name, question.options) for question in part.questions
    }

    def answer(question: Question[G]) -> G:
        found: G = answers[question.name]
        return found

    return answer


def outcomes(part: Part[In, Out], given: In) -> Iterator[tuple[dict[str, Gene], Out]]:
    """Everything that a part builds from what is given, with the answers that were read for it.

    An iterator is built before it reads anything; make it a tuple in `build`.
    """
    options: dict[str, Any] = dict(part.options)

    def build(choose: Choose) -> Out:
        # Read twice, a question is still one question.
        answers: dict[str, Any] = {}

        def answer(question: Question[G]) -> G:
            if question.name not in answers:
                answers[question.name] = choose(question.name, options[question.name])
            found: G = answers[question.name]
            return found

        return part.build(answer, given)

    return every_outcome(build)


def one_of(name: str, parts: Mapping[str, Part[In, Out]]) -> Part[In, Out]:
    """One of several parts, by a question of that name; a question that several of them share is asked once."""
    choice = Question(name, tuple(parts))
    shared = dict.fromkeys(question for part in parts.values() for question in part.questions)
    return Part((choice, *shared), lambda answer, given: parts[answer(choice)].build(answer, given))


def fixed(outcome: Out) -> Part[Any, Out]:
    """A part with nothing to choose."""
    return Part((), lambda answer, given: outcome)
