"""GFAE (global-feature aggregation encoder): MixMobileNet's global block, attention between channels.

A depthwise 3x3 convolution and its input at half the size, attention over channels with its residual sum, a transposed
convolution back to the full size, the MLP, and the sum with the input of the block.

Source: MixMobileNet (seed 003), section 3.2 and Appendix A. The appendix wins where they differ: the sum at the end
takes the input of the block and not, as in Eq. 5, what enters the MLP. Its slips are mended:
- The attention's residual is the pooled map, as in Eq. 3; the appendix overwrites it and adds attention to itself.
- DropKey acts in training alone; the appendix drops keys wherever the block runs.
- At odd sizes half is rounded up and the last row or column cut off again; the appendix fails there (7 becomes 6).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import (
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    L2Normalize,
    MatMul,
    MulConstant,
    Pool,
    Reshape,
    Shape,
    Slice,
    Softmax,
)
from searchspace.blocks.normed_mlp import NormedMlp, emit_normed_mlp
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import (
    ConstantWeights,
    ConvTransposeWeights,
    ConvWeights,
    NodeWeights,
    add_identity,
    average_pairs,
    conv_weights,
    scoped,
)
from searchspace.layers import (
    BranchedConv,
    ChannelLayerNorm,
    DropPath,
    deployed_conv,
    emit_residual,
    layout_rectangles,
    same_padding,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import positive, probability, train_gene

KERNEL = 3
FREQUENCIES = 16  # of the position encoding, each as a sine and a cosine along both axes


@dataclass(frozen=True, slots=True)
class Gfae:
    """A global encoder; it keeps the shape, so that its width, which heads must divide, is that of its input.

    The MLP is channels * expand wide, rounded down. position_encoding adds a learnt mix of waves before the attention;
    the paper names one in each stage without saying which, the appendix has none.
    """

    heads: int = 4
    expand: float = 4
    position_encoding: bool = False
    drop_key: float = train_gene(0.2)
    drop_path: float = train_gene(0.0)
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(heads=self.heads, expand=self.expand)
        probability(drop_key=self.drop_key, drop_path=self.drop_path)


def head_width(channels: int, heads: int) -> int:
    """The number of channels that attend to each other.

    Raises:
        ValueError: the heads do not divide the channels.
    """
    if channels % heads:
        raise ValueError(f"heads must divide the channels, got {heads} heads for {channels} channels")
    return channels // heads


class CrossCovarianceAttention(nn.Module):
    """Norm, query, key and value; each channel becomes a mean of channels, weighted by the likeness of their maps.

    In training a dropped key leaves the softmax.
    Source: MixMobileNet, Eq. 1 and 2; El-Nouby et al., "XCiT", section 3.2; Li et al., "DropKey", 2023.
    """

    def __init__(self, channels: int, heads: int, drop_key: float) -> None:
        super().__init__()
        self.heads, self.width, self.drop_key = heads, head_width(channels, heads), drop_key
        self.norm = ChannelLayerNorm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same."""
        tokens = self.query_key_value(self.norm(x)).reshape(len(x), 3, self.heads, self.width, -1)
        query, key, value = tokens.unbind(1)
        scores = unit(query) @ unit(key).mT * self.temperature
        if self.training and self.drop_key:
            # The lowest number and not -inf: where every key is dropped, the weights become equal and not NaN.
            scores = scores.masked_fill(torch.rand_like(scores) < self.drop_key, torch.finfo(scores.dtype).min)
        mixed: Tensor = self.project((scores.softmax(-1) @ value).reshape(x.shape))
        return mixed

    def folded(self) -> dict[str, NodeWeights]:
        """The weights of what `_emit_attention` appends.

        The temperature stays behind the product: a factor in front of the unit length would have no effect.
        """
        joined = self.norm.folded_into(conv_weights(self.query_key_value))
        parts = zip(joined.weight.chunk(3), joined.bias.chunk(3), strict=True)
        return {
            **{name: ConvWeights(*part) for name, part in zip(("query", "key", "value"), parts, strict=True)},
            "temperature": ConstantWeights(self.temperature.detach()),
            "project": conv_weights(self.project),
        }


def unit(x: Tensor) -> Tensor:
    """Each row of the last axis at length 1, with the epsilon that the deployed operation adds."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2Normalize().epsilon)


def _emit_attention(graph: GraphBuilder, x: GraphTensor, heads: int) -> GraphTensor:
    channels, height, width = x.shape
    stack = Reshape((heads, head_width(channels, heads), height * width))
    normed = graph.add("norm", ChannelNorm(affine=False), x)
    query, key, value = (graph.add(name, Conv(channels, (1, 1)), normed) for name in ("query", "key", "value"))
    query = graph.add("query_unit", L2Normalize(), query)
    key = graph.add("key_unit", L2Normalize(), key)
    query, key, value = (
        graph.add(f"{name}_heads", stack, part) for name, part in (("query", query), ("key", key), ("value", value))
    )
    scores = graph.add("scores", MatMul(transpose_second=True), query, key)
    scores = graph.add("temperature", MulConstant((heads, 1, 1)), scores)
    mixed = graph.add("mixed", MatMul(), graph.add("weights", Softmax(), scores), value)
    mixed = graph.add("map", Reshape(x.shape), mixed)
    return graph.add("project", Conv(channels, (1, 1)), mixed)


def waves(height: int, width: int) -> Tensor:
    """Sines and cosines of 16 frequencies along the height, then along the width: (64, height, width).

    Positions end at 2 pi, whatever the length; frequencies run from 1 down to almost 1 / 10000.
    Source: `PositionalEncodingFourier` in the code of EdgeNeXt and XCiT, which order the channels otherwise; they are
    mixed by learnt weights, so the order means nothing.
    """
    frequencies = 10000.0 ** -(torch.arange(FREQUENCIES, dtype=torch.float64) / FREQUENCIES)
    angles = [
        2 * math.pi * torch.arange(1, length + 1, dtype=torch.float64)[None] / length * frequencies[:, None]
        for length in (height, width)
    ]
    rows, columns = (torch.cat([angle.sin(), angle.cos()]) for angle in angles)
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)])


class PositionEncoding(nn.Module):
    """A learnt mix of waves, the same for every image; trained at any size, folded for one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * FREQUENCIES, channels, 1)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """The map to add, (channels, height, width)."""
        encoding: Tensor = self.mix(waves(*size).to(self.mix.weight)[None])[0]
        return encoding


