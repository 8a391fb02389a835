"""ParC block: mixes positions along both axes, then channels, each with a residual sum.

One half of the channels is filtered along the height and then along the width, the other half the other way round.
Filters are circular and as long as the map (ParC itself), or zero-padded and shorter (the paper's big kernels).

Source: ParC-Net (seed 002), section 3.1, Figure 1c and Table 2; what the paper leaves open is as in the authors' code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import AddConstant, Concat, Conv, Shape, Slice
from searchspace.circular import (
    HEIGHT,
    WIDTH,
    circular_conv,
    emit_circular_conv,
    extent_along,
    resample,
    spread,
)
from searchspace.fold import (
    ConstantWeights,
    ConvWeights,
    NodeWeights,
    absorb_input_norm,
    conv_weights,
    scale_and_shift,
    scoped,
)
from searchspace.layers import (
    BranchedConv,
    emit_residual,
    emit_square_conv,
    emit_squeeze_excite,
    same_padding,
    square_conv,
    squeezed_width,
)

# Of the channel attention; SENet's, section 4, and the authors' code.
REDUCTION = 16

Axes = tuple[int, int]  # the axis that is filtered first, then the other one
HEIGHT_FIRST: Axes = (HEIGHT, WIDTH)
WIDTH_FIRST: Axes = (WIDTH, HEIGHT)


@dataclass(frozen=True, slots=True)
class ParcBlockSpec:
    """One ParC block.

    kernel None is circular and as long as the map, a number the length of a zero-padded filter, which has no position
    embedding. base is the length at which circular filters and embeddings are learnt, None that of the map.
    """

    ffn_width: int
    kernel: int | None
    position_embedding: bool
    channel_attention: bool
    base: int | None
    dropout: float


class ParcBlock(nn.Module):
    """The train form, (n, c, h, w) to the same; c is even."""

    def __init__(self, in_shape: Shape, spec: ParcBlockSpec) -> None:
        super().__init__()
        self.positions = PositionMixer(in_shape, spec)
        self.channels = ChannelMixer(in_shape[0], spec)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.channels(self.positions(x))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """The weights of what `emit_parc_block` appends, for maps of the size that the block was built for."""
        return {**scoped("positions", self.positions.folded()), **scoped("channels", self.channels.folded())}


def emit_parc_block(graph: GraphBuilder, x: GraphTensor, spec: ParcBlockSpec) -> GraphTensor:
    """Appends the two mixers."""
    with graph.scope("positions"):
        x = _emit_position_mixer(graph, x, spec)
    with graph.scope("channels"):
        return _emit_channel_mixer(graph, x, spec)


class CircularBranch(nn.Module):
    """Half of the channels: batch norm, a circular convolution along one axis, then one along the other.

    Each convolution may have a position embedding of its own axis added before it; the first is added before the norm.
    """

    def __init__(self, in_shape: Shape, axes: Axes, spec: ParcBlockSpec) -> None:
        super().__init__()
        self.axes = axes
        self.lengths = (in_shape[axes[0]], in_shape[axes[1]])
        channels, bases = in_shape[0], [spec.base or length for length in self.lengths]
        self.norm = nn.BatchNorm2d(channels)
        self.first, self.second = (nn.Parameter(_drawn_kernel(channels, base)) for base in bases)
        self.first_embedding, self.second_embedding = (
            nn.Parameter(torch.randn(channels, base)) if spec.position_embedding else None for base in bases
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(_embedded(x, self.first_embedding, self.axes[0]))
        x = _convolved(x, self.first, self.axes[0])
        return _convolved(_embedded(x, self.second_embedding, self.axes[1]), self.second, self.axes[1])

    def folded(self) -> dict[str, ConvWeights]:
        """The two convolutions; a constant stays one on its way round a circle, so the norm's shift becomes a bias."""
        scale, shift = scale_and_shift(self.norm)
        first, second = self._kernels()
        zeros = torch.zeros_like(shift)
        return {
            "first": ConvWeights(_conv_kernel(first * scale[:, None], self.axes[0]), zeros),
            "second": ConvWeights(_conv_kernel(second, self.axes[1]), shift * first.sum(1) * second.sum(1)),
        }

    def folded_embeddings(self) -> tuple[Tensor, Tensor]:
        """What the embeddings add to the result, (c, length) along the first axis and along the second.

        Convolutions are linear: each embedding goes through on its own, and along the axis on which it is constant a
        circular convolution multiplies it by the sum of the kernel.
        """
        assert self.first_embedding is not None
        assert self.second_embedding is not None
        scale, _ = scale_and_shift(self.norm)
        first, second = self._kernels()
        through_first = _filtered(resample(self.first_embedding.detach(), self.lengths[0]), first * scale[:, None])
        through_second = _filtered(resample(self.second_embedding.detach(), self.lengths[1]), second)
        return through_first * second.sum(1, keepdim=True), through_second

    def _kernels(self) -> tuple[Tensor, Tensor]:
        return resample(self.first.detach(), self.lengths[0]), resample(self.second.detach(), self.lengths[1])


