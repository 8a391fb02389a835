"""What whole networks say that their kernels, timed one by one, do not.

A network takes a little more or less than its kernels and overheads come to: the runtime's clock misses something of
some kernels, and a kernel in deep water finds less in the caches than the medians know. The ratio of the two, of every
network that was learnt from, is taken for a Gaussian process of two parts, each of which gets what is likely its own:

    log(whole / sum) = over kernels, share of the sum * logarithm of the kernel's factor + g(kind of network) + noise

Factors of a family have a part in common, one that like kernels share, and one that is the kernel's own. g is smooth
in what a network is like as a whole: its time, its weights, what it moves, how much of it is in dense kernels that use
each weight once, and how much is overhead.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hardware.kernel_fit import features
from hardware.latency_table import KernelSums

Matrix = npt.NDArray[np.floating]

# Standard deviations of logarithms, and lengths in standard deviations of what is measured along an axis: of a handful
# that were tried, those under which the networks that were learnt from in two profiles of a host were most likely.
FAMILY_SD = 0.1
LIKE_KERNELS_SD = 0.05
OWN_SD = 0.05
LIKE_KERNELS_LENGTH = 2.0
NETWORK_SD = 0.03
NETWORK_LENGTH = 1.0
# All of them together may be so many times as large, and timings err by so large a share: each machine says which.
AMPLITUDES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
NOISES = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06)

# Networks whose whole is further from the sum than this, as a logarithm, were disturbed.
DISTURBED_LOG = 0.15
# g is kept as a sum of so many bumps.
CENTRES = 64
MEGABYTE = 2**20


@dataclass(frozen=True)
class NetworkFactor:
    """g: a sum of Gaussian bumps of unit length over positions, which are brought to unit spread first."""

    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    centres: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, ...] = ()

    def __call__(self, sums: KernelSums, overhead_ms: float) -> float:
        """By what the sum of kernels and overheads is to be multiplied; 1 far from all that was learnt from."""
        if not self.weights:
            return 1.0
        at = (np.array(position(sums, overhead_ms)) - self._mean) / self._spread
        return math.exp(float(_likeness(at[None], self._centres, NETWORK_LENGTH)[0] @ self._weights))

    @cached_property
    def _mean(self) -> Matrix:
        return np.array(self.mean)

    @cached_property
    def _spread(self) -> Matrix:
        return np.array(self.spread)

    @cached_property
    def _centres(self) -> Matrix:
        return np.array(self.centres)

    @cached_property
    def _weights(self) -> Matrix:
        return np.array(self.weights)


# How many numbers `position` gives.
AXES = 5


def position(sums: KernelSums, overhead_ms: float) -> tuple[float, ...]:
    """What a network is like as a whole, on five axes."""
    total_ms = sums.total_ms + overhead_ms
    return (
        math.log(total_ms),
        math.log(sums.weight_bytes / MEGABYTE + 1e-3),
        math.log(sums.moved_bytes / MEGABYTE + 1e-3),
        sums.by_reuse_ms[0] / total_ms,
        overhead_ms / total_ms,
    )


@dataclass(frozen=True, slots=True)
class Learnt:
    """A network timed whole, what its kernels and overheads come to, and the ms of it that are each kernel's."""

    whole_ms: float
    sums: KernelSums
    overhead_ms: float
    by_kernel_ms: Mapping[str, float]

    @property
    def log_ratio(self) -> float:
        return math.log(self.whole_ms / (self.sums.total_ms + self.overhead_ms))


@dataclass(frozen=True, slots=True)
class Prior:
    """How far networks may lie from their sums for a reason, in units of the deviations above, and for none."""

    amplitude: float
    noise_sd: float


