"""Targets: a device with a runtime, as a file says it, and the latency model that answers for it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hardware.anchors import AnchorFile, anchors_path, rescale
from hardware.boards import CalibrationRow, read_boards, read_calibration
from hardware.calibration import BAR_PERCENT
from hardware.count_formula import read_formula
from hardware.instruction_counts import read_counts
from hardware.job_folder import Runtime
from hardware.kernels import FusionRule
from hardware.latency_table import (
    CalibratedModel,
    CalibratedRange,
    LatencyModel,
    Tier,
    table_name,
)
from hardware.profiled_table import ProfiledModel, TableIdentity, empty_table, read_table
from hardware.strict_yaml import ConfigError, load_yaml, nearest

TARGETS_FOLDER = Path(__file__).parent / "targets"

# Executed instructions of 32-bit ARM: by kernel, a formula for the others, and of the benchmark networks' layers.
COUNTS_FILE = TARGETS_FOLDER / "armv7" / "kernels.tsv.gz"
FORMULA_FILE = TARGETS_FOLDER / "armv7" / "formula.csv"
LAYERS_FILE = TARGETS_FOLDER / "armv7" / "layers.csv"

# What most boards can run: there are wheels for 32-bit ARM of no other.
BOARD_RUNTIME = "ncnn"

# What pip calls the runtimes.
RUNTIME_LIBRARIES = {"onnxruntime": "onnxruntime", "ncnn": "ncnn", "mnn": "MNN"}

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Provenance(BaseModel):
    """Whose figures these are."""

    model_config = _STRICT

    source: str
    date: str
    licence: str
    method: str


class TargetFile(BaseModel):
    """What a target is: targets/NAME.yaml, or a board of targets/boards.yaml.

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


@dataclass(frozen=True)
class Target:
    """A device with a runtime and a number of threads, and what answers for its latencies.

    errors is None where nothing was calibrated. sha256 is of all that a latency follows from.
    """

    about: TargetFile
    threads: int
    supported_threads: tuple[int, ...]
    runtime_version: str
    errors: CalibrationRow | None
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
    own = (path.name for path in boards_folder().glob("*/") if _tables(path) or _anchored_threads(path))
    return tuple(sorted({*shipped_targets(), *own}))


def shipped_targets() -> tuple[str, ...]:
    """The targets that come with the package."""
    calibrated = (name for name, rows in read_calibration(TARGETS_FOLDER).items() if 1 in rows and rows[1].calibrates)
    return tuple(sorted((*_measured_targets(), *calibrated)))


def published_boards() -> tuple[str, ...]:
    """The boards whose published figures no calibration meets, so that they predict nothing."""
    return tuple(sorted(read_calibration(TARGETS_FOLDER).keys() - set(shipped_targets())))


def published_rows() -> list[dict[str, object]]:
    """What calibrating gave where it is not good enough to predict: board, threads, networks and error."""
    return [
        {"name": name, "threads": threads, "networks": row.networks, "leave_one_out_mape_percent": row.mape_percent}
        for name, rows in read_calibration(TARGETS_FOLDER).items()
        for threads, row in rows.items()
        if not row.calibrates or name in published_boards()
    ]


def _measured_targets() -> list[str]:
    return [path.stem for path in TARGETS_FOLDER.glob("*.yaml") if path.stem != "boards"]


def load_target(
    name: str, *, threads: int | None = None, runtime: str | None = None, table: Path | None = None
) -> Target:
    """The target of that name; where None, the target's first runtime and the fewest threads it has figures for.

    table stands in for the measured table that this machine, or a board of the user's, has by now; calibrated targets
    have none.

    Raises:
        ConfigError: there is no such target, it has no figures for so many threads or that runtime, or a file is wrong.
    """
    if name in published_boards():
        raise ConfigError(_why_published_only(name))
    if name not in known_targets():
        hint = nearest(name, list(known_targets()))
        raise ConfigError(
            f"target: must be one of the known targets, got {name!r}; {hint}. "
            "`nas profile --target NAME --ssh HOST` makes a table of a board of your own"
        )
    if name not in shipped_targets():
        folder = boards_folder() / name
        if table is None and not _tables(folder):
            return _anchored_target(name, threads, runtime)
        return _board_target(name, threads, runtime, table)
    threads = 1 if threads is None else threads
    measured = name in _measured_targets()
    described = load_yaml(TARGETS_FOLDER / f"{name}.yaml", TargetFile) if measured else _described_board(name)
    if runtime is not None:
        described = _for_runtime(described, runtime)
    return _host_target(described, threads, table) if measured else _calibrated_target(described, threads)


def described_target(name: str, runtime: str | None) -> TargetFile:
    """What a target that is to be measured is like: the machine at hand, or a board of that name.

    Raises:
        ConfigError: the name is that of a target which is not measured here, or no name for a file.
    """
    host = load_yaml(TARGETS_FOLDER / "host.yaml", TargetFile)
    if name == host.name:
        return host if runtime is None else _for_runtime(host, runtime)
    if name in (*shipped_targets(), *published_boards()):
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


def _described_board(name: str) -> TargetFile:
    shared = read_boards(TARGETS_FOLDER)
    board = shared.board(name)
    return TargetFile(
        name=name,
        device=board.device,
        cpu=board.cpu,
        description=(
            "Latencies are calibrated to published measurements of ncnn's benchmark networks; none was measured by "
            "this project. A network below the fastest of them is extrapolated."
        ),
        runtime=shared.runtime,
        runtime_version=board.version,
        precision=shared.precision,
        protocol=shared.protocol,
        tier="calibrated",
        fusion_rules=shared.fusion_rules,
        provenance=Provenance(
            source=f"{shared.source} @ {board.commit}", date=board.date, licence=shared.licence, method=shared.method
        ),
    )


