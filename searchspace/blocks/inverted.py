"""Inverted residual: widen by 1x1, filter by a depthwise convolution, narrow by 1x1, add the input.

Source: Sandler et al., "MobileNetV2", section 3.3; with squeeze-and-excite and hard-swish as in MobileNetV3, section 5.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights
from searchspace.layers import (
    ACTIVATION_MODULES,
    BranchedConv,
    SqueezeExcite,
    deployed_conv,
    emit_residual,
    emit_square_conv,
    emit_squeeze_excite,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import known_activation, odd, positive, train_gene


@dataclass(frozen=True, slots=True)
class InvertedResidual:
    """An inverted residual; with expand 1 there is no widening convolution, as in MobileNetV2's first block.

    The inner width of squeeze-and-excite is a multiple of squeeze_multiple (8 in MobileNetV3), and squeeze_bias says
    whether its layers learn a bias; both are read only where there is one.
    """

    width: int
    stride: int = 1
    kernel: int = 3
    expand: float = 6
    squeeze_excite: bool = False
    activation: str = "relu6"
    layout: Layout | None = train_gene(None)
    squeeze_multiple: int = 1
    squeeze_bias: bool = train_gene(True)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride, kernel=self.kernel, expand=self.expand)
        odd(kernel=self.kernel)
        positive(squeeze_multiple=self.squeeze_multiple)
        known_activation(self.activation)


def hidden_width(in_channels: int, spec: InvertedResidual) -> int:
    """The number of channels that the depthwise convolution filters, at least one."""
    return max(1, round(in_channels * spec.expand))


class InvertedResidualBlock(nn.Module):
    """The train form; PBConv branches sit on the depthwise convolution."""

    def __init__(self, in_shape: Shape, spec: InvertedResidual) -> None:
        super().__init__()
        channels, hidden = in_shape[0], hidden_width(in_shape[0], spec)
        self.expand = None if spec.expand == 1 else BranchedConv(square_conv(channels, hidden, 1))
        self.depthwise = BranchedConv(
            square_conv(hidden, hidden, spec.kernel, stride=spec.stride, groups=hidden),
            rectangles=layout_rectangles(spec.layout, spec.kernel),
        )
        self.squeeze_excite = (
            SqueezeExcite(hidden, bias=spec.squeeze_bias, multiple=spec.squeeze_multiple)
            if spec.squeeze_excite
            else None
        )
        self.project = BranchedConv(square_conv(hidden, spec.width, 1))
        self.activation = ACTIVATION_MODULES[spec.activation]()
        self.has_skip = has_skip(channels, spec)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else self.activation(self.expand(x))
        y = self.activation(self.depthwise(y))
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = self.project(y)
        return y + x if self.has_skip else y

    def folded(self) -> dict[str, ConvWeights]:
        return {
            **({} if self.expand is None else {"expand": self.expand.folded()}),
            "depthwise": self.depthwise.folded(),
            **({} if self.squeeze_excite is None else self.squeeze_excite.folded()),
            "project": self.project.folded(),
        }


def has_skip(in_channels: int, spec: InvertedResidual) -> bool:
    """Whether the input is added: only where the shape does not change."""
    return spec.stride == 1 and in_channels == spec.width


def emit(graph: GraphBuilder, x: GraphTensor, spec: InvertedResidual) -> GraphTensor:
    """Up to three convolutions, squeeze-and-excite where asked, and the sum with the input."""
    hidden = hidden_width(x.shape[0], spec)
    y = x if spec.expand == 1 else emit_square_conv(graph, "expand", x, deployed_conv(hidden, 1), spec.activation)
    depthwise = deployed_conv(hidden, spec.kernel, stride=spec.stride, groups=hidden)
    y = emit_square_conv(graph, "depthwise", y, depthwise, spec.activation)
    if spec.squeeze_excite:
        y = emit_squeeze_excite(graph, y, multiple=spec.squeeze_multiple)
    y = graph.add("project", deployed_conv(spec.width, 1), y)
    return emit_residual(graph, x, y) if has_skip(x.shape[0], spec) else y


_COLUMNS = tuple(Rectangle(0, column, 5, 1) for column in range(5))

register(
    BlockFamily(
        "ir",
        InvertedResidual,
        InvertedResidualBlock,
        emit,
        examples=(
            ((8, 6, 6), InvertedResidual(8)),
            (
                (8, 7, 5),
                InvertedResidual(12, stride=2, kernel=5, expand=3, squeeze_excite=True, activation="hardswish"),
            ),
            ((6, 5, 5), InvertedResidual(6, expand=1, kernel=7)),
            ((8, 5, 6), InvertedResidual(8, expand=4, squeeze_excite=True, squeeze_multiple=3, squeeze_bias=False)),
            ((4, 9, 9), InvertedResidual(8, stride=2, kernel=5, expand=2.5, layout=Layout(5, _COLUMNS))),
        ),
        layout_kernels=lambda spec: {"layout": spec.kernel} if spec.kernel > 1 else {},
    )
)
