"""From published totals of whole networks to what a kernel costs, and how far that can be trusted.

Two steps, both without an intercept and without negative costs. First a closed formula for the instructions that
each family of layers executes, fitted on counts per layer. Then the time that instructions take, fitted on the
published latencies of whole networks: at one thread one constant, at four threads one per group of families and one
for the bytes of the activations, because a core waits for memory that four of them share. Errors are relative
throughout, so that small networks count as much as large ones.

The report leaves each network out in turn and refits *both* steps without it.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hardware.least_squares import nonnegative_least_squares
from hardware.ncnn_layers import (
    AMOUNTS,
    THREAD_GROUPS,
    Formula,
    Layer,
    Work,
    instructions,
    moved_bytes,
    thread_group,
    work,
)

Array = npt.NDArray[np.float64]

# What a layer costs that does nothing: the median of ncnn's Split and Noop layers in layers.csv. A constant per layer
# cannot be told from the rest where all benchmark layers are large, and a free one would then dominate small networks.
EMPTY_LAYER_INSTRUCTIONS = 1000.0
_LARGE_ONLY = ("conv", "winograd", "stem", "depthwise", "max_pool", "average_pool")

# What time is made of, in the order of the costs.
COSTS = (*THREAD_GROUPS, "activation_megabyte")

_MILLION = 1e6
_DIGITS = 5


@dataclass(frozen=True)
class Benchmark:
    """The layers of the benchmark networks with their executed instructions, and the networks' published latencies."""

    layers: Mapping[str, Sequence[Layer]]
    counts: Mapping[str, Array]
    published_ms: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class NetworkError:
    """One network as it is published, and as it is predicted by what was fitted without it."""

    network: str
    published_ms: float
    predicted_ms: float

    @property
    def percent(self) -> float:
        """Signed: negative is too fast."""
        return 100 * (self.predicted_ms / self.published_ms - 1)


@dataclass(frozen=True)
class Report:
    """The leave-one-network-out errors of one number of threads."""

    threads: int
    rows: tuple[NetworkError, ...]
    macs_only_mape_percent: float

    @property
    def absolute_percent(self) -> Array:
        return np.array([abs(row.percent) for row in self.rows])

    @property
    def mape_percent(self) -> float:
        return float(self.absolute_percent.mean())

    @property
    def median_percent(self) -> float:
        return float(np.median(self.absolute_percent))

    @property
    def max_percent(self) -> float:
        return float(self.absolute_percent.max())

    @property
    def spearman(self) -> float:
        return spearman([row.published_ms for row in self.rows], [row.predicted_ms for row in self.rows])

    @property
    def measured_over_predicted(self) -> tuple[float, float]:
        """The 5 % and 95 % quantiles."""
        low, high = np.quantile([row.published_ms / row.predicted_ms for row in self.rows], (0.05, 0.95))
        return float(low), float(high)

    def share_within(self, percent: float) -> float:
        """Percent of the networks whose error is at most so large."""
        return float(100 * (self.absolute_percent <= percent).mean())


def read_benchmark(folder: Path) -> Benchmark:
    """The fp32 networks of `folder`/layers.csv and `folder`/published.csv.

    Raises:
        ValueError: the two files do not speak of the same networks.
    """
    table = pd.read_csv(folder / "layers.csv", keep_default_na=False)
    published = pd.read_csv(folder / "published.csv").query("precision == 'fp32'")
    if set(table["network"]) != set(published["network"]):
        difference = sorted(set(table["network"]) ^ set(published["network"]))
        raise ValueError(f"layers.csv and published.csv must have the same fp32 networks, they differ in {difference}")
    groups = {str(name): rows for name, rows in table.groupby("network")}
    return Benchmark(
        layers={name: [_layer(row) for row in rows.to_dict("records")] for name, rows in groups.items()},
        counts={name: rows["instructions"].to_numpy(dtype=np.float64) for name, rows in groups.items()},
        published_ms={
            int(str(threads)): dict(zip(rows["network"], rows["mean_ms"], strict=True))
            for threads, rows in published.groupby("threads")
        },
    )


def _layer(row: Mapping[Hashable, object]) -> Layer:
    height, width = str(row["kernel"]).split("x")
    numbers = {name: int(str(value)) for name, value in row.items() if name not in _TEXT_COLUMNS}
    return Layer(
        kind=str(row["kind"]),
        in_shape=(numbers["in_channels"], numbers["in_height"], numbers["in_width"]),
        out_shape=(numbers["out_channels"], numbers["out_height"], numbers["out_width"]),
        read=numbers["read"],
        kernel=(int(height), int(width)),
        stride=numbers["stride"],
        groups=numbers["groups"],
        activation=str(row["activation"]),
    )


