"""Plain convolution: convolution, batch norm, activation and perhaps a max pool, as stems and VGG have them.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", section 2.1, with a batch norm added; He et al.,
"Deep Residual Learning", table 1, for the stem with a pool.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Pool, Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights
from searchspace.layers import (
    ACTIVATION_MODULES,
    BranchedConv,
    deployed_conv,
    emit_square_conv,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import known_activation, not_negative, odd, positive, train_gene


@dataclass(frozen=True, slots=True)
class PlainConv:
    """A dense convolution with batch norm and activation.

    max_pool is the window of a max pool with stride 2 behind it, 0 for none: 2 in VGG, 3 in the stem of a ResNet.
    """

    width: int
    stride: int = 1
    kernel: int = 3
    activation: str = "relu"
    max_pool: int = 0
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride, kernel=self.kernel)
        odd(kernel=self.kernel)
        known_activation(self.activation)
        not_negative(max_pool=self.max_pool)
        if self.max_pool == 1:
            raise ValueError("max_pool must be a window of 2 or more, or 0 for none, got 1; use stride to skip pixels")


def pool_padding(window: int) -> int:
    """The padding at which a pool with stride 2 halves an even map."""
    return (window - 1) // 2


class PlainConvBlock(nn.Module):
    """The train form; PBConv branches sit beside the convolution."""

    def __init__(self, in_shape: Shape, spec: PlainConv) -> None:
        super().__init__()
        self.conv = BranchedConv(
            square_conv(in_shape[0], spec.width, spec.kernel, stride=spec.stride),
            rectangles=layout_rectangles(spec.layout, spec.kernel),
        )
        self.activation = ACTIVATION_MODULES[spec.activation]()
        self.pool = nn.MaxPool2d(spec.max_pool, 2, pool_padding(spec.max_pool)) if spec.max_pool else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.conv(x))
        return y if self.pool is None else self.pool(y)

    def folded(self) -> dict[str, ConvWeights]:
        return {"conv": self.conv.folded()}


def emit(graph: GraphBuilder, x: GraphTensor, spec: PlainConv) -> GraphTensor:
    """One convolution and its activation, and the pool where there is one."""
    conv = deployed_conv(spec.width, spec.kernel, stride=spec.stride)
    x = emit_square_conv(graph, "conv", x, conv, spec.activation)
    if not spec.max_pool:
        return x
    window, padding = spec.max_pool, pool_padding(spec.max_pool)
    return graph.add("pool", Pool("max", (window, window), 2, (padding, padding)), x)


register(
    BlockFamily(
        "conv",
        PlainConv,
        PlainConvBlock,
        emit,
        examples=(
            ((3, 9, 7), PlainConv(8, stride=2)),
            ((3, 7, 7), PlainConv(6, stride=2, kernel=5, activation="silu")),
            ((4, 3, 5), PlainConv(6, kernel=1, activation="hardswish")),
            ((2, 5, 5), PlainConv(4, layout=Layout(3, (Rectangle(0, 0, 1, 3), Rectangle(1, 0, 2, 3))))),
            ((3, 13, 11), PlainConv(6, stride=2, kernel=7, max_pool=3)),
            ((4, 7, 5), PlainConv(6, max_pool=2)),
        ),
        layout_kernels=lambda spec: {"layout": spec.kernel} if spec.kernel > 1 else {},
    )
)