def kernel_factors(networks: Sequence[Learnt]) -> tuple[dict[str, float], Prior]:
    """By what each kernel's time is to be multiplied, by key, under the prior that makes the networks most likely."""
    keys = sorted({key for network in networks for key in network.by_kernel_ms})
    kept = _undisturbed(networks)
    if len(kept) < 2:
        return dict.fromkeys(keys, 1.0), Prior(0.0, NOISES[0])
    place = {key: index for index, key in enumerate(keys)}
    shares = np.zeros((len(kept), len(keys)))
    for row, network in zip(shares, kept, strict=True):
        total_ms = network.sums.total_ms + network.overhead_ms
        for key, time_ms in network.by_kernel_ms.items():
            row[place[key]] = time_ms / total_ms
    ratios = np.array([network.log_ratio for network in kept])
    at, _, _ = _standardised(kept)
    with_networks = np.zeros((len(keys), len(kept)))  # covariance of each kernel's factor with each network
    for members in _families(keys):
        with_networks[members] = _between_kernels([keys[index] for index in members]) @ shares[:, members].T
    covariance = shares @ with_networks + NETWORK_SD**2 * _likeness(at, at, NETWORK_LENGTH)
    values, vectors = np.linalg.eigh(covariance)
    values, seen = np.maximum(values, 0.0), vectors.T @ ratios
    prior = _likeliest(values, seen)
    variances = prior.amplitude**2 * values + prior.noise_sd**2
    logs = prior.amplitude**2 * with_networks @ (vectors @ (seen / variances))
    return {key: math.exp(float(value)) for key, value in zip(keys, logs, strict=True)}, prior


def _likeliest(values: Matrix, seen: Matrix) -> Prior:
    """The prior under which `seen`, along axes on which it varies by `values`, is most likely."""

    def unlikelihood(prior: Prior) -> float:
        variances = prior.amplitude**2 * values + prior.noise_sd**2
        return float((seen**2 / variances + np.log(variances)).sum())

    return min((Prior(amplitude, noise) for amplitude in AMPLITUDES for noise in NOISES), key=unlikelihood)


def network_factor(networks: Sequence[Learnt], prior: Prior) -> NetworkFactor:
    """What is left of the networks' times once their kernels have got their factors."""
    kept = _undisturbed(networks)
    if len(kept) < 2 or prior.amplitude == 0:
        return NetworkFactor()
    at, mean, spread = _standardised(kept)
    ratios = np.array([network.log_ratio for network in kept])
    centres = at[_far_apart(at, CENTRES)]
    bumps = _likeness(at, centres, NETWORK_LENGTH)
    # A process that is known at its centres only.
    hold = (prior.noise_sd / (prior.amplitude * NETWORK_SD)) ** 2 * _likeness(centres, centres, NETWORK_LENGTH)
    hold[np.diag_indices_from(hold)] += 1e-6
    weights = np.linalg.solve(bumps.T @ bumps + hold, bumps.T @ ratios)
    return NetworkFactor(_row(mean), _row(spread), tuple(map(_row, centres)), _row(weights))


def _undisturbed(networks: Sequence[Learnt]) -> list[Learnt]:
    return [network for network in networks if abs(network.log_ratio) < DISTURBED_LOG]


def _row(values: Matrix) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


def _standardised(networks: Sequence[Learnt]) -> tuple[Matrix, Matrix, Matrix]:
    positions = np.array([position(network.sums, network.overhead_ms) for network in networks])
    mean, spread = positions.mean(axis=0), positions.std(axis=0)
    spread[spread < 1e-9] = 1.0
    return (positions - mean) / spread, mean, spread


def _families(keys: Sequence[str]) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        found[features(key).family].append(index)
    return list(found.values())


def _between_kernels(keys: Sequence[str]) -> Matrix:
    """Covariances between the logarithms of the factors of a family's kernels."""
    positions = np.array([features(key).position for key in keys])
    spread = positions.std(axis=0)
    positions = positions / np.where(spread < 1e-9, 1.0, spread)
    like = LIKE_KERNELS_SD**2 * _likeness(positions, positions, LIKE_KERNELS_LENGTH)
    return FAMILY_SD**2 + like + OWN_SD**2 * np.eye(len(keys))


def _likeness(first: Matrix, second: Matrix, length: float) -> Matrix:
    """1 for the same position, falling off as a Gaussian."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None] - 2 * first @ second.T
    likeness: Matrix = np.exp(-np.maximum(squares, 0.0) / (2 * length**2))
    return likeness


def _far_apart(at: Matrix, count: int) -> list[int]:
    """So many of the rows, each next one the furthest from all before it."""
    chosen = [int(np.argmin((at**2).sum(axis=1)))]
    distance = ((at - at[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(at)) and distance.max() > 1e-12:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((at - at[chosen[-1]]) ** 2).sum(axis=1))
    return chosen
