"""Evolution by mutation: parents from the best so far by rank and crowding, children that keep the budget.

One child at a time enters a population that keeps the best of all there were (Deb et al., NSGA-II, 2002, for rank and
crowding; Durillo et al., 2009, for one child at a time). What NSGA-II of `SAMPLERS` turns down unevaluated, by the
dozen where budgets are tight, is never proposed here.
"""

import random
from collections.abc import Sequence

from nas.ground import Genes, Ground, History, Place, Visited
from nas.pareto import Point, fronts

POPULATION = 30

# Random networks before there are parents, the fastest member and the published ones included.
FIRST = 16

# How many children have two parents.
CROSSED = 0.3


def propose(ground: Ground, history: History, rng: random.Random) -> Place:
    """The next network to evaluate; a known one where there seems to be no new one."""
    if len(history.scored) + len(history.pending) < FIRST or not history.scored:
        return ground.new_place(lambda: ground.random_place(rng).genes, history.seen) or ground.random_place(rng)
    population = ranked(history.scored, POPULATION)

    def child() -> Genes:
        return child_of(ground, population, rng)

    found = ground.new_place(child, history.seen)
    return found or ground.new_place(lambda: ground.random_place(rng).genes, history.seen) or ground.place(child())


def child_of(ground: Ground, population: Sequence[Visited], rng: random.Random) -> Genes:
    """Genes of a child; `population` is sorted, the best first."""
    genes = tournament(population, rng).place.genes
    if rng.random() < CROSSED:
        genes = ground.cross(genes, tournament(population, rng).place.genes, rng)
    return ground.mutant(genes, rng)


def tournament(population: Sequence[Visited], rng: random.Random) -> Visited:
    """The better of two at random."""
    return population[min(rng.randrange(len(population)), rng.randrange(len(population)))]


def ranked(visited: Sequence[Visited], count: int) -> list[Visited]:
    """The best by rank, and within a rank by crowding: the loneliest first."""
    points = [(each.score, each.place.latency_ms) for each in visited]
    best: list[Visited] = []
    for layer in fronts(points, count):
        lonely = crowding([points[index] for index in layer])
        order = sorted(range(len(layer)), key=lambda place: (-lonely[place], place))
        best += [visited[layer[place]] for place in order]
    return best[:count]


def crowding(points: Sequence[Point]) -> list[float]:
    """Of each point of a front, sorted by latency, how far its neighbours lie apart; the ends are the loneliest."""
    if len(points) < 3:
        return [float("inf")] * len(points)
    spans = [max(points[-1][axis], points[0][axis]) - min(points[-1][axis], points[0][axis]) for axis in (0, 1)]
    inner = [
        sum(abs(after[axis] - before[axis]) / spans[axis] for axis in (0, 1) if spans[axis])
        for before, after in zip(points, points[2:], strict=False)
    ]
    return [float("inf"), *inner, float("inf")]
