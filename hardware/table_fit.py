"""From traced networks to what each kernel takes inside a network, and what a network takes beyond its kernels.

Sums of kernels timed alone lie from 0.5 to 2.6 times the network: an input has to be brought into the runtime's layout
and weights are always in the cache. So kernels are timed where they stand, in whole networks, and taken apart:

    whole = (start + sum over kernels of (warm * growth + dearer values)) * factor for the kind of network
    traced kernel = launches * watching + (warm + dearer values) * growth

`watching` is what the runtime's own clock adds to each launch, `start` what a run costs that launches nothing. What is
added differs a little from network to network, which decides about small ones, where watching takes longer than the
kernels do: there the whole says how much it was.

Weights and values that fit a cache together are read from it; the more of both pass through it in a run, the more of
them come from further away. How much longer kernels take for it, the same kernel shows in small and in large networks:
those that use a weight once wait for all of theirs, those that use it at a hundred positions hardly, so that each
`reuse_class` grows in a way of its own with `passing_bytes`. Values cost more per megabyte the more of them are moved.
What is left between whole networks and their sums is for `whole_fit`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from hardware.kernel_fit import FLOOR_MS
from hardware.kernels import REUSE_CLASSES
from hardware.latency_table import KernelSums, passing_bytes
from hardware.least_squares import nonnegative_least_squares
from hardware.whole_fit import MEGABYTE, Learnt, NetworkFactor, kernel_factors, network_factor

# Between these sizes of all that passes, or of all that kernels read and write, the price of a megabyte may rise: the
# caches of small cores and of servers alike lie in between.
KNOTS_MB = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0)
# A kernel seen in fewer networks says nothing of how it changes with them.
FEWEST_SIGHTINGS = 3
# What a line is fitted to has no say in it where it lies off by more than so many times what is usual, and by more than
# this share.
DISTURBED_SPREADS = 4.0
DISTURBED_SHARE = 0.03
# A network is held for disturbed whose parts differ from the whole by more than this share. Small networks and those
# with weights of the size of a cache differ by a tenth without anything being wrong, and must be learnt from as well.
DISTURBED_NETWORK = 0.25
# Standard deviations, as shares: of what the clock adds to a launch, from network to network, and of the timing of a
# whole network against that of its parts. Assumed; with them small networks that were left out of four profiles of a
# host were foretold better than without (mean error 4.9 to 4.4, 2.9 to 2.7, 3.6 to 3.3 and 4.1 to 3.6 %).
WATCHING_SD, WHOLE_SD = 0.1, 0.02
# How strongly the steps are held to nothing, in sightings' worth of evidence.
HOLD_STEPS = 30.0


@dataclass(frozen=True, slots=True)
class KernelTrace:
    """One kernel inside one network: the runtime's own clock, over so many launches."""

    key: str
    traced_ms: float
    launches: int
    weight_bytes: int
    moved_bytes: int
    reuse: int = REUSE_CLASSES - 1


@dataclass(frozen=True)
class NetworkTrace:
    """A network timed whole, without watching, and its kernels timed in it."""

    name: str
    whole_ms: float
    kernels: tuple[KernelTrace, ...]

    def sums(self, kernel_ms: Mapping[str, float]) -> KernelSums:
        """Its kernels taken together, if each takes so long."""
        by_reuse_ms = [0.0] * REUSE_CLASSES
        for kernel in self.kernels:
            by_reuse_ms[kernel.reuse] += kernel_ms[kernel.key]
        return KernelSums(sum(by_reuse_ms), tuple(by_reuse_ms), self.weight_bytes, self.moved_bytes)

    @cached_property
    def weight_bytes(self) -> int:
        return sum(kernel.weight_bytes for kernel in self.kernels)

    @cached_property
    def moved_bytes(self) -> int:
        return sum(kernel.moved_bytes for kernel in self.kernels)

    @property
    def passing_bytes(self) -> int:
        return passing_bytes(self.weight_bytes, self.moved_bytes)


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel's time inside networks: the median of all its launches in so many networks, and interquartile range."""

    median_ms: float
    spread_ms: float
    networks: int


NO_STEPS = (0.0,) * (len(KNOTS_MB) - 1)


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a network takes beyond its kernels; the tuples hold a step for each stretch between KNOTS_MB.

    growth has for each `reuse_class` the logarithm of the factor by which its kernels take longer the more passes
    through the caches in a run; moved_ms_per_mb is what a megabyte that kernels read and write costs more the more is
    moved in all.
    """

    start_ms: float
    watching_ms: float
    growth: tuple[tuple[float, ...], ...] = (NO_STEPS,) * REUSE_CLASSES
    moved_ms_per_mb: tuple[float, ...] = NO_STEPS

    def network_ms(self, sums: KernelSums) -> float:
        """The part of a network's time that no kernel is asked for."""
        moved_mb = sums.moved_bytes / MEGABYTE
        by_moving = float(_steps(moved_mb) @ np.array(self.moved_ms_per_mb))
        grown_ms = float((self.growth_factors(sums.passing_bytes) - 1) @ np.array(sums.by_reuse_ms))
        return self.start_ms + moved_mb * by_moving + grown_ms

    def growth_factors(self, passing_bytes: int) -> npt.NDArray[np.floating]:
        """How many times as long kernels take, by `reuse_class`, in a network of so many bytes that pass."""
        factors: npt.NDArray[np.floating] = np.exp(np.array(self.growth) @ _steps(passing_bytes / MEGABYTE))
        return factors


