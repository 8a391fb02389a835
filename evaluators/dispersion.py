"""Kernel dispersion: how unevenly the positions of convolution kernels have come to matter.

Source: PBConv (seed 001), Eq. 1 for a layer, the caption of Figure 1 for the network, section 4.3 for its use as an
early sign of the final accuracy. Taken on the equivalent kernel with every branch and batch norm folded in (Eq. 8).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from searchspace.fold import ConvWeights
from searchspace.network import Network
from searchspace.registry import folded_nodes


@dataclass(frozen=True, slots=True)
class Dispersion:
    """`of_mean` is the paper's: the std of the importance averaged over layers; in `mean_of` patterns cannot cancel."""

    of_mean: float
    mean_of: float


def position_importance(weight: Tensor) -> Tensor:
    """The matrix M (kh, kw) of Eq. 1: summed magnitudes per kernel position over the largest of them.

    `weight` is (out, in / groups, kh, kw); the paper's inner sum to D is read as the sum over input channels. A kernel
    of zeros, in which no position stands out, gives ones.
    """
    magnitude = weight.abs().sum((0, 1))
    largest = magnitude.max()
    # Not `> 0`: a kernel that is not a number must not pass for one of zeros.
    return torch.ones_like(magnitude) if largest == 0 else magnitude / largest


def dispersion(weights: Iterable[Tensor]) -> Dispersion:
    """The dispersion of a network from its folded convolution weights.

    1x1 and one-dimensional kernels have no two-dimensional pattern and are left out. Layers count alike; kernels of
    different sizes are averaged within their size first, then over sizes by their number of layers. The std is the
    population's (ddof 0).

    Raises:
        ValueError: no kernel is left.
    """
    by_size: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for weight in weights:
        if min(weight.shape[2:]) > 1:
            by_size[tuple(weight.shape[2:])].append(position_importance(weight))
    layers = sum(map(len, by_size.values()))
    if not layers:
        raise ValueError("dispersion is defined for networks with at least one convolution larger than 1x1")
    of_mean = sum(len(maps) * float(torch.stack(maps).mean(0).std(correction=0)) for maps in by_size.values())
    mean_of = sum(float(one.std(correction=0)) for maps in by_size.values() for one in maps)
    return Dispersion(of_mean / layers, mean_of / layers)


def network_dispersion(network: Network) -> Dispersion:
    """The dispersion of a network as it stands, its branches folded with the running statistics."""
    return dispersion(
        tensors.weight
        for block in network.blocks
        for tensors in folded_nodes(block).values()
        # Of all that blocks fold into, only convolutions have kernels whose positions look around.
        if isinstance(tensors, ConvWeights)
    )
