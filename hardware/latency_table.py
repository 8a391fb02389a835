"""What a kernel and a network take on a device, where each figure comes from, and how far it can be trusted.

Two kinds of table answer: a calibrated model, which is here, and a table of measured kernels, `profiled_table`. Neither
ever answers zero for what it does not know.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field

from hardware.cost import BYTES_PER_FLOAT
from hardware.kernels import REUSE_CLASSES, Kernel, moved_elements, reuse_class, weight_elements
from hardware.ncnn_layers import Formula, instructions, layers_of, moved_bytes, thread_group, work


class Tier(StrEnum):
    """Where a latency comes from, the most trustworthy first."""

    measured = "measured"
    calibrated = "calibrated"
    extrapolated = "extrapolated"


_RANK = {tier: rank for rank, tier in enumerate(Tier)}


def worst_tier(tiers: Iterable[Tier]) -> Tier:
    """The least trustworthy of the tiers; measured if there are none."""
    return max(tiers, key=_RANK.__getitem__, default=Tier.measured)


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


@dataclass(frozen=True, slots=True)
class KernelSums:
    """Kernels taken together: their time, what decides from how far away their values come, and the worst tier.

    by_reuse_ms is the time by `reuse_class`; moved_bytes are what kernels read and write, weights apart;
    extrapolated_ms is the part of kernels of that tier.
    """

    total_ms: float = 0.0
    by_reuse_ms: tuple[float, ...] = (0.0,) * REUSE_CLASSES
    weight_bytes: int = 0
    moved_bytes: int = 0
    tier: Tier = Tier.measured
    extrapolated_ms: float = 0.0

    @property
    def passing_bytes(self) -> int:
        return passing_bytes(self.weight_bytes, self.moved_bytes)

    def __add__(self, other: "KernelSums") -> "KernelSums":
        return KernelSums(
            self.total_ms + other.total_ms,
            tuple(map(operator.add, self.by_reuse_ms, other.by_reuse_ms)),
            self.weight_bytes + other.weight_bytes,
            self.moved_bytes + other.moved_bytes,
            worst_tier((self.tier, other.tier)),
            self.extrapolated_ms + other.extrapolated_ms,
        )


def passing_bytes(weight_bytes: int, moved_bytes: int) -> int:
    """What passes through the caches in a run: each weight, and each value once, although it is written and read."""
    return weight_bytes + moved_bytes // 2


class LatencyModel(Protocol):
    """Answers what kernels take, and what their sum says of a network."""

    @property
    def table(self) -> str:
        """Which table answers, such as `rk3288/ncnn-20211208/1t/fp32@0123456789ab`."""

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """What the kernel takes.

        Raises:
            UnmeasuredKernel: nothing like it was measured.
        """

    def network(self, sums: KernelSums) -> Latency:
        """What a network of such kernels takes."""


def of_class(time_ms: float, reuse: int) -> tuple[float, ...]:
    """A time as `KernelSums.by_reuse_ms` has it."""
    return tuple(time_ms if index == reuse else 0.0 for index in range(REUSE_CLASSES))


def kernel_sums(model: LatencyModel, kernels: Iterable[Kernel]) -> KernelSums:
    """What the model says of the kernels, taken together.

    Raises:
        UnmeasuredKernel: nothing like one of them was measured.
    """
    total = KernelSums()
    for kernel in kernels:
        latency = model.kernel(kernel)
        total += KernelSums(
            latency.value_ms,
            of_class(latency.value_ms, reuse_class(kernel)),
            BYTES_PER_FLOAT * weight_elements(kernel),
            BYTES_PER_FLOAT * moved_elements(kernel),
            latency.tier,
            latency.value_ms if latency.tier is Tier.extrapolated else 0.0,
        )
    return total


class UnmeasuredKernel(LookupError):
    """The table knows nothing like some kernels; `keys` are theirs."""

    def __init__(self, keys: tuple[str, ...], table: str) -> None:
        super().__init__(
            f"every kernel, or some like it, must be measured; not in {table}: {'; '.join(keys)}; run nas profile"
        )
        self.keys = keys


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class CalibratedRange:
    """Between which totals a calibration was checked, and measured over predicted inside and outside of that."""

    fastest_ms: float
    slowest_ms: float
    inside_ratios: tuple[float, float]
    outside_ratios: tuple[float, float]


# Where kernels that were not counted are no more than this of a network's time, they decide nothing.
NEGLIGIBLE_SHARE = 0.02


@dataclass(frozen=True)
class CalibratedModel:
    """Counted instructions, times what a million of them cost on the device; a closed formula for what was not counted.

    costs holds ms per million instructions for each of `ncnn_layers.THREAD_GROUPS` and per 'megabyte' moved.
    """

    table: str
    counts: Mapping[str, int]
    formula: Formula
    costs: Mapping[str, float]
    range: CalibratedRange
    _known: dict[Kernel, KernelLatency] = field(default_factory=dict, compare=False, repr=False)

    def kernel(self, kernel: Kernel) -> KernelLatency:
        """What the kernel takes; extrapolated where its instructions were not counted."""
        if kernel not in self._known:
            self._known[kernel] = self._answer(kernel)
        return self._known[kernel]

    def network(self, sums: KernelSums) -> Latency:
        """The total with its interval; extrapolated outside the calibrated range, whatever the kernels say."""
        total_ms = sums.total_ms
        inside = self.range.fastest_ms <= total_ms <= self.range.slowest_ms
        if inside and sums.extrapolated_ms <= NEGLIGIBLE_SHARE * total_ms:
            low, high = self.range.inside_ratios
            # Never below what a faster network outside the range is given, so that the slower of two networks of this
            # tier never seems safer.
            high_ms = max(high * total_ms, self.range.outside_ratios[1] * self.range.fastest_ms)
            return Latency(total_ms, low * total_ms, high_ms, Tier.calibrated, self.table)
        low, high = self.range.outside_ratios
        return Latency(total_ms, low * total_ms, high * total_ms, Tier.extrapolated, self.table)

    def _answer(self, kernel: Kernel) -> KernelLatency:
        layers = layers_of(kernel)
        works = [work(layer) for layer in layers]
        by_formula = [instructions(each, self.formula) for each in works]
        counted = self.counts.get(kernel.key)
        # Of a kernel that is several layers to the runtime the whole was counted, and the formula divides it.
        scale = 1.0 if counted is None else counted / (sum(by_formula) or 1.0)
        executing = sum(
            scale * count * self.costs[thread_group(each.family)] for each, count in zip(works, by_formula, strict=True)
        )
        value_ms = (executing + self.costs["megabyte"] * sum(map(moved_bytes, layers))) / 1e6
        if counted is None:
            families = ", ".join(dict.fromkeys(each.family for each in works))
            why = f"not counted: instructions by a formula that was fitted on counted kernels of its kind ({families})"
            return KernelLatency(value_ms, Tier.extrapolated, why)
        why = f"{counted} instructions counted; costs fitted to published totals of whole networks, {self.table}"
        return KernelLatency(value_ms, Tier.calibrated, why)


def table_name(target_and_runtime: str, threads: int, precision: str, sha256: str) -> str:
    """How reports call a table, such as `rk3288/ncnn-20211208/1t/fp32@0123456789ab`."""
    return f"{target_and_runtime}/{threads}t/{precision}@{sha256[:12]}"
