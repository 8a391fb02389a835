"""Targets: a device with a runtime, as a file says it, and the latency model that answers for it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardware.job_folder import Runtime
from hardware.kernels import FusionRule
from hardware.latency_table import (
    CalibratedModel,
    CalibratedRange,
    LatencyModel,
    Positive,
    Tier,
    table_name,
)
from hardware.ncnn_layers import AMOUNTS
from hardware.profiled_table import ProfiledModel, TableIdentity, empty_table, read_table
from hardware.strict_yaml import ConfigError, load_yaml, nearest

TARGETS_FOLDER = Path(__file__).parent / "targets"

# What most boards can run: there are wheels for 32-bit ARM of no other.
BOARD_RUNTIME = "ncnn"

# What pip calls the runtimes.
RUNTIME_LIBRARIES = {"onnxruntime": "onnxruntime", "ncnn": "ncnn", "mnn": "MNN"}

_STRICT = ConfigDict(extra="forbid", frozen=True)

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Provenance(BaseModel):
    """Whose figures these are."""

    model_config = _STRICT

    source: str
    date: str
    licence: str
    method: str


class OutsideRange(BaseModel):
    """Measured over predicted where no network was published, and why these figures."""

    model_config = _STRICT

    low_ratio: Positive
    high_ratio: Positive
    reason: str


class TargetFile(BaseModel):
    """targets/NAME.yaml; a calibrated target also names its calibration and its margins.

    other_runtimes holds the fusion rules of what a measured target can run besides its first runtime.
    """

    model_config = _STRICT

    name: str
    device: str
    cpu: str
    description: str
    runtime: Runtime
    runtime_version: str
    precision: Literal["fp32"]
    protocol: str
    tier: Literal["calibrated", "measured"]
    fusion_rules: tuple[FusionRule, ...]
    other_runtimes: dict[Runtime, tuple[FusionRule, ...]] = {}
    provenance: Provenance
    calibration: str | None = None
    outside_range: OutsideRange | None = None

    @model_validator(mode="after")
    def _calibrated_has_its_parts(self) -> Self:
        has_parts = self.calibration is not None and self.outside_range is not None
        if has_parts != (self.tier == "calibrated"):
            raise ValueError("a calibrated target, and no other, needs both calibration and outside_range")
        return self


class LeaveOneOutErrors(BaseModel):
    """How a calibration did on networks that it had not seen; ratios are measured over predicted, 5 % and 95 %."""

    model_config = _STRICT

    networks: Annotated[int, Field(ge=1)]
    mape_percent: NotNegative
    median_percent: NotNegative
    max_percent: NotNegative
    within_10_percent: NotNegative
    within_20_percent: NotNegative
    spearman: Annotated[float, Field(ge=-1, le=1)]
    low_ratio: Positive
    high_ratio: Positive
    fastest_ms: Positive
    slowest_ms: Positive


class ThreadCosts(BaseModel):
    """ms per million instructions of each thread group, and per megabyte of activations."""

    model_config = _STRICT

    matrix: Positive
    winograd: Positive
    vector: Positive
    memory: Positive
    activation_megabyte: NotNegative


class CalibrationFile(BaseModel):
    """targets/NAME/calibration.yaml, as `calibration.recalibrate` writes it; costs and errors are by threads."""

    model_config = _STRICT

    instructions: dict[str, dict[str, NotNegative]]
    costs: dict[int, ThreadCosts]
    errors: dict[int, LeaveOneOutErrors]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for family, row in self.instructions.items():
            if unknown := sorted(row.keys() - set(AMOUNTS)):
                hint = nearest(unknown[0], list(AMOUNTS))
                raise ValueError(f"instructions.{family}: unknown amount {unknown[0]!r}; {hint}")
        if self.costs.keys() != self.errors.keys():
            raise ValueError(f"costs and errors need equal threads, got {list(self.costs)} and {list(self.errors)}")
        return self


@dataclass(frozen=True)
class Target:
    """A device with a runtime and a number of threads, and what answers for its latencies.

    errors is None where nothing was calibrated. sha256 is of all that a latency follows from.
    """

    about: TargetFile
    threads: int
    supported_threads: tuple[int, ...]
    runtime_version: str
    errors: LeaveOneOutErrors | None
    latency_model: LatencyModel
    sha256: str

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def runtime(self) -> str:
        return self.about.runtime

    @property
    def tier(self) -> Tier:
        """Where its kernels' latencies come from."""
        return Tier(self.about.tier)

    @property
    def fusion_rules(self) -> tuple[FusionRule, ...]:
        return self.about.fusion_rules


