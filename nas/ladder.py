"""The upper rungs of a search: what early scores favour is trained a little, and the best of that to the end.

Promotion is by rank and crowding of accuracy and latency. Whoever is promoted goes on with the weights and the
optimizer's state that it has. What a rung will cost is worked out beforehand, from the first looks and then from what
the candidates took, and where there is a budget of time, fewer are trained.
"""

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.checkpoints import write_checkpoint
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.layout_search import LayoutSettings
from evaluators.recipe import recipe_for
from nas.contenders import Climbed, TrainingPlan, climbed_from, contender_job
from nas.executors.executor import Executor, Job
from nas.finalists import Carried, FinalistPlan, carried_finalist_job, file_hashes, finalist_job, unpack
from nas.pareto import ranking
from nas.problem import Problem, dataset
from nas.results import Key, ResultStore
from nas.rungs import Rung, RungReport, narrowed, price_s, rungs_for
from nas.settings import StudySettings
from nas.shortlist import Finalist
from nas.study import Evaluated

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

# A training is put down about so often, so that no more is lost by whatever ends the run.
CHECKPOINT_EVERY_S = 60.0


Members = list[tuple[Finalist, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What the ladder came to: finalists with their findings, why others failed, and what each rung took."""

    members: Members
    failures: list[str]
    rungs: list[RungReport]


class Ladder:
    """The rungs of one study; goes on from whatever its folder holds."""

    def __init__(self, problem: Problem, folder: Path, executor: Executor, results: ResultStore) -> None:
        self._problem = problem
        self._folder = folder
        self._executor = executor
        self._results = results
        # What failed for a reason that is not the network's is not remembered, so that it is tried again on resume.
        self._broken: dict[Key, Failure] = {}
        self._stands: dict[int, Climbed] = {}
        self._guesses: dict[int, float] = {}
        self._deadline: float | None = None

    def climb(
        self, contenders: Sequence[Finalist], note: Callable[[str], None], on_progress: Callable[[int, int], None]
    ) -> Trained:
        """Trains the contenders, the best first, rung by rung; `on_progress` hears of trainings done and planned."""
        settings = self._problem.settings
        if settings.training_time_s is not None:
            self._deadline = time.monotonic() + settings.training_time_s
        ladder = rungs_for(len(contenders), settings.finalists, settings.epochs)
        left, trained = list(contenders), Trained([], [], [])
        done = 0
        while ladder and left:
            rest, expected_s = self._planned(ladder, left)
            places = left[: rest[0].places]
            note(_plan_text(rest, len(places), expected_s))
            total = done + len(places) + sum(rung.places for rung in rest[1:])
            left = self._train_on(rest, places, _counted(on_progress, done, total))
            done += len(places)
            trained.failures.extend(self._told_failures(rest[0], places))
            found = [self._finding(each, rest[0].epochs) for each in left]
            taken = sum(finding["seconds"] for finding in found)
            trained.rungs.append(RungReport(rest[0].epochs, len(places), taken, expected_s))
            if len(ladder) == 1:
                trained.members.extend(zip(left, found, strict=True))
            points = [
                (finding["accuracy"], each.candidate.cost.latency.value_ms)
                for each, finding in zip(left, found, strict=True)
            ]
            left = [left[index] for index in ranking(points, len(points))]
            ladder = ladder[1:]
        return trained

    def _planned(self, ladder: Sequence[Rung], left: Sequence[Finalist]) -> tuple[list[Rung], float]:
        """The rest of the ladder as far as it can be paid, and what it is expected to take."""
        stands = [self._stands.get(each.candidate.number) for each in left]
        done = [0 if each is None else each.epochs for each in stands]
        prices, workers = self._epoch_s(left), self._problem.settings.workers
        rest = list(ladder)
        if self._deadline is not None:
            rest = narrowed(ladder, done, prices, workers, self._deadline - time.monotonic())
        return rest, price_s(rest, done, prices, workers)

    def _epoch_s(self, left: Sequence[Finalist]) -> list[float]:
        """Seconds of an epoch for each: as measured, or by its first look times how far that was off for the others."""
        measured = {number: climbed.seconds / climbed.epochs for number, climbed in self._stands.items()}
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

    def _train_on(
        self, ladder: Sequence[Rung], places: Sequence[Finalist], on_done: Callable[[int], object]
    ) -> list[Finalist]:
        """Those of `places` that reach the ladder's first rung; on the last one with everything that a finalist has."""
        rung, is_last = ladder[0], len(ladder) == 1
        waiting = deque(each for each in places if not self._is_done(each, rung.epochs, is_last))
        for each in waiting:
            self._stand_where_left(each, rung.epochs)
        out: dict[int, Finalist] = {}
        on_done(len(places) - len(waiting))
        while waiting or out:
            # With a budget of time the first ones show what the others will cost.
            room = len(places) if self._deadline is None else self._problem.settings.workers
            while waiting and len(out) < room:
                if self._deadline is not None and self._stands:
                    affordable = self._planned(ladder, places)[0][0].places
                    if len(places) - len(waiting) >= affordable:
                        logger.warning("no time to train %d of %d to epoch %d", len(waiting), len(places), rung.epochs)
                        waiting.clear()
                        break
                self._submit(waiting.popleft(), rung.epochs, is_last, out)
            if not out:
                break
            finished = self._executor.wait()
            each, result = out.pop(finished.handle), finished.result
            number = each.candidate.number
            if isinstance(result, Carried):
                result = unpack(result, self._model_folder(each.candidate))
            if isinstance(result, Failure):
                self._keep_failure(each, rung.epochs, result)
            elif isinstance(result, Climbed):
                assert result.state is not None
                write_checkpoint(result.state, self._state_path(number))
                self._stands[number] = result
                self._results.add(self._key(each, result.epochs), result.as_finding())
                if is_last or result.epochs < rung.epochs:
                    self._submit(each, rung.epochs, is_last, out)
                    continue
            else:
                self._results.add(self._key(each, rung.epochs), result)
                self._state_path(number).unlink(missing_ok=True)
            done = len(places) - len(out) - len(waiting)
            on_done(done)
            logger.info("%d epochs: %d of %d trained", rung.epochs, done, len(places))
        return [each for each in places if isinstance(self._found(each, rung.epochs), Mapping)]

    def _is_done(self, each: Finalist, epochs: int, is_last: bool) -> bool:
        known = self._results.get(self._key(each, epochs))
        if known is None or isinstance(known, Failure):
            return known is not None
        if is_last:
            return self._is_whole(each.candidate, known)
        self._stands[each.candidate.number] = climbed_from(dict(known), self._read_state(each.candidate.number))
        return True

    def _stand_where_left(self, each: Finalist, epochs: int) -> None:
        """Takes up what was put down between two rungs by a run that was ended."""
        state = self._read_state(each.candidate.number)
        known = (self._results.get(self._key(each, epoch)) for epoch in range(epochs - 1, 0, -1))
        last = next((found for found in known if isinstance(found, Mapping)), None)
        if each.candidate.number not in self._stands and last is not None and state is not None:
            self._stands[each.candidate.number] = climbed_from(dict(last), state)

    def _submit(self, each: Finalist, epochs: int, is_last: bool, out: dict[int, Finalist]) -> None:
        candidate = each.candidate
        before = self._stands.get(candidate.number)
        (price,) = self._epoch_s([each])
        done = 0 if before is None else before.epochs
        until = min(epochs, done + max(1, int(CHECKPOINT_EVERY_S / max(price, 1e-9))))
        plan = self._plan(candidate)
        if is_last and until == epochs:
            finalist = FinalistPlan(candidate.number, plan, self._model_folder(candidate))
            # Whoever joins a cluster may have workers on machines that do not have the study's folder.
            function = finalist_job if self._problem.settings.ray_address is None else carried_finalist_job
            job = Job(f"finalist {candidate.number}", function, (finalist, before))
        else:
            job = Job(f"contender {candidate.number}", contender_job, (plan, before, until))
        out[self._executor.submit(job)] = each

    def _finding(self, each: Finalist, epochs: int) -> dict[str, Any]:
        found = self._results.get(self._key(each, epochs))
        assert isinstance(found, Mapping)
        return dict(found)

    def _told_failures(self, rung: Rung, places: Sequence[Finalist]) -> list[str]:
        what = "finalist" if rung.epochs == self._problem.settings.epochs else "contender"
        told = []
        for each in places:
            failure = self._found(each, rung.epochs)
            if isinstance(failure, Failure):
                told.append(f"{what} {each.candidate.number}: {failure.reason}")
                logger.warning("%s %s failed: %s", what, each.candidate.number, failure.reason)
        return told

    def _keep_failure(self, each: Finalist, epochs: int, failure: Failure) -> None:
        key = self._key(each, epochs)
        if failure.lasting:
            self._results.add(key, failure, each.candidate.spec)
        else:
            self._broken[key] = failure

    def _found(self, each: Finalist, epochs: int) -> Mapping[str, Any] | Failure | None:
        key = self._key(each, epochs)
        return self._broken.get(key) or self._results.get(key)

    def _key(self, each: Finalist, epochs: int) -> Key:
        return Key(each.candidate.arch_id, fidelity(self._problem.settings, epochs))

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

    def _model_folder(self, candidate: Evaluated) -> Path:
        return self._folder.resolve() / "models" / str(candidate.number)

    def _is_whole(self, candidate: Evaluated, trained: Mapping[str, Any]) -> bool:
        models = self._model_folder(candidate)
        return models.is_dir() and file_hashes(models) == trained["files"]

    def _state_path(self, number: int) -> Path:
        return self._folder / CHECKPOINTS / f"{number}.pt"

    def _read_state(self, number: int) -> bytes | None:
        path = self._state_path(number)
        return path.read_bytes() if path.exists() else None


def fidelity(settings: StudySettings, epochs: int) -> str:
    """How much was spent on a candidate: results of other epochs, ways or layouts are other results."""
    way = "" if epochs == settings.epochs else f"-of-{settings.epochs}"
    published = (settings.layout_scope, settings.layout_score) == ("network", "dispersion")
    how = "" if published else f"-per-{settings.layout_scope}-by-{settings.layout_score}"
    return f"trained-{epochs}{way}-epochs-{settings.layouts}-layouts{how}"


def is_whole_training(fidelity: str) -> bool:
    """Whether results under that fidelity are of a candidate that was trained to the end."""
    return fidelity.startswith("trained-") and "-of-" not in fidelity


def _counted(on_progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda count: on_progress(before + count, total)


def _plan_text(rest: Sequence[Rung], first: int, expected_s: float) -> str:
    steps = [f"{first} for {rest[0].epochs}", *(f"{rung.places} for {rung.epochs}" for rung in rest[1:])]
    return f"to train: {', then '.join(steps)} epochs, about {expected_s:.0f} s"
