"""The branches of ACNet and of DBB beside a 3x3 convolution, as far as they are parallel convolutions.

ACB-like is ACNet's block: 1x3 and 3x1 through the centre, each with its batch norm. DBB-like is the diverse branch
block without the batch norm inside its two sequences, whose shift at the border needs a padding of its own: 1x1; 1x1
and 3x3; 1x1 and a 3x3 mean. What the device runs is the one 3x3 convolution in all cases.

Sources: Ding et al., "ACNet", section 3; Ding et al., "Diverse Branch Block", section 3.2 and Table 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from searchspace.coverage import Rectangle
from searchspace.fold import ConvWeights, add_branches, conv_weights, embed, fold_batchnorm
from searchspace.layers import BranchedConv
from searchspace.network import Network

KERNEL = 3


def acb_like(conv: nn.Conv2d) -> nn.Module:
    """A convolution with ACNet's two strips."""
    return BranchedConv(conv, rectangles=(Rectangle(0, 1, 3, 1), Rectangle(1, 0, 1, 3)))


class DbbLike(nn.Module):
    """A 3x3 convolution with three branches beside it, each with a batch norm at its end."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        entering, leaving = conv.in_channels, conv.out_channels
        self.conv = conv
        self.norm = nn.BatchNorm2d(leaving)
        self.point = nn.Conv2d(entering, leaving, 1, conv.stride, bias=False)
        self.point_norm = nn.BatchNorm2d(leaving)
        # DBB's inner width is the input's; the first of the sequence starts as the identity there.
        self.inner = nn.Conv2d(entering, entering, 1, bias=False)
        self.outer = nn.Conv2d(entering, leaving, KERNEL, conv.stride, 1, bias=False)
        self.sequence_norm = nn.BatchNorm2d(leaving)
        self.mixed = nn.Conv2d(entering, leaving, 1, bias=False)
        self.mean = nn.AvgPool2d(KERNEL, conv.stride[0], 1)
        self.mean_norm = nn.BatchNorm2d(leaving)
        nn.init.dirac_(self.inner.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) + self.point_norm(self.point(x))
        return y + self.sequence_norm(self.outer(self.inner(x))) + self.mean_norm(self.mean(self.mixed(x)))

    def folded(self) -> ConvWeights:
        """The single 3x3 convolution that computes the same in eval mode."""
        inner, outer = self.inner.weight.detach(), self.outer.weight.detach()
        nothing = torch.zeros(len(outer))
        sequence = torch.einsum("omhw,mi->oihw", outer, inner[:, :, 0, 0])
        mean = self.mixed.weight.detach().expand(-1, -1, KERNEL, KERNEL) / KERNEL**2
        point = fold_batchnorm(conv_weights(self.point), self.point_norm)
        return add_branches(
            [
                fold_batchnorm(conv_weights(self.conv), self.norm),
                embed(point, (KERNEL, KERNEL), 1, 1),
                fold_batchnorm(ConvWeights(sequence, nothing), self.sequence_norm),
                fold_batchnorm(ConvWeights(mean, nothing), self.mean_norm),
            ]
        )


def dbb_like(conv: nn.Conv2d) -> nn.Module:
    """A convolution with the branches of DBB."""
    return DbbLike(conv)


def replaced(network: Network, block: Callable[[nn.Conv2d], nn.Module], seed: int) -> Network:
    """The network with `block` of each 3x3 convolution in its place, in place; branches follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, part in list(network.named_modules()):
            if isinstance(part, BranchedConv) and part.conv.kernel_size == (KERNEL, KERNEL):
                network.set_submodule(path, block(part.conv))
    return network