@dataclass(frozen=True)
class TableFit:
    """Rows by key, overheads, what the sum of both is multiplied by, and how many networks it was learnt from."""

    rows: Mapping[str, Row]
    overheads: Overheads
    factor: NetworkFactor = field(default_factory=NetworkFactor)
    networks: int = 0

    def network_ms(self, sums: KernelSums) -> float:
        """What a network takes whose kernels come to so much."""
        overhead_ms = self.overheads.network_ms(sums)
        return (sums.total_ms + overhead_ms) * self.factor(sums, overhead_ms)


def fit_table(traces: Sequence[NetworkTrace]) -> TableFit:
    """What the traces say of each kernel and of networks.

    Raises:
        ValueError: there are fewer than two networks.
    """
    if len(traces) < 2:
        raise ValueError(f"at least two networks must be traced, got {len(traces)}")
    start_ms, watching_ms, is_steady = _start_and_watching(traces)
    traces = [trace for trace, steady in zip(traces, is_steady, strict=True) if steady]
    seen: dict[str, list[_Sighting]] = defaultdict(list)
    networks: dict[str, set[str]] = defaultdict(set)
    for trace in traces:
        added_ms = _added_ms(trace, start_ms, watching_ms)
        for kernel in trace.kernels:
            networks[kernel.key].add(trace.name)
            own_ms = max(kernel.traced_ms - kernel.launches * added_ms, FLOOR_MS / 10)
            seen[kernel.key].append(_Sighting(own_ms, kernel, trace.passing_bytes, trace.moved_bytes))
    growth = tuple(
        _growth([each for each in seen.values() if each[0].kernel.reuse == reuse]) for reuse in range(REUSE_CLASSES)
    )
    grown = Overheads(start_ms, watching_ms, growth)
    overheads = replace(grown, moved_ms_per_mb=_price_of_moving(list(seen.values()), grown))
    warm_ms = {key: [_warm_ms(each, overheads) for each in sightings] for key, sightings in seen.items()}
    medians = {key: statistics.median(values) for key, values in warm_ms.items()}
    factors, prior = kernel_factors([_learnt(trace, medians, overheads) for trace in traces])
    rows = {
        key: Row(medians[key] * factors[key], _interquartile(values) * factors[key], len(networks[key]))
        for key, values in warm_ms.items()
    }
    times = {key: row.median_ms for key, row in rows.items()}
    factor = network_factor([_learnt(trace, times, overheads) for trace in traces], prior)
    return TableFit(rows, overheads, factor, len(traces))


