"""What the pages show of a study, read from its folder without a lock and without a write.

A study that runs is read while its driver writes: only whole lines count, and what is replaced is read anew.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial

from hardware.strict_yaml import ConfigError
from nas.members import FRONT_JSON, read_front
from nas.pace import RATE_OVER
from nas.pareto import Point as Pair
from nas.pareto import dominates, front
from nas.settings import STUDY_FILE, StudyFile, read_study_file
from nas.storage import FINISHED, JOURNAL, LOCK, STOPPED
from nas.study import RESULTS
from nas.study_log import LOG
from nas.trainings import is_whole_training
from nas.web.export_job import STATE as EXPORT_STATE
from nas.web.journals import Journals, TailReader
from nas.web.runs import Runs

# A name that cannot lead anywhere but into the folder of studies.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

LOG_LINES = 40
LOG_BYTES = 16_384


class NoSuchStudy(Exception):
    """There is no study of that name in the folder."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trial as a point: score None where it failed, completed None while it runs."""

    number: int
    arch_id: str
    score: float | None
    latency_ms: float
    high_ms: float
    tier: str
    feasible: bool
    completed: datetime | None


@dataclass(frozen=True, slots=True)
class TrainedPoint:
    """A finalist as a point; on_front None while the study has no front."""

    number: int
    accuracy: float
    latency_ms: float
    tier: str
    on_front: bool | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What a page says of a study in a few words; best is a text, per_minute and left_s None where nothing is known."""

    name: str
    record: StudyFile | None
    state: str
    done: int
    failed: int
    best: str
    per_minute: float | None
    left_s: float | None
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Live:
    """Everything on the page of a study."""

    overview: Overview
    points: tuple[Point, ...]
    front: tuple[int, ...]
    trained: tuple[TrainedPoint, ...]
    hypervolumes: tuple[float, ...]
    log: tuple[str, ...]


class Studies:
    """The studies of a folder, for any number of readers at a time."""

    def __init__(self, root: Path, runs: Runs) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.root = root.resolve()
        self._runs = runs
        self._lock = threading.Lock()
        self._results: dict[str, _Results] = {}
        # What was last read of a study, and which state of its files that was.
        self._live: dict[str, tuple[object, Live]] = {}
        self._open_journals()

    def _open_journals(self) -> None:
        self._journals = Journals(self.root)
        self._storage = JournalStorage(self._journals)

    @property
    def storage(self) -> BaseStorage:
        """All journals as one; another object once one of them had to be read anew."""
        with self._lock:
            if self._journals.replaced:
                self._open_journals()
            return self._storage

    def names(self) -> list[str]:
        """The folders that hold a study, by name."""
        found = (path.parent for path in self.root.glob(f"*/{STUDY_FILE}"))
        return sorted(folder.name for folder in found if self._is_inside(folder))

    def _is_inside(self, folder: Path) -> bool:
        return NAME.fullmatch(folder.name) is not None and folder.resolve().parent == self.root

    def folder(self, name: str) -> Path:
        """Where a study is.

        Raises:
            NoSuchStudy: there is none of that name in the folder of studies.
        """
        folder = self.root / name
        if NAME.fullmatch(name) is None or not self._is_inside(folder) or not (folder / STUDY_FILE).is_file():
            raise NoSuchStudy(f"no study {name[:100]!r} in {self.root}")
        return folder

    def _version(self, name: str) -> tuple[object, ...]:
        """Something that changes with whatever `live` would say."""
        folder = self.folder(name)
        files = (STUDY_FILE, JOURNAL, RESULTS, FRONT_JSON, LOG, LOCK, EXPORT_STATE)
        return (self._runs.state(folder), self._runs.is_exporting(folder), *(_stamp(folder / file) for file in files))

    def optuna_id(self, name: str) -> int | None:
        """The study's number among all journals, None where it keeps its trials elsewhere or has none yet."""
        try:
            return self._number(name, read_study_file(self.folder(name)))
        except (KeyError, ConfigError):
            return None

    def _number(self, name: str, record: StudyFile) -> int:
        """Which of the journal's studies the trials of today's budget and table are in; KeyError if it is not there."""
        is_first = record.durable_name == record.study
        number: int = self.storage.get_study_id_from_name(name if is_first else f"{name}/{record.durable_name}")
        return number

    def trials(self, name: str) -> list[FrozenTrial]:
        """What was evaluated so far.

        Raises:
            ConfigError: the storage cannot be read.
        """
        storage = self.storage
        record = read_study_file(self.folder(name))
        try:
            if record.storage is not None:
                return stored_study(record.storage, record.durable_name).get_trials(deepcopy=False)
            if name in self._journals.damage:
                raise ConfigError(self._journals.damage[name])
            return storage.get_all_trials(self._number(name, record), deepcopy=False)
        except ConfigError:
            raise
        except KeyError:
            stored_study.cache_clear()
            return []
        except Exception as error:
            # Optuna, SQLAlchemy and every database driver have errors of their own; all of them mean this.
            raise ConfigError(f"the trials of {name} cannot be read ({' '.join(str(error).split())[:300]})") from error

    def live(self, name: str) -> Live:
        """Everything about a study as of now, whatever is wrong with it."""
        version = self._version(name)
        known = self._live.get(name)
        if known is None or known[0] != version:
            known = self._live[name] = (version, self._read(self.folder(name)))
        return known[1]

    def _read(self, folder: Path) -> Live:
        name, state = folder.name, state_of(folder, self._runs)
        log = tuple(last_lines(folder / LOG))
        try:
            record = read_study_file(folder)
            points = [point_of(trial) for trial in self.trials(name)]
            trained = self._trained(folder, points)
        except ConfigError as error:
            overview = Overview(name, None, state, 0, 0, "-", None, None, str(error))
            return Live(overview, (), (), (), (), log)
        per_minute = rate_per_minute(points, _run_began(folder)) if state == "running" else None
        return live_of(name, state, record, points, trained, log, per_minute)

    def _trained(self, folder: Path, points: Sequence[Point]) -> list[TrainedPoint]:
        with self._lock:
            results = self._results.get(folder.name)
            if results is None or results.tail.replaced:
                results = self._results[folder.name] = _Results(TailReader(folder / RESULTS))
            accuracies = dict(results.read())
        members: dict[int, Mapping[str, Any]] = {}
        has_front = (folder / FRONT_JSON).exists()
        if has_front:
            members = {each["trial"]: each for each in read_front(folder)["members"]}
        found = []
        for point in points:
            if point.arch_id in accuracies:
                own = members.get(point.number)
                latency, tier = (
                    (own["latency_ms"]["value"], own["latency_ms"]["tier"]) if own else (point.latency_ms, point.tier)
                )
                on_front = point.number in members if has_front else None
                found.append(TrainedPoint(point.number, accuracies[point.arch_id], latency, tier, on_front))
        return found


