"""Circular convolution along one axis, with kernels as long as the map: the operator of ParC.

Kernels and position embeddings are learnt as one number for each channel and position, (c, base), and resampled to the
length of the map at hand. An axis is counted as in operations, without the batch: 1 for the height, 2 for the width.

Source: ParC-Net (seed 002), section 3.1, Equations 1 and 2.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Concat, Conv, Slice

HEIGHT, WIDTH = 1, 2


def resample(values: Tensor, length: int) -> Tensor:
    """(..., base) at another length, linear between neighbours, first and last kept: (..., length)."""
    *leading, base = values.shape
    if base == length:
        return values
    rows = values.reshape(1, -1, base)
    return functional.interpolate(rows, length, mode="linear", align_corners=True).reshape(*leading, length)


def spread(values: Tensor, axis: int) -> Tensor:
    """(..., length) as maps that vary along `axis` alone: (..., length, 1) or (..., 1, length)."""
    return values[..., None] if axis == HEIGHT else values[..., None, :]


def extent_along(length: int, axis: int) -> tuple[int, int]:
    """The (height, width) of something `length` long that lies along `axis`."""
    return (length, 1) if axis == HEIGHT else (1, length)


def circular_conv(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """y[i] = sum over t of kernel[t] x[(i + t) mod length] along `axis`, each channel for itself.

    kernel is (c, length), as long as the map.
    """
    return grouped_circular_conv(x, kernel[:, None], axis, groups=len(kernel))


def grouped_circular_conv(x: Tensor, kernel: Tensor, axis: int, *, groups: int, bias: Tensor | None = None) -> Tensor:
    """The same in groups of channels; kernel is (out, in / groups, length), as long as the map.

    The map is put behind itself, all but its last position: the paper's `cat(x, x)` would return one position too many.
    """
    dim = axis + 1
    twice = torch.cat([x, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    return functional.conv2d(twice, spread(kernel, axis), bias, groups=groups)


def emit_circular_conv(graph: GraphBuilder, name: str, x: GraphTensor, axis: int) -> GraphTensor:
    """Appends a circular convolution of each channel for itself, with bias."""
    return emit_grouped_circular_conv(graph, name, x, axis, out_channels=x.shape[0], groups=x.shape[0])


def emit_grouped_circular_conv(
    graph: GraphBuilder, name: str, x: GraphTensor, axis: int, *, out_channels: int, groups: int
) -> GraphTensor:
    """Appends a circular convolution with bias; the node `name` is the convolution over the map behind itself."""
    length = x.shape[axis]
    if length > 1:
        head = graph.add(f"{name}_head", Slice(axis, 0, length - 1), x)
        x = graph.add(f"{name}_twice", Concat(axis), x, head)
    return graph.add(name, Conv(out_channels, extent_along(length, axis), groups=groups), x)