def known_targets() -> tuple[str, ...]:
    """The names that `load_target` takes: those that are shipped, and the boards that this user has measured."""
    return tuple(sorted({*shipped_targets(), *(path.name for path in boards_folder().glob("*/") if _tables(path))}))


def shipped_targets() -> tuple[str, ...]:
    """The targets that come with the package."""
    return tuple(sorted(path.stem for path in TARGETS_FOLDER.glob("*.yaml")))


def load_target(
    name: str, *, threads: int | None = None, runtime: str | None = None, table: Path | None = None
) -> Target:
    """The target of that name; where None, the target's first runtime and the fewest threads it has figures for.

    table stands in for the measured table that this machine, or a board of the user's, has by now; calibrated targets
    have none.

    Raises:
        ConfigError: there is no such target, it has no figures for so many threads or that runtime, or a file is wrong.
    """
    if name not in known_targets():
        hint = nearest(name, list(known_targets()))
        raise ConfigError(
            f"target: must be one of the known targets, got {name!r}; {hint}. "
            "`nas profile --target NAME --ssh HOST` makes a table of a board of your own"
        )
    if name not in shipped_targets():
        return _board_target(name, threads, runtime, table)
    threads = 1 if threads is None else threads
    described = load_yaml(TARGETS_FOLDER / f"{name}.yaml", TargetFile)
    if runtime is not None:
        described = _for_runtime(described, runtime)
    if described.tier == "calibrated":
        return _calibrated_target(described, threads)
    return _host_target(described, threads, table)


def described_target(name: str, runtime: str | None) -> TargetFile:
    """What a target that is to be measured is like: the machine at hand, or a board of that name.

    Raises:
        ConfigError: the name is that of a target which is not measured here, or no name for a file.
    """
    host = load_yaml(TARGETS_FOLDER / "host.yaml", TargetFile)
    if name == host.name:
        return host if runtime is None else _for_runtime(host, runtime)
    if name in shipped_targets():
        raise ConfigError(
            f"target: {name} is calibrated to published figures; measure your own board under a name of its own, "
            f"such as my-{name}"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise ConfigError(f"target: a board's name has small letters, digits, '-', '_' and '.' only, got {name!r}")
    return _for_runtime(host, BOARD_RUNTIME if runtime is None else runtime).model_copy(
        update={"name": name, "device": name, "description": "A board of one's own.", "other_runtimes": {}}
    )


def _for_runtime(described: TargetFile, runtime: str) -> TargetFile:
    known = {described.runtime: described.fusion_rules, **described.other_runtimes}
    if runtime not in known:
        raise ConfigError(
            f"runtime: target {described.name} has figures for {', '.join(known)} only, got {runtime!r}; choose one of "
            "these, or leave it out"
        )
    return described.model_copy(update={"runtime": runtime, "fusion_rules": known[runtime]})


def _calibrated_target(described: TargetFile, threads: int) -> Target:
    # TargetFile checks both.
    assert described.calibration is not None
    assert described.outside_range is not None
    calibration = load_yaml(TARGETS_FOLDER / described.calibration, CalibrationFile)
    _check_threads(described.name, threads, tuple(calibration.costs))
    costs, errors, outside = calibration.costs[threads], calibration.errors[threads], described.outside_range
    formula = {
        family: tuple(row.get(amount, 0.0) for amount in AMOUNTS) for family, row in calibration.instructions.items()
    }
    inside_ratios = min(1.0, errors.low_ratio), max(1.0, errors.high_ratio)
    sha256 = _sha256(
        described.model_dump(), calibration.instructions, costs.model_dump(), errors.model_dump(), [threads]
    )
    model = CalibratedModel(
        table=table_name(
            f"{described.name}/{described.runtime}-{described.runtime_version}", threads, described.precision, sha256
        ),
        formula=formula,
        costs=costs.model_dump(),
        range=CalibratedRange(
            fastest_ms=errors.fastest_ms,
            slowest_ms=errors.slowest_ms,
            inside_ratios=inside_ratios,
            outside_ratios=(min(inside_ratios[0], outside.low_ratio), max(inside_ratios[1], outside.high_ratio)),
        ),
    )
    return Target(described, threads, tuple(calibration.costs), described.runtime_version, errors, model, sha256)


def _host_target(described: TargetFile, threads: int, table: Path | None) -> Target:
    supported = _host_threads()
    identity = host_identity(described, threads)
    path = table_path(identity) if table is None else table
    profiled = read_table(path, identity) if path.exists() else empty_table(identity)
    return Target(
        described, threads, supported, identity.runtime_version, None, ProfiledModel(profiled), profiled.sha256
    )


def _host_threads() -> tuple[int, ...]:
    return tuple(range(1, (os.cpu_count() or 1) + 1))


def host_identity(described: TargetFile, threads: int) -> TableIdentity:
    """What measurements on this machine belong to.

    Raises:
        ConfigError: the runtime is not installed, or the machine cannot run so many threads.
    """
    _check_threads(described.name, threads, _host_threads())
    library = RUNTIME_LIBRARIES[described.runtime]
    try:
        runtime_version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"runtime: target {described.name} needs {library}, which is not installed; run pip install {library}"
        ) from error
    return TableIdentity(
        target=described.name,
        device=f"{platform.system()} {platform.machine()}",
        cpu=_processor_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        runtime=described.runtime,
        runtime_version=runtime_version,
        precision=described.precision,
        unit="ms",
        protocol=described.protocol,
    )


