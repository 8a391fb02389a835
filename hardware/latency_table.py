"""What a kernel and a network take on a device, where each figure comes from, and how far it can be trusted.

Two kinds of table answer: a calibrated model, which computes, and a measured table, which looks up. Neither ever
answers zero for what it does not know.
"""

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Protocol

import yaml
from pydantic import BaseModel, ConfigDict, Field

from hardware.kernels import Kernel
from hardware.ncnn_layers import (
    Formula,
    Layer,
    instructions,
    layers_of,
    moved_bytes,
    thread_group,
    why_not_covered,
    work,
)
from hardware.strict_yaml import ConfigError, parse_yaml


class Tier(StrEnum):
    """Where a latency comes from, the most trustworthy first."""

    measured = "measured"
    calibrated = "calibrated"
    extrapolated = "extrapolated"


def worst_tier(tiers: Iterable[Tier]) -> Tier:
    """The least trustworthy of the tiers; measured if there are none."""
    return max(tiers, key=list(Tier).index, default=Tier.measured)


@dataclass(frozen=True, slots=True)
class KernelLatency:
    """What one kernel takes; why says what the tier rests on."""

    value_ms: float
    tier: Tier
    why: str


@dataclass(frozen=True, slots=True)
class Latency:
    """What a network takes, with the interval that it is expected in and the table that says so."""

    value_ms: float
    low_ms: float
    high_ms: float
    tier: Tier
    table: str


class LatencyModel(Protocol):
    """Answers what kernels take, and what their sum says of a network."""

    @property
    def table(self) -> str:
        """Which table answers, such as `rk3288/ncnn-20211208/1t/fp32@0123456789ab`."""

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """What the kernel takes.

        Raises:
            UnmeasuredKernel: the table can only look up, and does not have it.
        """

    def network(self, total_ms: float, worst_kernel_tier: Tier) -> Latency:
        """What a network takes whose kernels sum up to so much."""


class UnmeasuredKernel(LookupError):
    """The table has no row for some kernels; `keys` are theirs."""

    def __init__(self, keys: tuple[str, ...], table: str) -> None:
        super().__init__(f"every kernel must be measured; not in {table}: {'; '.join(keys)}; profile them")
        self.keys = keys


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class CalibratedRange:
    """Between which totals a calibration was checked, and measured over predicted inside and outside of that."""

    fastest_ms: float
    slowest_ms: float
    inside_ratios: tuple[float, float]
    outside_ratios: tuple[float, float]


@dataclass(frozen=True)
class CalibratedModel:
    """Instructions by a closed formula, times what a million of them cost on the device.

    costs holds ms per million instructions for each of `ncnn_layers.THREAD_GROUPS` and per 'activation_megabyte'.
    """

    table: str
    formula: Formula
    costs: Mapping[str, float]
    range: CalibratedRange
    _known: dict[Kernel, KernelLatency] = field(default_factory=dict, compare=False, repr=False)

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """What the kernel takes; extrapolated from the nearest family where no benchmark network has its like."""
        if kernel not in self._known:
            layers = layers_of(kernel)
            why = "; ".join(dict.fromkeys(filter(None, map(why_not_covered, layers))))
            self._known[kernel] = KernelLatency(
                sum(map(self._layer_ms, layers)),
                Tier.extrapolated if why else Tier.calibrated,
                why or f"fitted to published totals of whole networks, {self.table}",
            )
        return self._known[kernel]

    def network(self, total_ms: float, worst_kernel_tier: Tier) -> Latency:
        """The total with its interval; extrapolated outside the calibrated range, whatever the kernels say."""
        inside = self.range.fastest_ms <= total_ms <= self.range.slowest_ms
        tier = worst_tier([worst_kernel_tier, Tier.calibrated if inside else Tier.extrapolated])
        if tier is Tier.calibrated:
            low, high = self.range.inside_ratios
            # Never below what a faster network outside the range is given, so that the slower of two networks of this
            # tier never seems safer.
            high_ms = max(high * total_ms, self.range.outside_ratios[1] * self.range.fastest_ms)
            return Latency(total_ms, low * total_ms, high_ms, tier, self.table)
        low, high = self.range.outside_ratios
        return Latency(total_ms, low * total_ms, high * total_ms, tier, self.table)

    def _layer_ms(self, layer: Layer) -> float:
        done = work(layer)
        by_instructions = self.costs[thread_group(done.family)] * instructions(done, self.formula)
        return (by_instructions + self.costs["activation_megabyte"] * moved_bytes(layer)) / 1e6


