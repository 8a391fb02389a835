"""RepVGG block: a 3x3 convolution that trains with a 1x1 branch and an identity beside it.

Source: Ding et al., "RepVGG", section 3; RDPNet (seed 004), section 3, uses it as its stem.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights
from searchspace.layers import (
    BranchedConv,
    centre,
    deployed_conv,
    emit_square_conv,
    layout_rectangles,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import positive, train_gene

KERNEL = 3


@dataclass(frozen=True, slots=True)
class Rep:
    """A RepVGG block; its identity exists where stride is 1 and the width does not change."""

    width: int
    stride: int = 1
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride)


class RepBlock(nn.Module):
    """The train form: 3x3, 1x1 and identity side by side, then ReLU."""

    def __init__(self, in_shape: Shape, spec: Rep) -> None:
        super().__init__()
        conv = square_conv(in_shape[0], spec.width, KERNEL, stride=spec.stride)
        self.conv = BranchedConv(
            conv,
            rectangles=(centre(KERNEL), *layout_rectangles(spec.layout, KERNEL)),
            identity=spec.stride == 1 and in_shape[0] == spec.width,
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.conv(x))

    def folded(self) -> dict[str, ConvWeights]:
        return {"conv": self.conv.folded()}


def emit(graph: GraphBuilder, x: GraphTensor, spec: Rep) -> GraphTensor:
    """One 3x3 convolution and ReLU."""
    return emit_square_conv(graph, "conv", x, deployed_conv(spec.width, KERNEL, stride=spec.stride), "relu")


_PAIR = Layout(KERNEL, (Rectangle(0, 0, 2, 3), Rectangle(1, 0, 2, 3)))

register(
    BlockFamily(
        "rep",
        Rep,
        RepBlock,
        emit,
        examples=(
            ((3, 9, 7), Rep(8, stride=2)),
            ((8, 6, 6), Rep(8)),
            ((8, 5, 8), Rep(8, layout=_PAIR)),
            ((1, 8, 8), Rep(16, stride=2, layout=_PAIR)),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
