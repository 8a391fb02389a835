"""Training, in one loop: a few iterations for a first opinion, or some epochs for an accuracy.

Data are tensors in memory, so an epoch is a permutation and slices. Everything random follows from a seed that is
passed in; with one torch thread a run repeats itself to the digit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluators.datasets import Splits


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: AdamW, linear warm-up into a cosine, label smoothing, shifted images.

    `shift` moves each training image by up to that share of its side, the gap filled with the mean colour; weight decay
    spares biases and norms, and gradients are cut at norm 1.
    """

    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    batch_size: int = 64
    label_smoothing: float = 0.1
    warmup_share: float = 0.15
    shift: float = 0.08


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose most likely class is right, mean cross-entropy, and over how many images."""

    value: float
    loss: float
    images: int


def train_steps(network: nn.Module, splits: Splits, recipe: Recipe, steps: int, seed: int) -> Iterator[float]:
    """Trains for `steps` mini-batches, giving each one's loss; the network changes as the iterator is drawn.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decayed if parameter.dim() > 1 else spared).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
    )
    warmup = max(1, round(recipe.warmup_share * steps))
    for step, (x, y) in enumerate(_batches(splits, recipe, steps, generator)):
        rate = recipe.learning_rate * learning_rate_factor(step, steps, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        network.train()
        loss = nn.functional.cross_entropy(network(x), y, label_smoothing=recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss became {value} at step {step + 1} of {steps}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield value


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Rises in a line over the warm-up, then falls as half a cosine to almost nothing at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / (steps + 1 - warmup)))


def train(
    network: nn.Module,
    splits: Splits,
    recipe: Recipe,
    *,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Trains for whole epochs; `on_epoch` hears the number of epochs done and the mean loss of the last one.

    Raises:
        TrainingDiverged: a loss is not finite.
    """
    per_epoch = steps_per_epoch(splits, recipe)
    losses: list[float] = []
    for loss in train_steps(network, splits, recipe, epochs * per_epoch, seed):
        losses.append(loss)
        if len(losses) % per_epoch == 0 and on_epoch is not None:
            on_epoch(len(losses) // per_epoch, sum(losses[-per_epoch:]) / per_epoch)


def steps_per_epoch(splits: Splits, recipe: Recipe) -> int:
    """Mini-batches in an epoch; a last one that is not full is left out, since batch norm suffers from tiny ones."""
    return max(1, len(splits.train_x) // recipe.batch_size)


def _batches(splits: Splits, recipe: Recipe, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    per_epoch = steps_per_epoch(splits, recipe)
    reach = round(recipe.shift * splits.train_x.shape[-1])
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            order = torch.randperm(len(splits.train_x), generator=generator)
        chosen = order[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        yield shifted(splits.train_x[chosen], reach, generator), splits.train_y[chosen]


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) moved by its own random offset of up to `reach` pixels along both axes."""
    if reach == 0:
        return images
    count, channels, height, width = images.shape
    padded = nn.functional.pad(images, (reach, reach, reach, reach))
    top, left = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    cells = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    # Gathered into a fresh tensor on purpose: indexing would leave grey images with the strides of channels-last, at
    # which oneDNN's backward of a strided 1x1 convolution writes past its memory (torch 2.13, CPU).
    return padded.flatten(2).gather(2, cells.reshape(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 32) -> Accuracy:
    """How well the network in eval mode labels images; its mode is put back afterwards."""
    was_training = network.training
    network.eval()
    right, loss = 0, 0.0
    for start in range(0, len(x), batch_size):
        logits = network(x[start : start + batch_size])
        labels = y[start : start + batch_size]
        right += int((logits.argmax(1) == labels).sum())
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    network.train(was_training)
    return Accuracy(right / len(x), loss / len(x), len(x))
