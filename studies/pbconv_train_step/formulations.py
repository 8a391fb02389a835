"""Other ways to compute what a `BranchedConv` computes in training, tried and not kept; the tests compare them all.

They share its parameters, and keep no running statistics.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from searchspace.coverage import Rectangle
from searchspace.layers import BranchedConv, ConvBranch, zero_padding


class Parts(NamedTuple):
    """One of the parallel convolutions; the first is the host over its whole kernel."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    rectangle: Rectangle


def parts_of(branched: BranchedConv) -> list[Parts]:
    """The host and its branches."""
    height, width = branched.conv.kernel_size
    assert branched.norm is not None
    parts = [Parts(branched.conv, branched.norm, Rectangle(0, 0, height, width))]
    for branch in branched.branches:
        assert isinstance(branch, ConvBranch)
        assert branch.norm is not None
        parts.append(Parts(branch.conv, branch.norm, branch.rectangle))
    return parts


def normed(z: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Batch norm in training, the channels of all norms one after the other."""
    weight, bias = torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])
    return functional.batch_norm(z, None, None, weight, bias, training=True, eps=norms[0].eps)


def padded(branched: BranchedConv, x: Tensor) -> Tensor:
    """As the paper writes it: each branch pads or crops the map, convolves and norms."""
    host = branched.conv
    (height, width), (left, right, top, bottom) = host.kernel_size, zero_padding(host)
    y = None
    for conv, norm, at in parts_of(branched):
        sides = (
            left - at.column,
            right - (width - at.column - at.width),
            top - at.row,
            bottom - (height - at.row - at.height),
        )
        z = functional.conv2d(functional.pad(x, sides), conv.weight, None, host.stride)
        z = normed(z, [norm])
        y = z if y is None else y + z
    assert y is not None
    return y


def stacked(branched: BranchedConv, x: Tensor) -> Tensor:
    """One convolution and one batch norm for all: small kernels stand in zeros, channels one after the other."""
    host = branched.conv
    height, width = host.kernel_size
    parts = parts_of(branched)
    weights = [
        functional.pad(conv.weight, (at.column, width - at.column - at.width, at.row, height - at.row - at.height))
        for conv, _, at in parts
    ]
    z = functional.conv2d(x, torch.cat(weights), None, host.stride, host.padding)
    return normed(z, [norm for _, norm, _ in parts]).unflatten(1, (len(parts), -1)).sum(1)


def shared(branched: BranchedConv, x: Tensor) -> Tensor:
    """Branches of one shape in one convolution over all that they see, each a window of its result."""
    host = branched.conv
    first, *rest = parts_of(branched)
    y = normed(functional.conv2d(x, first.conv.weight, None, host.stride, host.padding), [first.norm])
    if host.stride != (1, 1):
        return y + sum(branch(x) for branch in branched.branches)
    left, right, top, bottom = zero_padding(host)
    by_shape: dict[tuple[int, int], list[Parts]] = {}
    for part in rest:
        by_shape.setdefault((part.rectangle.height, part.rectangle.width), []).append(part)
    for (tall, wide), group in by_shape.items():
        row, column = min(part.rectangle.row for part in group), min(part.rectangle.column for part in group)
        below = max(part.rectangle.row for part in group) + tall - host.kernel_size[0]
        beside = max(part.rectangle.column for part in group) + wide - host.kernel_size[1]
        seen = functional.pad(x, (left - column, right + beside, top - row, bottom + below))
        z = functional.conv2d(seen, torch.cat([part.conv.weight for part in group]))
        for one, (_, norm, at) in zip(z.chunk(len(group), 1), group, strict=True):
            own = one.narrow(2, at.row - row, y.shape[2]).narrow(3, at.column - column, y.shape[3])
            y = y + normed(own, [norm])
    return y


class _Axis(NamedTuple):
    """Of the map, what a branch reads; the padding; of its result, what counts; of the sum, where that belongs."""

    read: slice
    padding: int
    kept: slice
    place: slice


def _axis(size: int, before: int, after: int, kernel: int) -> _Axis:
    read = slice(max(-before, 0), size - max(-after, 0))
    before, after = max(before, 0), max(after, 0)
    out = read.stop - read.start + before + after - kernel + 1
    if kernel == 1:  # what only sees padding is not computed
        return _Axis(read, 0, slice(0, read.stop - read.start), slice(before, out - after))
    padding = max(before, after)
    return _Axis(read, padding, slice(padding - before, padding - before + out), slice(0, out))


class _ByHand(torch.autograd.Function):
    """All branches and their norms as one operation: no norm's result is written, the gradient is centred once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: list[tuple[_Axis, _Axis]], epsilon: float, *parameters: Tensor) -> Tensor:
        count = len(axes)
        kernels, scales, shifts = (parameters[index * count : (index + 1) * count] for index in range(3))
        results, means, inverses = [], [], []
        y, total = torch.empty(0), sum(shifts[1:], shifts[0])
        for (rows, columns), kernel, scale in zip(axes, kernels, scales, strict=True):
            seen = x[:, :, rows.read, columns.read]
            result = torch.conv2d(seen, kernel, None, 1, (rows.padding, columns.padding))
            z = result[:, :, rows.kept, columns.kept]
            if not results:
                y = torch.zeros_like(z)
            share = z[0, 0].numel() / y[0, 0].numel()  # the rest is zeros
            # In double precision this has no more than double precision's error; it is for the comparison alone.
            own_mean, own_variance = torch.batch_norm_update_stats(z, None, None, 0.1)
            mean = own_mean * share
            variance = (own_variance + own_mean.square()) * share - mean.square()
            inverse = torch.rsqrt(variance + epsilon)
            y[:, :, rows.place, columns.place].addcmul_(z, (scale * inverse)[:, None, None])
            total = total - scale * inverse * mean
            results.append(result)
            means.append(mean)
            inverses.append(inverse)
        ctx.save_for_backward(x, *kernels, *scales, *results, *means, *inverses)
        ctx.axes = axes
        return y + total[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        axes: list[tuple[_Axis, _Axis]] = ctx.axes
        count, (x, *saved) = len(axes), ctx.saved_tensors
        kernels, scales, results, means, inverses = (saved[index * count : (index + 1) * count] for index in range(5))
        samples = gradient[:, 0].numel()
        of_shift = gradient.sum(0).sum((1, 2))
        centred = gradient - (of_shift / samples)[:, None, None]
        of_x = torch.zeros_like(x)
        of_kernels, of_scales = [], []
        for index, (rows, columns) in enumerate(axes):
            kept = (slice(None), slice(None), rows.kept, columns.kept)
            read = (slice(None), slice(None), rows.read, columns.read)
            z, own = results[index][kept], centred[:, :, rows.place, columns.place]
            of_scale = (own * z).sum(0).sum((1, 2)) * inverses[index]
            factor = scales[index] * inverses[index]
            pull = factor * inverses[index] * of_scale / samples
            of_result = torch.zeros_like(results[index])
            of_z = of_result[kept]
            of_z.addcmul_(own, factor[:, None, None]).addcmul_(z - means[index][:, None, None], -pull[:, None, None])
            of_seen, of_kernel, _ = torch.ops.aten.convolution_backward(
                of_result, x[read], kernels[index], None, (1, 1), (rows.padding, columns.padding), (1, 1), False,
                (0, 0), 1, (True, True, False),
            )  # fmt: skip
            of_x[read] += of_seen
            of_kernels.append(of_kernel)
            of_scales.append(of_scale)
        return of_x, None, None, *of_kernels, *of_scales, *([of_shift] * count)


def by_hand(branched: BranchedConv, x: Tensor) -> Tensor:
    """One operation with a gradient of its own; where the stride is not 1, as the library does it."""
    host, parts = branched.conv, parts_of(branched)
    if host.stride != (1, 1):
        y: Tensor = branched(x)
        return y
    (height, width), (left, right, top, bottom) = host.kernel_size, zero_padding(host)
    axes = [
        (
            _axis(x.shape[2], top - at.row, bottom - (height - at.row - at.height), at.height),
            _axis(x.shape[3], left - at.column, right - (width - at.column - at.width), at.width),
        )
        for _, _, at in parts
    ]
    kernels, scales = [part.conv.weight for part in parts], [part.norm.weight for part in parts]
    found: Tensor = _ByHand.apply(x, axes, parts[0].norm.eps, *kernels, *scales, *(part.norm.bias for part in parts))
    return found


def as_here(branched: BranchedConv, x: Tensor) -> Tensor:
    """As the library does it."""
    y: Tensor = branched(x)
    return y


FORMULATIONS: dict[str, Callable[[BranchedConv, Tensor], Tensor]] = {
    "as here": as_here,
    "padded": padded,
    "shared": shared,
    "stacked": stacked,
    "by hand": by_hand,
}
