"""Seeing what a network computes on the way, whether its layers are modules or plain function calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Functions that bend a sum into a feature; gates (sigmoid, hard sigmoid, softmax) scale features and are none.
ACTIVATIONS: frozenset[Callable[..., Tensor]] = frozenset(
    {
        torch.relu,
        Tensor.relu,
        functional.relu,
        functional.relu6,
        functional.hardtanh,
        functional.silu,
        functional.hardswish,
        functional.gelu,
    }
)


@dataclass(slots=True)
class Watch:
    """What was seen: the signs of what entered each activation (n, units), and maps (c, h, w) of the first image."""

    signs: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)


class _Watching(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ACTIVATIONS:
            self._watch.signs.append((args[0].detach() > 0).flatten(1))
        result = func(*args, **(kwargs or {}))
        if func is functional.conv2d:
            self._watch.maps.append(result.detach()[0].clone())
        return result


@contextmanager
def watched() -> Iterator[Watch]:
    """Records the activations and convolutions that run inside."""
    watch = Watch()
    with _Watching(watch):
        yield watch


class _Linear(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func in ACTIVATIONS else func(*args, **(kwargs or {}))


@contextmanager
def linear_activations() -> Iterator[None]:
    """Inside, activations let everything through, where some would cut at 6."""
    with _Linear():
        yield
