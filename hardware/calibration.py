"""From published totals of whole networks to what counted instructions cost, and how far that can be trusted.

The instructions of every benchmark network are counted; what they cost on a board follows from the published latencies,
without an intercept and without negative costs. At one thread that is one constant, and on cores that run instructions
in order, which wait for the memory themselves, a second one for the bytes that are moved. With several threads,
multiplying, Winograd and elementwise layers gain differently, and the bytes are what the cores share. Errors are
relative throughout, so that small networks count as much as large ones.

The report leaves each network out in turn. Beyond it, the smallest third of the networks is predicted from the larger
two thirds, because what a search looks for is smaller still.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardware.least_squares import nonnegative_least_squares
from hardware.ncnn_layers import THREAD_GROUPS, Layer, moved_bytes, thread_group, work
from hardware.published import PublishedRow
from hardware.rank_correlation import spearman
from hardware.strict_yaml import ConfigError

Array = npt.NDArray[np.float64]

# What time is made of, in the order of the costs: millions of instructions of each group, and megabytes.
COSTS = (*THREAD_GROUPS, "megabyte")

# Which of these share a constant, by the name of the model.
MODELS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "instructions": ((0, 1, 2),),
    "instructions and bytes": ((0, 1, 2), (3,)),
    "groups and bytes": ((0,), (1,), (2,), (3,)),
}

# A board whose error is not below this is listed with its published totals and predicts nothing.
BAR_PERCENT = 10.0

# Counts of the runtime as it is today, and of the version that the first figures were published for.
COUNTED = "instructions"
COUNTED_THEN = "instructions_20211208"

_MILLION = 1e6


@dataclass(frozen=True)
class Benchmark:
    """The benchmark networks: amounts of each of `COSTS` by today's counts and by those of 20211208, multiply-adds."""

    amounts: Mapping[str, Array]
    amounts_then: Mapping[str, Array]
    macs: Mapping[str, float]


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

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.published_ms / self.predicted_ms


@dataclass(frozen=True)
class Report:
    """How a board with a number of threads is predicted.

    rows are predicted with each network left out in turn, small_rows are the smallest third predicted from the larger
    two thirds, and small_ratios the least and the most that one of the smallest takes of what is predicted, in both and
    by both versions' counts.
    """

    target: str
    threads: int
    model: str
    costs: tuple[float, ...]
    rows: tuple[NetworkError, ...]
    small_rows: tuple[NetworkError, ...]
    small_ratios: tuple[float, float]
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
    def small_mape_percent(self) -> float:
        return float(np.mean([abs(row.percent) for row in self.small_rows]))

    @property
    def small_bias_percent(self) -> float:
        return float(np.mean([row.percent for row in self.small_rows]))

    @property
    def spearman(self) -> float:
        found = spearman([row.published_ms for row in self.rows], [row.predicted_ms for row in self.rows])
        return float("nan") if found is None else found

    @property
    def inside_ratios(self) -> tuple[float, float]:
        """Measured over predicted: the 5 % and the 95 % quantile, and no less than the prediction itself."""
        low, high = np.quantile([row.ratio for row in self.rows], (0.05, 0.95))
        return min(1.0, float(low)), max(1.0, float(high))

    @property
    def outside_ratios(self) -> tuple[float, float]:
        """Measured over predicted where no network was published: wide enough for the smallest networks too."""
        low, high = self.inside_ratios
        return min(low, self.small_ratios[0]), max(high, self.small_ratios[1])

    @property
    def calibrates(self) -> bool:
        return self.mape_percent < BAR_PERCENT

    def share_within(self, percent: float) -> float:
        """Percent of the networks whose error is at most so large."""
        return float(100 * (self.absolute_percent <= percent).mean())


