"""How well a network labels images it was not trained on, and whether it knows how sure it may be."""

from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch
from torch import Tensor, nn

BINS: Final = 15


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose most likely class is right, mean cross-entropy, over how many images, calibration error."""

    value: float
    loss: float
    images: int
    calibration_error: float


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 32) -> Accuracy:
    """How well the network in eval mode labels images; its mode is put back afterwards."""
    was_training = network.training
    network.eval()
    # A deployed network has buffers and no parameters.
    device = next(chain(network.parameters(), network.buffers())).device
    logits = torch.cat([network(batch.to(device)).cpu() for batch in torch.split(x, batch_size)])
    network.train(was_training)
    loss = float(nn.functional.cross_entropy(logits.double(), y))
    right = (logits.argmax(1) == y).double()
    confidence = logits.double().softmax(1).amax(1)
    return Accuracy(float(right.mean()), loss, len(x), calibration_error(confidence, right))


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The expected calibration error, from 0 to 1: how far confidence and accuracy lie apart, over 15 equal bins.

    `confidence` (n,) is the probability of the class that was named, `right` (n,) is 1 where it is the true one. A bin
    holds what is above its lower end and up to its upper one.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, Eq. 3.
    """
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=confidence.dtype).index_add_(0, bins, confidence - right)
    return float(gaps.abs().sum() / len(confidence))
