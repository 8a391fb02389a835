"""RDP module (re-parameterized depthwise separable convolution): Depth-Block, channel shuffle, Point-Block.

Source: RDPNet (seed 004), section 3 and Figure 3. The paper runs the shuffle on the device; before a dense 1x1
convolution it is a permutation of input channels, so it is absorbed into the weights here and costs nothing.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights, absorb_input_order, shuffle_order
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
class Rdp:
    """An RDP module; the stride sits in the Point-Block, so the depthwise part runs at the input's size.

    shuffle_groups must divide the input's channels; 1 leaves the shuffle out.
    """

    width: int
    stride: int = 1
    shuffle_groups: int = train_gene(4)
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, stride=self.stride, shuffle_groups=self.shuffle_groups)


class RdpBlock(nn.Module):
    """The train form: depthwise 3x3 + 1x1 + identity, ReLU, shuffle, two dense 1x1, ReLU."""

    def __init__(self, in_shape: Shape, spec: Rdp) -> None:
        super().__init__()
        channels = in_shape[0]
        self.order = shuffle_order(channels, spec.shuffle_groups)
        self.depthwise = BranchedConv(
            square_conv(channels, channels, KERNEL, groups=channels),
            rectangles=(centre(KERNEL), *layout_rectangles(spec.layout, KERNEL)),
            identity=True,
        )
        # No identity: the paper finds that it lowers accuracy (Table 8).
        self.pointwise = BranchedConv(
            square_conv(channels, spec.width, 1, stride=spec.stride), rectangles=(Rectangle(0, 0, 1, 1),)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.depthwise(x))
        return nn.functional.relu(self.pointwise(x[:, self.order]))

    def folded(self) -> dict[str, ConvWeights]:
        return {
            "depthwise": self.depthwise.folded(),
            "pointwise": absorb_input_order(self.pointwise.folded(), self.order),
        }


def emit(graph: GraphBuilder, x: GraphTensor, spec: Rdp) -> GraphTensor:
    """A depthwise 3x3 and a strided 1x1 convolution, each with ReLU."""
    channels = x.shape[0]
    x = emit_square_conv(graph, "depthwise", x, deployed_conv(channels, KERNEL, groups=channels), "relu")
    return emit_square_conv(graph, "pointwise", x, deployed_conv(spec.width, 1, stride=spec.stride), "relu")


register(
    BlockFamily(
        "rdp",
        Rdp,
        RdpBlock,
        emit,
        examples=(
            ((8, 6, 6), Rdp(12)),
            ((8, 7, 5), Rdp(8, stride=2, shuffle_groups=2)),
            ((6, 5, 5), Rdp(8, shuffle_groups=1, layout=Layout(3, (Rectangle(0, 0, 3, 2), Rectangle(0, 1, 3, 2))))),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
