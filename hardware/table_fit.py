"""From traced networks to what each kernel takes inside a network, and what a network takes beyond its kernels.

A kernel that runs alone is told wrong by 10 to 30 %: its input has to be brought into the runtime's layout and its
weights are always in the cache. So kernels are timed where they stand, in whole networks, and four things are taken
apart:

    whole = start + sum over kernels of (traced - launches * watching) * family + weights out of the cache

`watching` is what the runtime's own clock adds to each launch, `start` what a run costs that launches nothing. Weights
that fit a cache together are read from it; the larger the network, the more of them come from further away, which the
same kernel in small and in large networks shows. `family` is near 1 and takes up what else a family loses or gains.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hardware.kernel_fit import FLOOR_MS, features
from hardware.least_squares import nonnegative_least_squares

MEGABYTE = 2**20

# Between these sizes of all weights together the cost of reading a megabyte of them may rise: caches of small cores and
# of servers alike lie in between.
WEIGHT_KNOTS_MB = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# Kernels with fewer weights say nothing of where those come from.
FEWEST_WEIGHTS_MB = 0.02
# A network is held for disturbed whose parts and whole differ by more than so many times what is usual, and by more
# than this share.
DISTURBED_SPREADS = 4.0
DISTURBED_SHARE = 0.03
# How strongly the steps are held to nothing, in sightings' worth of evidence.
HOLD_STEPS = 30.0
# How strongly the factors of families are held to 1, in networks' worth of evidence.
HOLD_FAMILIES = 3.0


@dataclass(frozen=True, slots=True)
class KernelTrace:
    """One kernel inside one network: the runtime's own clock, over so many launches."""

    key: str
    traced_ms: float
    launches: int
    weight_bytes: int


@dataclass(frozen=True)
class NetworkTrace:
    """A network timed whole, without watching, and its kernels timed in it."""

    name: str
    whole_ms: float
    kernels: tuple[KernelTrace, ...]

    @cached_property
    def weight_bytes(self) -> int:
        return sum(kernel.weight_bytes for kernel in self.kernels)


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel's time inside networks: the median over so many networks, and its interquartile range."""

    median_ms: float
    spread_ms: float
    networks: int


@dataclass(frozen=True, slots=True)
class Overheads:
    """What a network takes beyond its kernels; cold_ms_per_mb holds the steps at WEIGHT_KNOTS_MB."""

    start_ms: float
    watching_ms: float
    cold_ms_per_mb: tuple[float, ...]

    def network_ms(self, weight_bytes: int) -> float:
        """The part of a network's time that no kernel is asked for."""
        weights_mb = weight_bytes / MEGABYTE
        return self.start_ms + weights_mb * float(_steps(weights_mb) @ np.array(self.cold_ms_per_mb))


@dataclass(frozen=True)
class TableFit:
    """Rows by key, overheads, and the factor that each family's rows were multiplied by."""

    rows: Mapping[str, Row]
    overheads: Overheads
    families: Mapping[str, float]


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
    for trace in traces:
        weights_mb = trace.weight_bytes / MEGABYTE
        for kernel in trace.kernels:
            own_ms = max(kernel.traced_ms - kernel.launches * watching_ms, FLOOR_MS / 10)
            seen[kernel.key].append(_Sighting(own_ms, kernel.weight_bytes / MEGABYTE, weights_mb))
    cold = _cold(seen)
    warm_ms = {key: [max(each.warm_ms(cold), FLOOR_MS / 10) for each in sightings] for key, sightings in seen.items()}
    medians = {key: statistics.median(values) for key, values in warm_ms.items()}
    overheads = Overheads(start_ms, watching_ms, tuple(map(float, cold)))
    families = _families(traces, medians, overheads)
    rows = {
        key: Row(
            medians[key] * families[features(key).family],
            _interquartile(values) * families[features(key).family],
            len(values),
        )
        for key, values in warm_ms.items()
    }
    return TableFit(rows, overheads, families)


