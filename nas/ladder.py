"""The upper rungs of a search: what early scores favour is trained a little, and the best of that to the end.

Promotion is by rank and crowding of accuracy and latency. Whoever is promoted goes on with the weights and the
optimizer's state that it has. What a rung will cost is worked out beforehand, from the first looks and then from what
the candidates took, and where there is a budget of time, fewer are trained.

Who goes on is decided here; who trains is not: `climb` has an executor do it, a stint at a time, and Ray Tune climbs
the same ladder by its own means (`nas.executors.ray_tune`).
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.layout_search import LayoutSettings
from evaluators.recipe import recipe_for
from nas import stints
from nas.contenders import Climbed, TrainingPlan
from nas.executors.executor import Executor, Job
from nas.finalists import Carried, FinalistPlan, carried_finalist_job, finalist_job
from nas.pareto import ranking
from nas.problem import Problem, dataset
from nas.results import ResultStore
from nas.rungs import Rung, RungReport, narrowed, price_s, rungs_for
from nas.shortlist import Finalist
from nas.stints import Way, next_stint
from nas.study import Evaluated
from nas.trainings import Trainings

logger = logging.getLogger(__name__)

Members = list[tuple[Finalist, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What the ladder came to: finalists with their findings, why others failed, and what each rung took."""

    members: Members
    failures: list[str]
    rungs: list[RungReport]


class Audience(Protocol):
    """Hears how the training gets on: in words, and as trainings done and planned."""

    def note(self, text: str) -> None: ...
    def training(self, done: int, total: int) -> None: ...