_STRICT = ConfigDict(extra="forbid", frozen=True)


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
    precision: Literal["fp32"]
    unit: Literal["ms"]
    protocol: str

    @property
    def digest(self) -> str:
        """12 hex digits that tell identities apart."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


class NetworkRatios(BaseModel):
    """The smallest and the largest measured over summed latency of whole networks, and how fast those were."""

    model_config = _STRICT

    networks: Annotated[int, Field(ge=1)]
    low_ratio: Positive
    high_ratio: Positive
    fastest_ms: Positive
    slowest_ms: Positive


class TableHeader(BaseModel):
    """What stands above the rows of a measured table; network is None until whole networks were measured too."""

    model_config = _STRICT

    identity: TableIdentity
    started: str
    network: NetworkRatios | None = None
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")]


@dataclass(frozen=True, slots=True)
class Row:
    """The median and the spread (the interquartile range) of so many runs of a kernel."""

    median_ms: float
    spread_ms: float
    runs: int


# How far a sum of kernels may lie from the network while no network has been measured: assumed, as wide as the margin
# that calibrated targets keep outside their range.
UNCHECKED_RATIOS = (0.8, 1.25)

_COLUMNS = ("key", "median_ms", "spread_ms", "runs")
_LONGEST_MS = 60_000.0


class MeasuredTable:
    """Measured latencies of kernels of one identity, kept in one file: a header in YAML behind '#', rows as CSV.

    The file is written anew, atomically, with every row that is added, so that an interrupted run loses nothing.
    """

    def __init__(self, path: Path, identity: TableIdentity, started: str) -> None:
        """An empty table; nothing is written before the first row is added. started is a date, year first."""
        self._path = path
        self._identity = identity
        self._started = started
        self._network: NetworkRatios | None = None
        self._rows: dict[str, Row] = {}
        self._digest: str | None = None

    @classmethod
    def load(cls, path: Path, identity: TableIdentity) -> "MeasuredTable":
        """The table in `path`, which must have been measured under exactly this identity.

        Raises:
            ConfigError: the file is unreadable, damaged, incomplete or of another identity.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: a readable table is needed, got {error}; check the path") from error
        lines = text.splitlines(keepends=True)
        header_lines = [line[2:] for line in lines if line.startswith("# ")]
        header = parse_yaml("".join(header_lines), TableHeader, name=str(path))
        if header.identity != identity:
            difference = _difference(header.identity, identity)
            raise ConfigError(f"{path}:1: identity: {difference}; measure a table of its own")
        body = "".join(lines[len(header_lines) :])
        table = cls(path, header.identity, header.started)
        table._network = header.network
        table._rows = _parse_rows(body, path, first_line=len(header_lines) + 1)
        if header.sha256 != table.sha256:
            raise ConfigError(
                f"{path}:{len(header_lines)}: sha256: must be that of the rows, {table.sha256}, got {header.sha256}; "
                "the file was edited or damaged, restore it or measure again"
            )
        return table

    @property
    def path(self) -> Path:
        return self._path

    @property
    def identity(self) -> TableIdentity:
        return self._identity

    @property
    def rows(self) -> Mapping[str, Row]:
        """The rows by kernel key."""
        return dict(self._rows)

    @property
    def network_ratios(self) -> NetworkRatios | None:
        """How whole networks compare with the sums of their kernels; None until some were measured."""
        return self._network

    @property
    def sha256(self) -> str:
        """Of the identity, the rows and the ratios of whole networks."""
        if self._digest is None:
            network = self._network.model_dump_json() if self._network else ""
            text = f"{self._identity.digest}\n{network}\n{self._body()}"
            self._digest = hashlib.sha256(text.encode()).hexdigest()
        return self._digest

    @property
    def table(self) -> str:
        identity = self._identity
        source = f"{identity.target}/{identity.runtime}-{identity.runtime_version}"
        return table_name(source, identity.threads, identity.precision, self.sha256)

    def missing(self, kernels: Iterable[Kernel]) -> tuple[str, ...]:
        """The keys of those kernels that have no row yet, each once."""
        return tuple(dict.fromkeys(kernel.key for kernel in kernels if kernel.key not in self._rows))

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """The median that was measured.

        Raises:
            UnmeasuredKernel: there is no row for it.
        """
        row = self._rows.get(kernel.key)
        if row is None:
            raise UnmeasuredKernel((kernel.key,), self.table)
        return KernelLatency(row.median_ms, Tier.measured, f"median of {row.runs} runs, spread {row.spread_ms:.4g} ms")

    def network(self, total_ms: float, worst_kernel_tier: Tier) -> Latency:
        """The total of measured kernels: calibrated where networks as fast were measured whole, else extrapolated.

        A sum is a prediction and never measured, however well its parts are.
        """
        ratios, tier = UNCHECKED_RATIOS, Tier.extrapolated
        checked = self._network
        if checked is not None and checked.fastest_ms <= total_ms <= checked.slowest_ms:
            ratios, tier = (checked.low_ratio, checked.high_ratio), Tier.calibrated
        elif checked is not None:
            ratios = min(ratios[0], checked.low_ratio), max(ratios[1], checked.high_ratio)
        low, high = min(1.0, ratios[0]), max(1.0, ratios[1])
        tier = worst_tier([tier, worst_kernel_tier])
        return Latency(total_ms, low * total_ms, high * total_ms, tier, self.table)

    def add(self, kernel: Kernel, *, median_ms: float, spread_ms: float, runs: int) -> None:
        """Puts a measurement into the table and its file; an earlier one of the same kernel is replaced.

        Raises:
            ValueError: a figure is not a latency.
        """
        self._rows[kernel.key] = _checked_row(median_ms, spread_ms, runs)
        self._digest = None
        self._write()

    def add_network_ratios(self, ratios: NetworkRatios) -> None:
        """Notes how whole networks compare with the sums of their kernels, in the table and its file."""
        self._network = ratios
        self._digest = None
        self._write()

    def _body(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((key, repr(row.median_ms), repr(row.spread_ms), row.runs) for key, row in self._rows.items())
        return text.getvalue()

    def _write(self) -> None:
        header = TableHeader(
            identity=self._identity, started=self._started, network=self._network, sha256=self.sha256
        ).model_dump(exclude_none=True)
        comment = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=10_000)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
            file.write("".join(f"# {line}\n" for line in comment.splitlines()) + self._body())
        Path(file.name).replace(self._path)


