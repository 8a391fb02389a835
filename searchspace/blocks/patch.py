"""Patches: the stem and the step between stages of ConvNeXt, EdgeNeXt and MixMobileNet, a norm beside a strided conv.

Source: Liu et al., "A ConvNet for the 2020s", section 2.2 and 2.6; MixMobileNet (seed 003), section 3.1, which leaves
the norm of the step to EdgeNeXt's code.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import ChannelNorm, Conv, Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights, NodeWeights, conv_weights
from searchspace.layers import BranchedConv, ChannelLayerNorm, layout_rectangles
from searchspace.registry import BlockFamily, register
from searchspace.spec import positive, train_gene

STEP = 2  # of the convolution between two stages, its size and its stride


@dataclass(frozen=True, slots=True)
class Patch:
    """A stem: each patch of size x size pixels becomes one position; rows and columns that fill none are dropped."""

    width: int
    size: int = 4
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, size=self.size)


class PatchBlock(nn.Module):
    """The train form: a convolution with bias, then a layer norm."""

    def __init__(self, in_shape: Shape, spec: Patch) -> None:
        super().__init__()
        self.conv = BranchedConv(
            nn.Conv2d(in_shape[0], spec.width, spec.size, stride=spec.size),
            rectangles=layout_rectangles(spec.layout, spec.size),
            norm=False,
        )
        self.norm = ChannelLayerNorm(spec.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """The norm keeps its scale and shift: a residual sum of the next block reads the result as well."""
        return {"conv": self.conv.folded(), "norm": self.norm.folded()}


def emit_patch(graph: GraphBuilder, x: GraphTensor, spec: Patch) -> GraphTensor:
    """A convolution and a norm."""
    x = graph.add("conv", Conv(spec.width, (spec.size, spec.size), spec.size), x)
    return graph.add("norm", ChannelNorm(), x)


@dataclass(frozen=True, slots=True)
class NormDown:
    """The step to the next stage: half the height and the width, rounded down, and another number of channels."""

    width: int

    def __post_init__(self) -> None:
        positive(width=self.width)


class NormDownBlock(nn.Module):
    """The train form: a layer norm, then a convolution with bias."""

    def __init__(self, in_shape: Shape, spec: NormDown) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(in_shape[0])
        self.conv = nn.Conv2d(in_shape[0], spec.width, STEP, stride=STEP)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(x))
        return y

    def folded(self) -> dict[str, ConvWeights]:
        return {"conv": self.norm.folded_into(conv_weights(self.conv))}


def emit_norm_down(graph: GraphBuilder, x: GraphTensor, spec: NormDown) -> GraphTensor:
    """A norm and a convolution, which takes over what the norm has learnt."""
    x = graph.add("norm", ChannelNorm(affine=False), x)
    return graph.add("conv", Conv(spec.width, (STEP, STEP), STEP), x)


_ROWS = Layout(4, (Rectangle(0, 0, 2, 4), Rectangle(2, 0, 2, 4)))

register(
    BlockFamily(
        "patch",
        Patch,
        PatchBlock,
        emit_patch,
        examples=(
            ((3, 8, 12), Patch(6)),
            ((3, 9, 11), Patch(5, layout=_ROWS)),
            ((1, 5, 4), Patch(8, size=2)),
        ),
        layout_kernels=lambda spec: {"layout": spec.size} if spec.size > 1 else {},
    )
)
register(
    BlockFamily(
        "norm_down",
        NormDown,
        NormDownBlock,
        emit_norm_down,
        examples=(((6, 4, 8), NormDown(8)), ((5, 7, 3), NormDown(9)), ((4, 2, 2), NormDown(4))),
    )
)