def _board_target(name: str, threads: int | None, runtime: str | None, table: Path | None) -> Target:
    # A study goes on with its table whatever else was measured on the board since.
    every = [read_table(path) for path in ([table] if table is not None else _tables(boards_folder() / name))]
    if others := sorted({each.identity.target for each in every} - {name}):
        raise ConfigError(f"target: the tables of {name} must be its own, got one of {others[0]}; remove it")
    runtimes = sorted({each.identity.runtime for each in every}, key=lambda each: (each != BOARD_RUNTIME, each))
    if runtime not in (None, *runtimes):
        raise ConfigError(
            f"runtime: target {name} has figures for {', '.join(runtimes)} only, got {runtime!r}; run nas profile"
        )
    described = described_target(name, runtime or runtimes[0])
    of_runtime = {each.identity.threads: each for each in every if each.identity.runtime == described.runtime}
    threads = min(of_runtime) if threads is None else threads
    _check_threads(name, threads, tuple(sorted(of_runtime)))
    profiled = of_runtime[threads]
    identity = profiled.identity
    about = described.model_copy(
        update={
            "device": identity.device,
            "cpu": identity.cpu,
            "runtime_version": identity.runtime_version,
            "provenance": described.provenance.model_copy(update={"date": profiled.measured_on}),
        }
    )
    return Target(
        about,
        threads,
        tuple(sorted(of_runtime)),
        identity.runtime_version,
        None,
        ProfiledModel(profiled),
        profiled.sha256,
    )


def table_path(identity: TableIdentity) -> Path:
    """Where this user's measurements of this machine are kept."""
    return cache_folder() / "tables" / f"{identity.target}-{identity.digest}.csv"


def board_table_path(name: str, runtime: str, threads: int) -> Path:
    """Where the table of a board of the user's own is kept."""
    return boards_folder() / name / f"{runtime}-{threads}t.csv"


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*t.csv"))


def cache_folder() -> Path:
    """What can be made again on this machine; honours XDG_CACHE_HOME where that is absolute."""
    return _folder("XDG_CACHE_HOME", ".cache")


def boards_folder() -> Path:
    """What was measured elsewhere; honours XDG_DATA_HOME where that is absolute."""
    return _folder("XDG_DATA_HOME", ".local/share") / "boards"


def _folder(variable: str, otherwise: str) -> Path:
    configured = Path(os.environ.get(variable, ""))
    return (configured if configured.is_absolute() else Path.home() / otherwise) / "edge-nas"


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # ARM kernels name the model per device ("Model", "Hardware") and the core only by its part number.
        for title in ("model name", "Model", "Hardware", "CPU part"):
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == title and value.strip():
                    return value.strip()
    return platform.processor() or platform.machine()


def _check_threads(name: str, threads: int, supported: tuple[int, ...]) -> None:
    if threads not in supported:
        listed = ", ".join(map(str, supported))
        raise ConfigError(
            f"threads: target {name} has figures for {listed} threads, got {threads}; choose one of these"
        )


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