def read_layers(path: Path) -> list[dict[str, str]]:
    """The rows of a file of benchmark layers, as they stand there."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def layer_of(row: Mapping[str, str]) -> Layer:
    """The layer that a row describes."""
    height, width = row["kernel"].split("x")

    def shape(side: str) -> tuple[int, int, int]:
        return int(row[f"{side}_channels"]), int(row[f"{side}_height"]), int(row[f"{side}_width"])

    return Layer(
        kind=row["kind"],
        in_shape=shape("in"),
        out_shape=shape("out"),
        read=int(row["read"]),
        kernel=(int(height), int(width)),
        stride=int(row["stride"]),
        groups=int(row["groups"]),
        activation=row["activation"],
    )


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark networks of a file of layers."""
    amounts: dict[str, Array] = {}
    then: dict[str, Array] = {}
    macs: dict[str, float] = {}
    for row in read_layers(path):
        name, layer = row["network"], layer_of(row)
        group = THREAD_GROUPS.index(thread_group(work(layer).family))
        for column, totals in ((COUNTED, amounts), (COUNTED_THEN, then)):
            total = totals.setdefault(name, np.zeros(len(COSTS)))
            total[group] += float(row[column]) / _MILLION
            total[-1] += moved_bytes(layer) / _MILLION
        macs[name] = macs.get(name, 0.0) + _macs(layer)
    return Benchmark(amounts, then, macs)


