"""A table of kernels measured on one device: its file, and the latencies that follow from it.

One text file: a header in YAML behind '#', with what the measurements belong to, what a network takes beyond its
kernels and how well whole networks that the table had not seen were foretold; then a row of CSV for each kernel.
"""

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardware.kernel_fit import KernelFit
from hardware.kernels import REUSE_CLASSES, Kernel
from hardware.latency_table import (
    NEGLIGIBLE_SHARE,
    KernelLatency,
    KernelSums,
    Latency,
    Positive,
    Tier,
    UnmeasuredKernel,
    table_name,
    worst_tier,
)
from hardware.strict_yaml import ConfigError, parse_yaml
from hardware.table_fit import KNOTS_MB, Overheads, Row, TableFit
from hardware.whole_fit import AXES, NetworkFactor

_STRICT = ConfigDict(extra="forbid", frozen=True)

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]

# How far a prediction may lie from the network while none was measured whole: assumed, as wide as the margin that
# calibrated targets keep outside their range.
UNCHECKED_RATIOS = (0.8, 1.25)

_COLUMNS = ("key", "median_ms", "spread_ms", "networks")
_LONGEST_MS = 60_000.0


class TableIdentity(BaseModel):
    """What a measurement belongs to: figures of different identities never share a table."""

    model_config = _STRICT

    target: str
    device: str
    cpu: str
    cores: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    runtime: str
    runtime_version: str
    precision: str
    unit: str = Field(pattern="^ms$")
    protocol: str

    @property
    def digest(self) -> str:
        """12 hex digits that tell identities apart."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


class Miss(BaseModel):
    """A network that the table had not seen: measured whole, and predicted."""

    model_config = _STRICT

    network: str
    measured_ms: Positive
    predicted_ms: Positive


class Certificate(BaseModel):
    """How well whole networks that the fit had not seen were foretold.

    What is foretold is the time on a machine that is left alone. low_ratio and high_ratio are for what is measured on
    the machine as it is: between them lie 95 of 100 medians of single timings, over what was predicted, of those that
    the sentinel found undisturbed. The noise is how far two such timings of the same network lie apart.
    """

    model_config = _STRICT

    networks: Annotated[int, Field(ge=1)]
    mape_percent: NotNegative
    within_5_percent: Percent
    within_10_percent: Percent
    spearman: Annotated[float, Field(ge=-1, le=1)]
    low_ratio: Positive
    high_ratio: Positive
    fastest_ms: Positive
    slowest_ms: Positive
    noise_percent: NotNegative
    noise_within_5_percent: Percent
    worst: tuple[Miss, ...]


Steps = Annotated[tuple[NotNegative, ...], Field(min_length=len(KNOTS_MB) - 1, max_length=len(KNOTS_MB) - 1)]


class OverheadsHeader(BaseModel):
    """`table_fit.Overheads` as the file holds them."""

    model_config = _STRICT

    start_ms: NotNegative
    watching_ms: NotNegative
    growth: Annotated[tuple[Steps, ...], Field(min_length=REUSE_CLASSES, max_length=REUSE_CLASSES)]
    moved_ms_per_mb: Steps


class FactorHeader(BaseModel):
    """`whole_fit.NetworkFactor` as the file holds it."""

    model_config = _STRICT

    mean: tuple[float, ...]
    spread: tuple[Positive, ...]
    centres: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        axes = {len(self.mean), len(self.spread), *map(len, self.centres)}
        if len(self.weights) != len(self.centres) or (self.centres and axes != {AXES}):
            raise ValueError(f"there must be a weight for each centre, and {AXES} numbers for each of the others")
        return self


# Of what a file says and how. Goes up whenever files from before can no longer be read, or mean something else.
FORMAT: Final = 2


class TableHeader(BaseModel):
    """What stands above the rows."""

    model_config = _STRICT

    format: Literal[2] = FORMAT
    identity: TableIdentity
    measured_on: str
    networks: Annotated[int, Field(ge=0)]
    conditions: dict[str, Any]
    overheads: OverheadsHeader
    factor: FactorHeader
    scales: dict[str, tuple[float, ...]]
    certificates: dict[str, Certificate]
    cannot_run: dict[str, str]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ProfiledTable:
    """What was measured on a device.

    Conditions describe the machine while it measured; certificates are by space; cannot_run says of a network's name
    why it was left out.
    """

    identity: TableIdentity
    measured_on: str
    conditions: Mapping[str, Any]
    fit: TableFit
    scales: Mapping[str, tuple[float, ...]]
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    cannot_run: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Of all that a latency follows from."""
        return hashlib.sha256((_header_text(self, "0" * 64) + _body(self.fit.rows)).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """How reports call it, such as `host/onnxruntime-1.31.1/1t/fp32@0123456789ab`."""
        identity = self.identity
        source = f"{identity.target}/{identity.runtime}-{identity.runtime_version}"
        return table_name(source, identity.threads, identity.precision, self.sha256)


def empty_table(identity: TableIdentity) -> ProfiledTable:
    """The table of a device on which nothing was measured yet."""
    return ProfiledTable(identity, "never", {}, TableFit({}, Overheads(0.0, 0.0)), {})


def write_table(table: ProfiledTable, path: Path) -> None:
    """Writes the file anew, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(_header_text(table, table.sha256) + _body(table.fit.rows))
    Path(file.name).replace(path)


def read_table(path: Path, identity: TableIdentity | None = None) -> ProfiledTable:
    """The table in the file; of exactly that identity where one is given.

    Raises:
        ConfigError: the file is unreadable, damaged, incomplete or of another identity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: a readable table is needed, got {error}; check the path") from error
    lines = text.splitlines(keepends=True)
    commented = [line[2:] for line in lines if line.startswith("# ")]
    _check_format(commented[0] if commented else "", path)
    header = parse_yaml("".join(commented), TableHeader, name=str(path))
    if identity is not None and header.identity != identity:
        raise ConfigError(
            f"{path}:2: identity: {_difference(header.identity, identity)}; measure a table of its own with nas profile"
        )
    rows = _parse_rows("".join(lines[len(commented) :]), path, first_line=len(commented) + 1)
    overheads = Overheads(**header.overheads.model_dump())
    table = ProfiledTable(
        header.identity,
        header.measured_on,
        header.conditions,
        TableFit(rows, overheads, NetworkFactor(**header.factor.model_dump()), header.networks),
        header.scales,
        header.certificates,
        header.cannot_run,
    )
    if header.sha256 != table.sha256:
        raise ConfigError(
            f"{path}:{len(commented)}: sha256: must be that of the table, {table.sha256}, got {header.sha256}; "
            "the file was edited or damaged, restore it or measure again"
        )
    return table


class ProfiledModel:
    """Answers from a table of measured kernels and, between them, from a fit."""

    def __init__(self, table: ProfiledTable, space: str | None = None) -> None:
        """Space says whose certificate holds; for networks of no space in particular, None, the widest of all."""
        self.profiled = table
        self.certificate = _widest(table.certificates) if space is None else table.certificates.get(space)
        self._answers: dict[str, KernelLatency] = {}

    @property
    def table(self) -> str:
        return self.profiled.name

    @cached_property
    def _interpolate(self) -> KernelFit:
        return KernelFit({key: row.median_ms for key, row in self.profiled.fit.rows.items()}, self.profiled.scales)

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """What the kernel takes inside a network: its row, or what its family's fit says.

        Raises:
            UnmeasuredKernel: there is no row for it and too few of its family.
        """
        key = kernel.key
        if key not in self._answers:
            self._answers[key] = self._answer(key)
        return self._answers[key]

    def _answer(self, key: str) -> KernelLatency:
        row = self.profiled.fit.rows.get(key)
        if row is not None:
            why = f"median in {row.networks} networks, spread {row.spread_ms:.4g} ms"
            return KernelLatency(row.median_ms, Tier.measured, why)
        estimate = self._interpolate(key)
        if estimate is None:
            raise UnmeasuredKernel((key,), self.table)
        tier = Tier.calibrated if estimate.is_near else Tier.extrapolated
        why = f"fitted to measured kernels of its family, {'among' if estimate.is_near else 'far from'} them"
        return KernelLatency(estimate.value_ms, tier, why)

    def network(self, sums: KernelSums) -> Latency:
        """The network's latency: calibrated where networks as fast were measured whole, else extrapolated.

        A sum is a prediction and never measured, however well its parts are.
        """
        value_ms = self.profiled.fit.network_ms(sums)
        ratios, tier = UNCHECKED_RATIOS, Tier.extrapolated
        checked = self.certificate
        if checked is not None:
            ratios = (checked.low_ratio, checked.high_ratio)
            known = sums.extrapolated_ms <= NEGLIGIBLE_SHARE * sums.total_ms
            if known and checked.fastest_ms <= value_ms <= checked.slowest_ms:
                tier = Tier.calibrated
            else:
                ratios = min(UNCHECKED_RATIOS[0], ratios[0]), max(UNCHECKED_RATIOS[1], ratios[1])
        low, high = min(1.0, ratios[0]), max(1.0, ratios[1])
        return Latency(value_ms, low * value_ms, high * value_ms, worst_tier([tier, sums.tier]), self.table)


def _widest(certificates: Mapping[str, Certificate]) -> Certificate | None:
    every = list(certificates.values())
    if not every:
        return None
    return every[0].model_copy(
        update={
            "low_ratio": min(each.low_ratio for each in every),
            "high_ratio": max(each.high_ratio for each in every),
            "fastest_ms": min(each.fastest_ms for each in every),
            "slowest_ms": max(each.slowest_ms for each in every),
        }
    )


def _header_text(table: ProfiledTable, sha256: str) -> str:
    header = TableHeader(
        identity=table.identity,
        measured_on=table.measured_on,
        networks=table.fit.networks,
        conditions=dict(table.conditions),
        overheads=OverheadsHeader(**asdict(table.fit.overheads)),
        factor=FactorHeader(**asdict(table.fit.factor)),
        scales=dict(table.scales),
        certificates=dict(table.certificates),
        cannot_run=dict(table.cannot_run),
        sha256=sha256,
    ).model_dump(mode="json")
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(f"# {line}\n" for line in text.splitlines())


def _body(rows: Mapping[str, Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((key, repr(row.median_ms), repr(row.spread_ms), row.networks) for key, row in rows.items())
    return text.getvalue()


def _check_format(first_line: str, path: Path) -> None:
    """Tables of another version get one sentence that says so, and not all that is different in them."""
    name, _, number = first_line.strip().partition(": ")
    if name == "identity:" or (name == "format" and number != str(FORMAT)):
        found = number or "none"
        raise ConfigError(
            f"{path}:1: format: must be {FORMAT}, got {found}; another version wrote this table: run nas profile "
            "again, what was timed is kept and used"
        )


def _difference(found: TableIdentity, wanted: TableIdentity) -> str:
    pairs = zip(found.model_dump().items(), wanted.model_dump().values(), strict=True)
    return "a table serves one identity only; " + ", ".join(
        f"{name} is {there!r} in the file and {here!r} here" for (name, there), here in pairs if there != here
    )


def _parse_rows(body: str, path: Path, *, first_line: int) -> dict[str, Row]:
    reader = csv.reader(io.StringIO(body))
    titles = next(reader, [])
    if tuple(titles) != _COLUMNS:
        raise ConfigError(f"{path}:{first_line}: the columns must be {', '.join(_COLUMNS)}, got {', '.join(titles)}")
    rows: dict[str, Row] = {}
    for line, cells in enumerate(reader, first_line + 1):
        if len(cells) != len(_COLUMNS):
            raise ConfigError(
                f"{path}:{line}: a row must have {len(_COLUMNS)} cells, got {len(cells)}; the file is damaged"
            )
        key, median, spread, networks = cells
        if key in rows:
            raise ConfigError(f"{path}:{line}: {key}: a kernel may stand only once; remove one of its rows")
        try:
            rows[key] = _checked_row(float(median), float(spread), int(networks))
        except ValueError as error:
            raise ConfigError(f"{path}:{line}: {key}: {error}") from error
    return rows


def _checked_row(median_ms: float, spread_ms: float, networks: int) -> Row:
    if not 0 < median_ms <= _LONGEST_MS:
        raise ValueError(f"median_ms must be above 0 and at most {_LONGEST_MS:.0f}, got {median_ms}; measure it again")
    if not 0 <= spread_ms <= _LONGEST_MS:
        raise ValueError(f"spread_ms must be from 0 to {_LONGEST_MS:.0f}, got {spread_ms}; measure it again")
    if networks < 1:
        raise ValueError(f"networks must be at least 1, got {networks}; measure it again")
    return Row(median_ms, spread_ms, networks)