@dataclass(frozen=True, slots=True)
class _Sighting:
    own_ms: float
    own_mb: float
    network_mb: float

    def warm_ms(self, cold: npt.NDArray[np.floating]) -> float:
        return self.own_ms - self.own_mb * float(_steps(self.network_mb) @ cold)


def _steps(weights_mb: float) -> npt.NDArray[np.floating]:
    """How far each step of the way from the smallest to the largest knot is taken, 0 to 1 each."""
    knots = np.array(WEIGHT_KNOTS_MB)
    return np.clip((weights_mb - knots[:-1]) / np.diff(knots), 0.0, 1.0)


def _start_and_watching(traces: Sequence[NetworkTrace]) -> tuple[float, float, npt.NDArray[np.bool_]]:
    """What a run costs beyond its launches, and what the runtime's clock adds to each of them, in ms.

    Also which networks were left alone meanwhile: where the sum of the kernels and the whole do not fit each other,
    something else took time from the one or the other, and nothing is learnt from either.
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
    return float(start), float(watching), kept


def _cold(seen: Mapping[str, Sequence[_Sighting]]) -> npt.NDArray[np.floating]:
    """Ms per megabyte that weights cost more at each knot, from kernels seen in small and in large networks."""
    rows, goals = [], []
    for sightings in seen.values():
        own_mb = sightings[0].own_mb
        if len(sightings) < 3 or own_mb < FEWEST_WEIGHTS_MB:
            continue
        times = np.array([each.own_ms for each in sightings])
        steps = np.array([own_mb * _steps(each.network_mb) for each in sightings])
        # Within one kernel, whatever that takes; noise grows with the root of the time. Steps and times are counted
        # from the middle network, which is the same for both, as weights only ever cost more in larger ones.
        weight = 1 / np.sqrt(times.mean())
        rows.append((steps - np.median(steps, axis=0)) * weight)
        goals.append((times - np.median(times)) * weight)
    if not rows:
        return np.zeros(len(WEIGHT_KNOTS_MB) - 1)
    count = len(WEIGHT_KNOTS_MB) - 1
    # A step that few networks stand on is held to nothing.
    hold = np.eye(count) * HOLD_STEPS**0.5 * np.sqrt(np.mean(np.vstack(rows) ** 2, axis=0).max())
    matrix, goal = np.vstack([*rows, hold]), np.concatenate([*goals, np.zeros(count)])
    kept = np.ones(len(goal), bool)
    for _ in range(3):
        found = nonnegative_least_squares(matrix[kept], goal[kept])
        rest = np.abs(goal - matrix @ found)
        kept = rest <= DISTURBED_SPREADS * float(np.median(rest))
    return found


def _families(traces: Sequence[NetworkTrace], medians: Mapping[str, float], overheads: Overheads) -> dict[str, float]:
    """The factor of each family's rows, held to 1, so that whole networks come out right."""
    names = sorted({features(key).family for key in medians})
    place = {name: index for index, name in enumerate(names)}
    sums = np.zeros((len(traces), len(names)))
    fixed = np.zeros(len(traces))
    for index, trace in enumerate(traces):
        fixed[index] = overheads.network_ms(trace.weight_bytes)
        for kernel in trace.kernels:
            sums[index, place[features(kernel.key).family]] += medians[kernel.key]
    whole = np.array([trace.whole_ms for trace in traces])
    relative = sums / whole[:, None]
    missing = (whole - fixed) / whole - relative.sum(axis=1)
    kept = np.abs(missing) <= max(3 * float(np.median(np.abs(missing))), 0.05)
    hold = np.eye(len(names)) * HOLD_FAMILIES**0.5 * np.sqrt(np.mean(relative**2, axis=0))
    matrix = np.vstack([relative[kept], hold])
    change = np.linalg.lstsq(matrix, np.concatenate([missing[kept], np.zeros(len(names))]), rcond=None)[0]
    return {name: float(np.clip(1 + change[place[name]], 0.5, 2.0)) for name in names}


def _interquartile(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower
