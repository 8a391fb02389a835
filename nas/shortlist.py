"""Which candidates are worth training: the best of the score that led the search, and of those it has to beat.

An early score is an opinion. Finalists therefore come in turn from the fronts of several: the score that led, the
training loss and plain multiply-adds. What each of them was chosen by is kept, so that a finished study shows whether
the score deserved to lead.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.scores import SCORES
from nas.pareto import Point, front, spread_choice
from nas.study import Evaluated

BASELINES = ("loss", "macs")


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate that will be trained, and the scores on whose front it lies; none if it only filled a place."""

    candidate: Evaluated
    on_front_of: tuple[str, ...]


def shortlist(evaluated: Sequence[Evaluated], count: int, leading: str) -> list[Finalist]:
    """At most `count` candidates, the scores taking turns, each from the slow end of its front to the fast one."""
    scored = [candidate for candidate in evaluated if candidate.score is not None]
    views = list(dict.fromkeys((leading, *BASELINES)))
    points = {view: _points(scored, view) for view in views}
    chosen: list[int] = []
    # First each score's own share, spread along its front; then, where they agreed, what longer lists add.
    for length in (-(-count // len(views)), count):
        lists = [spread_choice(points[view], length)[::-1] for view in views]
        for index in itertools.chain.from_iterable(itertools.zip_longest(*lists)):
            if index is not None and index not in chosen and len(chosen) < count:
                chosen.append(index)
    fronts = {view: set(front(points[view])) for view in views}
    return [Finalist(scored[index], tuple(view for view in views if index in fronts[view])) for index in chosen]


def _points(scored: Sequence[Evaluated], view: str) -> list[Point]:
    """A name that is none of the scores' is that of the one that led."""
    points = []
    for candidate in scored:
        assert candidate.score is not None
        value = SCORES[view].value(known(candidate)) if view in SCORES else candidate.score
        points.append((value, candidate.cost.latency.value_ms))
    return points


def known(candidate: Evaluated) -> Mapping[str, float]:
    """Everything that a score may look at."""
    outcome = candidate.outcome if isinstance(candidate.outcome, Mapping) else {}
    return {"macs": float(candidate.cost.macs), "params": float(candidate.cost.params), **outcome}
