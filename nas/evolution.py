"""Evolution by mutation: parents from the best so far by rank and crowding, children that keep the budget.

One child at a time enters a population that keeps the best of all there were (Deb et al., NSGA-II, 2002, for rank and
crowding; Durillo et al., 2009, for one child at a time). What NSGA-II of `SAMPLERS` turns down unevaluated, by the
dozen where budgets are tight, is never proposed here.
"""

import random
from collections.abc import Sequence

from nas.ground import Genes, Ground, History, Place, Visited
from nas.pareto import ranking

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
    return [visited[index] for index in ranking(points, count)]
