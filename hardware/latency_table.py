"""What a kernel and a network take on a device, where each figure comes from, and how far it can be trusted.

Two kinds of table answer: a calibrated model, which is here, and a table of measured kernels, `profiled_table`. Neither
ever answers zero for what it does not know.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import Field

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
            UnmeasuredKernel: nothing like it was measured.
        """

    def network(self, total_ms: float, weight_bytes: int, worst_kernel_tier: Tier) -> Latency:
        """What a network takes whose kernels sum up to so much and have so many weights."""


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

    def network(self, total_ms: float, weight_bytes: int, worst_kernel_tier: Tier) -> Latency:
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


def table_name(target_and_runtime: str, threads: int, precision: str, sha256: str) -> str:
    """How reports call a table, such as `rk3288/ncnn-20211208/1t/fp32@0123456789ab`."""
    return f"{target_and_runtime}/{threads}t/{precision}@{sha256[:12]}"