@dataclass
class _Results:
    """The accuracies in a results file, as far as it was read."""

    tail: TailReader

    def __post_init__(self) -> None:
        self._accuracies: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        for line in self.tail.lines():
            try:
                entry = json.loads(line)
                if is_whole_training(entry["fidelity"]) and "values" in entry:
                    self._accuracies[entry["arch"]] = float(entry["values"]["accuracy"])
            except (ValueError, KeyError, TypeError, AttributeError):
                # The driver is the one to complain; here a line less is a point less.
                continue
        return self._accuracies


@lru_cache(maxsize=256)
def stored_study(url: str, name: str) -> optuna.Study:
    """A study in a storage, for reading; finished trials are read once, where a storage itself reads them every time.

    Raises:
        ConfigError: there is no such storage.
        KeyError: it has no study of that name.
    """
    return optuna.load_study(study_name=name, storage=database(url))


def live_of(
    name: str,
    state: str,
    record: StudyFile,
    points: Sequence[Point],
    trained: Sequence[TrainedPoint],
    log: tuple[str, ...],
    per_minute: float | None,
) -> Live:
    """What a page shows of a study's trials; per_minute None where it does not run, or its rate is not known."""
    scored = [each for each in points if each.score is not None and each.feasible]
    numbers = [scored[index].number for index in front([(_score(each), each.latency_ms) for each in scored])]
    volumes = hypervolumes([(_score(each), each.latency_ms) for each in scored], record.budget_ms)
    left = max(0, record.trials - len(points))
    overview = Overview(
        name=name,
        record=record,
        state=state,
        done=len(points),
        failed=sum(each.score is None for each in points),
        best=_best(record, scored, trained),
        per_minute=per_minute,
        left_s=None if per_minute is None else 60 * left / per_minute,
        trouble=None,
    )
    return Live(overview, tuple(points), tuple(numbers), tuple(trained), tuple(volumes), log)


