"""How well one order of things agrees with another, and how often chance alone would agree as well."""

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

# Up to 7! orders are tried one by one, of more a sample.
EXACT_UP_TO = 7
SAMPLES = 10_000


def ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """The place of each value in rising order, from 1; equal values share the mean of their places."""
    array = np.asarray(values, np.float64)
    below, up_to = (array[:, None] > array).sum(1), (array[:, None] >= array).sum(1)
    places: npt.NDArray[np.float64] = (below + up_to + 1) / 2
    return places


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, from -1 to 1; None where one side is all equal or there are fewer than two."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if len(a) > 1 and scale > 0 else None


def chance(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The share of all orders of `second` that correlate at least as strongly, in either direction; None as above."""
    found = spearman(first, second)
    if found is None:
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    if len(b) <= EXACT_UP_TO:
        orders = np.array(list(itertools.permutations(range(len(b)))))
    else:
        rng = random.Random(0)
        orders = np.array([rng.sample(range(len(b)), len(b)) for _ in range(SAMPLES)])
    reached = np.abs(b[orders] @ a)
    return float((reached >= abs(float(a @ b)) - 1e-9).mean())


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b, from -1 to 1, ties taken out of its scale; None where one side is all equal or too short."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    pairs = np.triu_indices(len(a), 1)
    one, other = (np.sign(side[:, None] - side[None, :])[pairs] for side in (a, b))
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else None


def bootstrap(
    statistic: Callable[[npt.NDArray[np.intp]], float | None],
    count: int,
    *,
    samples: int = 2000,
    share: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Between which values a statistic of `count` cases lies with `share` of certainty, by drawing the cases anew.

    `statistic` is asked for the places of the drawn cases, some of them several times; draws for which it says None are
    left out. None where it says None for all. Percentiles, without correction for bias.
    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

        >>> values = np.array([1.0, 2.0, 3.0])
        >>> bootstrap(lambda cases: float(values[cases].mean()), 3, share=1.0)
        (1.0, 3.0)
    """
    rng = np.random.default_rng(seed)
    found = [value for _ in range(samples) if (value := statistic(rng.integers(0, count, count))) is not None]
    if not found:
        return None
    low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def drawn_cases(count: int, *, samples: int = 1000, seed: int = 0) -> npt.NDArray[np.int64]:
    """The places of `count` cases drawn anew so many times, (samples, count), for the correlations below."""
    return np.random.default_rng(seed).integers(0, count, (samples, count))


def spearman_drawn(
    first: npt.ArrayLike, second: npt.ArrayLike, draws: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Spearman's correlation of each draw (samples, cases), all at once; NaN where `spearman` says None."""
    a, b = (_ranks_drawn(np.asarray(side, np.float64)[draws]) for side in (first, second))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    return _quotient((a * b).sum(1), (a * a).sum(1) * (b * b).sum(1))


def kendall_drawn(first: npt.ArrayLike, second: npt.ArrayLike, draws: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Kendall's tau-b of each draw (samples, cases), all at once; NaN where `kendall` says None."""
    a, b = (np.sign(side[:, :, None] - side[:, None, :]) for side in (np.asarray(s)[draws] for s in (first, second)))
    return _quotient((a * b).sum((1, 2)), (a * a).sum((1, 2)) * (b * b).sum((1, 2)))


def interval(found: npt.NDArray[np.float64], share: float = 0.95) -> tuple[float, float] | None:
    """Between which values the draws lie with `share` of certainty, NaN left out; None where there is nothing else."""
    known = found[~np.isnan(found)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _ranks_drawn(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    below = (values[:, :, None] > values[:, None, :]).sum(2)
    up_to = (values[:, :, None] >= values[:, None, :]).sum(2)
    places: npt.NDArray[np.float64] = (below + up_to + 1) / 2
    return places


def _quotient(product: npt.NDArray[np.float64], squares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found = np.full(len(product), np.nan)
    np.divide(product, np.sqrt(squares), out=found, where=squares > 0)
    return found
