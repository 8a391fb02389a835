"""SynFlow: how much flows through all paths of a network if every weight helps.

Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", section 5;
as a score of networks: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", section 3.
"""

import copy

import torch
from torch import nn

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import Subject, weights_of
from evaluators.proxies.watching import linear_activations

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def _make_linear(network: nn.Module) -> nn.Module:
    """The network in double precision with its weights' magnitudes, and batch norms that let everything through.

    Double, since a product over fifty layers leaves the range of floats.
    """
    network = network.double().eval()
    for parameter in network.parameters():
        parameter.abs_()
    for part in network.modules():
        if isinstance(part, _BATCH_NORMS):
            part.reset_parameters()
            part.eps = 0.0
    return network


def log_synflow(subject: Subject) -> float:
    """Natural logarithm of the sum over weights of |weight x gradient| of the summed logits, for an image of ones."""
    network = _make_linear(copy.deepcopy(subject.network)).requires_grad_()
    ones = torch.ones(1, *subject.network.spec.input_shape, dtype=torch.float64)
    weights = list(weights_of(network).values())
    with subject.repeatable(), linear_activations():
        flow = network(ones).sum()
    gradients = torch.autograd.grad(flow, weights)
    # Magnitudes, as published: behind a layer norm, which no sign of a weight can make linear, some are below zero.
    flows = [(weight.detach() * gradient).abs().sum() for weight, gradient in zip(weights, gradients, strict=True)]
    return float(torch.stack(flows).sum().log())


SYNFLOW = Proxy("synflow", log_synflow, 1, "backward", "Tanaka et al. 2020: logarithm of the synaptic flow")
