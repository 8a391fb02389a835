"""Targets: a device with a runtime, as a file says it, and the latency model that answers for it."""

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardware.kernels import FusionRule
from hardware.latency_table import (
    CalibratedModel,
    CalibratedRange,
    LatencyModel,
    MeasuredTable,
    Positive,
    TableIdentity,
    Tier,
    table_name,
)
from hardware.ncnn_layers import AMOUNTS
from hardware.strict_yaml import ConfigError, load_yaml, nearest

TARGETS_FOLDER = Path(__file__).parent / "targets"

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
    """targets/NAME.yaml; a calibrated target also names its calibration and its margins."""

    model_config = _STRICT

    name: str
    device: str
    cpu: str
    description: str
    runtime: str
    runtime_version: str
    precision: Literal["fp32"]
    protocol: str
    tier: Literal["calibrated", "measured"]
    fusion_rules: tuple[FusionRule, ...]
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

    errors is None where nothing was calibrated. sha256 is of all that a calibrated latency follows from; where kernels
    are measured, of what the measurements belong to, while the name of the table follows its rows.
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
    """The names that `load_target` takes."""
    return tuple(sorted(path.stem for path in TARGETS_FOLDER.glob("*.yaml")))


def load_target(name: str, *, threads: int | None = None, runtime: str | None = None) -> Target:
    """The target of that name; one thread and the target's own runtime where None.

    Raises:
        ConfigError: there is no such target, it has no figures for so many threads or that runtime, or a file is wrong.
    """
    if name not in known_targets():
        hint = nearest(name, list(known_targets()))
        raise ConfigError(f"target: must be one of the known targets, got {name!r}; {hint}")
    described = load_yaml(TARGETS_FOLDER / f"{name}.yaml", TargetFile)
    if runtime not in (None, described.runtime):
        raise ConfigError(
            f"runtime: target {name} has figures for {described.runtime} only, got {runtime!r}; leave it out"
        )
    build = _calibrated_target if described.tier == "calibrated" else _measured_target
    return build(described, 1 if threads is None else threads)


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


def _measured_target(described: TargetFile, threads: int) -> Target:
    supported = tuple(range(1, (os.cpu_count() or 1) + 1))
    _check_threads(described.name, threads, supported)
    identity = host_identity(described, threads)
    path = table_path(identity)
    if path.exists():
        table = MeasuredTable.load(path, identity)
    else:
        table = MeasuredTable(path, identity, started=datetime.now(UTC).date().isoformat())
    sha256 = _sha256(described.model_dump(), identity.model_dump())
    return Target(described, threads, supported, identity.runtime_version, None, table, sha256)


def host_identity(described: TargetFile, threads: int) -> TableIdentity:
    """What measurements on this machine belong to.

    Raises:
        ConfigError: the runtime is not installed.
    """
    try:
        runtime_version = importlib.metadata.version(described.runtime)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"runtime: target {described.name} needs {described.runtime}, which is not installed; "
            f"run pip install {described.runtime}"
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


def table_path(identity: TableIdentity) -> Path:
    """Where this user's measurements of that identity are kept; honours XDG_CACHE_HOME where that is absolute."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = configured if configured.is_absolute() else Path.home() / ".cache"
    return cache / "edge-nas" / "tables" / f"{identity.target}-{identity.digest}.csv"


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
