"""What a device measured of a job folder: samples.jsonl, read strictly, as one timing for each job."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from hardware import board
from hardware.job_folder import STRICT, JobId, JobList, JobProtocol, Runtime, load_jobs, parse_json
from hardware.strict_yaml import ConfigError

LONGEST_MS = 60_000.0

Milliseconds = Annotated[float, Field(gt=0, le=LONGEST_MS, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Celsius = Annotated[float, Field(allow_inf_nan=False)]
Load = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Clock(BaseModel):
    """What the system says of one core; None where it does not."""

    model_config = STRICT

    core: Count
    governor: str | None
    min_khz: Count | None
    max_khz: Count | None
    current_khz: Count | None


class Machine(BaseModel):
    """What measured, and in what state it was; None where the machine does not tell."""

    model_config = STRICT

    board: str | None
    cpu: str | None
    cores: Count | None
    core_set: tuple[Count, ...] | None
    clocks: tuple[Clock, ...]
    temperatures_c: dict[str, Celsius]
    load: tuple[Load, ...] | None
    runtime: Runtime
    runtime_version: str
    os: str
    kernel: str
    python: str | None
    date: str


class Conditions(BaseModel):
    """The highest clock, the highest temperature and the load of the last minute."""

    model_config = STRICT

    clock_khz: Count | None
    temperature_c: Celsius | None
    load1: Load | None


@dataclass(frozen=True, slots=True)
class JobTiming:
    """Median, interquartile range, 10 % and 90 % quantile of single runs at batch 1.

    sentinel_ms is how long the sentinel took just before and after, on average, None where it was not timed; disturbed
    is true where the sentinel ran slower around every attempt, None where no sentinel was timed afterwards.
    traced holds each operator in the order of running with its time in ms, where the job asked for that.
    """

    median_ms: float
    spread_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    sentinel_ms: float | None
    disturbed: bool | None
    before: Conditions
    after: Conditions
    traced: tuple[tuple[str, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class BenchTiming:
    """What a runtime's own benchmark program prints of its runs. There is no median among it.

    disturbed is true where the sentinel ran slower around every attempt, None where no sentinel was timed afterwards.
    """

    min_ms: float
    max_ms: float
    avg_ms: float
    runs: int
    disturbed: bool | None
    before: Conditions
    after: Conditions


@dataclass(frozen=True, slots=True)
class JobResults:
    """What is known of a folder's jobs, by their ids; `missing` have not been measured yet.

    started and ended describe the machine at the first start and at the latest end, None if it has not come to one.
    """

    started: Machine
    ended: Machine | None
    timings: Mapping[str, JobTiming]
    bench_timings: Mapping[str, BenchTiming]
    errors: Mapping[str, str]
    missing: tuple[str, ...]


class _Settings(BaseModel):
    model_config = STRICT

    runtime: Runtime
    threads: int
    cpus: tuple[int, ...] | None
    protocol: JobProtocol


class _Start(BaseModel):
    model_config = STRICT

    machine: Machine
    settings: _Settings
    at: Literal["start"]
    format: Literal[1]
    unit: Literal["ms"]


class _End(BaseModel):
    model_config = STRICT

    machine: Machine
    at: Literal["end"]


class _Begin(BaseModel):
    model_config = STRICT

    begin: JobId


class _Interrupted(BaseModel):
    model_config = STRICT

    interrupted: JobId


class _Sentinel(Conditions):
    sentinel: JobId
    median_ms: Milliseconds


class _Error(BaseModel):
    model_config = STRICT

    id: JobId
    error: Annotated[str, Field(min_length=1)]


class _Result(BaseModel):
    model_config = STRICT

    id: JobId
    runs: Annotated[int, Field(ge=1)]
    warmup_runs: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    before: Conditions
    after: Conditions
    attempt: Annotated[int, Field(ge=1)]
    traced_ms: tuple[tuple[str, Annotated[float, Field(ge=0, le=LONGEST_MS)]], ...] | None = None


class _Samples(_Result):
    samples_ms: Annotated[tuple[Milliseconds, ...], Field(max_length=board.MOST_SAMPLES)]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if len(self.samples_ms) != self.runs:
            raise ValueError(f"there must be one sample for each of {self.runs} runs, got {len(self.samples_ms)}")
        return self


class _Quantiles(_Result):
    quantiles_ms: Annotated[
        tuple[Milliseconds, ...], Field(min_length=board.PERCENTS + 1, max_length=board.PERCENTS + 1)
    ]

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if list(self.quantiles_ms) != sorted(self.quantiles_ms):
            raise ValueError("quantiles must ascend, got some that do not")
        return self


class _Summary(BaseModel):
    model_config = STRICT

    min: Milliseconds
    max: Milliseconds
    avg: Milliseconds

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min <= self.avg <= self.max:
            raise ValueError(f"avg must lie between min and max, got {self.min}, {self.avg}, {self.max}")
        return self


class _BenchResult(_Result):
    summary_ms: _Summary


class _Disturbed(BaseModel):
    model_config = STRICT

    disturbed: tuple[JobId, ...]
    why: str
    sentinel_ms: Milliseconds


class _Accepted(BaseModel):
    model_config = STRICT

    accepted: dict[JobId, Annotated[int, Field(ge=1)]]
    disturbed: bool | None
    sentinel_ms: Milliseconds | None
    why: str | None = None


# The first of these keys that a record has says which kind it is.
_KINDS: Mapping[str, type[BaseModel]] = {
    "settings": _Start,
    "machine": _End,
    "begin": _Begin,
    "interrupted": _Interrupted,
    "sentinel": _Sentinel,
    "error": _Error,
    "samples_ms": _Samples,
    "quantiles_ms": _Quantiles,
    "summary_ms": _BenchResult,
    "accepted": _Accepted,
    "disturbed": _Disturbed,
}


def has_results(folder: Path) -> bool:
    """Whether anything was measured of a job folder; a way to a device that fails at once leaves an empty file."""
    path = folder / board.SAMPLES
    return path.is_file() and b"\n" in path.read_bytes()


def load_results(folder: Path) -> JobResults:
    """What samples.jsonl in a job folder says; a last line that was torn off in the middle is passed over.

    Raises:
        ConfigError: there is no such file, or a line breaks a rule or belongs to other jobs or another machine.
    """
    path = folder / board.SAMPLES
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: a readable file is needed, got {error}; measure the folder first") from error
    return parse_results(text, folder, name=str(path))


def parse_results(text: bytes, folder: Path, *, name: str) -> JobResults:
    """What the lines say of the jobs in `folder`; `name` stands for the file in messages.

    Raises:
        ConfigError: a line breaks a rule or belongs to other jobs or another machine.
    """
    jobs = load_jobs(folder)
    reader = _Reader(folder, jobs)
    whole = text[: text.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        reader.read(line, f"{name}:{number}")
    if reader.started is None:
        raise ConfigError(f"{name}:1: the first line must describe the machine, got an empty file; measure again")
    return reader.results()


class _Reader:
    """Takes in the lines of samples.jsonl one by one."""

    def __init__(self, folder: Path, jobs: JobList) -> None:
        self.started: Machine | None = None
        self._ended: Machine | None = None
        self._jobs = jobs
        self._models = {job.id: folder / job.file for job in jobs.jobs}
        self._digests: dict[str, str] = {}
        self._results: dict[tuple[str, int], _Result] = {}
        # The readings of the sentinel, and how many there were before each result.
        self._sentinel_ms: list[float] = []
        self._readings_before: dict[tuple[str, int], int] = {}
        self._journal = board.Journal()

    def read(self, line: bytes, name: str) -> None:
        record = _parse_record(line, name)
        if self.started is None and not isinstance(record, _Start):
            raise ConfigError(f"{name}: the first line must describe the machine, got {line[:60]!r}; measure again")
        self._check_ids(record, name)
        if isinstance(record, _Start):
            self._check_settings(record, name)
        if isinstance(record, _End):
            self._ended = record.machine
        if isinstance(record, _Sentinel):
            self._sentinel_ms.append(record.median_ms)
        if isinstance(record, _Result):
            self._take_result(record, name)
        if isinstance(record, _Accepted):
            for job, attempt in record.accepted.items():
                if (job, attempt) not in self._results:
                    raise ConfigError(
                        f"{name}: accepted: there must be a result for attempt {attempt} of {job}, got none"
                    )
        self._journal.note(record.model_dump(exclude_unset=True))

    def results(self) -> JobResults:
        assert self.started is not None
        timings, bench_timings = {}, {}
        for job in self._jobs.jobs:
            if job.id not in self._journal.results or job.id in self._journal.errors:
                continue
            found, disturbed = self._journal.verdict(job.id)
            result = self._results[job.id, found["attempt"]]
            if isinstance(result, _BenchResult):
                bench_timings[job.id] = _bench_timing(result, disturbed)
            else:
                timings[job.id] = _timing(result, self._sentinel_around(job.id, found["attempt"]), disturbed)
        known = {*timings, *bench_timings, *self._journal.errors}
        missing = tuple(job.id for job in self._jobs.jobs if job.id not in known)
        return JobResults(self.started, self._ended, timings, bench_timings, dict(self._journal.errors), missing)

    def _check_ids(self, record: BaseModel, name: str) -> None:
        for job in _ids(record):
            if job not in self._models:
                raise ConfigError(
                    f"{name}: every id must be one of {self._known()}, got {job!r}; are these its results?"
                )
            if isinstance(record, _Disturbed) and job not in self._journal.results:
                raise ConfigError(f"{name}: disturbed: there must be a result for {job}, got none")

    def _known(self) -> str:
        names = list(self._models)
        return f"the folder's {len(names)} ids, {names[0]} to {names[-1]}"

    def _check_settings(self, record: _Start, name: str) -> None:
        wanted = _Settings(**{key: getattr(self._jobs, key) for key in _Settings.model_fields})
        for key in _Settings.model_fields:
            found, asked = getattr(record.settings, key), getattr(wanted, key)
            if found != asked:
                raise ConfigError(f"{name}: settings.{key}: must be what jobs.json asks for, {asked}, got {found}")
        if record.machine.runtime != self._jobs.runtime:
            raise ConfigError(
                f"{name}: machine.runtime: must be {self._jobs.runtime}, as in jobs.json, got {record.machine.runtime}"
            )
        first = self.started or record.machine
        for key in board.SAME:
            found, before = getattr(record.machine, key), getattr(first, key)
            if found != before:
                raise ConfigError(f"{name}: machine.{key}: must stay as in line 1, {before!r}, got {found!r}")
        self.started = first

    def _take_result(self, record: _Result, name: str) -> None:
        job = record.id
        attempt = len(self._journal.results.get(job, {})) + 1
        if record.attempt != attempt:
            raise ConfigError(f"{name}: attempt: must be {attempt}, one more than before, got {record.attempt}")
        if job not in self._digests:
            self._digests[job] = hashlib.sha256(self._models[job].read_bytes()).hexdigest()
        if record.sha256 != self._digests[job]:
            raise ConfigError(
                f"{name}: sha256: must be that of {self._models[job].name} in the folder, {self._digests[job][:12]}, "
                f"got {record.sha256[:12]}; these are results of another model"
            )
        self._results[job, attempt] = record
        self._readings_before[job, attempt] = len(self._sentinel_ms)

    def _sentinel_around(self, job: str, attempt: int) -> float | None:
        count = self._readings_before[job, attempt]
        around = self._sentinel_ms[max(0, count - 1) : count + 1]
        return sum(around) / len(around) if around else None


def _parse_record(line: bytes, name: str) -> BaseModel:
    keys = parse_json(line, _Keys, name=name).model_extra or {}
    kind = next((kind for key, kind in _KINDS.items() if key in keys), None)
    if kind is None:
        raise ConfigError(f"{name}: a record must have one of the keys {', '.join(_KINDS)}, got {', '.join(keys)}")
    return parse_json(line, kind, name=name)


class _Keys(BaseModel, extra="allow"):
    """Any JSON object."""


def _ids(record: BaseModel) -> tuple[str, ...]:
    match record:
        case _Begin(begin=job) | _Interrupted(interrupted=job) | _Sentinel(sentinel=job):
            return (job,)
        case _Error(id=job) | _Result(id=job):
            return (job,)
        case _Disturbed(disturbed=jobs):
            return jobs
        case _Accepted(accepted=attempts):
            return tuple(attempts)
    return ()


def _timing(result: _Result, sentinel_ms: float | None, disturbed: bool | None) -> JobTiming:
    assert isinstance(result, _Samples | _Quantiles)
    ordered = sorted(result.samples_ms) if isinstance(result, _Samples) else list(result.quantiles_ms)
    # Of quantiles at equal distances, these are the very ones of the runs that they were taken from.
    p10, lower, median, upper, p90 = (board.quantile(ordered, share) for share in (0.1, 0.25, 0.5, 0.75, 0.9))
    return JobTiming(
        median_ms=median,
        spread_ms=upper - lower,
        p10_ms=p10,
        p90_ms=p90,
        runs=result.runs,
        sentinel_ms=sentinel_ms,
        disturbed=disturbed,
        before=result.before,
        after=result.after,
        traced=result.traced_ms,
    )


def _bench_timing(result: _BenchResult, disturbed: bool | None) -> BenchTiming:
    found = result.summary_ms
    return BenchTiming(found.min, found.max, found.avg, result.runs, disturbed, result.before, result.after)