def _drawn_kernel(channels: int, length: int) -> Tensor:
    # as torch draws the weights of a depthwise convolution
    return nn.init.uniform_(torch.empty(channels, length), -(length**-0.5), length**-0.5)


def _embedded(x: Tensor, embedding: Tensor | None, axis: int) -> Tensor:
    return x if embedding is None else x + spread(resample(embedding, x.shape[axis + 1]), axis)


def _convolved(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    return circular_conv(x, resample(kernel, x.shape[axis + 1]), axis)


def _conv_kernel(kernel: Tensor, axis: int) -> Tensor:
    return spread(kernel, axis)[:, None]


def _filtered(values: Tensor, kernel: Tensor) -> Tensor:
    """(c, length) through a circular convolution."""
    return circular_conv(spread(values, HEIGHT)[None], kernel, HEIGHT)[0, :, :, 0]


class BigKernelBranch(nn.Module):
    """Half of the channels: batch norm, a zero-padded convolution along one axis, then one along the other."""

    def __init__(self, in_shape: Shape, axes: Axes, kernel: int) -> None:
        super().__init__()
        channels = in_shape[0]
        self.shift_extent = extent_along(in_shape[axes[0]], axes[0])
        self.norm = nn.BatchNorm2d(channels)
        self.first, self.second = (
            nn.Conv2d(
                channels,
                channels,
                extent_along(kernel, axis),
                padding=_padding_along(kernel, axis),
                groups=channels,
                bias=False,
            )
            for axis in axes
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(self.norm(x)))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """The two convolutions and what the norm's shift becomes between them.

        Near the border a zero-padded kernel sees less of a constant, so the shift becomes one that varies along the
        first axis. Behind the second convolution it would vary along both.
        """
        scale, shift = scale_and_shift(self.norm)
        first = conv_weights(self.first)
        shifts = shift[:, None, None].expand(-1, *self.shift_extent)
        return {
            "first": ConvWeights(first.weight * scale[:, None, None, None], first.bias),
            "shift": ConstantWeights(self.first(shifts[None])[0].detach()),
            "second": conv_weights(self.second),
        }


def _padding_along(kernel: int, axis: int) -> tuple[int, int]:
    padding = same_padding(kernel)
    return (padding, 0) if axis == HEIGHT else (0, padding)


class PositionMixer(nn.Module):
    """The two halves of the channels, each through its branch, and the sum with the input."""

    def __init__(self, in_shape: Shape, spec: ParcBlockSpec) -> None:
        super().__init__()
        half = (in_shape[0] // 2, *in_shape[1:])
        self.height_first, self.width_first = (
            CircularBranch(half, axes, spec) if spec.kernel is None else BigKernelBranch(half, axes, spec.kernel)
            for axes in (HEIGHT_FIRST, WIDTH_FIRST)
        )
        self.has_embeddings = spec.position_embedding

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return x + torch.cat([self.height_first(first), self.width_first(second)], 1)

    def folded(self) -> dict[str, NodeWeights]:
        """The branches, and what all embeddings add to the result: one vector along the height, one along the width."""
        weights = {
            **scoped("height_first", self.height_first.folded()),
            **scoped("width_first", self.width_first.folded()),
        }
        if self.has_embeddings:
            assert isinstance(self.height_first, CircularBranch)
            assert isinstance(self.width_first, CircularBranch)
            upper_rows, upper_columns = self.height_first.folded_embeddings()
            lower_columns, lower_rows = self.width_first.folded_embeddings()
            weights["rows"] = ConstantWeights(spread(torch.cat([upper_rows, lower_rows]), HEIGHT))
            weights["columns"] = ConstantWeights(spread(torch.cat([upper_columns, lower_columns]), WIDTH))
        return weights


def _emit_position_mixer(graph: GraphBuilder, x: GraphTensor, spec: ParcBlockSpec) -> GraphTensor:
    channels = x.shape[0]
    branches = []
    for name, start, axes in (("height_first", 0, HEIGHT_FIRST), ("width_first", channels // 2, WIDTH_FIRST)):
        with graph.scope(name):
            half = graph.add("half", Slice(0, start, start + channels // 2), x)
            branches.append(
                _emit_circular_branch(graph, half, axes)
                if spec.kernel is None
                else _emit_big_kernel_branch(graph, half, axes, spec.kernel)
            )
    y = graph.add("halves", Concat(0), *branches)
    if spec.position_embedding:
        y = graph.add("rows", AddConstant((channels, *extent_along(x.shape[HEIGHT], HEIGHT))), y)
        y = graph.add("columns", AddConstant((channels, *extent_along(x.shape[WIDTH], WIDTH))), y)
    return emit_residual(graph, x, y)


def _emit_circular_branch(graph: GraphBuilder, x: GraphTensor, axes: Axes) -> GraphTensor:
    return emit_circular_conv(graph, "second", emit_circular_conv(graph, "first", x, axes[0]), axes[1])


def _emit_big_kernel_branch(graph: GraphBuilder, x: GraphTensor, axes: Axes, kernel: int) -> GraphTensor:
    channels = x.shape[0]
    first, second = (
        Conv(channels, extent_along(kernel, axis), padding=_padding_along(kernel, axis), groups=channels)
        for axis in axes
    )
    x = graph.add("first", first, x)
    x = graph.add("shift", AddConstant((channels, *extent_along(x.shape[axes[0]], axes[0]))), x)
    return graph.add("second", second, x)


class ChannelAttention(nn.Module):
    """Squeeze-and-excite with batch norm behind both convolutions and hard-swish between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = squeezed_width(channels, REDUCTION)
        self.squeeze = BranchedConv(square_conv(channels, inner, 1))
        self.excite = BranchedConv(square_conv(inner, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.hardswish(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * functional.hardsigmoid(self.excite(gate))

    def folded(self) -> dict[str, NodeWeights]:
        return {"squeeze": self.squeeze.folded(), "excite": self.excite.folded()}


class ChannelMixer(nn.Module):
    """Batch norm, a wider 1x1 convolution and back, channel attention, and the sum with the input."""

    def __init__(self, channels: int, spec: ParcBlockSpec) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.widen = nn.Conv2d(channels, spec.ffn_width, 1)
        self.narrow = nn.Conv2d(spec.ffn_width, channels, 1)
        self.dropout = nn.Dropout(spec.dropout)
        self.attention = ChannelAttention(channels) if spec.channel_attention else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.narrow(functional.hardswish(self.widen(self.norm(x)))))
        return x + (y if self.attention is None else self.attention(y))

    def folded(self) -> dict[str, NodeWeights]:
        return {
            "widen": absorb_input_norm(conv_weights(self.widen), self.norm),
            "narrow": conv_weights(self.narrow),
            **({} if self.attention is None else self.attention.folded()),
        }


def _emit_channel_mixer(graph: GraphBuilder, x: GraphTensor, spec: ParcBlockSpec) -> GraphTensor:
    y = emit_square_conv(graph, "widen", x, Conv(spec.ffn_width, (1, 1)), "hardswish")
    y = graph.add("narrow", Conv(x.shape[0], (1, 1)), y)
    if spec.channel_attention:
        y = emit_squeeze_excite(graph, y, REDUCTION, "hardswish")
    return emit_residual(graph, x, y)
