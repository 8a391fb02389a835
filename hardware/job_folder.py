"""Job folders: the models that a device is to run, and jobs.json, which says how they are run and timed.

The folder goes to the device as it is, `hardware.board` measures it there, `hardware.job_results` reads what came out.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hardware.board import JOBS
from hardware.strict_yaml import ConfigError, Model

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Runtime = Literal["onnxruntime", "ncnn", "mnn"]

# What a model file of each runtime is called.
SUFFIXES = {"onnxruntime": ".onnx", "ncnn": ".param", "mnn": ".mnn"}


class JobProtocol(BaseModel):
    """How jobs are timed: each warms up for warmup_s, then runs for min_runs and min_s, but not beyond max_s.

    After every sentinel_every jobs the sentinel is timed. Where it took longer than its fastest quarter of readings by
    more than the tolerance, or the clock fell by as much from its highest, the jobs are measured again up to `retries`
    times, after cooldown_s.
    """

    model_config = STRICT

    warmup_s: Seconds
    min_runs: Annotated[int, Field(ge=1)]
    min_s: Seconds
    max_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    trace_runs: Annotated[int, Field(ge=1)] = 12
    sentinel_every: Annotated[int, Field(ge=1)] = 20
    sentinel_tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    retries: Annotated[int, Field(ge=0)] = 3
    cooldown_s: Seconds = 1.0


class JobInput(BaseModel):
    """An input of a model, with its shape at batch 1."""

    model_config = STRICT

    name: Annotated[str, Field(min_length=1)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _runs_one(self) -> Self:
        if self.shape[0] != 1:
            raise ValueError(f"a shape must begin with a batch of 1, got {self.shape}")
        return self


class Job(BaseModel):
    """One model to run: its file in the folder, what goes in, and which output is asked for.

    trace names the values whose making is timed one by one as well, None for none.
    """

    model_config = STRICT

    id: JobId
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    inputs: Annotated[tuple[JobInput, ...], Field(min_length=1)]
    output: Annotated[str, Field(min_length=1)]
    trace: tuple[str, ...] | None = None


class JobList(BaseModel):
    """What jobs.json says. The first job is the most important one.

    cpus are the cores that the process is kept on, None for those that the system gives. time_limit_s None measures
    every job. sentinel None measures without looking for disturbances.
    """

    model_config = STRICT

    format: Literal[1] = 1
    runtime: Runtime
    threads: Annotated[int, Field(ge=1)]
    cpus: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    protocol: JobProtocol
    time_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    sentinel: JobId | None = None
    jobs: Annotated[tuple[Job, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ids = [job.id for job in self.jobs]
        twice = sorted(each for each, count in Counter(ids).items() if count > 1)
        if twice:
            raise ValueError(f"the id of a job must be its own, got twice: {', '.join(twice)}")
        if self.sentinel is not None and self.sentinel not in ids:
            raise ValueError(f"the sentinel must be the id of a job, got {self.sentinel!r}")
        suffix = SUFFIXES[self.runtime]
        wrong = [job.file for job in self.jobs if not job.file.endswith(suffix)]
        if wrong:
            raise ValueError(f"models for {self.runtime} must be called *{suffix}, got {wrong[0]}")
        return self


def write_jobs(folder: Path, jobs: JobList) -> None:
    """Puts jobs.json beside the models.

    Raises:
        ConfigError: a model is missing in the folder.
    """
    _check_models(folder, jobs)
    text = jobs.model_dump_json(indent=1)
    partial = folder / f".{JOBS}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / JOBS)


def load_jobs(folder: Path) -> JobList:
    """What the folder asks for.

    Raises:
        ConfigError: the folder has no jobs.json, it breaks a rule, or a model is missing.
    """
    jobs = read_jobs(folder)
    _check_models(folder, jobs)
    return jobs


def read_jobs(folder: Path) -> JobList:
    """What the folder asks for, whether its models are there or not.

    Raises:
        ConfigError: the folder has no jobs.json, or it breaks a rule.
    """
    path = folder / JOBS
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: a readable file is needed, got {error}; check the path") from error
    return parse_json(text, JobList, name=f"{path}:1")


def parse_json(text: bytes, model: type[Model], *, name: str) -> Model:
    """What the text says, as a `model`; `name` stands for the file and line in messages.

    Raises:
        ConfigError: the text is not JSON, or does not fit the model.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        lines = []
        for details in error.errors(include_url=False):
            path = ".".join(map(str, details["loc"]))
            rule = details["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
            value = repr(details["input"])
            got = "" if details["type"] in ("value_error", "json_invalid") else f", got {value[:60]}"
            lines.append(f"{name}: {path}: {rule}{got}" if path else f"{name}: {rule}{got}")
        raise ConfigError("\n".join(lines)) from error


def _check_models(folder: Path, jobs: JobList) -> None:
    missing = [job.file for job in jobs.jobs if not (folder / job.file).is_file()]
    if missing:
        raise ConfigError(f"{folder}: the model of every job must be in the folder, missing: {', '.join(missing[:5])}")
