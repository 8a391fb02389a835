"""Plain convolution: convolution, batch norm, activation, as stems and VGG have them."""

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
    deployed_conv,
    emit_square_conv,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import known_activation, odd, positive, train_gene


@dataclass(frozen=True, slots=True)
class PlainConv:
    """A dense convolution with batch norm and activation."""

    width: int
    stride: int = 1
    kernel: int = 3
    activation: str = "relu"
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride, kernel=self.kernel)
        odd(kernel=self.kernel)
        known_activation(self.activation)


class PlainConvBlock(nn.Module):
    """The train form; PBConv branches sit beside the convolution."""

    def __init__(self, in_shape: Shape, spec: PlainConv) -> None:
        super().__init__()
        self.conv = BranchedConv(
            square_conv(in_shape[0], spec.width, spec.kernel, stride=spec.stride),
            rectangles=layout_rectangles(spec.layout, spec.kernel),
        )
        self.activation = ACTIVATION_MODULES[spec.activation]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.conv(x))
        return y

    def folded(self) -> dict[str, ConvWeights]:
        return {"conv": self.conv.folded()}


def emit(graph: GraphBuilder, x: GraphTensor, spec: PlainConv) -> GraphTensor:
    """One convolution and its activation."""
    return emit_square_conv(
        graph, "conv", x, deployed_conv(spec.width, spec.kernel, stride=spec.stride), spec.activation
    )


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
        ),
        layout_kernels=lambda spec: {"layout": spec.kernel} if spec.kernel > 1 else {},
    )
)