def _macs(layer: Layer) -> float:
    if layer.kind not in ("conv", "fc", "fc_unpacked"):
        return 0.0
    return float(prod(layer.out_shape) * (layer.in_shape[0] // layer.groups) * prod(layer.kernel))


def model_for(threads: int, *, in_order: bool) -> str:
    """Which of `MODELS` holds on such cores."""
    if threads > 1:
        return "groups and bytes"
    return "instructions and bytes" if in_order else "instructions"


def fit_costs(model: str, amounts: Array, published_ms: Array) -> Array:
    """What each of `COSTS` takes in ms; amounts is (networks, costs).

    Raises:
        ConfigError: there are fewer networks than the model has constants, and one.
    """
    shared = MODELS[model]
    if len(published_ms) <= len(shared):
        raise ConfigError(
            f"calibration: a model of {model} has {len(shared)} constants and needs more networks than that, got "
            f"{len(published_ms)}; publish or measure more networks"
        )
    matrix = np.stack([amounts[:, list(columns)].sum(axis=1) for columns in shared], axis=1)
    found = nonnegative_least_squares(matrix / published_ms[:, None], np.ones(len(published_ms)))
    costs = np.zeros(len(COSTS))
    for columns, value in zip(shared, found, strict=True):
        costs[list(columns)] = value
    return costs


def calibrated(benchmark: Benchmark, rows: Iterable[PublishedRow], in_order: Mapping[str, bool]) -> list[Report]:
    """The reports of all boards and numbers of threads, in the order of the rows; in fp32.

    Raises:
        ConfigError: a board has too few networks, one that was not counted, or one twice.
    """
    published: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row.precision != "fp32":
            continue
        found = published.setdefault((row.target, row.threads), {})
        if row.network in found:
            raise ConfigError(f"target {row.target}: {row.network} is published twice at {row.threads} threads")
        if row.network not in benchmark.amounts:
            raise ConfigError(
                f"target {row.target}: the instructions of {row.network} must be counted; known: "
                + ", ".join(sorted(benchmark.amounts))
            )
        found[row.network] = row.mean_ms
    return [
        calibrate_board(benchmark, target, threads, networks, model_for(threads, in_order=in_order[target]))
        for (target, threads), networks in published.items()
    ]


def calibrate_board(
    benchmark: Benchmark, target: str, threads: int, published_ms: Mapping[str, float], model: str
) -> Report:
    """How one board is predicted at one number of threads.

    Raises:
        ConfigError: it has fewer networks than the model has constants.
    """
    names = sorted(published_ms, key=lambda name: (published_ms[name], name))
    latencies = np.array([published_ms[name] for name in names])
    small = len(names) // 3
    by_counts = {}
    for version, totals in (("now", benchmark.amounts), ("then", benchmark.amounts_then)):
        amounts = np.array([totals[name] for name in names])
        left_out = _leave_one_out(model, amounts, latencies)
        costs = fit_costs(model, amounts[small:], latencies[small:])
        by_counts[version] = left_out, amounts[:small] @ costs
    left_out, from_larger = by_counts["now"]
    ratios = np.concatenate([latencies[:small] / each[:small] for pair in by_counts.values() for each in pair])
    return Report(
        target=target,
        threads=threads,
        model=model,
        costs=tuple(
            float(each) for each in fit_costs(model, np.array([benchmark.amounts[name] for name in names]), latencies)
        ),
        rows=_errors(names, latencies, left_out),
        small_rows=_errors(names[:small], latencies[:small], from_larger),
        small_ratios=(float(ratios.min()), float(ratios.max())),
        macs_only_mape_percent=_macs_only(np.array([benchmark.macs[name] for name in names]), latencies),
    )


def _leave_one_out(model: str, amounts: Array, latencies: Array) -> Array:
    predicted = []
    for index in range(len(latencies)):
        costs = fit_costs(model, np.delete(amounts, index, axis=0), np.delete(latencies, index))
        predicted.append(amounts[index] @ costs)
    return np.array(predicted)


def _errors(names: Sequence[str], published: Array, predicted: Array) -> tuple[NetworkError, ...]:
    return tuple(
        NetworkError(name, float(was), float(said)) for name, was, said in zip(names, published, predicted, strict=True)
    )


def _macs_only(macs: Array, latencies: Array) -> float:
    """The error of a * macs + b under the same protocol: what the instruction counts have to beat."""
    errors = []
    for index in range(len(latencies)):
        rest, known = np.delete(macs, index), np.delete(latencies, index)
        matrix = np.stack([rest, np.ones(len(rest))], axis=1) / known[:, None]
        slope, offset = nonnegative_least_squares(matrix, np.ones(len(rest)))
        errors.append(abs((slope * macs[index] + offset) / latencies[index] - 1))
    return float(100 * np.mean(errors))


def report_text(report: Report) -> str:
    """The report as a table, the worst network first."""
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    lines = [
        f"{report.target}, {threads}: {len(report.rows)} networks, each predicted from {report.model} by constants "
        "that were fitted without it",
        f"mean absolute error {report.mape_percent:.1f} %, median {report.median_percent:.1f} %, "
        f"max {report.max_percent:.1f} %; within 10 %: {report.share_within(10):.0f} %, "
        f"within 20 %: {report.share_within(20):.0f} %; Spearman {report.spearman:.3f}; "
        f"from multiply-adds alone {report.macs_only_mape_percent:.0f} %",
        f"the smallest third from the larger two thirds: {report.small_mape_percent:.1f} %, "
        f"on average {report.small_bias_percent:+.1f} %",
        "",
        f"{'network':20} {'published ms':>12} {'predicted ms':>12} {'error %':>8}",
    ]
    for row in sorted(report.rows, key=lambda row: -abs(row.percent)):
        lines.append(f"{row.network:20} {row.published_ms:12.2f} {row.predicted_ms:12.2f} {row.percent:+8.1f}")
    return "\n".join(lines)


_DIGITS = 5

# How a report stands in calibration.csv, beside the costs.
SUMMARY: Mapping[str, str] = {
    "networks": "how many were published",
    "mape_percent": "mean absolute error, each network left out in turn",
    "median_percent": "its median",
    "max_percent": "its largest",
    "within_10_percent": "percent of the networks",
    "within_20_percent": "percent of the networks",
    "spearman": "correlation of the ranks",
    "macs_only_percent": "mean absolute error of a multiple of the multiply-adds and a constant",
    "small_mape_percent": "mean absolute error of the smallest third, from the larger two thirds",
    "small_bias_percent": "its mean with sign; negative is too fast",
    "low_ratio": "measured over predicted, 5 % quantile",
    "high_ratio": "measured over predicted, 95 % quantile",
    "outside_low_ratio": "the least of the smallest third",
    "outside_high_ratio": "the most of the smallest third",
    "fastest_ms": "the fastest published network",
    "slowest_ms": "the slowest",
}
COLUMNS = ("target", "threads", "model", *(f"{name}_ms" for name in COSTS), *SUMMARY)


def calibration_text(reports: Sequence[Report]) -> str:
    """calibration.csv: a row for each board and number of threads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for report in reports:
        numbers = [*report.costs, *summary(report).values()]
        writer.writerow([report.target, report.threads, report.model, *map(_number, numbers)])
    return out.getvalue()


def summary(report: Report) -> dict[str, float]:
    """The figures of `SUMMARY`."""
    published = [row.published_ms for row in report.rows]
    found = (
        len(report.rows),
        report.mape_percent,
        report.median_percent,
        report.max_percent,
        report.share_within(10),
        report.share_within(20),
        report.spearman,
        report.macs_only_mape_percent,
        report.small_mape_percent,
        report.small_bias_percent,
        *report.inside_ratios,
        *report.outside_ratios,
        min(published),
        max(published),
    )
    return dict(zip(SUMMARY, found, strict=True))


def _number(value: float) -> str:
    """Few enough digits to be the same on every machine."""
    return np.format_float_positional(float(f"{value:.{_DIGITS}g}"), trim="-")
