"""Parts that several block families share, each with its train form and the operations it becomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Activation, Add, ChannelNorm, Conv, GlobalPool, Mul
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import (
    ConvWeights,
    NormWeights,
    absorb_input_affine,
    add_branches,
    conv_weights,
    embed,
    fold_batchnorm,
    identity_conv,
)

ACTIVATION_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


def same_padding(kernel: int, dilation: int = 1) -> int:
    """The padding on each side that keeps the size at stride 1, for an odd kernel."""
    return dilation * (kernel - 1) // 2


def centre(kernel: int) -> Rectangle:
    """The middle cell of an odd kernel, which is where a parallel 1x1 convolution looks."""
    return Rectangle(kernel // 2, kernel // 2, 1, 1)


class ConvBranch(nn.Module):
    """One branch of a `BranchedConv`: a small convolution over a rectangle inside the kernel, then batch norm.

    Its window must stay a part of the host's window, which sets the padding on each side; a negative one crops. Where
    the rectangle is one cell high or wide and the stride is 1, whole rows or columns of the result see only padding;
    they are added to the result as zeros and not computed, which on maps of 2x2 is half of the work of a strip.
    `norm` is the host's, whose epsilon and momentum the branch takes; without one the branch has a bias where the host
    has. It lives on the device and in the precision of the host.
    Source: PBConv, section 4.2 ("new padding values might be negative, which means cropping").
    """

    def __init__(self, host: nn.Conv2d, rectangle: Rectangle, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.rectangle = rectangle
        (height, width), (dil_y, dil_x) = _pair(host.kernel_size), _pair(host.dilation)
        left, right, top, bottom = zero_padding(host)
        left -= rectangle.column * dil_x
        right -= (width - rectangle.column - rectangle.width) * dil_x
        top -= rectangle.row * dil_y
        bottom -= (height - rectangle.row - rectangle.height) * dil_y
        stride_y, stride_x = _pair(host.stride)
        rows = _split_padding(top, bottom, is_strip=rectangle.height == stride_y == 1)
        columns = _split_padding(left, right, is_strip=rectangle.width == stride_x == 1)
        self.pad = _sides(columns.before_conv, rows.before_conv)
        self.pad_behind = _sides(columns.behind_conv, rows.behind_conv)
        self.conv = nn.Conv2d(
            host.in_channels,
            host.out_channels,
            (rectangle.height, rectangle.width),
            stride=host.stride,  # type: ignore[arg-type]
            padding=(rows.in_conv, columns.in_conv),
            dilation=host.dilation,  # type: ignore[arg-type]
            groups=host.groups,
            bias=norm is None and host.bias is not None,
            device=host.weight.device,
            dtype=host.weight.dtype,
        )
        self.norm = None
        if norm is not None:
            self.norm = nn.BatchNorm2d(
                host.out_channels, norm.eps, norm.momentum, device=host.weight.device, dtype=host.weight.dtype
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return y if self.norm is None else self.norm(y)

    def _convolved(self, x: Tensor) -> Tensor:
        if self.pad_behind is None or not _leaves_some(x, self.pad):
            sides = _added(self.pad, self.pad_behind)
            y: Tensor = self.conv(x if sides is None else _padded_and_cropped(x, sides))
            return y
        x = x if self.pad is None else _padded_and_cropped(x, self.pad)
        conv = self.conv
        y = nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        y = nn.functional.pad(y, self.pad_behind)
        # What sees only padding has the bias all the same.
        return y if conv.bias is None else y + conv.bias[:, None, None]

    def folded(self) -> ConvWeights:
        """The branch as one small convolution."""
        weights = conv_weights(self.conv)
        return weights if self.norm is None else fold_batchnorm(weights, self.norm)


class BranchedConv(nn.Module):
    """A convolution with parallel branches at train time: the one form behind RepVGG, RDP and PBConv.

    The sum of a KxK convolution, of one small convolution per rectangle and, where asked, of the identity, each with
    its own batch norm (or none, as in networks for restoration). `folded` is the single KxK convolution that computes
    the same in eval mode. A rectangle at the centre of size 1x1 is RepVGG's 1x1 branch; a layout's rectangles are
    PBConv's. `norm` is True for a fresh batch norm behind the convolution, False for none, or the one to use there.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        rectangles: Sequence[Rectangle] = (),
        identity: bool = False,
        norm: nn.BatchNorm2d | bool = True,
    ) -> None:
        super().__init__()
        if identity and (conv.in_channels != conv.out_channels or set(conv.stride) != {1}):
            raise ValueError(
                "an identity branch needs equal channels and stride 1, got "
                f"{conv.in_channels} -> {conv.out_channels} with stride {conv.stride}"
            )
        self.conv = conv
        if isinstance(norm, bool):
            self.norm = nn.BatchNorm2d(conv.out_channels) if norm else None
        else:
            self.norm = norm
        self.branches = nn.ModuleList(ConvBranch(conv, rectangle, self.norm) for rectangle in rectangles)
        self.identity_norm = nn.BatchNorm2d(conv.in_channels) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        for branch in self.branches:
            y = y + branch(x)
        return y if self.identity_norm is None else y + self.identity_norm(x)

    def folded(self) -> ConvWeights:
        """The single convolution that computes the same as all branches do in eval mode."""
        kernel, weights = _pair(self.conv.kernel_size), conv_weights(self.conv)
        parts = [weights if self.norm is None else fold_batchnorm(weights, self.norm)]
        for branch in self.branches:
            assert isinstance(branch, ConvBranch)
            parts.append(embed(branch.folded(), kernel, branch.rectangle.row, branch.rectangle.column))
        if self.identity_norm is not None:
            parts.append(fold_batchnorm(identity_conv(weights.weight, self.conv.groups), self.identity_norm))
        return add_branches(parts)