_TEXT_COLUMNS = ("network", "kind", "kernel", "activation")


def fit_formula(works: Sequence[Work], counts: Array) -> dict[str, tuple[float, ...]]:
    """Instructions per amount for each family, with the smallest relative error on the counts per layer."""
    rows: dict[str, list[int]] = {}
    for index, each in enumerate(works):
        rows.setdefault(each.family, []).append(index)
    return {
        family: _fit_family(family, np.array([works[index].amounts for index in members]), counts[members])
        for family, members in rows.items()
    }


def _fit_family(family: str, amounts: Array, counts: Array) -> tuple[float, ...]:
    calls = AMOUNTS.index("calls")
    fixed = np.zeros(len(AMOUNTS))
    used = _distinct_columns(amounts / counts[:, None])
    if family.startswith(_LARGE_ONLY):
        fixed[calls] = EMPTY_LAYER_INSTRUCTIONS
        used = [column for column in used if column != calls]
    rest = 1 - amounts @ fixed / counts
    coefficients = fixed
    coefficients[used] += nonnegative_least_squares(amounts[:, used] / counts[:, None], rest)
    return tuple(float(value) for value in coefficients)


def _distinct_columns(matrix: Array) -> list[int]:
    """Indices of the columns that are not zero and no multiple of an earlier one, which no fit could tell apart."""
    kept: list[int] = []
    for index, column in enumerate(matrix.T):
        length = np.linalg.norm(column)
        others = matrix[:, kept]
        if length > 0 and np.all(column @ others < (1 - 1e-12) * length * np.linalg.norm(others, axis=0)):
            kept.append(index)
    return kept


def fit_costs(threads: int, amounts: Array, published_ms: Array) -> Array:
    """What each of `COSTS` takes in ms; amounts is (networks, costs). One thread has one constant for all groups."""
    relative = amounts / published_ms[:, None]
    if threads > 1:
        return nonnegative_least_squares(relative, np.ones(len(published_ms)))
    groups = len(THREAD_GROUPS)
    constant = nonnegative_least_squares(relative[:, :groups].sum(axis=1, keepdims=True), np.ones(len(published_ms)))
    return np.append(np.repeat(constant, groups), 0.0)


@dataclass(frozen=True)
class _Network:
    works: tuple[Work, ...]
    counts: Array
    megabytes: float
    macs: float


def _network(layers: Sequence[Layer], counts: Array) -> _Network:
    return _Network(
        tuple(map(work, layers)), counts, sum(map(moved_bytes, layers)) / _MILLION, float(sum(map(_macs, layers)))
    )


