"""The sampler `surrogate`: hundreds of neighbours are looked at for each network that is evaluated.

Latency, MACs, parameters and structure of any network cost microseconds; its score costs seconds. A Gaussian process
over the former guesses the latter and says how sure it is, and the network is proposed that can be expected to add most
to the hypervolume of the front. Latency being exact, the expectation is a sum over the steps of the front.
Source: expected hypervolume improvement, Emmerich et al., 2006.
"""

import math
import random
from collections.abc import Sequence
from itertools import islice

import numpy as np
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

from nas import evolution
from nas.gaussian_process import Array, GaussianProcess, Inputs, Settings, likeliest_settings
from nas.ground import Ground, History, Place, Visited
from nas.pareto import front, ranking
from searchspace.spec import ArchSpec

# How many scores there are before any is guessed.
FIRST = 16

# How many are looked at for each that is proposed: children of the best, and random ones.
CHILDREN, STRANGERS = 150, 12

# Guessing takes time that grows with the square of what it rests on, so it rests on no more scores than these.
MOST_SCORES = 500

# Settings are worked out anew whenever there are so many times as many scores, from no more than so many.
AGAIN_AT, SCORES_FOR_SETTINGS = 1.3, 250


class Screening:
    """Proposes by what is known for nothing; remembers nothing that does not follow from the history."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._settings: dict[int, Settings] = {}
        self._libraries = ThreadpoolController()

    def propose(self, history: History, rng: random.Random) -> Place:
        """The next network to evaluate."""
        if len(history.scored) < FIRST:
            return self._far_from_all(history, rng)
        pool = self._pool(history, rng)
        if not pool:
            return evolution.propose(self._ground, history, rng)
        # The cores are the workers'; beside them a second thread of algebra waits for the first, spinning, and a
        # proposal takes four times as long.
        with self._libraries.limit(limits=1, user_api="blas"):
            return pool[self._most_promising(history, pool)]

    def _far_from_all(self, history: History, rng: random.Random) -> Place:
        """Of some random networks the one least like those that were proposed."""
        strangers = self._strangers(history, rng, {})
        known = [*(each.place for each in history.scored), *history.pending]
        if not strangers or not known:
            return evolution.propose(self._ground, history, rng)
        inputs = inputs_of([*known, *strangers])
        rows = np.hstack([inputs.structure, inputs.cost])
        gaps = ((rows[len(known) :, None, :] - rows[None, : len(known), :]) ** 2).sum(2).min(1)
        return strangers[largest(gaps)]

    def _pool(self, history: History, rng: random.Random) -> list[Place]:
        parents = evolution.ranked(history.scored, evolution.POPULATION)
        found: dict[ArchSpec, Place] = {}
        for _ in range(2 * CHILDREN):
            place = self._ground.place(evolution.child_of(self._ground, parents, rng))
            if place.spec not in history.seen and self._ground.keeps_budget(place):
                found.setdefault(place.spec, place)
            if len(found) == CHILDREN:
                break
        return [*found.values(), *self._strangers(history, rng, found)]

    def _strangers(self, history: History, rng: random.Random, found: dict[ArchSpec, Place]) -> list[Place]:
        drawn = {place.spec: place for place in (self._ground.random_place(rng) for _ in range(STRANGERS))}
        return [place for spec, place in drawn.items() if spec not in history.seen and spec not in found]

    def _most_promising(self, history: History, pool: Sequence[Place]) -> int:
        scored = telling(history.scored)
        known = [*(each.place for each in scored), *history.pending]
        inputs = inputs_of([*known, *pool])
        count = len(known)
        # What is not answered yet is taken to come out as guessed, so that the next proposal goes elsewhere.
        process = GaussianProcess(
            inputs.rows(slice(0, count)),
            np.array([each.score for each in scored]),
            self._settings_for(history.scored),
        )
        mean, spread = process.predict(inputs.rows(slice(count, None)))
        latencies = np.array([place.latency_ms for place in (*known, *pool)])
        budget_ms = self._ground.problem.settings.budget_ms
        return largest(
            expected_gain((process.guesses, latencies[:count]), (mean, spread, latencies[count:]), budget_ms)
        )

    def _settings_for(self, scored: Sequence[Visited]) -> Settings:
        count = FIRST
        while int(count * AGAIN_AT) <= len(scored):
            count = int(count * AGAIN_AT)
        if count not in self._settings:
            used = scored[max(0, count - SCORES_FOR_SETTINGS) : count]
            scores = np.array([each.score for each in used])
            inputs = inputs_of([each.place for each in used])
            self._settings[count] = likeliest_settings(inputs, scores, seed=count)
        return self._settings[count]


def telling(scored: Sequence[Visited]) -> Sequence[Visited]:
    """The scores that say most of what may come next, in the order they came: half the best, half the latest."""
    if len(scored) <= MOST_SCORES:
        return scored
    points = [(each.score, each.place.latency_ms) for each in scored]
    chosen = set(ranking(points, MOST_SCORES // 2))
    latest = (index for index in range(len(scored) - 1, -1, -1) if index not in chosen)
    chosen.update(islice(latest, MOST_SCORES - len(chosen)))
    return [scored[index] for index in sorted(chosen)]


def largest(values: Array) -> int:
    """The index of the largest, the first of those that differ by no more than arithmetic does between machines."""
    top = float(values.max())
    return int(np.argmax(values >= top - 1e-9 * abs(top)))


def expected_gain(known: tuple[Array, Array], asked: tuple[Array, Array, Array], budget_ms: float) -> Array:
    """By how much each network that is asked about can be expected to raise the hypervolume of those that are known.

    `known` are scores and latencies; `asked` are means and standard deviations of scores, and latencies. The volume is
    between the lowest known score and the budget.
    """
    scores, latencies = known
    mean, spread, asked_ms = asked
    steps = front(list(zip(scores.tolist(), latencies.tolist(), strict=True)))
    # From one member of the front to the next, a network must beat the score of the former.
    floor = float(scores.min())
    thresholds = np.array([floor, *(float(scores[index]) for index in steps)])
    starts = np.array([0.0, *(float(latencies[index]) for index in steps)])
    ends = np.array([*starts[1:], budget_ms])
    widths = np.maximum(0.0, ends[None, :] - np.maximum(starts[None, :], asked_ms[:, None]))
    above = mean[:, None] - thresholds[None, :]
    ratio = above / spread[:, None]
    density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    expected = above * ndtr(ratio) + spread[:, None] * density
    result: Array = (widths * np.maximum(0.0, expected)).sum(1)
    return result


def inputs_of(places: Sequence[Place]) -> Inputs:
    """Features of networks, each with mean 0 and spread 1 over these; what none of them varies in is left out."""
    rows = [place.features.structure for place in places]
    names = sorted({name for row in rows for name in row})
    structure = np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=float).reshape(len(rows), -1)
    costs = np.array([place.features.cost for place in places])
    return Inputs(_standardised(structure), _standardised(costs))


def _standardised(columns: Array) -> Array:
    spread = columns.std(0)
    varied = spread > 1e-9
    result: Array = (columns[:, varied] - columns[:, varied].mean(0)) / spread[varied]
    return result