class Ladder:
    """The rungs of one study, the best contenders first; goes on from whatever the study's folder holds.

    `next` hands out who is to be trained now, `heard` takes what came of it, until all `is_over`.
    """

    def __init__(
        self,
        problem: Problem,
        folder: Path,
        results: ResultStore,
        contenders: Sequence[Finalist],
        audience: Audience,
    ) -> None:
        settings = problem.settings
        self._problem = problem
        self._audience = audience
        self._kept = Trainings(settings, folder, results)
        self._guesses: dict[int, float] = {}
        self._deadline: float | None = None
        if settings.training_time_s is not None:
            self._deadline = time.monotonic() + settings.training_time_s
        self._trained = Trained([], [], [])
        self._ladder = rungs_for(len(contenders), settings.finalists, settings.epochs)
        self._rungs = tuple(rung.epochs for rung in self._ladder)
        # The same as far as it can be paid.
        self._rest = self._ladder
        # Of the rung that is climbed: whose places they are, who has not begun on it, and who is out.
        self._places = list(contenders)
        self._waiting: deque[Finalist] = deque()
        self._out: dict[int, Finalist] = {}
        self._expected_s = 0.0
        self._done_below = self._total = 0
        self._begin_rung()

    @property
    def is_over(self) -> bool:
        """Whether nobody is left to be trained or to be heard of."""
        return not self._ladder

    @property
    def trained(self) -> Trained:
        """What it came to so far."""
        return self._trained

    @property
    def out(self) -> int:
        """How many were handed out and not heard of."""
        return len(self._out)

    def is_out(self, each: Finalist) -> bool:
        """Whether it is being trained as far as the ladder knows."""
        return each.candidate.number in self._out

    def is_in(self, number: int) -> bool:
        """Whether a trial has a place on the rung that is climbed, so that it may go on from there."""
        return not self.is_over and any(each.candidate.number == number for each in self._places)

    def next(self) -> Finalist | None:
        """Who is to be trained now, which is out from here on; None where others have to be heard of before."""
        while not self.is_over:
            if self._waiting and self._deadline is not None:
                # With a budget of time the first ones show what the others will cost.
                if len(self._out) >= self._problem.settings.workers:
                    return None
                self._give_up_unaffordable()
            if self._waiting:
                each = self._waiting.popleft()
                self._out[each.candidate.number] = each
                return each
            if self._out:
                return None
            self._end_rung()
        return None

    def label(self, each: Finalist) -> str:
        """What messages call it: a finalist on the way to the last rung, a contender below."""
        what = "finalist" if len(self._ladder) == 1 else "contender"
        return f"{what} {each.candidate.number}"

    def before(self, each: Finalist) -> Climbed | None:
        """How far it has come, None where it begins."""
        return self._kept.stands.get(each.candidate.number)

    def way(self, each: Finalist) -> Way:
        """What it has before it, at what an epoch is expected to take by now."""
        candidate = each.candidate
        plan = FinalistPlan(candidate.number, self._plan(candidate), self._kept.model_folder(candidate))
        (epoch_s,) = self._epoch_s([each])
        return Way(plan, self._rungs, epoch_s, stints.CHECKPOINT_EVERY_S)

    def goes_on(self, epochs: int) -> bool:
        """Whether who has come so far and is out goes on at once, and not only after all others of its rung."""
        return len(self._ladder) == 1 or epochs < self._ladder[0].epochs

    def heard(self, each: Finalist, result: Climbed | Carried | Mapping[str, Any] | Failure) -> None:
        """Takes what came of one that is out; it stays out where it goes on at once."""
        candidate, epochs = each.candidate, self._ladder[0].epochs
        if isinstance(result, Climbed):
            self._kept.keep(candidate, result)
            if self.goes_on(result.epochs):
                return
        elif isinstance(result, Failure):
            self._kept.fail(candidate, epochs, result)
        else:
            self._kept.finish(candidate, result)
        del self._out[candidate.number]
        self._tell_progress()
        logger.info("%d epochs: %d of %d trained", epochs, self._done, len(self._places))

    def _begin_rung(self) -> None:
        if not self._ladder or not self._places:
            self._ladder = []
            return
        rest, self._expected_s = self._planned(self._ladder, self._places)
        self._rest, self._places = rest, self._places[: rest[0].places]
        self._audience.note(_plan_text(rest, len(self._places), self._expected_s))
        self._total = self._done_below + len(self._places) + sum(rung.places for rung in rest[1:])
        epochs = rest[0].epochs
        self._waiting = deque(each for each in self._places if not self._kept.take_up(each.candidate, epochs))
        self._tell_progress()

    def _end_rung(self) -> None:
        rung, is_last = self._ladder[0], len(self._ladder) == 1
        places = self._places
        self._done_below += len(places)
        self._trained.failures.extend(self._told_failures(rung, places))
        found = ((each, self._kept.found(each.candidate, rung.epochs)) for each in places)
        left = [(each, dict(finding)) for each, finding in found if isinstance(finding, Mapping)]
        taken = sum(finding["seconds"] for _, finding in left)
        self._trained.rungs.append(RungReport(rung.epochs, len(places), taken, self._expected_s))
        if is_last:
            self._trained.members.extend(left)
        points = [(finding["accuracy"], each.candidate.cost.latency.value_ms) for each, finding in left]
        self._places = [left[index][0] for index in ranking(points, len(points))]
        self._ladder = self._ladder[1:]
        self._begin_rung()

    def _give_up_unaffordable(self) -> None:
        if not self._kept.stands:
            return
        affordable = self._planned(self._rest, self._places)[0][0].places
        if len(self._places) - len(self._waiting) >= affordable:
            epochs = self._ladder[0].epochs
            logger.warning("no time to train %d of %d to epoch %d", len(self._waiting), len(self._places), epochs)
            self._waiting.clear()

    @property
    def _done(self) -> int:
        return len(self._places) - len(self._waiting) - len(self._out)

    def _tell_progress(self) -> None:
        self._audience.training(self._done_below + self._done, self._total)

    def _planned(self, ladder: Sequence[Rung], left: Sequence[Finalist]) -> tuple[list[Rung], float]:
        """The rest of the ladder as far as it can be paid, and what it is expected to take."""
        stands = [self._kept.stands.get(each.candidate.number) for each in left]
        done = [0 if each is None else each.epochs for each in stands]
        prices, workers = self._epoch_s(left), self._problem.settings.workers
        rest = list(ladder)
        if self._deadline is not None:
            rest = narrowed(ladder, done, prices, workers, self._deadline - time.monotonic())
        return rest, price_s(rest, done, prices, workers)

    def _epoch_s(self, left: Sequence[Finalist]) -> list[float]:
        """Seconds of an epoch for each: as measured, or by its first look times how far that was off for the others."""
        measured = {number: climbed.seconds / climbed.epochs for number, climbed in self._kept.stands.items()}
        off = [measured[number] / guess for number, guess in self._guesses.items() if number in measured and guess > 0]
        factor = statistics.median(off) if off else 1.0
        found = []
        for each in left:
            number = each.candidate.number
            guess = self._guesses.setdefault(number, self._first_guess_s(each.candidate))
            found.append(measured.get(number, factor * guess))
        return found

    def _first_guess_s(self, candidate: Evaluated) -> float:
        assert isinstance(candidate.outcome, Mapping)
        early = EarlySettings(iterations=self._problem.settings.iterations)
        images = early.iterations * early.recipe.batch_size
        return candidate.outcome["seconds"] / images * dataset(self._problem.data).num_train

    def _told_failures(self, rung: Rung, places: Sequence[Finalist]) -> list[str]:
        told = []
        for each in places:
            failure = self._kept.found(each.candidate, rung.epochs)
            if isinstance(failure, Failure):
                told.append(f"{self.label(each)}: {failure.reason}")
                logger.warning("%s failed: %s", self.label(each), failure.reason)
        return told

    def _plan(self, candidate: Evaluated) -> TrainingPlan:
        settings = self._problem.settings
        return TrainingPlan(
            spec=candidate.spec,
            data=self._problem.data,
            recipe=recipe_for(settings.data),
            epochs=settings.epochs,
            seed=settings.seed,
            layouts=LayoutSettings(
                candidates=settings.layouts,
                scope=settings.layout_scope,
                score=settings.layout_score,
                early=EarlySettings(iterations=settings.iterations),
            ),
        )


def climb(ladder: Ladder, executor: Executor, *, has_folder: bool = True) -> Trained:
    """Has the executor train whoever is to be; without the study's folder where it works, files are carried here."""
    finish = finalist_job if has_folder else carried_finalist_job
    out: dict[int, Finalist] = {}

    def submit(each: Finalist) -> None:
        function, arguments = next_stint(ladder.way(each), ladder.before(each), finish)
        out[executor.submit(Job(ladder.label(each), function, arguments))] = each

    while True:
        while (each := ladder.next()) is not None:
            submit(each)
        if not out:
            return ladder.trained
        finished = executor.wait()
        each = out.pop(finished.handle)
        ladder.heard(each, finished.result)
        if ladder.is_out(each):
            submit(each)


def _plan_text(rest: Sequence[Rung], first: int, expected_s: float) -> str:
    steps = [f"{first} for {rest[0].epochs}", *(f"{rung.places} for {rung.epochs}" for rung in rest[1:])]
    return f"to train: {', then '.join(steps)} epochs, about {expected_s:.0f} s"