def _macs(layer: Layer) -> int:
    if layer.kind not in ("conv", "fc", "fc_unpacked"):
        return 0
    return prod(layer.out_shape) * (layer.in_shape[0] // layer.groups) * prod(layer.kernel)


def _amounts(network: _Network, formula: Formula) -> Array:
    """Millions of instructions per thread group, and megabytes of activations."""
    millions = dict.fromkeys(THREAD_GROUPS, 0.0)
    for each in network.works:
        millions[thread_group(each.family)] += instructions(each, formula) / _MILLION
    return np.array([*millions.values(), network.megabytes])


def _fit(networks: Sequence[_Network], families: set[str] | None = None) -> dict[str, tuple[float, ...]]:
    """The formula of some families, None for all, on the layers of the networks."""
    pairs = [
        (each, count)
        for network in networks
        for each, count in zip(network.works, network.counts, strict=True)
        if families is None or each.family in families
    ]
    return fit_formula([each for each, _ in pairs], np.array([count for _, count in pairs]))


def leave_one_network_out(benchmark: Benchmark) -> dict[int, Report]:
    """The report for each number of threads; formula and costs are fitted without the network that is predicted."""
    networks = _networks(benchmark)
    full = _fit(list(networks.values()))
    predicted: dict[int, list[NetworkError]] = {threads: [] for threads in benchmark.published_ms}
    for held_out, network in networks.items():
        rest = {name: other for name, other in networks.items() if name != held_out}
        families = {each.family for each in network.works}
        # Families that the held out network lacks are fitted on the same layers with it and without it.
        formula = {family: row for family, row in full.items() if family not in families}
        formula |= _fit(list(rest.values()), families)
        amounts = np.array([_amounts(other, formula) for other in rest.values()])
        for threads, published in benchmark.published_ms.items():
            costs = fit_costs(threads, amounts, np.array([published[name] for name in rest]))
            prediction = float(_amounts(network, formula) @ costs)
            predicted[threads].append(NetworkError(held_out, published[held_out], prediction))
    return {
        threads: Report(threads, tuple(rows), _macs_only_mape_percent(networks, benchmark.published_ms[threads]))
        for threads, rows in predicted.items()
    }


def _networks(benchmark: Benchmark) -> dict[str, _Network]:
    return {name: _network(layers, benchmark.counts[name]) for name, layers in benchmark.layers.items()}


def _macs_only_mape_percent(networks: Mapping[str, _Network], published_ms: Mapping[str, float]) -> float:
    """The error of a * macs + b under the same protocol: what the instruction counts have to beat."""
    errors = []
    for held_out, network in networks.items():
        rest = [name for name in networks if name != held_out]
        latencies = np.array([published_ms[name] for name in rest])
        matrix = np.array([[networks[name].macs, 1.0] for name in rest]) / latencies[:, None]
        slope, offset = nonnegative_least_squares(matrix, np.ones(len(rest)))
        errors.append(abs((slope * network.macs + offset) / published_ms[held_out] - 1))
    return float(100 * np.mean(errors))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of the ranks; ties share their mean rank."""
    return float(pd.Series(first).rank().corr(pd.Series(second).rank()))


def report_text(report: Report) -> str:
    """The report as a table, the worst network first."""
    lines = [
        f"{report.threads} thread{'s' if report.threads > 1 else ''}: {len(report.rows)} networks, each predicted by a "
        "formula and costs that were fitted without it",
        f"mean absolute error {report.mape_percent:.1f} %, median {report.median_percent:.1f} %, "
        f"max {report.max_percent:.1f} %; within 10 %: {report.share_within(10):.0f} %, "
        f"within 20 %: {report.share_within(20):.0f} %; Spearman {report.spearman:.3f}; "
        f"from multiply-adds alone {report.macs_only_mape_percent:.0f} %",
        "",
        f"{'network':20} {'published ms':>12} {'predicted ms':>12} {'error %':>8}",
    ]
    for row in sorted(report.rows, key=lambda row: -abs(row.percent)):
        lines.append(f"{row.network:20} {row.published_ms:12.2f} {row.predicted_ms:12.2f} {row.percent:+8.1f}")
    return "\n".join(lines)


def recalibrate(folder: Path) -> str:
    """The text of `folder`/calibration.yaml, derived anew from layers.csv and published.csv beside it.

    Raises:
        ValueError: the two files do not speak of the same networks.
    """
    benchmark = read_benchmark(folder)
    networks = _networks(benchmark)
    formula = _fit(list(networks.values()))
    amounts = np.array([_amounts(network, formula) for network in networks.values()])
    reports = leave_one_network_out(benchmark)
    lines = [
        "# Generated from layers.csv and published.csv by `nas calibrate --write`; edits are lost.",
        "",
        "# Instructions per amount of work, by family of layers (what both mean: hardware/ncnn_layers.py).",
        "instructions:",
    ]
    for family in sorted(formula):
        row = {name: value for name, value in zip(AMOUNTS, formula[family], strict=True) if value}
        lines.append(f"  {family}: {_flow(row)}")
    lines += ["", "# ms per million instructions of each thread group, and per megabyte of activations.", "costs:"]
    for threads, published in sorted(benchmark.published_ms.items()):
        costs = fit_costs(threads, amounts, np.array([published[name] for name in networks]))
        lines.append(f"  {threads}: {_flow(dict(zip(COSTS, costs, strict=True)))}")
    lines += [
        "",
        "# Each network predicted by what was fitted without it. The ratios are measured over predicted, at the 5 %",
        "# and the 95 % quantile; the range is from the fastest to the slowest published network.",
        "errors:",
    ]
    for threads, report in sorted(reports.items()):
        lines.append(f"  {threads}: {_flow(error_row(report))}")
    return "\n".join(lines) + "\n"


def error_row(report: Report) -> dict[str, float]:
    low, high = report.measured_over_predicted
    published = [row.published_ms for row in report.rows]
    return {
        "networks": len(report.rows),
        "mape_percent": report.mape_percent,
        "median_percent": report.median_percent,
        "max_percent": report.max_percent,
        "within_10_percent": report.share_within(10),
        "within_20_percent": report.share_within(20),
        "spearman": report.spearman,
        "low_ratio": low,
        "high_ratio": high,
        "fastest_ms": min(published),
        "slowest_ms": max(published),
    }


def _flow(row: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {_number(value)}" for name, value in row.items()) + "}"


def _number(value: float) -> str:
    """Few enough digits to be the same on every machine; plain decimals, because YAML reads 1e+05 as a text."""
    return np.format_float_positional(float(f"{value:.{_DIGITS}g}"), trim="-")
