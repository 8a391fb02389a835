"""A rank mix: several proxies as one score, each by the place that it gives a network among known ones.

Places and not values, since proxies have units of their own: one that spans orders of magnitude would decide alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hardware.rank_correlation import ranks, spearman

# A mix grows as long as another proxy adds so much to its rank correlation, to at most so many.
WORTH, LARGEST = 0.01, 4


@dataclass(frozen=True, slots=True)
class RankMix:
    """The mean, over proxies, of a network's place among reference networks: 0 below and 1 above all of them.

    `places` has for each proxy the values of the reference networks, rising and distinct, with their places between.
    """

    places: Mapping[str, tuple[tuple[float, float], ...]]

    def score(self, values: Mapping[str, float]) -> float:
        """The mean place; beyond the reference networks it goes on in a line, so that better stays better.

        Raises:
            KeyError: a proxy of the mix has no value.
        """
        return sum(_place(values[name], known) for name, known in self.places.items()) / len(self.places)


def rank_mix(names: Iterable[str], networks: Sequence[Mapping[str, float]]) -> RankMix:
    """The mix of these proxies with some networks as reference.

    Raises:
        ValueError: there are no networks or no names.
    """
    places = {name: _places([network[name] for network in networks]) for name in names}
    if not networks or not places:
        raise ValueError("a rank mix needs a proxy and a reference network, got none")
    return RankMix(places)


def mean_ranks(columns: Iterable[Sequence[float]]) -> list[float]:
    """The mean rank of each network over some proxies' values for all of them."""
    found: list[float] = np.mean([ranks(column) for column in columns], axis=0).tolist()
    return found


def choose_mix(values: Mapping[str, Sequence[float]], truth: Sequence[float]) -> tuple[str, ...]:
    """The proxies whose mean rank correlates most with the truth, found by adding one after the other.

    What it reaches on the networks that it was chosen on is too good: judge it on others.

    Raises:
        ValueError: there are no proxies.
    """
    if not values:
        raise ValueError("a mix is chosen from proxies, got none")
    chosen: tuple[str, ...] = ()
    reached = -2.0
    while len(chosen) < LARGEST:
        options = {
            name: _correlation([values[each] for each in (*chosen, name)], truth)
            for name in values
            if name not in chosen
        }
        best = max(options, key=lambda name: options[name], default=None)
        if best is None or (chosen and options[best] < reached + WORTH):
            break
        chosen, reached = (*chosen, best), options[best]
    return chosen


def _correlation(columns: Sequence[Sequence[float]], truth: Sequence[float]) -> float:
    found = spearman(mean_ranks(columns), truth)
    return -1.0 if found is None else found


def _places(column: Sequence[float]) -> tuple[tuple[float, float], ...]:
    by_value = dict(zip(column, ((ranks(column) - 0.5) / len(column)).tolist(), strict=True))
    return tuple(sorted(by_value.items()))


def _place(value: float, known: tuple[tuple[float, float], ...]) -> float:
    points, places = [point for point, _ in known], [place for _, place in known]
    if len(known) == 1:
        return places[0] + 0.5 * (value > points[0]) - 0.5 * (value < points[0])
    slope = (places[-1] - places[0]) / (points[-1] - points[0])
    beyond = max(0.0, value - points[-1]) - max(0.0, points[0] - value)
    return float(np.interp(value, points, places)) + slope * beyond