def _why_published_only(name: str, threads: int = 1) -> str:
    row = read_calibration(TARGETS_FOLDER)[name].get(threads)
    error = "there are no figures for one thread" if row is None else f"the error is {row.mape_percent:.1f} %"
    return (
        f"target: {name} has published totals only and predicts nothing: calibrated to them {error}, and under "
        f"{BAR_PERCENT:g} % is needed; `nas profile --target my-{name} --ssh HOST` measures one of your own"
    )


def _calibrated_target(described: TargetFile, threads: int) -> Target:
    rows = read_calibration(TARGETS_FOLDER)[described.name]
    if threads in rows and not rows[threads].calibrates:
        raise ConfigError(
            f"threads: target {described.name} is calibrated at "
            f"{', '.join(str(each) for each, row in rows.items() if row.calibrates)} only; at {threads} threads the "
            f"error is {rows[threads].mape_percent:.1f} %, and under {BAR_PERCENT:g} % is needed"
        )
    supported = tuple(each for each, row in rows.items() if row.calibrates)
    _check_threads(described.name, threads, supported)
    row = rows[threads]
    counts = read_counts(COUNTS_FILE, read_boards(TARGETS_FOLDER).counts)
    formula_text = FORMULA_FILE.read_text(encoding="utf-8")
    sha256 = _sha256(described.model_dump(), row.model_dump(), counts.sha256, formula_text)
    model = CalibratedModel(
        table=table_name(
            f"{described.name}/{described.runtime}-{described.runtime_version}", threads, described.precision, sha256
        ),
        counts=counts.by_kernel,
        formula=read_formula(formula_text),
        costs={
            "multiplying": row.multiplying_ms,
            "winograd": row.winograd_ms,
            "elementwise": row.elementwise_ms,
            "megabyte": row.megabyte_ms,
        },
        range=CalibratedRange(
            fastest_ms=row.fastest_ms,
            slowest_ms=row.slowest_ms,
            inside_ratios=(row.low_ratio, row.high_ratio),
            outside_ratios=(row.outside_low_ratio, row.outside_high_ratio),
        ),
    )
    return Target(described, threads, supported, described.runtime_version, row, model, sha256)


def _anchored_threads(folder: Path) -> tuple[int, ...]:
    found = (re.fullmatch(r"anchors-([0-9]+)t\.yaml", path.name) for path in folder.glob("anchors-*t.yaml"))
    return tuple(sorted(int(each[1]) for each in found if each))


def _anchored_target(name: str, threads: int | None, runtime: str | None) -> Target:
    """A calibrated target rescaled by what was measured on a board of the user's own."""
    supported = _anchored_threads(boards_folder() / name)
    threads = supported[0] if threads is None else threads
    _check_threads(name, threads, supported)
    measured = load_yaml(anchors_path(boards_folder() / name, threads), AnchorFile)
    base = load_target(measured.base, threads=threads, runtime=runtime)
    if base.sha256 != measured.base_sha256:
        raise ConfigError(
            f"target: the table of {measured.base} has changed since {name} was compared with it; run "
            f"nas profile --target {measured.base} --anchors again, which goes on with what was measured"
        )
    assert isinstance(base.latency_model, CalibratedModel)
    found = rescale(measured.networks)
    known = base.latency_model.range
    latencies = [each.measured_ms for each in measured.networks.values()]
    ratios = found.ratios.values()
    sha256 = _sha256(base.sha256, measured.model_dump())
    model = CalibratedModel(
        table=table_name(f"{name}/{base.runtime}-{measured.runtime_version}", threads, base.about.precision, sha256),
        counts=base.latency_model.counts,
        formula=base.latency_model.formula,
        costs={each: found.factor * cost for each, cost in base.latency_model.costs.items()},
        range=CalibratedRange(
            fastest_ms=min(latencies),
            slowest_ms=max(*latencies, found.factor * known.slowest_ms),
            # A handful of networks says less of the interval than those that are published.
            inside_ratios=(min(known.inside_ratios[0], *ratios), max(known.inside_ratios[1], *ratios)),
            outside_ratios=(min(known.outside_ratios[0], *ratios), max(known.outside_ratios[1], *ratios)),
        ),
    )
    about = base.about.model_copy(
        update={
            "name": name,
            "device": measured.device,
            "cpu": measured.cpu,
            "description": f"A board of one's own: {measured.base} times {found.factor:.3f}, by "
            f"{len(measured.networks)} networks measured on it; leaving each out in turn the error is "
            f"{found.mape_percent:.1f} %.",
            "runtime_version": measured.runtime_version,
        }
    )
    assert base.errors is not None
    errors = base.errors.model_copy(
        update={
            "networks": len(measured.networks),
            "mape_percent": found.mape_percent,
            "fastest_ms": model.range.fastest_ms,
            "slowest_ms": model.range.slowest_ms,
            "outside_low_ratio": model.range.outside_ratios[0],
            "outside_high_ratio": model.range.outside_ratios[1],
        }
    )
    return Target(about, threads, supported, measured.runtime_version, errors, model, sha256)


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
