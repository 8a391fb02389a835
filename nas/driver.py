"""The whole way: from settings to a folder with trained, fused, verified and certified networks."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from hardware.latency_table import Latency, Tier
from hardware.runners.onnxruntime import Protocol as TimingProtocol
from hardware.runners.onnxruntime import Timing, time_model
from hardware.strict_yaml import ConfigError
from nas.executors.executor import Executor, Job
from nas.executors.processes import ProcessExecutor
from nas.finalists import FinalistPlan, file_hashes, finalist_job
from nas.host import check_table
from nas.members import front_document, front_of, member, write_front
from nas.problem import Problem, dataset, resolve
from nas.report import write_report
from nas.results import Key
from nas.settings import STUDY_FILE, StudyFile, StudySettings, read_study_file, versions, write_study_file
from nas.shortlist import Finalist, shortlist
from nas.storage import driver_lock, open_storage
from nas.study import Evaluated, Progress, Search, SearchOutcome, check_budget

logger = logging.getLogger(__name__)

# Finalists are timed longer than kernels: a few hundred milliseconds give medians that differ by some per cent.
FINALIST_TIMING = TimingProtocol(warmup_s=0.1, min_runs=50, min_s=0.5)
TIMING_TRIES = 4
# A timing whose interquartile range is a larger share of its median was disturbed.
STEADY_SHARE = 0.1


class Observer(Protocol):
    """Hears how a study gets on."""

    def note(self, text: str) -> None: ...
    def searching(self, progress: Progress) -> None: ...
    def training(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """What a study came to; `document` is its front.json."""

    folder: Path
    document: dict[str, Any]
    search: SearchOutcome
    failures: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def certificate_broken(self) -> bool:
        """Whether a member of the front broke the budget when measured, or differs from its trained form."""
        return any(each["certificate"]["kept"] is False for each in self.document["members"])


def begin(settings: StudySettings, folder: Path) -> Problem:
    """Makes the folder of a new study, or checks that the one there is the same study.

    Raises:
        ConfigError: the folder holds a study with other settings, or something the study rests on has changed.
        InfeasibleBudget: no member of the space keeps the budget.
    """
    if (folder / STUDY_FILE).exists():
        record = read_study_file(folder)
        # What was planned stays planned: a study only ever grows.
        problem = resolve(settings.model_copy(update={"trials": max(settings.trials, record.trials)}))
        check_same(record, problem)
        return problem
    problem = resolve(settings)
    if settings.storage is not None:
        open_storage(folder, settings.storage)
    check_table(problem)
    check_budget(problem)  # before anything is written: an infeasible budget leaves nothing behind
    folder.mkdir(parents=True, exist_ok=True)
    write_study_file(folder, study_record(problem))
    return problem


def study_record(problem: Problem) -> StudyFile:
    """The settings with what they were resolved to today."""
    return StudyFile(
        **problem.settings.model_dump(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target_sha256=problem.target.sha256,
        data_fingerprint=dataset(problem.data).fingerprint,
        versions=versions(),
    )


def check_same(record: StudyFile, problem: Problem) -> None:
    """Whether a recorded study can go on under today's table and data.

    Raises:
        ConfigError: it cannot; the message says what changed.
    """
    if record.target_sha256 != problem.target.sha256:
        raise ConfigError(
            f"study {record.study}: the latency table of {record.target} has changed since it began "
            f"({record.target_sha256[:12]} then, {problem.target.sha256[:12]} now); start a new study with --study NAME"
        )
    if record.data_fingerprint != dataset(problem.data).fingerprint:
        raise ConfigError(
            f"study {record.study}: the images of {record.data} have changed since it began; "
            "restore them, or start a new study with --study NAME"
        )


def run_study(problem: Problem, folder: Path, observer: Observer) -> StudyOutcome:
    """Searches, trains the finalists, verifies and certifies them, and writes the study's folder.

    Goes on from whatever the folder holds already.

    Raises:
        InfeasibleBudget: no member of the space keeps the budget; found before any trial.
        ConfigError: another driver holds the study, or it does not repeat itself.
    """
    with driver_lock(folder), closing(_executor(problem.settings)) as executor:
        record = read_study_file(folder)
        if record.trials != problem.settings.trials:
            write_study_file(folder, record.model_copy(update={"trials": problem.settings.trials}))
        seconds: dict[str, float] = {}
        with _timed(seconds, "budget check"):
            fastest = check_budget(problem)
        with _timed(seconds, "search"):
            search = Search(problem, folder, executor)
            outcome = search.run(fastest, observer.searching)
        observer.note(f"search ended: {outcome.ended}")
        with _timed(seconds, "finalists"):
            members, failures = _train_finalists(problem, folder, executor, search, outcome, observer)
        executor.close()  # what is timed now must have the machine to itself
        with _timed(seconds, "certificates"):
            finished = [_certified(problem, folder, finalist, trained) for finalist, trained in members]
        document = front_document(record, front_of(finished))
        write_front(folder, document)
        write_report(folder, document, outcome, finished, seconds)
        return StudyOutcome(folder, document, outcome, tuple(failures), seconds)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _executor(settings: StudySettings) -> Executor:
    if settings.backend == "ray":
        from nas.executors.ray import RayExecutor

        return RayExecutor(settings.workers, settings.ray_address)
    return ProcessExecutor(settings.workers)


Trained = list[tuple[Finalist, dict[str, Any]]]


def _train_finalists(
    problem: Problem,
    folder: Path,
    executor: Executor,
    search: Search,
    outcome: SearchOutcome,
    observer: Observer,
) -> tuple[Trained, list[str]]:
    finalists = shortlist(outcome.evaluated, problem.settings.finalists, problem.settings.score)
    keys = {each.candidate.number: Key(each.candidate.arch_id, fidelity(problem.settings)) for each in finalists}
    out: dict[int, Evaluated] = {}
    for candidate in (each.candidate for each in finalists):
        known = search.results.get(keys[candidate.number])
        if known is None or (not isinstance(known, Failure) and not _is_whole(folder, candidate, known)):
            plan = _plan(problem, folder, candidate)
            out[executor.submit(Job(f"finalist {candidate.number}", finalist_job, (plan,)))] = candidate
    total = len(finalists)
    # What failed for a reason that is not the network's is not remembered, so that it is tried again on resume.
    broken: dict[Key, Failure] = {}
    observer.training(total - len(out), total)
    while out:
        finished = executor.wait()
        key = keys[out.pop(finished.handle).number]
        if isinstance(finished.result, Failure) and not finished.result.lasting:
            broken[key] = finished.result
        else:
            search.results.add(key, finished.result)
        observer.training(total - len(out), total)
    members: Trained = []
    failures = []
    for each in finalists:
        candidate = each.candidate
        key = keys[candidate.number]
        found = broken.get(key) or search.results.get(key)
        if isinstance(found, Failure):
            failures.append(f"finalist {candidate.number}: {found.reason}")
            logger.warning("finalist %s failed: %s", candidate.number, found.reason)
        else:
            assert found is not None
            members.append((each, dict(found)))
    return members, failures


def _is_whole(folder: Path, candidate: Evaluated, trained: Mapping[str, Any]) -> bool:
    models = folder / "models" / str(candidate.number)
    return models.is_dir() and file_hashes(models) == trained["files"]


def fidelity(settings: StudySettings) -> str:
    """How much is spent on a finalist: results of other epochs or layouts are other results."""
    return f"trained-{settings.epochs}-epochs-{settings.layouts}-layouts"


def _plan(problem: Problem, folder: Path, candidate: Evaluated) -> FinalistPlan:
    settings = problem.settings
    return FinalistPlan(
        trial=candidate.number,
        spec=candidate.spec,
        data=problem.data,
        epochs=settings.epochs,
        layouts=settings.layouts,
        early=EarlySettings(iterations=settings.iterations),
        seed=settings.seed,
        folder=folder.resolve() / "models" / str(candidate.number),
    )


def quietest_timing(model: Path, threads: int) -> Timing:
    """The least disturbed of up to `TIMING_TRIES` timings, or the first that was not disturbed."""
    timings: list[Timing] = []
    while len(timings) < TIMING_TRIES:
        timings.append(time_model(model, threads=threads, protocol=FINALIST_TIMING))
        if timings[-1].spread_ms <= STEADY_SHARE * timings[-1].median_ms:
            break
    return min(timings, key=lambda timing: timing.spread_ms / timing.median_ms)


def _certified(problem: Problem, folder: Path, finalist: Finalist, trained: dict[str, Any]) -> dict[str, Any]:
    candidate = finalist.candidate
    measured = None
    if problem.measures_on_the_spot:
        path = folder / "models" / str(candidate.number) / "model.onnx"
        timing = quietest_timing(path, problem.settings.threads)
        half = timing.spread_ms / 2
        about = problem.target.about
        measured = Latency(
            timing.median_ms,
            max(0.0, timing.median_ms - half),
            timing.median_ms + half,
            Tier.measured,
            f"{about.name}/{about.runtime}-{problem.target.runtime_version}/{problem.settings.threads}t, timed whole",
        )
    return member(finalist, trained, measured, problem.settings.budget_ms, problem.settings.epochs, folder)
