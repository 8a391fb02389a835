"""ParC in the place of a convolution: half of the channels go round the height of the map, the other half its width.

Each half is one circular convolution as long as the map, with a position embedding added before it. Unlike in a ParC
block, no half goes along both axes, and the halves do not mix; what stands around the convolution does that.

Source: ParC-Net (seed 002), section 4.5 and Table 3, "we replaced convolutions in the last few blocks of typical CNNs
with our proposed ParC"; which half goes where, the bias and the start of the embedding are as in the authors' code for
ResNet-50, MobileNetV2 and ConvNeXt.
"""

import torch
from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import AddConstant, Concat, Shape, Slice
from searchspace.circular import (
    HEIGHT,
    WIDTH,
    emit_grouped_circular_conv,
    extent_along,
    grouped_circular_conv,
    resample,
    spread,
)
from searchspace.fold import ConstantWeights, ConvWeights, NodeWeights, scale_and_shift, scaled_output

EMBEDDING_DEVIATION = 0.02


def halved(channels: int, groups: int) -> tuple[int, int]:
    """The channels and the groups of each half.

    Raises:
        ValueError: one of the two cannot be halved; a single group, which is a dense convolution, stays one.
    """
    if channels % 2:
        raise ValueError(f"ParC needs an even number of channels, since each half has its own axis, got {channels}")
    if groups > 1 and groups % 2:
        raise ValueError(f"ParC needs one group or an even number of them, since each half has its own, got {groups}")
    return channels // 2, max(1, groups // 2)


class CircularHalf(nn.Module):
    """One half: a circular convolution along one axis over the map and its position embedding, with bias."""

    def __init__(self, widths: tuple[int, int], axis: int, base: int, *, groups: int, position_embedding: bool) -> None:
        super().__init__()
        self.axis, self.groups = axis, groups
        in_channels, out_channels = widths
        fan_in = in_channels // groups * base
        # As torch draws the weights of a convolution.
        weight = torch.empty(out_channels, in_channels // groups, base).uniform_(-(fan_in**-0.5), fan_in**-0.5)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.embedding = None
        if position_embedding:
            self.embedding = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(in_channels, base), std=EMBEDDING_DEVIATION)
            )

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[self.axis + 1]
        if self.embedding is not None:
            x = x + spread(resample(self.embedding, length), self.axis)
        return grouped_circular_conv(x, resample(self.weight, length), self.axis, groups=self.groups, bias=self.bias)

    def folded(self, length: int) -> tuple[ConvWeights, Tensor | None]:
        """The convolution for maps of one length, and what the embedding adds to its result, varying along the axis.

        The convolution is linear, so the embedding goes through it on its own. None without an embedding.
        """
        kernel = resample(self.weight.detach(), length)
        weights = ConvWeights(spread(kernel, self.axis), self.bias.detach())
        if self.embedding is None:
            return weights, None
        embedding = spread(resample(self.embedding.detach(), length), HEIGHT)
        filtered = grouped_circular_conv(embedding[None], kernel, HEIGHT, groups=self.groups)[0, :, :, 0]
        return weights, spread(filtered, self.axis)


class ParcConv(nn.Module):
    """The train form, (n, in, h, w) to (n, out, h, w).

    groups are those of the convolution that it stands for: 1 is dense within each half, as in ResNet-50, the number of
    channels is depthwise. base is the length at which kernels and embeddings are learnt, None the size of the map; at
    every other size they are resampled.
    """

    def __init__(
        self, in_shape: Shape, out_channels: int, *, groups: int, position_embedding: bool, base: int | None = None
    ) -> None:
        super().__init__()
        in_half, half_groups = halved(in_shape[0], groups)
        out_half, _ = halved(out_channels, groups)
        self.along_height, self.along_width = (
            CircularHalf(
                (in_half, out_half),
                axis,
                base or in_shape[axis],
                groups=half_groups,
                position_embedding=position_embedding,
            )
            for axis in (HEIGHT, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.chunk(2, 1)
        return torch.cat([self.along_height(upper), self.along_width(lower)], 1)

    def folded(self, extent: tuple[int, int], norm: nn.BatchNorm2d | None) -> dict[str, NodeWeights]:
        """The weights of what `emit_parc_conv` appends for maps of `extent`; norm is None where none follows.

        A norm scales the kernels and what the embeddings add, and becomes a part of the bias.
        """
        ones = torch.ones_like(torch.cat([self.along_height.bias, self.along_width.bias]).detach())
        scale, shift = (ones, torch.zeros_like(ones)) if norm is None else scale_and_shift(norm)
        nodes: dict[str, NodeWeights] = {}
        halves = {"along_height": self.along_height, "along_width": self.along_width}
        for (name, half), factor, offset, length in zip(
            halves.items(), scale.chunk(2), shift.chunk(2), extent, strict=True
        ):
            weights, added = half.folded(length)
            weights = scaled_output(weights, factor)
            nodes[name] = ConvWeights(weights.weight, weights.bias + offset)
            if added is not None:
                nodes[f"{name}_positions"] = ConstantWeights(added * factor[:, None, None])
        return nodes


def emit_parc_conv(
    graph: GraphBuilder, x: GraphTensor, out_channels: int, *, groups: int, position_embedding: bool
) -> GraphTensor:
    """Appends a slice, a circular convolution and a constant for each half, and a concat."""
    in_half, half_groups = halved(x.shape[0], groups)
    out_half, _ = halved(out_channels, groups)
    halves = []
    for name, axis, start in (("along_height", HEIGHT, 0), ("along_width", WIDTH, in_half)):
        y = graph.add(f"{name}_half", Slice(0, start, start + in_half), x)
        y = emit_grouped_circular_conv(graph, name, y, axis, out_channels=out_half, groups=half_groups)
        if position_embedding:
            constant = AddConstant((out_half, *extent_along(x.shape[axis], axis)))
            y = graph.add(f"{name}_positions", constant, y)
        halves.append(y)
    return graph.add("halves", Concat(0), *halves)
