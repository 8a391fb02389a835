"""Training, in one loop: a few iterations for a first opinion, some epochs for a rung, or to the end.

Data are tensors in memory, so an epoch is a permutation and slices. What is random in a step follows from the seed and
the step's number alone, so that a training that was put down goes on as if it never had been; with one torch thread it
repeats itself to the digit.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from evaluators.augmentation import Batch, augmented
from evaluators.averaging import WeightAverage, with_average
from evaluators.datasets import Splits
from evaluators.recipe import Recipe, learning_rate_factor, optimizer_for, warmup_steps

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being a number."""


class OtherTraining(ValueError):
    """A state that belongs to another training, or is none."""


class Training(Generic[NetworkT]):
    """A network on its way through a recipe, which can be put down after any step and taken up again.

    `steps` is the length of the whole way, which the learning rate follows; one may stop before its end. The network
    changes as it advances.
    """

    def __init__(self, network: NetworkT, splits: Splits, recipe: Recipe, *, steps: int, seed: int) -> None:
        self.network = network
        self.steps = steps
        self.done = 0
        self._splits = splits
        self._recipe = recipe
        self._seed = seed
        self._device = next(network.parameters()).device
        self._optimizer = optimizer_for(network, recipe)
        self._average = WeightAverage(network, recipe.average_share * steps) if recipe.average_share > 0 else None
        self._order: tuple[int, Tensor] | None = None

    def advance(self, steps: int) -> Iterator[float]:
        """Trains for `steps` mini-batches, but not beyond the end, giving each one's loss as it is drawn.

        Raises:
            TrainingDiverged: a loss or a gradient is not finite.
        """
        for _ in range(min(steps, self.steps - self.done)):
            yield self._step()

    def advance_epoch(self) -> float:
        """Trains for one epoch and says its mean loss.

        Raises:
            TrainingDiverged: a loss or a gradient is not finite.
        """
        losses = list(self.advance(steps_per_epoch(self._splits, self._recipe)))
        return sum(losses) / max(1, len(losses))

    @property
    def epochs_done(self) -> int:
        return self.done // steps_per_epoch(self._splits, self._recipe)

    def result(self) -> NetworkT:
        """The network to be judged and deployed, in eval mode: with averaged weights where the recipe averages."""
        if self._average is None:
            return self.network.eval()
        return with_average(self.network, self._average, self._splits.train_x, self._recipe.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on beside the data; tensors are those in use, so save it at once."""
        average = self._average
        return {
            "about": self._about(),
            "done": self.done,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if average is None else {"weights": average.weights, "steps": average.steps},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where a training with the same recipe, length, seed and images was put down.

        Raises:
            OtherTraining: the state is of another training or network.
        """
        try:
            if state["about"] != self._about():
                differing = [name for name, value in self._about().items() if state["about"].get(name) != value]
                raise OtherTraining(f"the checkpoint is of another training: {', '.join(differing)} differ")
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._average is not None:
                for own, value in zip(self._average.weights, state["average"]["weights"], strict=True):
                    own.copy_(value)
                self._average.steps = state["average"]["steps"]
            self.done = state["done"]
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OtherTraining(f"the checkpoint is of another network or damaged: {reason}") from error

    def _about(self) -> dict[str, Any]:
        x = self._splits.train_x
        return asdict(self._recipe) | {"steps": self.steps, "seed": self._seed, "images": list(x.shape)}

    def _step(self) -> float:
        with torch.random.fork_rng(devices=[]):
            seed = derived_seed(self._seed, "step", self.done)
            # For networks that draw by themselves: paths and keys that are dropped.
            torch.manual_seed(seed)
            batch = self._batch(torch.Generator().manual_seed(seed))
            warmup = warmup_steps(self._recipe, self.steps)
            rate = self._recipe.learning_rate * learning_rate_factor(self.done, self.steps, warmup)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self.network.train()
            with mixed_precision(self._device):
                loss = batch.loss(self.network(batch.images), self._recipe.label_smoothing)
            value = loss.item()
            self._check_finite("loss", value)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        length = nn.utils.clip_grad_norm_(self.network.parameters(), self._recipe.clip_norm)
        self._check_finite("gradient's length", float(length))
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.network)
        self.done += 1
        return value

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the {name} became {value} at step {self.done + 1} of {self.steps}; lower the learning rate"
            )

    def _batch(self, generator: torch.Generator) -> Batch:
        epoch, place = divmod(self.done, steps_per_epoch(self._splits, self._recipe))
        if self._order is None or self._order[0] != epoch:
            shuffler = torch.Generator().manual_seed(derived_seed(self._seed, "epoch", epoch))
            self._order = epoch, torch.randperm(len(self._splits.train_x), generator=shuffler)
        size = self._recipe.batch_size
        chosen = self._order[1][place * size : (place + 1) * size]
        batch = augmented(self._splits.train_x[chosen], self._splits.train_y[chosen], self._recipe, generator)
        return batch.on(self._device)


def derived_seed(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each purpose and number."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:6])


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Sixteen bits where the device computes them natively, which no CPU here does; else nothing."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def train_steps(network: nn.Module, splits: Splits, recipe: Recipe, steps: int, seed: int) -> Iterator[float]:
    """Trains for `steps` mini-batches, giving each one's loss; the network changes as the iterator is drawn.

    Raises:
        TrainingDiverged: a loss or a gradient is not finite.
    """
    return Training(network, splits, recipe, steps=steps, seed=seed).advance(steps)


def train(
    network: NetworkT,
    splits: Splits,
    recipe: Recipe,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> NetworkT:
    """The network after whole epochs, in eval mode; `on_epoch` hears how many are done and the last one's mean loss.

    Raises:
        TrainingDiverged: a loss or a gradient is not finite.
    """
    training = Training(network, splits, recipe, steps=epochs * steps_per_epoch(splits, recipe), seed=seed)
    for epoch in range(1, epochs + 1):
        loss = training.advance_epoch()
        if on_epoch is not None:
            on_epoch(epoch, loss)
    return training.result()


def steps_per_epoch(splits: Splits, recipe: Recipe) -> int:
    """Mini-batches in an epoch; a last one that is not full is left out, since batch norm suffers from tiny ones."""
    return max(1, len(splits.train_x) // recipe.batch_size)
