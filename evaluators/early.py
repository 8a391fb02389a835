"""A network behind a few real iterations, which is what the first look at a candidate sees.

Source: PBConv (seed 001), section 4.3: candidates are told apart by their kernel dispersion "after only few
iterations", which costs 1 to 10 % of training.
"""

import copy
from dataclasses import dataclass, field

from evaluators.datasets import Splits
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from searchspace.network import Network


@dataclass(frozen=True, slots=True)
class EarlySettings:
    """How long the first look is. Running statistics need some tens of iterations before a folded kernel means much."""

    iterations: int = 20
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=32))


@dataclass(frozen=True, slots=True)
class Early:
    """A network behind its first iterations, in the last one's mode, and the loss of each of them."""

    network: Network
    losses: tuple[float, ...]

    @property
    def mean_loss(self) -> float:
        """Over all iterations."""
        return sum(self.losses) / len(self.losses)

    @property
    def last_loss(self) -> float:
        """Over the last quarter of the iterations."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return sum(last) / len(last)


def train_early(network: Network, splits: Splits, settings: EarlySettings, seed: int) -> Early:
    """A copy of the network, trained for the early iterations.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    trained = copy.deepcopy(network)
    losses = tuple(train_steps(trained, splits, settings.recipe, settings.iterations, seed))
    return Early(trained, losses)
