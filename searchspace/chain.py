"""A block family from one description: convolutions in a row, out of which the train form and what runs both follow."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from searchspace.coverage import Layout
from searchspace.fold import ConvWeights
from searchspace.layers import (
    ACTIVATION_MODULES,
    BranchedConv,
    deployed_conv,
    emit_residual,
    emit_square_conv,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily
from searchspace.spec import known_activation, odd, positive


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """A convolution that keeps the size at stride 1, batch norm, and an activation unless it is None.

    With a layout PBConv branches train beside the convolution.
    """

    width: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    activation: str | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        positive(width=self.width, kernel=self.kernel, stride=self.stride, groups=self.groups)
        odd(kernel=self.kernel)
        if self.activation is not None:
            known_activation(self.activation)


# From the number of channels that enter a block and its spec to its layers.
Layers = Callable[[int, Any], Iterable[ConvLayer]]


def chain_family(
    name: str,
    spec: type[Any],
    layers: Layers,
    examples: tuple[tuple[Shape, Any], ...] = (),
    layout_kernels: Callable[[Any], Mapping[str, int]] = lambda spec: {},
) -> BlockFamily:
    """The family whose blocks are `layers(channels, spec)` in a row, and the input where that keeps the shape.

    Such a block begins with a convolution, so that it costs the same whatever stands before it. `examples` and
    `layout_kernels` are those of `BlockFamily`.
    """

    def rows(channels: int, block: Any) -> tuple[ConvLayer, ...]:
        found = tuple(layers(channels, block))
        if not found:
            raise ValueError(f"a block of family {name!r} has one layer or more, got none for {block}")
        return found

    def train(in_shape: Shape, block: Any) -> nn.Module:
        return ChainBlock(in_shape[0], rows(in_shape[0], block))

    def emit(graph: GraphBuilder, x: GraphTensor, block: Any) -> GraphTensor:
        found, y = rows(x.shape[0], block), x
        for index, layer in enumerate(found):
            conv = deployed_conv(layer.width, layer.kernel, stride=layer.stride, groups=layer.groups)
            y = emit_square_conv(graph, _node(index), y, conv, layer.activation)
        return emit_residual(graph, x, y) if has_skip(x.shape[0], found) else y

    return BlockFamily(name, spec, train, emit, examples, layout_kernels)


def has_skip(channels: int, layers: tuple[ConvLayer, ...]) -> bool:
    """Whether the input is added: only where the shape does not change."""
    return layers[-1].width == channels and all(layer.stride == 1 for layer in layers)


class ChainBlock(nn.Module):
    """The train form."""

    def __init__(self, channels: int, layers: tuple[ConvLayer, ...]) -> None:
        super().__init__()
        self.has_skip = has_skip(channels, layers)
        self.convs = nn.ModuleList()
        self.activations = nn.ModuleList()
        for layer in layers:
            conv = square_conv(channels, layer.width, layer.kernel, stride=layer.stride, groups=layer.groups)
            self.convs.append(BranchedConv(conv, rectangles=layout_rectangles(layer.layout, layer.kernel)))
            self.activations.append(
                nn.Identity() if layer.activation is None else ACTIVATION_MODULES[layer.activation]()
            )
            channels = layer.width

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, activation in zip(self.convs, self.activations, strict=True):
            y = activation(conv(y))
        return x + y if self.has_skip else y

    def folded(self) -> dict[str, ConvWeights]:
        found = {}
        for index, conv in enumerate(self.convs):
            assert isinstance(conv, BranchedConv)
            found[_node(index)] = conv.folded()
        return found


def _node(index: int) -> str:
    return f"conv{index}"
