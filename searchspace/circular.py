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
    """(c, base) at another length, linear between neighbours, first and last kept: (c, length)."""
    if values.shape[1] == length:
        return values
    return functional.interpolate(values[None], length, mode="linear", align_corners=True)[0]


def spread(values: Tensor, axis: int) -> Tensor:
    """(c, length) as a map that varies along `axis` alone: (c, length, 1) or (c, 1, length)."""
    return values[:, :, None] if axis == HEIGHT else values[:, None, :]


def extent_along(length: int, axis: int) -> tuple[int, int]:
    """The (height, width) of something `length` long that lies along `axis`."""
    return (length, 1) if axis == HEIGHT else (1, length)


def circular_conv(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """y[i] = sum over t of kernel[t] x[(i + t) mod length] along `axis`, each channel for itself.

    kernel is (c, length), as long as the map. The map is put behind itself, all but its last position: the paper's
    `cat(x, x)` would return one position too many.
    """
    dim = axis + 1
    twice = torch.cat([x, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
    return functional.conv2d(twice, spread(kernel, axis)[:, None], groups=len(kernel))


def emit_circular_conv(graph: GraphBuilder, name: str, x: GraphTensor, axis: int) -> GraphTensor:
    """Appends a circular convolution with bias; the node `name` is the convolution over the map behind itself."""
    channels, length = x.shape[0], x.shape[axis]
    if length > 1:
        head = graph.add(f"{name}_head", Slice(axis, 0, length - 1), x)
        x = graph.add(f"{name}_twice", Concat(axis), x, head)
    return graph.add(name, Conv(channels, extent_along(length, axis), groups=channels), x)
