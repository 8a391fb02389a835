"""What a kernel takes that was never measured, from the kernels of its family that were.

A Gaussian process over the logarithms of the sizes in the kernel's key interpolates the logarithm of its time: kernels
of one family differ by factors that change smoothly. Trees and formulas linear in the sizes were half as exact on
kernels held out.
"""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = tuple[float, ...]

# Optimizing the length scales takes time with the third power of the points; these are enough to find them.
POINTS_FOR_SCALES = 400
# Below so many measured kernels of a family nothing is interpolated.
FEWEST_POINTS = 6
# Added to every time before the logarithm is taken, ms: below this a runtime's own housekeeping is all there is.
FLOOR_MS = 5e-4
# Vector units work on so many channels at a time; what is left over costs as much as a whole one.
CHANNEL_BLOCK = 16

# So many length scales apart the times of two kernels say less than half of each other.
FAR = 1.0
# A kernel larger or smaller than every measured one by more than this factor, as a logarithm, is beyond them.
BEYOND = math.log(1.5)

_CONV = re.compile(
    r"conv\((?P<c>\d+)x(?P<h>\d+)x(?P<w>\d+)(?P<sides>(?:,[\dx]+)*)>(?P<out>\d+) k(?P<kh>\d+)x(?P<kw>\d+) s(?P<s>\d+)"
    r" p\d+x\d+(?: d(?P<d>\d+))? g(?P<g>\d+)\)(?P<rest>.*)"
)


@dataclass(frozen=True, slots=True)
class Features:
    """A kernel's family, within which times are compared, and where it stands in it."""

    family: str
    position: Vector


def features(key: str) -> Features:
    """Family and position of the kernel of that key; every number in the key counts, but the padding of convolutions.

    >>> features("conv(16x32x32>32 k1x1 s1 p0x0 g1)+relu").family
    'pointwise'
    >>> features("mul(8x4x4,8x1x1)").position == tuple(map(math.log, (8, 4, 4, 8, 1, 1)))
    True
    """
    match = _CONV.fullmatch(key)
    if match is None:
        # Both sides of a product of matrices, and each part of what is joined.
        numbers = map(float, re.findall(r"\d+", key))
        return Features(re.sub(r"\d+", "#", key), tuple(math.log(max(each, 0.5)) for each in numbers))
    number = {name: int(value or 1) for name, value in match.groupdict().items() if name not in ("sides", "rest")}
    channels, out, groups = number["c"], number["out"], number["g"]
    taps = number["kh"] * number["kw"]
    if groups == 1:
        # On a map of one pixel every weight is used once, so that reading them is all that takes time.
        is_vector = number["h"] == number["w"] == 1
        family = "vector" if is_vector else "pointwise" if taps == 1 else "dense"
    else:
        family = "depthwise" if groups == channels else "grouped"
    padded = -(-out // CHANNEL_BLOCK) * CHANNEL_BLOCK / out
    logs = (channels, out, number["h"], number["w"], number["kh"], number["kw"], number["s"], number["d"])
    position = (
        *(math.log(each) for each in logs),
        math.log(groups) if family == "grouped" else 0.0,
        float(out % CHANNEL_BLOCK != 0),
        4 * math.log(padded),
        float(channels % CHANNEL_BLOCK != 0),
        float("sigmoid" in match["rest"]),
        float(bool(match["sides"])),
    )
    return Features(family, position)


@dataclass(frozen=True, slots=True)
class FamilyFit:
    """One family's process, its length scales, and the constants that bring positions to unit spread."""

    process: Any
    lengths: npt.NDArray[np.floating]
    mean: npt.NDArray[np.floating]
    spread: npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A time in ms, and whether there are measured kernels of its like all around it."""

    value_ms: float
    is_near: bool


class KernelFit:
    """Interpolates between measured kernels, family by family."""

    def __init__(self, measured_ms: Mapping[str, float], scales: Mapping[str, Sequence[float]] | None = None) -> None:
        """measured_ms is by key; scales, as `.scales` of an earlier fit, spares looking for them again."""
        points: dict[str, list[tuple[Vector, float]]] = defaultdict(list)
        for key, value_ms in measured_ms.items():
            found = features(key)
            points[found.family].append((found.position, math.log(value_ms + FLOOR_MS)))
        self._families = {
            family: _fit(members, (scales or {}).get(family))
            for family, members in points.items()
            if len(members) >= FEWEST_POINTS
        }

    @property
    def scales(self) -> dict[str, list[float]]:
        """The processes' hyperparameters by family, as logarithms."""
        return {family: [float(each) for each in fit.process.kernel_.theta] for family, fit in self._families.items()}

    def __call__(self, key: str) -> Estimate | None:
        """What the kernel takes; None where too few of its family were measured."""
        found = features(key)
        fit = self._families.get(found.family)
        if fit is None:
            return None
        at = (np.array([found.position]) - fit.mean) / fit.spread
        logarithm = float(fit.process.predict(at)[0])
        known = fit.process.X_train_
        distance = float(np.min(np.linalg.norm((known - at) / fit.lengths, axis=1)))
        beyond = np.maximum(at - known.max(axis=0), known.min(axis=0) - at) * fit.spread
        is_near = distance < FAR and float(beyond.max()) < BEYOND
        return Estimate(max(math.exp(logarithm) - FLOOR_MS, FLOOR_MS / 10), is_near)


def _fit(members: Sequence[tuple[Vector, float]], theta: Sequence[float] | None) -> FamilyFit:
    # Slow to import, and only tables with fitted kernels need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    positions = np.array([position for position, _ in members])
    logs = np.array([value for _, value in members])
    mean, spread = positions.mean(axis=0), positions.std(axis=0)
    spread[spread < 1e-9] = 1.0
    at = (positions - mean) / spread
    shape = ConstantKernel(4.0, (1e-2, 1e3)) * Matern(np.full(at.shape[1], 3.0), (0.2, 50.0), nu=1.5) + WhiteKernel(
        0.01, (1e-5, 1.0)
    )
    if theta is None or len(theta) != len(shape.theta):
        few = np.random.default_rng(0).permutation(len(at))[:POINTS_FOR_SCALES]
        with warnings.catch_warnings():
            # A scale at its bound says that the family does not vary along that axis.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = GaussianProcessRegressor(shape, normalize_y=True).fit(at[few], logs[few])
        theta = found.kernel_.theta
    settled = shape.clone_with_theta(np.array(theta))
    process = GaussianProcessRegressor(settled, optimizer=None, normalize_y=True).fit(at, logs)
    return FamilyFit(process, np.array(process.kernel_.k1.k2.length_scale), mean, spread)
