"""What is known of any genes for nothing: the network, its exact static cost, and so whether it keeps the budget.

Samplers of our own move on this ground: they look at hundreds of neighbours for each one that is evaluated, and what
they propose keeps the budget by construction.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evaluators.static import StaticCost
from nas.features import Features, features_of
from nas.problem import Problem
from searchspace.choosers import Gene, random_choice, recording, replay
from searchspace.space import gene_options, member
from searchspace.spec import ArchSpec

Genes = Mapping[str, Gene]

# Where one network in many keeps the budget, drawing goes on for so long before one is made to keep it.
DRAWS = 40

# A mutant that keeps the budget and is new is looked for so often before the search goes further away.
MUTATIONS = 60


@dataclass(frozen=True)
class Place:
    """Genes, the network that they describe and what it costs; two places are one where the network is the same."""

    genes: Genes
    spec: ArchSpec
    cost: StaticCost

    @property
    def latency_ms(self) -> float:
        return self.cost.latency.value_ms

    @cached_property
    def features(self) -> Features:
        """Worked out once, since a place is compared with each that comes after it."""
        return features_of(self.spec, self.cost)


@dataclass(frozen=True, slots=True)
class Visited:
    """A place that was evaluated, with its score."""

    place: Place
    score: float


@dataclass(frozen=True, slots=True)
class History:
    """What was proposed so far: with a score, not answered yet, and all networks that must not be proposed again."""

    scored: Sequence[Visited]
    pending: Sequence[Place]
    seen: frozenset[ArchSpec]


class Ground:
    """Genes of one space on one target within one budget."""

    def __init__(self, problem: Problem, fastest: Genes) -> None:
        """`fastest` are genes that keep the budget."""
        self.options = {name: options for name, options in gene_options(problem.space).items() if len(options) > 1}
        self.fastest = fastest
        self.problem = problem

    def place(self, genes: Genes) -> Place:
        """Where genes lead."""
        spec = member(self.problem.space, replay(genes), self.problem.task)
        return Place(genes, spec, self.problem.costs(spec))

    def keeps_budget(self, place: Place) -> bool:
        """Whether the upper end of its latency keeps the budget, not the middle."""
        return place.cost.latency.high_ms <= self.problem.settings.budget_ms

    def random_place(self, rng: random.Random) -> Place:
        """A random network within the budget; where those are rare, one that was moved towards the fastest."""
        for _ in range(DRAWS):
            genes: dict[str, Gene] = {}
            spec = member(self.problem.space, recording(random_choice(rng), genes), self.problem.task)
            place = Place(genes, spec, self.problem.costs(spec))
            if self.keeps_budget(place):
                return place
        return self.repaired(genes, rng)

    def repaired(self, genes: Genes, rng: random.Random) -> Place:
        """The genes with as few as possible, in random order, put to those of the fastest member so that it fits."""
        changed = dict(genes)
        for name in rng.sample(sorted(self.fastest), len(self.fastest)):
            changed[name] = self.fastest[name]
            place = self.place(dict(changed))
            if self.keeps_budget(place):
                break
        return place

    def mutant(self, genes: Genes, rng: random.Random) -> dict[str, Gene]:
        """The genes with one changed, sometimes more: to the next option as often as to any."""
        changed = dict(genes)
        while True:
            name = rng.choice(list(self.options))
            options = self.options[name]
            here = options.index(changed[name])
            step = here + rng.choice((-1, 1))
            if rng.random() < 0.5 and 0 <= step < len(options):
                changed[name] = options[step]
            else:
                changed[name] = rng.choice([option for index, option in enumerate(options) if index != here])
            if rng.random() < 0.5:
                return changed

    def cross(self, first: Genes, second: Genes, rng: random.Random) -> dict[str, Gene]:
        """Each gene from one parent or the other."""
        return {name: (first if rng.random() < 0.5 else second)[name] for name in first}

    def new_place(self, draw: Callable[[], Genes], unwanted: frozenset[ArchSpec]) -> Place | None:
        """The first of what is drawn that keeps the budget and is new, None where many in a row do not."""
        for _ in range(MUTATIONS):
            place = self.place(draw())
            if place.spec not in unwanted and self.keeps_budget(place):
                return place
        return None