class _Padding(NamedTuple):
    """What one axis is padded by, before and after the map: ahead of a convolution, by it, and behind it."""

    before_conv: tuple[int, int]
    in_conv: int
    behind_conv: tuple[int, int]


def _split_padding(before: int, after: int, *, is_strip: bool) -> _Padding:
    if before == after >= 0:
        return _Padding((0, 0), before, (0, 0))
    if is_strip:
        return _Padding((min(before, 0), min(after, 0)), 0, (max(before, 0), max(after, 0)))
    return _Padding((before, after), 0, (0, 0))


Sides = tuple[int, int, int, int]


def _sides(columns: tuple[int, int], rows: tuple[int, int]) -> Sides | None:
    """Left, right, top and bottom; None for nothing at all."""
    sides = (*columns, *rows)
    return sides if any(sides) else None


def _added(first: Sides | None, second: Sides | None) -> Sides | None:
    if first is None or second is None:
        return first or second
    left, right, top, bottom = (one + other for one, other in zip(first, second, strict=True))
    return left, right, top, bottom


def _leaves_some(x: Tensor, sides: Sides | None) -> bool:
    """Whether cropping and padding leave something of a map."""
    if sides is None:
        return True
    left, right, top, bottom = sides
    return x.shape[3] + left + right > 0 and x.shape[2] + top + bottom > 0


def _padded_and_cropped(x: Tensor, sides: Sides) -> Tensor:
    left, right, top, bottom = (max(-side, 0) for side in sides)
    if left + right < x.shape[3] and top + bottom < x.shape[2]:
        return nn.functional.pad(x, sides)
    # Torch's pad crops first, which fails for the corner of a large kernel on a small map, where only padding is left.
    x = nn.functional.pad(x, [max(side, 0) for side in sides])
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def zero_padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """The zeros that a convolution puts to the left, right, top and bottom of its input.

    Padding "same" puts the odd one out of an even kernel to the right and to the bottom.
    """
    if not isinstance(conv.padding, str):
        pad_y, pad_x = _pair(conv.padding)
        return pad_x, pad_x, pad_y, pad_y
    if conv.padding == "valid":
        return 0, 0, 0, 0
    (height, width), (dil_y, dil_x) = _pair(conv.kernel_size), _pair(conv.dilation)
    rows, columns = dil_y * (height - 1), dil_x * (width - 1)
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def layout_rectangles(layout: Layout | None, kernel: int) -> tuple[Rectangle, ...]:
    """The PBConv branches of a convolution with `kernel`; none without a layout.

    Raises:
        ValueError: the layout was made for another kernel size.
    """
    if layout is None:
        return ()
    if layout.kernel != kernel:
        raise ValueError(f"a layout fits kernels of its own size, got {layout} for a {kernel}x{kernel} convolution")
    return layout.rectangles