def _learnt(trace: NetworkTrace, kernel_ms: Mapping[str, float], overheads: Overheads) -> Learnt:
    sums = trace.sums(kernel_ms)
    overhead_ms = overheads.network_ms(sums)
    longer = overheads.growth_factors(sums.passing_bytes)
    by_kernel_ms: dict[str, float] = defaultdict(float)
    for kernel in trace.kernels:
        by_kernel_ms[kernel.key] += kernel_ms[kernel.key] * float(longer[kernel.reuse])
    return Learnt(trace.whole_ms, sums, overhead_ms, by_kernel_ms)


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A kernel in a network in which so much passes through the caches and is moved in all."""

    own_ms: float
    kernel: KernelTrace
    network_passing_bytes: int
    network_moved_bytes: int

    @property
    def passing_steps(self) -> npt.NDArray[np.floating]:
        return _steps(self.network_passing_bytes / MEGABYTE)

    @property
    def moved_steps(self) -> npt.NDArray[np.floating]:
        return _steps(self.network_moved_bytes / MEGABYTE)


def _warm_ms(sighting: _Sighting, overheads: Overheads) -> float:
    """What the kernel would take in a network that fits every cache."""
    moved_mb = sighting.kernel.moved_bytes / MEGABYTE
    dearer_ms = moved_mb * float(sighting.moved_steps @ np.array(overheads.moved_ms_per_mb))
    return max(_ungrown_ms(sighting, overheads) - dearer_ms, FLOOR_MS / 10)


def _ungrown_ms(sighting: _Sighting, overheads: Overheads) -> float:
    growth = float(sighting.passing_steps @ np.array(overheads.growth[sighting.kernel.reuse]))
    return sighting.own_ms * math.exp(-growth)


@lru_cache(maxsize=4096)
def _steps(size_mb: float) -> npt.NDArray[np.floating]:
    """How far each step of the way from the smallest to the largest knot is taken, 0 to 1 each."""
    knots = np.array(KNOTS_MB)
    return np.clip((size_mb - knots[:-1]) / np.diff(knots), 0.0, 1.0)


def _start_and_watching(traces: Sequence[NetworkTrace]) -> tuple[float, float, npt.NDArray[np.bool_]]:
    """What a run costs beyond its launches, and what the runtime's clock adds to each of them, in ms.

    Also which networks were left alone meanwhile: where the sum of the kernels and the whole are far apart, something
    else took time from the one or the other, and nothing is learnt from either.
    """
    traced = np.array([sum(kernel.traced_ms for kernel in trace.kernels) for trace in traces])
    launches = np.array([sum(kernel.launches for kernel in trace.kernels) for trace in traces])
    whole = np.array([trace.whole_ms for trace in traces])
    # Over-told launches: traced - whole = watching * launches - start, relative to the network's time.
    kept = np.ones(len(traces), bool)
    start = watching = 0.0
    for _ in range(3):
        matrix = np.column_stack([launches, -np.ones(len(traces))])[kept] / whole[kept, None]
        watching, start = nonnegative_least_squares(matrix, ((traced - whole) / whole)[kept])
        rest = np.abs((traced - watching * launches + start) / whole - 1)
        kept = rest <= max(DISTURBED_SPREADS * float(np.median(rest)), DISTURBED_SHARE)
    return float(start), float(watching), rest <= DISTURBED_NETWORK


def _added_ms(trace: NetworkTrace, start_ms: float, watching_ms: float) -> float:
    """What the clock most likely added to each launch of this network, in ms.

    By how much whole and parts differ is told by launches that cost more or less to watch, and by errors of both, each
    as normal as the deviations above say.
    """
    launches = sum(kernel.launches for kernel in trace.kernels)
    if launches == 0:
        return watching_ms
    too_much_ms = start_ms + sum(kernel.traced_ms for kernel in trace.kernels) - launches * watching_ms - trace.whole_ms
    by_watching, by_errors = (launches * watching_ms * WATCHING_SD) ** 2, (trace.whole_ms * WHOLE_SD) ** 2
    return watching_ms + too_much_ms / launches * by_watching / (by_watching + by_errors)


def _price_of_moving(kernels: Sequence[Sequence[_Sighting]], overheads: Overheads) -> tuple[float, ...]:
    """What megabytes that are moved cost more in larger networks, from kernels seen in several."""
    rows, goals = [], []
    for sightings in kernels:
        if len(sightings) < FEWEST_SIGHTINGS:
            continue
        times = np.array([_ungrown_ms(each, overheads) for each in sightings])
        steps = np.array([each.kernel.moved_bytes * each.moved_steps for each in sightings])
        # Within one kernel, whatever that takes; noise grows with the root of the time.
        weight = 1 / np.sqrt(times.mean())
        rows.append((steps - steps.mean(axis=0)) * weight / MEGABYTE)
        goals.append((times - times.mean()) * weight)
    return tuple(_nonnegative_steps(rows, goals, len(NO_STEPS)))


def _growth(kernels: Sequence[Sequence[_Sighting]]) -> tuple[float, ...]:
    """By which factor kernels of one class take longer in networks in which more passes, as steps of its logarithm."""
    rows, goals = [], []
    for sightings in kernels:
        if len(sightings) < FEWEST_SIGHTINGS:
            continue
        logs = np.log([each.own_ms + FLOOR_MS for each in sightings])
        steps = np.array([each.passing_steps for each in sightings])
        weight = math.exp(0.5 * float(np.median(logs)))
        rows.append((steps - steps.mean(axis=0)) * weight)
        goals.append((logs - logs.mean()) * weight)
    return tuple(_nonnegative_steps(rows, goals, len(NO_STEPS)))


def _nonnegative_steps(
    rows: Sequence[npt.NDArray[np.floating]], goals: Sequence[npt.NDArray[np.floating]], count: int
) -> list[float]:
    if not rows:
        return [0.0] * count
    # A step that few networks stand on is held to nothing.
    hold = np.eye(count) * HOLD_STEPS**0.5 * np.sqrt(np.mean(np.vstack(rows) ** 2, axis=0).max())
    matrix, goal = np.vstack([*rows, hold]), np.concatenate([*goals, np.zeros(count)])
    kept = np.ones(len(goal), bool)
    for _ in range(4):
        found = nonnegative_least_squares(matrix[kept], goal[kept])
        rest = np.abs(goal - matrix @ found)
        # What holds a step to nothing gives way as well where the evidence is of another mind.
        kept = rest <= DISTURBED_SPREADS * float(np.median(rest))
    return [float(step) for step in found]


def _interquartile(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    # Of values next to each other rounding can put the upper quartile below the lower one.
    return max(upper - lower, 0.0)