def table_name(target_and_runtime: str, threads: int, precision: str, sha256: str) -> str:
    """How reports call a table, such as `rk3288/ncnn-20211208/1t/fp32@0123456789ab`."""
    return f"{target_and_runtime}/{threads}t/{precision}@{sha256[:12]}"


def _difference(found: TableIdentity, wanted: TableIdentity) -> str:
    pairs = zip(found.model_dump().items(), wanted.model_dump().values(), strict=True)
    return "a table serves one identity only; " + ", ".join(
        f"{name} is {there!r} in the file and {here!r} here" for (name, there), here in pairs if there != here
    )


def _checked_row(median_ms: float, spread_ms: float, runs: int) -> Row:
    if not 0 < median_ms <= _LONGEST_MS:
        raise ValueError(f"median_ms must be above 0 and at most {_LONGEST_MS:.0f}, got {median_ms}; measure it again")
    if not 0 <= spread_ms <= _LONGEST_MS:
        raise ValueError(f"spread_ms must be from 0 to {_LONGEST_MS:.0f}, got {spread_ms}; measure it again")
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}; measure it again")
    return Row(float(median_ms), float(spread_ms), int(runs))


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
        key, median, spread, runs = cells
        if key in rows:
            raise ConfigError(f"{path}:{line}: {key}: a kernel may stand only once; remove one of its rows")
        try:
            rows[key] = _checked_row(float(median), float(spread), int(runs))
        except ValueError as error:
            raise ConfigError(f"{path}:{line}: {key}: {error}") from error
    return rows
