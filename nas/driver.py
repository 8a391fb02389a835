"""The whole way: from settings to a folder with trained, fused, verified and certified networks."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hardware.profiled_table import ProfiledModel, write_table
from hardware.strict_yaml import ConfigError
from hardware.transports import Local, TransportError
from nas.certificates import Measured, measure_members
from nas.executors.executor import Executor, Job
from nas.executors.inline import InlineExecutor
from nas.executors.processes import ProcessExecutor
from nas.ladder import Ladder, Members, Trained, climb
from nas.leading import trust_report, with_trust
from nas.members import front_document, front_of, member, write_front
from nas.problem import Problem, dataset, give_dataset, resolve
from nas.report import write_report
from nas.run_record import Took, write_run_record
from nas.settings import (
    STUDY_FILE,
    StudyFile,
    StudySettings,
    other_versions,
    read_study_file,
    versions,
    write_study_file,
)
from nas.shortlist import Finalist, shortlist
from nas.starts import write_earlier
from nas.storage import check_free, driver_lock, open_study
from nas.study import Progress, Search, SearchOutcome, check_budget
from nas.study_log import study_log
from nas.study_table import TABLE
from nas.tables import Wanted, make

logger = logging.getLogger(__name__)

# The measured table that a study began with, and what was measured of its finalists.
MEASURED = "measured"
# Where this machine has no table for the space yet, it is measured for so long before the first search.
FIRST_PROFILE_S = 90.0


class Observer(Protocol):
    """Hears how a study gets on."""

    def note(self, text: str) -> None: ...
    def trusting(self, done: int, total: int) -> None: ...
    def searching(self, progress: Progress) -> None: ...
    def training(self, done: int, total: int) -> None: ...
    def measuring(self, done: int, total: int, left_s: float) -> None: ...


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


def begin(settings: StudySettings, folder: Path, observer: Observer) -> Problem:
    """Makes the folder of a new study, or checks that the one there is the same study.

    Raises:
        ConfigError: the folder holds a study with other settings, or something the study rests on has changed.
        InfeasibleBudget: no member of the space keeps the budget.
    """
    if (folder / STUDY_FILE).exists():
        record = read_study_file(folder)
        # What was planned stays planned: a study only ever grows.
        return reopened(settings.model_copy(update={"trials": max(settings.trials, record.trials)}), folder)
    problem = _with_table(resolve(settings), observer)
    if settings.storage is not None:
        check_free(folder, settings.study, settings.storage)
    check_budget(problem)  # before anything is written: an infeasible budget leaves nothing behind
    folder.mkdir(parents=True, exist_ok=True)
    model = problem.target.latency_model
    if isinstance(model, ProfiledModel):
        # Tables grow; the study goes on with the one it began with.
        write_table(model.profiled, folder / TABLE)
    write_study_file(folder, study_record(problem))
    return problem


def reopened(settings: StudySettings, folder: Path, *, accept_table: bool = False) -> Problem:
    """The problem of a study that exists, with the table that it began with, or today's where that is accepted.

    Raises:
        ConfigError: something the study rests on has changed.
        InfeasibleBudget: no member of the space keeps the budget that it is to have.
    """
    problem = resolve(settings, None if accept_table else folder)
    record = read_study_file(folder)
    if accept_table:
        record = record.model_copy(update={"target_sha256": problem.target.sha256})
    check_same(record, problem)
    check_budget(problem)  # before a run begins: what cannot be asked is no run that broke
    return problem


def _with_table(problem: Problem, observer: Observer) -> Problem:
    """The problem with a table that knows its own error on the space; this machine is measured where it has none."""
    model = problem.target.latency_model
    if problem.target.name != "host" or not isinstance(model, ProfiledModel) or model.certificate is not None:
        return problem
    settings = problem.settings
    observer.note(
        f"this machine has no table for space {settings.space} yet: it is measured for {FIRST_PROFILE_S:.0f} s; "
        "`nas profile --target host` makes a better one"
    )
    wanted = Wanted("host", settings.space, settings.runtime, settings.threads, FIRST_PROFILE_S)
    make(wanted, Local(), observer.measuring)
    return resolve(settings)


def study_record(problem: Problem) -> StudyFile:
    """The settings with what they were resolved to today."""
    opened = dataset(problem.data)
    return StudyFile(
        **problem.settings.model_dump(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target_sha256=problem.target.sha256,
        data_fingerprint=opened.fingerprint,
        versions=versions(),
        channels=opened.channels,
        classes=opened.num_classes,
    )


def check_same(record: StudyFile, problem: Problem) -> None:
    """Whether a recorded study can go on under today's table and data.

    Raises:
        ConfigError: it cannot; the message says what changed.
    """
    if record.target_sha256 != problem.target.sha256:
        raise ConfigError(
            f"study {record.study}: the latency table of {record.target} has changed since it began "
            f"({record.target_sha256[:12]} then, {problem.target.sha256[:12]} now); start a new study with "
            f"--study NAME, or go on under the new one with `nas resume {record.study} --accept-changed-table`"
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
    with driver_lock(folder) as before, study_log(folder), closing(_executor(problem)) as executor:
        if before.isdigit():
            said = f"process {before} drove the study last and broke or was killed; what it had out is evaluated again"
            logger.warning("%s", said)
        seconds: dict[str, float] = {}
        with _timed(seconds, "budget check"):
            fastest = check_budget(problem)
        record = read_study_file(folder)
        if others := other_versions(record):
            said = f"other versions than when the study began: {', '.join(others)}; results may differ between them"
            logger.warning("%s", said)
        record = _extended(record, problem, folder, observer)
        with _timed(seconds, "trust"):
            led = with_trust(problem, folder, record, executor, fastest, observer)
            problem, record = led.problem, led.record
        with _timed(seconds, "search"):
            if problem.settings.workers > problem.settings.window:
                observer.note(
                    f"{problem.settings.workers} workers, but only {problem.settings.window} candidates may be out at "
                    "once in this study; a new one with a larger --window uses them all"
                )
            search = Search(problem, folder, executor, record)
            search.describe(record)
            outcome = search.run(fastest, observer.searching, spent_s=seconds["trust"])
        observer.note(f"search ended: {outcome.ended}")
        logger.info("search ended: %s", outcome.ended)
        with _timed(seconds, "finalists"):
            budget_ms = problem.settings.budget_ms
            feasible = [each for each in outcome.evaluated if each.cost.latency.high_ms <= budget_ms]
            chosen = shortlist(feasible, problem.settings.first_places, problem.leading)
            trained = _trained(Ladder(problem, folder, search.results, chosen, observer), executor, folder, observer)
        executor.close()  # what is timed now must have the machine to itself
        with _timed(seconds, "certificates"):
            measured = _measured(problem, folder, trained.members, observer)
            finished = [
                _certified(problem, folder, finalist, found, measured.get(finalist.candidate.number))
                for finalist, found in trained.members
            ]
        document = front_document(record, front_of(finished))
        write_front(folder, document)
        write_run_record(folder, finished, trained.failures, outcome, Took(seconds, trained.rungs))
        write_report(folder)
        return StudyOutcome(folder, document, outcome, tuple(trained.failures), seconds)


def ask_trust(problem: Problem, folder: Path, observer: Observer, *, members: int) -> dict[str, Any]:
    """The trust report of a study, going on from whatever its folder holds.

    Raises:
        InfeasibleBudget: no member of the space keeps the budget.
        TrustFailed: too few members could be trained.
        ConfigError: another driver holds the study, or the report that led it is gone.
    """
    with driver_lock(folder), study_log(folder), closing(_executor(problem)) as executor:
        return trust_report(problem, folder, executor, check_budget(problem), observer, members=members)


def _extended(record: StudyFile, problem: Problem, folder: Path, observer: Observer) -> StudyFile:
    """The record as the study goes on: with the total, the finalists, the budget and the table that it has now.

    Under another budget or table the trials keep their numbers, and whether they are feasible is decided anew.
    """
    settings = problem.settings
    changes: dict[str, Any] = {}
    said = []
    for name in ("trials", "finalists"):
        before, now = getattr(record, name), getattr(settings, name)
        if before != now:
            changes[name] = now
            said.append(f"{name}: {now}, before {before}")
    if record.budget_ms != settings.budget_ms:
        changes |= {"budget": settings.budget, "earlier_budgets": [*record.earlier_budgets, record.budget]}
        said.append(f"budget: {settings.budget}, before {record.budget}; of what was evaluated counts what keeps it")
    if record.target_sha256 != problem.target.sha256:
        changes |= {
            "target_sha256": problem.target.sha256,
            "accepted_tables": [*record.accepted_tables, record.target_sha256],
        }
        said.append(
            f"the latency table of {record.target} is {problem.target.sha256[:12]} now, before "
            f"{record.target_sha256[:12]}; of what was evaluated counts what keeps the budget by the new one"
        )
    if not changes:
        return record
    changed = record.model_copy(update=changes)
    if changed.durable_name != record.durable_name:
        old = open_study(folder, record.durable_name, record.storage, record.owner)
        write_earlier(folder, (trial.params for trial in old.get_trials(deepcopy=False)))
    model = problem.target.latency_model
    if isinstance(model, ProfiledModel) and record.target_sha256 != problem.target.sha256:
        write_table(model.profiled, folder / TABLE)
    write_study_file(folder, changed)
    for line in said:
        logger.info("%s", line)
        observer.note(line)
    return changed


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _modules(settings: StudySettings) -> tuple[str, ...]:
    """The modules that jobs are made of, by the names that they are imported by."""
    own = ("nas", "evaluators", "searchspace", "hardware")
    module, colon, _ = settings.space.partition(":")
    return (*own, module.partition(".")[0]) if colon else own


def _executor(problem: Problem) -> Executor:
    settings = problem.settings
    threads = max(1, int(settings.cpus_per_trial))
    if settings.backend == "inline":
        return InlineExecutor(threads)
    if settings.backend == "ray":
        from nas.executors.ray import Baggage, RayExecutor, Share

        data = dataset(problem.data)
        baggage = Baggage(
            first=Job("data", give_dataset, (problem.data, data.to_send())),
            modules=_modules(settings),
            size_bytes=data.size_bytes,
        )
        share = Share(settings.cpus_per_trial, settings.gpus_per_trial)
        return RayExecutor(settings.workers, settings.ray_address, share, baggage)
    return ProcessExecutor(settings.workers, threads)


def _trained(ladder: Ladder, executor: Executor, folder: Path, observer: Observer) -> Trained:
    """Contenders and finalists trained: on Ray by Ray Tune, wherever that can work."""
    from nas.executors.ray import RayExecutor
    from nas.executors.ray_tune import clear_away, climb_by_tune, refusal

    clear_away(folder)
    if not isinstance(executor, RayExecutor):
        return climb(ladder, executor)
    if why := refusal(executor, folder):
        observer.note(f"finalists are trained as plain Ray tasks, not by Ray Tune: {why}")
        return climb(ladder, executor, has_folder=False)
    return climb_by_tune(ladder, executor, folder)


def _measured(problem: Problem, folder: Path, members: Members, observer: Observer) -> dict[int, Measured]:
    """The members measured on the device, or nothing where it is not at hand, which is no reason to lose the study."""
    models = {each.candidate.number: folder / "models" / str(each.candidate.number) for each, _ in members}
    try:
        return measure_members(problem.target, models, folder / MEASURED)
    except (ConfigError, TransportError) as error:
        observer.note(f"finalists could not be measured on {problem.target.name}: {error}")
        return {}


def _certified(
    problem: Problem, folder: Path, finalist: Finalist, trained: dict[str, Any], measured: Measured | None
) -> dict[str, Any]:
    return member(finalist, trained, measured, problem.settings.budget_ms, problem.settings.epochs, folder)
