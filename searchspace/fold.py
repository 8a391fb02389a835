"""The algebra of structural re-parameterization, on pairs of weight and bias, written once for all families.

A convolution is linear, so parallel branches over one input add up to a single convolution, and a batch norm with fixed
statistics is a scale and a shift. Everything here returns new tensors in the dtype of its input.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class NodeWeights(Protocol):
    """The tensors that one operation computes with: a named tuple whose names are those of `ops.weight_shapes`."""

    def _asdict(self) -> dict[str, Any]: ...


class ConvWeights(NamedTuple):
    """What a convolution computes with: weight (out, in / groups, kh, kw) and bias (out,)."""

    weight: Tensor
    bias: Tensor


class ConvTransposeWeights(NamedTuple):
    """What `ConvTranspose` computes with: weight (in, out, size, size) and bias (out,)."""

    weight: Tensor
    bias: Tensor


class NormWeights(NamedTuple):
    """What an affine `ChannelNorm` computes with, both (channels,)."""

    scale: Tensor
    shift: Tensor


class ConstantWeights(NamedTuple):
    """What `AddConstant` and `MulConstant` compute with."""

    constant: Tensor


def scoped(name: str, weights: Mapping[str, NodeWeights]) -> dict[str, NodeWeights]:
    """The weights of nodes that were added inside `graph.scope(name)`."""
    return {f"{name}.{node}": tensors for node, tensors in weights.items()}


def conv_weights(conv: nn.Conv2d) -> ConvWeights:
    """The weights of a convolution, with a bias of zeros where it has none."""
    weight = conv.weight.detach()
    return ConvWeights(weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach())


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm with its running statistics multiplies each channel by, and what it then adds.

    Source: PBConv Eq. 4-5 and RDPNet Eq. 1-2; both leave out the epsilon, which torch adds to the variance.
    Raises:
        ValueError: the norm keeps no running statistics, so nothing is fixed that could be folded.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded; build it with track_running_stats")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), norm.bias.detach()
    return scale, shift - norm.running_mean * scale


def fold_batchnorm(conv: ConvWeights, norm: nn.BatchNorm2d) -> ConvWeights:
    """The convolution that computes `norm(conv(x))`.

    Raises:
        ValueError: as `scale_and_shift`.
    """
    scale, shift = scale_and_shift(norm)
    scaled = scaled_output(conv, scale)
    return ConvWeights(scaled.weight, scaled.bias + shift)


def scaled_output(conv: ConvWeights, scale: Tensor) -> ConvWeights:
    """The convolution that computes `scale * conv(x)`, per channel of the result."""
    return ConvWeights(conv.weight * scale[:, None, None, None], conv.bias * scale)


def absorb_input_norm(conv: ConvWeights, norm: nn.BatchNorm2d, groups: int = 1) -> ConvWeights:
    """The convolution that computes `conv(norm(x))`; exact only where the convolution pads nothing.

    Raises:
        ValueError: as `scale_and_shift`.
    """
    return absorb_input_affine(conv, *scale_and_shift(norm), groups)


def absorb_input_affine(conv: ConvWeights, scale: Tensor, shift: Tensor, groups: int = 1) -> ConvWeights:
    """The convolution that computes `conv(scale * x + shift)`, both per channel of x.

    Exact only where the convolution pads nothing: padding comes behind the shift, so that a padded one would see the
    shift inside the map and none outside.
    """
    out_channels, group_width = conv.weight.shape[:2]
    # (groups, 1, group width), the channels that each output of a group reads
    scale, shift = (values.reshape(groups, 1, group_width) for values in (scale, shift))
    grouped = conv.weight.reshape(groups, out_channels // groups, group_width, -1)
    shifted = (grouped.sum(-1) * shift).sum(-1).reshape(out_channels)
    return ConvWeights((grouped * scale[..., None]).reshape(conv.weight.shape), conv.bias + shifted)


def add_identity(conv: ConvWeights, groups: int) -> ConvWeights:
    """The convolution that computes `conv(x) + x` at stride 1.

    Raises:
        ValueError: as `identity_conv`.
    """
    return add_branches([conv, identity_conv(conv.weight, groups)])


def average_pairs(conv: ConvWeights) -> ConvWeights:
    """The convolution that computes the mean of `conv(x)` over every 2x2 window.

    Its kernel is longer by one and moves twice as far, with the padding as it was. Exact where no window reaches over
    the edge of `conv(x)`, which are even sizes.
    """
    height, width = conv.weight.shape[2:]
    corners = [embed(conv, (height + 1, width + 1), row, column) for row in (0, 1) for column in (0, 1)]
    total = add_branches(corners)
    return ConvWeights(total.weight / len(corners), total.bias / len(corners))


def identity_conv(like: Tensor, groups: int) -> ConvWeights:
    """The convolution that returns its input, with a weight of the shape, dtype and device of `like`.

    Raises:
        ValueError: `like` (out, in / groups, k, k) changes the number of channels, or k is even.
    """
    channels, group_width, height, width = like.shape
    if channels != group_width * groups or height % 2 == 0 or width % 2 == 0:
        raise ValueError(
            f"an identity needs equal channels in and out and odd kernels, got {tuple(like.shape)}, groups={groups}"
        )
    weight = torch.zeros_like(like)
    outputs = torch.arange(channels, device=like.device)
    weight[outputs, outputs % group_width, height // 2, width // 2] = 1
    return ConvWeights(weight, like.new_zeros(channels))


def embed(conv: ConvWeights, kernel: tuple[int, int], row: int, column: int) -> ConvWeights:
    """The same small kernel inside a larger one of zeros, its first cell at (row, column).

    Source: PBConv Eq. 9.
    Raises:
        ValueError: it does not fit inside.
    """
    height, width = conv.weight.shape[2:]
    below, right = kernel[0] - row - height, kernel[1] - column - width
    if min(row, column, below, right) < 0:
        raise ValueError(f"a {height}x{width} kernel at ({row}, {column}) does not fit inside {kernel[0]}x{kernel[1]}")
    return ConvWeights(nn.functional.pad(conv.weight, (column, right, row, below)), conv.bias)


def add_branches(branches: Sequence[ConvWeights]) -> ConvWeights:
    """The one convolution that computes the sum of parallel ones with weights of equal shape.

    Source: PBConv Eq. 8, RepVGG section 3.3.
    Raises:
        ValueError: the shapes differ.
    """
    shapes = {tuple(branch.weight.shape) for branch in branches}
    if len(shapes) != 1:
        raise ValueError(f"branches add up when their weights have one shape, got {sorted(shapes)}; embed them first")
    return ConvWeights(
        torch.stack([branch.weight for branch in branches]).sum(0),
        torch.stack([branch.bias for branch in branches]).sum(0),
    )


def shuffle_order(channels: int, groups: int) -> Tensor:
    """Where each channel of a channel shuffle comes from: `shuffled[k] = x[order[k]]`.

    Source: ShuffleNet, section 3.1; RDPNet, section 3.
    Raises:
        ValueError: the groups do not divide the channels.
    """
    if channels % groups:
        raise ValueError(f"shuffle groups must divide the channels, got {groups} groups for {channels} channels")
    return torch.arange(channels).reshape(groups, channels // groups).T.reshape(-1)


def absorb_input_order(conv: ConvWeights, order: Tensor) -> ConvWeights:
    """The dense convolution that computes `conv(x[order])` from x itself."""
    weight = torch.empty_like(conv.weight)
    weight[:, order.to(weight.device)] = conv.weight
    return ConvWeights(weight, conv.bias)
