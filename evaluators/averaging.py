"""The exponential average of a network's weights over its training, and a network that has it.

The average ranks networks in the middle of a training as they will stand at its end, where the learning rate is too
high for the last weights to say much.
"""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NetworkT = TypeVar("NetworkT", bound=nn.Module)

# So many images give a norm its statistics.
STATISTICS_IMAGES = 1024


class WeightAverage:
    """The running average of a network's trainable weights; what a norm counts is no weight, see `with_average`."""

    def __init__(self, network: nn.Module, time_constant: float) -> None:
        """`time_constant` is in steps: after so many, what was known before counts 1/e."""
        self._decay = math.exp(-1 / time_constant)
        self.weights = [parameter.detach().clone() for parameter in network.parameters()]
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after a step; the first average over a tenth of the way so far, so as not to lag."""
        self.steps += 1
        share = max(1 - self._decay, 9 / (9 + self.steps))
        torch._foreach_lerp_(self.weights, [parameter.detach() for parameter in network.parameters()], share)


@torch.no_grad()
def with_average(network: NetworkT, average: WeightAverage, images: Tensor, batch_size: int) -> NetworkT:
    """A copy of the network in eval mode with averaged weights, and with norms that have seen `images` through them.

    Running statistics belong to the weights that made them: averaged like weights, they would tell of activations that
    the averaged network does not have. So they are taken anew, over batches of one size.
    """
    result = copy.deepcopy(network).eval()
    for parameter, value in zip(result.parameters(), average.weights, strict=True):
        parameter.copy_(value)
    norms = [module for module in result.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return result
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    seen = images[:STATISTICS_IMAGES]
    whole = max(1, len(seen) // batch_size) * batch_size
    device = average.weights[0].device
    for batch in torch.split(seen[:whole], batch_size):
        result(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return result.eval()
