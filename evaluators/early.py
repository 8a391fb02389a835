"""The first look at a candidate: its train form after a few real iterations.

Source: PBConv (seed 001), section 4.3: candidates are told apart by their kernel dispersion "after only few
iterations", which costs 1 to 10 % of training.
"""

import copy
import time
from dataclasses import dataclass, field

from evaluators.datasets import Splits
from evaluators.dispersion import network_dispersion
from evaluators.evaluator import Outcome, checked, failure_from
from evaluators.labels import check_labels
from evaluators.recipe import Recipe
from evaluators.training import TrainingDiverged, train_steps
from searchspace.network import Network, build_network, deploy_graph
from searchspace.spec import ArchSpec


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


def look_early(spec: ArchSpec, splits: Splits, settings: EarlySettings, seed: int) -> Outcome:
    """What is known of a candidate after a few iterations, or why nothing is.

    `dispersion`, and `dispersion_start` before the first iteration, in which candidates differ for a reason that has
    nothing to do with learning (how often their branches cover a position); `loss`, the mean over the last quarter of
    the iterations; `seconds` of wall time.
    """
    started = time.perf_counter()
    try:
        network = build_network(spec, seed)
        check_labels(splits.train_y, deploy_graph(spec).output_shape[0])
        start = network_dispersion(network)
        early = train_early(network, splits, settings, seed)
        end = network_dispersion(early.network)
    except (TrainingDiverged, ValueError, RuntimeError, MemoryError) as error:
        # A candidate that cannot be built or trained is a finding about it, not the end of the search.
        return failure_from(error)
    return checked(
        {
            "dispersion": end.of_mean,
            "dispersion_start": start.of_mean,
            "loss": early.last_loss,
            "seconds": time.perf_counter() - started,
        }
    )
