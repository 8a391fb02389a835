"""A Gaussian process over two groups of features, in numpy: what a few hundred scores say of a network without one.

The kernel is a sum of three: how alike two networks are in structure, how alike in cost, and a linear trend over both.
Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006: algorithm 2.1 and equation 4.17.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = npt.NDArray[np.float64]

# Settings that are tried; the one under which the scores are likeliest is taken.
TRIED = 40

# Scores are never taken to be more exact than this share of their spread, nor less.
LEAST_NOISE, MOST_NOISE = 1e-3, 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Length scales in standard deviations per feature, weights of the kernels, variance of the noise."""

    structure_scale: float
    cost_scale: float
    structure: float
    cost: float
    linear: float
    noise: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """Rows of features, each column with mean 0 and spread 1: of structure and of cost."""

    structure: Array
    cost: Array

    def rows(self, which: slice) -> "Inputs":
        return Inputs(self.structure[which], self.cost[which])


@dataclass(frozen=True, slots=True)
class Pairs:
    """How far each of some networks lies from each of others, which no settings change.

    Root mean square distances per feature, and the mean product of features.
    """

    structure: Array
    cost: Array
    linear: Array


def pairs(first: Inputs, second: Inputs) -> Pairs:
    """Each of the first with each of the second."""
    linear = _mean_product(first.structure, second.structure) + _mean_product(first.cost, second.cost)
    return Pairs(_distance(first.structure, second.structure), _distance(first.cost, second.cost), linear / 2)


def _mean_product(first: Array, second: Array) -> Array:
    result: Array = first @ second.T / max(1, first.shape[1])
    return result


def _distance(first: Array, second: Array) -> Array:
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2 * first @ second.T
    result: Array = np.sqrt(np.maximum(squares, 0) / max(1, first.shape[1]))
    return result


def kernel(between: Pairs, settings: Settings) -> Array:
    """How alike the networks of each pair are."""
    result: Array = (
        settings.structure * matern(between.structure, settings.structure_scale)
        + settings.cost * matern(between.cost, settings.cost_scale)
        + settings.linear * between.linear
    )
    return result


def matern(distance: Array, scale: float) -> Array:
    """Matérn's kernel with nu = 5/2; `scale` is in standard deviations per feature."""
    scaled = (math.sqrt(5) / scale) * distance
    result: Array = (1 + scaled * (1 + scaled / 3)) * np.exp(-scaled)
    return result


class GaussianProcess:
    """Scores as they follow from features, under fixed settings."""

    def __init__(self, inputs: Inputs, scores: Array, settings: Settings, own: Pairs | None = None) -> None:
        """`scores` are those of the first inputs; the others' are awaited, and taken to come out as guessed.

        What comes out as guessed leaves every guess as it is and makes those nearby surer. `own` are the pairs of the
        inputs, where they were worked out before.

        Raises:
            LinAlgError: the inputs are too much alike for these settings.
        """
        self._inputs, self._settings = inputs, settings
        self._mean, self._spread = float(scores.mean()), float(scores.std()) or 1.0
        targets = (scores - self._mean) / self._spread
        count = len(scores)
        alike = kernel(pairs(inputs, inputs) if own is None else own, settings)
        self._factor = cholesky(alike + settings.noise * np.eye(len(alike)), lower=True, check_finite=False)
        # The factor of the first ones is the corner of the factor of all.
        corner = self._factor[:count, :count]
        self._weights = cho_solve((corner, True), targets, check_finite=False)
        self.log_likelihood = float(-0.5 * targets @ self._weights - np.log(np.diag(corner)).sum())
        self.guesses: Array = alike[:, :count] @ self._weights * self._spread + self._mean

    def predict(self, inputs: Inputs) -> tuple[Array, Array]:
        """Mean and standard deviation of the score without its noise; `guesses` has the means of its own inputs."""
        across = kernel(pairs(self._inputs, inputs), self._settings)
        mean = across[: len(self._weights)].T @ self._weights
        explained = (solve_triangular(self._factor, across, lower=True, check_finite=False) ** 2).sum(0)
        linear = (inputs.structure**2).sum(1) / max(1, inputs.structure.shape[1])
        linear = (linear + (inputs.cost**2).sum(1) / max(1, inputs.cost.shape[1])) / 2
        own = self._settings.structure + self._settings.cost + self._settings.linear * linear
        spread = np.sqrt(np.maximum(own - explained, 1e-12))
        return mean * self._spread + self._mean, spread * self._spread


def likeliest_settings(inputs: Inputs, scores: Array, seed: int) -> Settings:
    """The settings, among some that are drawn and then refined, under which the scores are likeliest."""
    rng = np.random.default_rng(seed)
    best = Settings(1.0, 1.0, 0.6, 0.3, 0.3, 0.1)
    own = pairs(inputs, inputs)
    best_value = _value(inputs, scores, best, own)
    for step in range(TRIED):
        # The first half anywhere, the second around the best so far.
        drawn = _anywhere(rng) if step < TRIED // 2 else _near(best, rng)
        value = _value(inputs, scores, drawn, own)
        if value > best_value:
            best, best_value = drawn, value
    return best


def _value(inputs: Inputs, scores: Array, settings: Settings, own: Pairs) -> float:
    # A weak wish for moderate settings, so that a handful of scores does not decide on extreme ones.
    wish = -0.5 * (math.log(settings.structure_scale) ** 2 + math.log(settings.cost_scale) ** 2) / 1.5**2
    wish += -0.5 * (math.log(settings.noise / 0.05) / 1.5) ** 2
    try:
        return GaussianProcess(inputs, scores, settings, own).log_likelihood + wish
    except np.linalg.LinAlgError:
        return -math.inf


def _anywhere(rng: np.random.Generator) -> Settings:
    def drawn(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    return Settings(
        structure_scale=drawn(0.2, 5),
        cost_scale=drawn(0.2, 5),
        structure=drawn(0.02, 2),
        cost=drawn(0.02, 2),
        linear=drawn(0.02, 2),
        noise=drawn(LEAST_NOISE, MOST_NOISE),
    )


def _near(settings: Settings, rng: np.random.Generator) -> Settings:
    step = np.exp(rng.normal(0, 0.4, 6))
    return Settings(
        settings.structure_scale * float(step[0]),
        settings.cost_scale * float(step[1]),
        settings.structure * float(step[2]),
        settings.cost * float(step[3]),
        settings.linear * float(step[4]),
        min(MOST_NOISE, max(LEAST_NOISE, settings.noise * float(step[5]))),
    )