def square_conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1, to be followed by batch norm."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=same_padding(kernel), groups=groups, bias=False
    )


def emit_square_conv(
    graph: GraphBuilder, name: str, x: GraphTensor, conv: Conv, activation: str | None = None
) -> GraphTensor:
    """Appends a convolution as node `name` and, where asked, the activation behind it."""
    x = graph.add(name, conv, x)
    return x if activation is None else graph.add(f"{name}_{activation}", Activation(activation), x)


def deployed_conv(out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> Conv:
    """The operation that `square_conv` becomes."""
    padding = same_padding(kernel)
    return Conv(out_channels, (kernel, kernel), stride, (padding, padding), 1, groups)


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels at each position of (n, c, h, w): the train form of `ChannelNorm`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=ChannelNorm().epsilon)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)

    def folded(self) -> NormWeights:
        """For a norm that keeps its scale and shift."""
        return NormWeights(self.norm.weight.detach(), self.norm.bias.detach())

    def folded_into(self, conv: ConvWeights) -> ConvWeights:
        """The unpadded convolution behind the norm with its scale and shift, which `ChannelNorm(affine=False)` lacks.

        Only where nothing else reads what the norm returns.
        """
        return absorb_input_affine(conv, *self.folded())


class DropPath(nn.Module):
    """In training, leaves a whole path out for some images and scales it up for the others.

    Source: Huang et al., "Deep Networks with Stochastic Depth", section 3.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand(len(x), *(1,) * (x.dim() - 1), device=x.device) >= self.probability
        return x * kept / (1 - self.probability)


def squeezed_width(channels: int, reduction: int, multiple: int = 1) -> int:
    """The inner width of squeeze-and-excite: the multiple nearest to channels / reduction, at least one of it.

    Of two that are as near the wider, and the next one where more than a tenth would be lost.
    Source: the published code of MobileNetV3, whose multiple is 8; its paper says channels / 4, which 1 gives.
    """
    wanted = channels // reduction
    nearest = max(multiple, (2 * wanted + multiple) // (2 * multiple) * multiple)
    return nearest + multiple if 10 * nearest < 9 * wanted else nearest


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite: each channel is scaled by a gate that sees the means of all channels.

    Source: Hu et al., "Squeeze-and-Excitation Networks", section 3, where the gate is a sigmoid and the layers have no
    bias; the hard sigmoid is MobileNetV3's, section 5.3. The inner width is that of `squeezed_width`.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        gate: str = "hardsigmoid",
        *,
        bias: bool = True,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.gate = ACTIVATION_MODULES[gate]()
        inner = squeezed_width(channels, reduction, multiple)
        self.squeeze = nn.Conv2d(channels, inner, 1, bias=bias)
        self.excite = nn.Conv2d(inner, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        gate: Tensor = self.gate(self.excite(inner))
        return x * gate

    def folded(self) -> dict[str, ConvWeights]:
        """The weights of the two operations that `emit_squeeze_excite` appends."""
        return {"squeeze": conv_weights(self.squeeze), "excite": conv_weights(self.excite)}


def emit_squeeze_excite(
    graph: GraphBuilder,
    x: GraphTensor,
    reduction: int = 4,
    activation: str = "relu",
    gate: str = "hardsigmoid",
    *,
    multiple: int = 1,
) -> GraphTensor:
    """Appends what a `SqueezeExcite` computes, its nodes named `pool`, `squeeze`, `excite` and `gate`.

    `activation` stands between the two convolutions; a `SqueezeExcite` has ReLU there.
    """
    channels = x.shape[0]
    y = graph.add("pool", GlobalPool(), x)
    y = emit_square_conv(graph, "squeeze", y, Conv(squeezed_width(channels, reduction, multiple), (1, 1)), activation)
    y = emit_square_conv(graph, "excite", y, Conv(channels, (1, 1)), gate)
    return graph.add("gate", Mul(), x, y)


def emit_residual(graph: GraphBuilder, x: GraphTensor, y: GraphTensor) -> GraphTensor:
    """Appends the sum of a block's input and its result."""
    return graph.add("residual", Add(), y, x)
