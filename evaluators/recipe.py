"""How a network is trained: one frozen recipe, and the one that suits the kind of images at hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

import torch
from torch import nn

PHOTOGRAPHS_SHIFT: Final = 0.125


@dataclass(frozen=True, slots=True)
class Recipe:
    """AdamW or SGD with Nesterov momentum; a linear warm-up into a cosine; smoothed labels; changed images.

    `warmup_share` and `average_share` are shares of all steps: the warm-up, and the time constant of the exponential
    average of the weights, 0 for none. Weight decay spares biases and norms; `clip_norm` is the length that gradients
    are cut to. `shift` moves each training image by up to that share of its side, the gap filled with the mean colour,
    and `flip` mirrors every second one. `mixup` and `cutmix` are the parameter of the beta distribution that shares are
    drawn from, 0 for none; with both, a batch gets one of them.

    Raises:
        ValueError: a number is outside its range.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 4e-3
    momentum: float = 0.9
    weight_decay: float = 0.02
    batch_size: int = 64
    label_smoothing: float = 0.1
    warmup_share: float = 0.15
    clip_norm: float = 1.0
    average_share: float = 0.0
    shift: float = 0.08
    flip: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _RANGES and not _RANGES[field.name].holds(value):
                raise ValueError(f"{field.name} must be {_RANGES[field.name].words}, got {value!r}")


@dataclass(frozen=True, slots=True)
class _Range:
    words: str
    low: float
    high: float = math.inf
    low_allowed: bool = True
    high_allowed: bool = False

    def holds(self, value: float) -> bool:
        above = value >= self.low if self.low_allowed else value > self.low
        return above and (value <= self.high if self.high_allowed else value < self.high)


_RANGES: Mapping[str, _Range] = {
    # Infinite is left to diverge, as any rate may that is too high.
    "learning_rate": _Range("above 0", 0.0, high_allowed=True, low_allowed=False),
    "momentum": _Range("from 0 to below 1", 0.0, 1.0),
    "weight_decay": _Range("0 or more", 0.0),
    "batch_size": _Range("at least 1", 1),
    "label_smoothing": _Range("from 0 to below 1", 0.0, 1.0),
    "warmup_share": _Range("from 0 to below 1", 0.0, 1.0),
    "clip_norm": _Range("above 0", 0.0, low_allowed=False, high_allowed=True),
    "average_share": _Range("from 0 to below 1", 0.0, 1.0),
    "shift": _Range("from 0 to 0.5", 0.0, 0.5, high_allowed=True),
    "mixup": _Range("0 or more", 0.0),
    "cutmix": _Range("0 or more", 0.0),
}


def _adamw(groups: list[dict[str, object]], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _sgd(groups: list[dict[str, object]], recipe: Recipe) -> torch.optim.Optimizer:
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


OPTIMIZERS: Final = {"adamw": _adamw, "sgd": _sgd}


def optimizer_for(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over the network's weights; biases and norms do not decay."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in network.parameters():
        (decayed if parameter.dim() > 1 else spared).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[recipe.optimizer](groups, recipe)


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Rises in a line over the warm-up, then falls as half a cosine to almost nothing at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / (steps + 1 - warmup)))


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps of the warm-up, at least one."""
    return max(1, round(recipe.warmup_share * steps))


# A mirrored digit is another sign; clothes and photographs are what they were.
_BY_DATA: Mapping[str, Recipe] = {
    "digits": Recipe(),
    "fashion-mnist": Recipe(flip=True),
    "cifar10": Recipe(flip=True, shift=PHOTOGRAPHS_SHIFT),
}


def recipe_for(name_or_path: str) -> Recipe:
    """The recipe for the images that `--data` names.

    Of a folder of the user's own nothing is known, so that its images are moved and not mirrored.
    """
    return _BY_DATA.get(name_or_path.partition(":")[0], Recipe())