class GfaeBlock(nn.Module):
    """The train form; PBConv branches sit on the depthwise convolution, without norms."""

    def __init__(self, in_shape: Shape, spec: Gfae) -> None:
        super().__init__()
        channels, self.height, self.width = in_shape
        self.depthwise = BranchedConv(
            nn.Conv2d(channels, channels, KERNEL, padding=same_padding(KERNEL), groups=channels),
            rectangles=layout_rectangles(spec.layout, KERNEL),
            norm=False,
        )
        self.position_encoding = PositionEncoding(channels) if spec.position_encoding else None
        self.attention = CrossCovarianceAttention(channels, spec.heads, spec.drop_key)
        self.enlarge = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.mlp = NormedMlp(channels, spec.expand)
        self.drop_path = DropPath(spec.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pooled = functional.avg_pool2d(self.depthwise(x) + x, 2, ceil_mode=True)
        if self.position_encoding is not None:
            pooled = pooled + self.position_encoding((pooled.shape[2], pooled.shape[3]))
        pooled = pooled + self.drop_path(self.attention(pooled))
        y: Tensor = x + self.drop_path(self.mlp(self.enlarge(pooled)[:, :, :height, :width]))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """Fits maps of the size that the block was built for."""
        depthwise = add_identity(self.depthwise.folded(), self.depthwise.conv.groups)
        weights: dict[str, NodeWeights] = {
            "depthwise": average_pairs(depthwise) if is_even(self.height, self.width) else depthwise
        }
        if self.position_encoding is not None:
            size = -(-self.height // 2), -(-self.width // 2)
            weights["position"] = ConstantWeights(self.position_encoding(size).detach())
        weights |= scoped("attention", self.attention.folded())
        bias = self.enlarge.bias
        assert bias is not None
        weights["enlarge"] = ConvTransposeWeights(self.enlarge.weight.detach(), bias.detach())
        return weights | self.mlp.folded()


def is_even(height: int, width: int) -> bool:
    """Whether windows of 2x2 fill the map."""
    return height % 2 == 0 and width % 2 == 0


def emit(graph: GraphBuilder, x: GraphTensor, spec: Gfae) -> GraphTensor:
    """The pooled map, the attention and its sum, the transposed convolution, the MLP and the sum with the input."""
    channels, height, width = x.shape
    pooled = _emit_pooled(graph, x)
    if spec.position_encoding:
        pooled = graph.add("position", AddConstant(pooled.shape), pooled)
    with graph.scope("attention"):
        attended = _emit_attention(graph, pooled, spec.heads)
    pooled = graph.add("attended", Add(), attended, pooled)
    y = graph.add("enlarge", ConvTranspose(channels), pooled)
    for axis, length in ((1, height), (2, width)):
        if length % 2:
            y = graph.add(f"cut{axis}", Slice(axis, 0, length), y)
    return emit_residual(graph, x, emit_normed_mlp(graph, y, spec.expand))


def _emit_pooled(graph: GraphBuilder, x: GraphTensor) -> GraphTensor:
    """Convolution and pool in one where windows fill the map, else one after the other.

    At an odd size the last window sees one row alone, whose mean is that of the row and a copy of it.
    """
    channels, height, width = x.shape
    if is_even(height, width):
        padding = same_padding(KERNEL)
        return graph.add("depthwise", Conv(channels, (4, 4), 2, (padding, padding), groups=channels), x)
    y = graph.add("depthwise", deployed_conv(channels, KERNEL, groups=channels), x)
    for axis, length in ((1, height), (2, width)):
        if length % 2:
            last = graph.add(f"last{axis}", Slice(axis, length - 1, length), y)
            y = graph.add(f"doubled{axis}", Concat(axis), y, last)
    return graph.add("pool", Pool("average", (2, 2), 2), y)


_COLUMNS = Layout(KERNEL, (Rectangle(0, 0, 3, 1), Rectangle(0, 1, 3, 2)))

register(
    BlockFamily(
        "gfae",
        Gfae,
        GfaeBlock,
        emit,
        examples=(
            ((8, 6, 4), Gfae()),
            ((8, 7, 7), Gfae(heads=2, expand=2.5)),
            ((6, 5, 8), Gfae(heads=1, expand=1, drop_key=0, drop_path=0.3, layout=_COLUMNS)),
            ((6, 4, 7), Gfae(heads=3, position_encoding=True)),
            ((12, 8, 6), Gfae(heads=12, expand=3.5, position_encoding=True, layout=_COLUMNS)),
            ((4, 1, 1), Gfae(expand=2)),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
