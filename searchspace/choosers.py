"""Ways to answer a space's questions: at random, from a record, or all of them in turn.

A space asks `choose(name, options)` for every gene in a fixed order, whether or not the gene ends up in the network.
What answers is interchangeable; Optuna's lives in `nas.sampling`.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

Gene = str | int | float | bool
Genes = Mapping[str, Gene]
G = TypeVar("G", bound=Gene)
T = TypeVar("T")


class Choose(Protocol):
    """Picks one of the options for the gene called `name`."""

    def __call__(self, name: str, options: Sequence[G], /) -> G: ...


class UnknownGene(ValueError):
    """A record of genes does not answer what a space asks."""


def random_choice(rng: random.Random) -> Choose:
    """Every option with equal chance."""

    def choose(name: str, options: Sequence[G]) -> G:
        return options[rng.randrange(len(options))]

    return choose


def replay(genes: Genes) -> Choose:
    """The recorded answers, each checked against what the space offers now.

    Raises:
        UnknownGene: (when asked) the record lacks the gene, or holds a value that is not offered.
    """

    def choose(name: str, options: Sequence[G]) -> G:
        if name not in genes:
            raise UnknownGene(f"the space asks for the gene {name!r}, which the record lacks")
        for option in options:
            # True == 1 in Python, and a gene of 1 must not be read as True
            if option == genes[name] and type(option) is type(genes[name]):
                return option
        raise UnknownGene(f"gene {name!r} must be one of {', '.join(map(repr, options))}, got {genes[name]!r}")

    return choose


def recording(choose: Choose, genes: dict[str, Gene]) -> Choose:
    """Answers as `choose` does and writes each answer into `genes`."""

    def recorded(name: str, options: Sequence[G]) -> G:
        genes[name] = answer = choose(name, options)
        return answer

    return recorded


def prefixed(choose: Choose, prefix: str) -> Choose:
    """Asks `choose` with `prefix` before each name."""

    def choose_prefixed(name: str, options: Sequence[G]) -> G:
        return choose(prefix + name, options)

    return choose_prefixed


def every_outcome(function: Callable[[Choose], T]) -> Iterator[tuple[dict[str, Gene], T]]:
    """Each combination of answers with what `function` returns for it, the last gene varying fastest."""
    digits: list[int] = []
    while True:
        sizes: list[int] = []

        def choose(name: str, options: Sequence[G], sizes: list[int] = sizes) -> G:
            if len(sizes) == len(digits):
                digits.append(0)
            sizes.append(len(options))
            return options[digits[len(sizes) - 1]]

        genes: dict[str, Gene] = {}
        yield genes, function(recording(choose, genes))
        del digits[len(sizes) :]
        while digits and digits[-1] == sizes[len(digits) - 1] - 1:
            digits.pop()
        if not digits:
            return
        digits[-1] += 1
