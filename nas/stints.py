"""The way of one candidate up the ladder, in stints: each ends on a rung, or earlier where it has taken long enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nas.contenders import Climbed, contender_job
from nas.finalists import FinalistPlan, finalist_job

# A training is put down about so often, so that no more is lost by whatever ends the run.
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Way:
    """What a worker needs to go on by itself: the epochs of the rungs, lowest first, and what an epoch should take.

    At the last rung the candidate has all its epochs and becomes a finalist with its files. A stint takes about
    `stint_s` seconds, and an epoch in any case.
    """

    finalist: FinalistPlan
    rungs: tuple[int, ...]
    epoch_s: float
    stint_s: float


# A function that can be pickled, and what it is called with.
Stint = tuple[Callable[..., Any], tuple[Any, ...]]


def next_stint(way: Way, before: Climbed | None, finish: Callable[..., Any] = finalist_job) -> Stint:
    """What is to be done for a candidate that has come as far as `before`; `finish` makes a finalist of it."""
    done = 0 if before is None else before.epochs
    epoch_s = way.epoch_s if before is None else before.seconds / before.epochs
    rung = next(epochs for epochs in way.rungs if epochs > done)
    until = min(rung, done + max(1, int(way.stint_s / max(epoch_s, 1e-9))))
    if until == way.rungs[-1]:
        return finish, (way.finalist, before)
    return contender_job, (way.finalist.training, before, until)
