"""DBC (double-branch convolution): a strided 3x3 convolution that trains with a 1x1 one beside it.

It makes the maps smaller and the channels more between PPENet's blocks. Unlike a RepVGG block it never has an identity.

Source: PPENet (seed 000), section 4.1, Figure 6. Table 2 prints kernel 1 and stride 1 although the text says that it
reduces the image's size; 3x3 with stride 2 and a 1x1 branch is what comes near the published counts (Table 5).
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
class Dbc:
    """A double-branch convolution."""

    width: int
    stride: int = 2
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride)


class DbcBlock(nn.Module):
    """The train form: 3x3 and 1x1 side by side, each with batch norm, then ReLU."""

    def __init__(self, in_shape: Shape, spec: Dbc) -> None:
        super().__init__()
        self.conv = BranchedConv(
            square_conv(in_shape[0], spec.width, KERNEL, stride=spec.stride),
            rectangles=(centre(KERNEL), *layout_rectangles(spec.layout, KERNEL)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.conv(x))

    def folded(self) -> dict[str, ConvWeights]:
        return {"conv": self.conv.folded()}


def emit(graph: GraphBuilder, x: GraphTensor, spec: Dbc) -> GraphTensor:
    """One 3x3 convolution and ReLU."""
    return emit_square_conv(graph, "conv", x, deployed_conv(spec.width, KERNEL, stride=spec.stride), "relu")


register(
    BlockFamily(
        "dbc",
        Dbc,
        DbcBlock,
        emit,
        examples=(
            ((3, 9, 7), Dbc(8)),
            ((6, 5, 8), Dbc(6, stride=1)),
            ((4, 7, 6), Dbc(5, layout=Layout(KERNEL, (Rectangle(0, 0, 2, 3), Rectangle(1, 0, 2, 3))))),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
