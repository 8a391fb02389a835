"""A network on the bench: the passes and iterations that proxies measure, each run once and shared by all who ask.

Most proxies want the same forward and backward pass over the same images, so it is worth more to share it than to make
any of them faster. The network itself is never touched: everything runs on copies.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from evaluators.datasets import Splits
from evaluators.early import Early, EarlySettings, train_early
from evaluators.proxies.watching import Watch, watched
from hardware.cost import Cost, cost
from hardware.graph import DeployGraph
from searchspace.network import Network, deploy_graph


class NotDefined(ValueError):
    """The network or the batch has nothing that the proxy could measure; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """How much the proxies may look at: images in a batch, batches of gradients, and the early training."""

    batch_size: int = 32
    batches: int = 2
    early: EarlySettings = field(default_factory=EarlySettings)


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass in train mode over one batch: what was seen on the way, and the graph for going back.

    In train mode, since a fresh network's running statistics say nothing: each norm takes those of the batch.
    """

    images: Tensor
    logits: Tensor
    loss: Tensor
    weights: Mapping[str, Tensor]
    watch: Watch


class Subject:
    """One network, some data and a seed. Networks are taken as drawn; images are the first of the training split."""

    def __init__(self, network: Network, splits: Splits, settings: ProxySettings, seed: int) -> None:
        self.network = network
        self.splits = splits
        self.settings = settings
        self.seed = seed

    @cached_property
    def graph(self) -> DeployGraph:
        """What a device would run."""
        return deploy_graph(self.network.spec)

    @cached_property
    def cost(self) -> Cost:
        """What that costs."""
        return cost(self.graph)

    @cached_property
    def first_pass(self) -> Pass:
        """The pass over the first batch, in which activations and feature maps are recorded."""
        return self._pass(0)

    @cached_property
    def gradients(self) -> Mapping[str, Tensor]:
        """Of the first batch's loss, for each weight."""
        return _gradients(self.first_pass)

    @cached_property
    def gradients_by_batch(self) -> tuple[Mapping[str, Tensor], ...]:
        """The same for each of some batches that share no image."""
        return (self.gradients, *(_gradients(self._pass(index)) for index in range(1, self.settings.batches)))

    @cached_property
    def input_gradients(self) -> Tensor:
        """Of the sum of all logits, for each pixel (n, c, h, w) of the first batch."""
        passed = self.first_pass
        (gradient,) = torch.autograd.grad(passed.logits.sum(), passed.images, retain_graph=True)
        return gradient

    @cached_property
    def early(self) -> Early:
        """What some iterations of training show."""
        with self.repeatable():
            return train_early(self.network, self.splits, self.settings.early, self.seed)

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Inside, torch's random numbers follow from the seed; outside, nothing is noticed of it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield

    def _pass(self, index: int) -> Pass:
        size = self.settings.batch_size
        if len(self.splits.train_x) < (index + 1) * size:
            raise NotDefined(f"batch {index + 1} of {size} images needs more than {len(self.splits.train_x)} images")
        chosen = slice(index * size, (index + 1) * size)
        images = self.splits.train_x[chosen].clone().requires_grad_()
        labels = self.splits.train_y[chosen]
        network = copy.deepcopy(self.network).train().requires_grad_()
        with self.repeatable(), watched() as watch:
            logits = network(images)
        loss = nn.functional.cross_entropy(logits, labels)
        if not math.isfinite(value := loss.item()):
            raise NotDefined(f"the loss of a fresh network must be finite, got {value}")
        return Pass(images, logits, loss, weights_of(network), watch)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that connect values: those of two or more axes, no scale, shift or bias."""
    return {name: each for name, each in network.named_parameters() if each.dim() > 1}


def _gradients(passed: Pass) -> dict[str, Tensor]:
    names, weights = zip(*passed.weights.items(), strict=True)
    found = torch.autograd.grad(passed.loss, weights, retain_graph=True)
    return dict(zip(names, found, strict=True))
