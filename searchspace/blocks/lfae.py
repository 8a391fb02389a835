"""LFAE (local-feature aggregation encoder): MixMobileNet's local block, with a partial convolution.

A depthwise 3x3 convolution and its input, a dense convolution over the first few channels, the MLP, the sum with the
input of the block, and squeeze-and-excite over that sum.

Source: MixMobileNet (seed 003), section 3.2 and Appendix A, which wins where they differ (Figure 3c and Eq. 6 have no
depthwise convolution); the partial convolution is that of Chen et al., "Run, Don't Walk", section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Concat, Shape, Slice
from searchspace.blocks.normed_mlp import NormedMlp, emit_normed_mlp
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import NodeWeights, add_identity
from searchspace.layers import (
    BranchedConv,
    DropPath,
    SqueezeExcite,
    deployed_conv,
    emit_residual,
    emit_squeeze_excite,
    layout_rectangles,
    same_padding,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import odd, positive, probability, train_gene

DEPTHWISE_KERNEL = 3
REDUCTION = 16  # of squeeze-and-excite


@dataclass(frozen=True, slots=True)
class Lfae:
    """A local encoder; it keeps the shape, so that its width is that of its input.

    kernel is that of the partial convolution, which filters the first channels // divisions of the channels and leaves
    the others as they are. The MLP is channels * expand wide, rounded down.
    """

    kernel: int = 3
    divisions: int = 4
    expand: float = 4
    squeeze_excite: bool = True
    drop_path: float = train_gene(0.0)
    depthwise_layout: Layout | None = train_gene(None)
    partial_layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(kernel=self.kernel, divisions=self.divisions, expand=self.expand)
        odd(kernel=self.kernel)
        probability(drop_path=self.drop_path)
        if self.divisions < 2:
            raise ValueError(f"divisions must be at least 2, to leave channels as they are, got {self.divisions}")


def filtered_channels(channels: int, spec: Lfae) -> int:
    """How many channels the partial convolution filters.

    Raises:
        ValueError: none.
    """
    if channels < spec.divisions:
        raise ValueError(f"divisions must be at most the channels, got {spec.divisions} for {channels} channels")
    return channels // spec.divisions


class LfaeBlock(nn.Module):
    """The train form; PBConv branches sit on both convolutions, without norms, since this block has none to fold."""

    def __init__(self, in_shape: Shape, spec: Lfae) -> None:
        super().__init__()
        channels = in_shape[0]
        self.filtered = filtered_channels(channels, spec)
        self.depthwise = BranchedConv(
            nn.Conv2d(channels, channels, DEPTHWISE_KERNEL, padding=same_padding(DEPTHWISE_KERNEL), groups=channels),
            rectangles=layout_rectangles(spec.depthwise_layout, DEPTHWISE_KERNEL),
            norm=False,
        )
        self.partial = BranchedConv(
            square_conv(self.filtered, self.filtered, spec.kernel),
            rectangles=layout_rectangles(spec.partial_layout, spec.kernel),
            norm=False,
        )
        self.mlp = NormedMlp(channels, spec.expand)
        self.drop_path = DropPath(spec.drop_path)
        self.squeeze_excite = SqueezeExcite(channels, REDUCTION, "sigmoid", bias=False) if spec.squeeze_excite else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depthwise(x) + x
        first, others = y.tensor_split([self.filtered], 1)
        y = self.mlp(torch.cat([self.partial(first), others], 1))
        y = x + self.drop_path(y)
        return y if self.squeeze_excite is None else self.squeeze_excite(y)

    def folded(self) -> dict[str, NodeWeights]:
        return {
            "depthwise": add_identity(self.depthwise.folded(), self.depthwise.conv.groups),
            "partial": self.partial.folded(),
            **self.mlp.folded(),
            **({} if self.squeeze_excite is None else self.squeeze_excite.folded()),
        }


def emit(graph: GraphBuilder, x: GraphTensor, spec: Lfae) -> GraphTensor:
    """A depthwise convolution, one over a part of the channels, the MLP, the sum, and squeeze-and-excite."""
    channels, filtered = x.shape[0], filtered_channels(x.shape[0], spec)
    y = graph.add("depthwise", deployed_conv(channels, DEPTHWISE_KERNEL, groups=channels), x)
    first = graph.add("first", Slice(0, 0, filtered), y)
    others = graph.add("others", Slice(0, filtered, channels), y)
    first = graph.add("partial", deployed_conv(filtered, spec.kernel), first)
    y = graph.add("joined", Concat(0), first, others)
    y = emit_residual(graph, x, emit_normed_mlp(graph, y, spec.expand))
    return emit_squeeze_excite(graph, y, REDUCTION, gate="sigmoid") if spec.squeeze_excite else y


def layout_kernels(spec: Lfae) -> dict[str, int]:
    """Both convolutions can carry a layout, the partial one where it is larger than 1x1."""
    return {"depthwise_layout": DEPTHWISE_KERNEL, **({"partial_layout": spec.kernel} if spec.kernel > 1 else {})}


_ROWS = Layout(3, (Rectangle(0, 0, 1, 3), Rectangle(1, 0, 2, 3)))
_QUARTERS = Layout(5, (Rectangle(0, 0, 3, 3), Rectangle(0, 2, 3, 3), Rectangle(2, 0, 3, 3), Rectangle(2, 2, 3, 3)))

register(
    BlockFamily(
        "lfae",
        Lfae,
        LfaeBlock,
        emit,
        examples=(
            ((8, 6, 6), Lfae()),
            ((18, 5, 7), Lfae(kernel=5, divisions=8, expand=2.5, depthwise_layout=_ROWS, partial_layout=_QUARTERS)),
            ((6, 7, 4), Lfae(kernel=7, divisions=2, expand=1, squeeze_excite=False, drop_path=0.3)),
            ((35, 3, 5), Lfae(kernel=9, expand=3.5)),
            ((4, 1, 1), Lfae(kernel=1)),
        ),
        layout_kernels=layout_kernels,
    )
)