def state_of(folder: Path, runs: Runs) -> str:
    """`running`, `starting`, `stopped`, `finished` or `crashed`: who holds the study, and how its last run ended."""
    active = runs.state(folder)
    if active is not None:
        return active
    try:
        text = (folder / LOCK).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "stopped"
    return text if text in (STOPPED, FINISHED) else "crashed" if text else "stopped"


@lru_cache(maxsize=16)
def database(url: str) -> BaseStorage:
    """An Optuna storage by its URL, for reading: no table is made, and SQLite opens its file read-only.

    Raises:
        ConfigError: there is none.
    """
    arguments: dict[str, Any] = {}
    where = url
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///")).resolve()
        if not path.exists():
            raise ConfigError(f"storage {url}: {path} does not exist")
        where, arguments = f"sqlite:///file:{path}?mode=ro&uri=true", {"connect_args": {"timeout": 60}}
    try:
        return RDBStorage(where, engine_kwargs=arguments, skip_compatibility_check=True, skip_table_creation=True)
    except Exception as error:
        raise ConfigError(f"storage {url}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def point_of(trial: FrozenTrial) -> Point:
    """A trial as a page needs it."""
    score, latency_ms = trial.values or (None, float("nan"))
    known = trial.user_attrs
    return Point(
        number=trial.number,
        arch_id=str(known.get("arch", "")),
        score=score,
        latency_ms=latency_ms,
        high_ms=float(known.get("latency_high_ms", latency_ms)),
        tier=str(known.get("latency_tier", "extrapolated")),
        feasible=all(value <= 0 for value in trial.constraints.values()),
        completed=trial.datetime_complete,
    )


def _score(point: Point) -> float:
    assert point.score is not None
    return point.score


def _best(record: StudyFile, scored: Sequence[Point], trained: Sequence[TrainedPoint]) -> str:
    if trained:
        first = max(trained, key=lambda each: (each.accuracy, -each.latency_ms))
        return f"{100 * first.accuracy:.1f} % at {first.latency_ms:.3g} ms"
    if scored:
        best = max(scored, key=_score)
        return f"{record.leading} {_score(best):.4g} at {best.latency_ms:.3g} ms"
    return "-"


def _run_began(folder: Path) -> datetime:
    # The driver writes its number into the lock when it begins, in local time as Optuna's journal gives its own.
    return datetime.fromtimestamp((folder / LOCK).stat().st_mtime)


def rate_per_minute(points: Sequence[Point], since: datetime) -> float | None:
    """How many trials a minute the last ones of this run took; None before there are two."""
    times = sorted(each.completed for each in points if each.completed is not None and each.completed >= since)
    recent = times[-RATE_OVER - 1 :]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    return 60 * (len(recent) - 1) / (recent[-1] - recent[0]).total_seconds()


def hypervolumes(points: Sequence[Pair], budget_ms: float) -> list[float]:
    """After each point, the share of the box that the points so far cover.

    Points are (score, latency). The box reaches from the lowest score of all to the highest and from 0 ms to the
    budget, so what is above the budget covers nothing and the share never falls.
    """
    if not points:
        return []
    low, high = min(score for score, _ in points), max(score for score, _ in points)
    box = (high - low) * budget_ms
    on_front: list[Pair] = []
    share, found = 0.0, []
    for point in points:
        if point[1] < budget_ms and not any(other == point or dominates(other, point) for other in on_front):
            kept = [other for other in on_front if not dominates(point, other)]
            on_front = sorted([*kept, point], key=lambda each: each[1])
            ends = [latency for _, latency in on_front[1:]] + [budget_ms]
            covered = sum((own - low) * (end - latency) for (own, latency), end in zip(on_front, ends, strict=True))
            share = covered / box if box > 0 else 0.0
        found.append(share)
    return found


def last_lines(path: Path) -> list[str]:
    """The end of a log, at most `LOG_LINES` lines; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-LOG_LINES:]


def age(created: str, now: datetime | None = None) -> str:
    """How long ago, in one unit."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size
