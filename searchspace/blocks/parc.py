"""ParC-Net frame: ParC (position aware circular convolution) blocks between local convolutions, joined with the input.

A 3x3 convolution and a 1x1 one lead into the blocks, a 1x1 one leads out, and a 3x3 one joins the result with the input
of the frame (the bifurcate structure of MobileViT).

The trained kernels and position embeddings fit every size of image. The folded ones fit one: to deploy for another
size, build the network for that size and load the trained weights.

Source: ParC-Net (seed 002), section 3.2 and Figure 4c; groups and norms as in the authors' code.
"""

from dataclasses import dataclass, replace
from math import gcd

import torch
from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Add, Concat, Conv, Shape
from searchspace.blocks.parc_block import ParcBlock, ParcBlockSpec, emit_parc_block
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import NodeWeights, absorb_input_norm, conv_weights, scoped
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

KERNEL = 3
FUSIONS = ("concat", "add")


@dataclass(frozen=True, slots=True)
class Parc:
    """A frame with `depth` ParC blocks of `inner_width` channels; the layout is for both of its 3x3 convolutions.

    kernel None is ParC's own, circular and as long as the map; an odd number is a zero-padded one of that length, which
    has no position embedding (the paper's BK 1/2 and BK 1/4: half and a quarter of the map, made odd). The embedding is
    in the first block alone. base is the length at which circular kernels and embeddings are learnt, None that of the
    map. fusion "add" needs a frame that does not change the width.
    """

    width: int
    inner_width: int
    depth: int = 2
    ffn_ratio: float = 2
    kernel: int | None = None
    position_embedding: bool = True
    channel_attention: bool = True
    fusion: str = "concat"
    activation: str = "silu"
    base: int | None = train_gene(None)
    dropout: float = train_gene(0.1)
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, inner_width=self.inner_width, depth=self.depth, ffn_ratio=self.ffn_ratio)
        known_activation(self.activation)
        if self.inner_width % 2:
            raise ValueError(f"inner_width must be even, since each half has its own branch, got {self.inner_width}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {self.fusion!r}; known: {', '.join(FUSIONS)}")
        if self.kernel is not None:
            positive(kernel=self.kernel)
            odd(kernel=self.kernel)
            if self.position_embedding or self.base is not None:
                raise ValueError(
                    f"position_embedding and base belong to circular kernels, got kernel={self.kernel}; "
                    "switch the embedding off and leave base out, or the kernel"
                )
        if self.base is not None:
            positive(base=self.base)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {self.dropout}")


def block_specs(spec: Parc) -> tuple[ParcBlockSpec, ...]:
    """The blocks inside a frame; only the first one has position embeddings."""
    first = ParcBlockSpec(
        ffn_width=round(spec.inner_width * spec.ffn_ratio),
        kernel=spec.kernel,
        position_embedding=spec.position_embedding,
        channel_attention=spec.channel_attention,
        base=spec.base,
        dropout=spec.dropout,
    )
    return (first, *(replace(first, position_embedding=False),) * (spec.depth - 1))


def joined_width(in_channels: int, spec: Parc) -> int:
    """The channels that enter the last convolution.

    Raises:
        ValueError: fusion is "add" and the frame changes the width.
    """
    if spec.fusion == "add" and in_channels != spec.width:
        raise ValueError(
            f"a frame that adds its input keeps the width, got {in_channels} -> {spec.width}; use fusion 'concat', or "
            "change the width before it"
        )
    return spec.width if spec.fusion == "add" else spec.width + in_channels


class ParcFrame(nn.Module):
    """The train form."""

    def __init__(self, in_shape: Shape, spec: Parc) -> None:
        super().__init__()
        channels, inner, width = in_shape[0], spec.inner_width, spec.width
        rectangles = layout_rectangles(spec.layout, KERNEL)
        self.local = BranchedConv(
            square_conv(channels, inner, KERNEL, groups=gcd(channels, inner)), rectangles=rectangles
        )
        self.enter = nn.Conv2d(inner, inner, 1, bias=False)
        self.blocks = nn.ModuleList(ParcBlock((inner, *in_shape[1:]), block) for block in block_specs(spec))
        self.norm = nn.BatchNorm2d(inner)
        self.leave = BranchedConv(square_conv(inner, width, 1, groups=gcd(inner, width)))
        self.join = BranchedConv(square_conv(joined_width(channels, spec), width, KERNEL), rectangles=rectangles)
        self.activation = ACTIVATION_MODULES[spec.activation]()
        self.adds = spec.fusion == "add"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.enter(self.activation(self.local(x)))
        for block in self.blocks:
            y = block(y)
        y = self.activation(self.leave(self.norm(y)))
        y = self.activation(self.join(y + x if self.adds else torch.cat([y, x], 1)))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """Fits maps of the size that the frame was built for."""
        weights: dict[str, NodeWeights] = {"local": self.local.folded(), "enter": conv_weights(self.enter)}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, ParcBlock)
            weights |= scoped(f"block{index}", block.folded())
        weights["leave"] = absorb_input_norm(self.leave.folded(), self.norm, self.leave.conv.groups)
        weights["join"] = self.join.folded()
        return weights


def emit(graph: GraphBuilder, x: GraphTensor, spec: Parc) -> GraphTensor:
    """Two convolutions, the blocks, and two convolutions with a concat or a sum between them."""
    channels, inner, width = x.shape[0], spec.inner_width, spec.width
    joined_width(channels, spec)
    local = deployed_conv(inner, KERNEL, groups=gcd(channels, inner))
    y = emit_square_conv(graph, "local", x, local, spec.activation)
    y = graph.add("enter", Conv(inner, (1, 1)), y)
    for index, block in enumerate(block_specs(spec)):
        with graph.scope(f"block{index}"):
            y = emit_parc_block(graph, y, block)
    leave = deployed_conv(width, 1, groups=gcd(inner, width))
    y = emit_square_conv(graph, "leave", y, leave, spec.activation)
    y = graph.add("joined", Add() if spec.fusion == "add" else Concat(0), y, x)
    return emit_square_conv(graph, "join", y, deployed_conv(width, KERNEL), spec.activation)


_ROWS = Layout(KERNEL, (Rectangle(0, 0, 2, 3), Rectangle(2, 0, 1, 3)))

register(
    BlockFamily(
        "parc",
        Parc,
        ParcFrame,
        emit,
        examples=(
            ((6, 6, 6), Parc(6, 12)),
            ((6, 5, 7), Parc(10, 8, depth=3, base=4, layout=_ROWS)),
            ((4, 7, 3), Parc(4, 6, base=9, fusion="add", channel_attention=False, ffn_ratio=1.5, dropout=0)),
            ((6, 4, 5), Parc(6, 4, position_embedding=False, activation="relu")),
            ((6, 1, 1), Parc(6, 4, depth=1, base=3)),
            ((4, 1, 6), Parc(4, 4, base=1, fusion="add")),
            ((6, 5, 6), Parc(6, 8, kernel=3, position_embedding=False)),
            ((4, 3, 4), Parc(6, 4, depth=1, kernel=7, position_embedding=False, channel_attention=False)),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
