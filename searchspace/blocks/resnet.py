"""The residual blocks of ResNet: basic (two 3x3 convolutions) and bottleneck (1x1, 3x3, 1x1), with a shortcut beside.

The shortcut is the input itself, or a 1x1 convolution with the block's stride where the shape changes (option B).

Source: He et al., "Deep Residual Learning for Image Recognition", section 3.3, figure 5 and table 1. The stride of a
bottleneck sits in its 3x3 convolution, as in every implementation since, and not in the first 1x1: that is what the
4.1 GMACs of ResNet-50 are counted for (the paper's own form has 3.8).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Activation, Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights
from searchspace.layers import (
    BranchedConv,
    deployed_conv,
    emit_residual,
    emit_square_conv,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import positive, train_gene

KERNEL = 3


@dataclass(frozen=True, slots=True)
class Basic:
    """A basic block; the stride is that of its first convolution, the layout is for both."""

    width: int
    stride: int = 1
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A bottleneck block: width channels leave it, its 3x3 convolution works on inner_width of them."""

    width: int
    inner_width: int
    stride: int = 1
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, inner_width=self.inner_width, stride=self.stride)


def keeps_shape(in_channels: int, width: int, stride: int) -> bool:
    """Whether the input itself can be added; otherwise the shortcut has a convolution."""
    return stride == 1 and in_channels == width


class BasicBlock(nn.Module):
    """The train form; PBConv branches sit on both 3x3 convolutions."""

    def __init__(self, in_shape: Shape, spec: Basic) -> None:
        super().__init__()
        channels, width = in_shape[0], spec.width
        rectangles = layout_rectangles(spec.layout, KERNEL)
        self.first = BranchedConv(square_conv(channels, width, KERNEL, stride=spec.stride), rectangles=rectangles)
        self.second = BranchedConv(square_conv(width, width, KERNEL), rectangles=rectangles)
        self.shortcut = shortcut_conv(channels, spec.width, spec.stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(nn.functional.relu(self.first(x)))
        return nn.functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def folded(self) -> dict[str, ConvWeights]:
        return {
            "first": self.first.folded(),
            "second": self.second.folded(),
            **({} if self.shortcut is None else {"shortcut": self.shortcut.folded()}),
        }


class BottleneckBlock(nn.Module):
    """The train form; PBConv branches sit on the 3x3 convolution."""

    def __init__(self, in_shape: Shape, spec: Bottleneck) -> None:
        super().__init__()
        channels, inner = in_shape[0], spec.inner_width
        self.reduce = BranchedConv(square_conv(channels, inner, 1))
        self.filter = BranchedConv(
            square_conv(inner, inner, KERNEL, stride=spec.stride), rectangles=layout_rectangles(spec.layout, KERNEL)
        )
        self.expand = BranchedConv(square_conv(inner, spec.width, 1))
        self.shortcut = shortcut_conv(channels, spec.width, spec.stride)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.reduce(x))
        y = self.expand(nn.functional.relu(self.filter(y)))
        return nn.functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def folded(self) -> dict[str, ConvWeights]:
        return {
            "reduce": self.reduce.folded(),
            "filter": self.filter.folded(),
            "expand": self.expand.folded(),
            **({} if self.shortcut is None else {"shortcut": self.shortcut.folded()}),
        }


def shortcut_conv(in_channels: int, width: int, stride: int) -> BranchedConv | None:
    """The convolution beside a residual block; None where the input itself is added."""
    if keeps_shape(in_channels, width, stride):
        return None
    return BranchedConv(square_conv(in_channels, width, 1, stride=stride))


def emit_basic(graph: GraphBuilder, x: GraphTensor, spec: Basic) -> GraphTensor:
    """Two 3x3 convolutions, the shortcut, the sum and its activation."""
    y = emit_square_conv(graph, "first", x, deployed_conv(spec.width, KERNEL, stride=spec.stride), "relu")
    shortcut = emit_shortcut(graph, x, spec.width, spec.stride)
    y = graph.add("second", deployed_conv(spec.width, KERNEL), y)
    return emit_activated_sum(graph, shortcut, y)


def emit_bottleneck(graph: GraphBuilder, x: GraphTensor, spec: Bottleneck) -> GraphTensor:
    """Three convolutions, the shortcut, the sum and its activation."""
    y = emit_square_conv(graph, "reduce", x, deployed_conv(spec.inner_width, 1), "relu")
    y = emit_square_conv(graph, "filter", y, deployed_conv(spec.inner_width, KERNEL, stride=spec.stride), "relu")
    shortcut = emit_shortcut(graph, x, spec.width, spec.stride)
    y = graph.add("expand", deployed_conv(spec.width, 1), y)
    return emit_activated_sum(graph, shortcut, y)


def emit_shortcut(graph: GraphBuilder, x: GraphTensor, width: int, stride: int) -> GraphTensor:
    """What is added to the main path; comes before its last convolution, so that the sum can fuse into that one."""
    if keeps_shape(x.shape[0], width, stride):
        return x
    return graph.add("shortcut", deployed_conv(width, 1, stride=stride), x)


def emit_activated_sum(graph: GraphBuilder, shortcut: GraphTensor, y: GraphTensor) -> GraphTensor:
    """The sum of both paths and its activation."""
    return graph.add("residual_relu", Activation("relu"), emit_residual(graph, shortcut, y))


_ROWS = Layout(KERNEL, tuple(Rectangle(row, 0, 1, 3) for row in range(KERNEL)))

register(
    BlockFamily(
        "basic",
        Basic,
        BasicBlock,
        emit_basic,
        examples=(
            ((6, 5, 7), Basic(6)),
            ((4, 7, 5), Basic(6, stride=2)),
            ((4, 5, 5), Basic(6, layout=_ROWS)),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
register(
    BlockFamily(
        "bottleneck",
        Bottleneck,
        BottleneckBlock,
        emit_bottleneck,
        examples=(
            ((8, 5, 7), Bottleneck(8, inner_width=4)),
            ((6, 7, 5), Bottleneck(8, inner_width=3, stride=2)),
            ((8, 6, 6), Bottleneck(8, inner_width=4, layout=_ROWS)),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
