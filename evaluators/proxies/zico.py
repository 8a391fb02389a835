"""ZiCo: gradients that are large and agree from batch to batch.

Source: Li et al., "ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients", Eq. 12, with the published
code's mean over a layer's weights of which the gradients differ at all.
"""

import math

import torch

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import NotDefined, Subject


def zico(subject: Subject) -> float:
    """Sum over weight tensors of the log of the summed ratios: mean over batches of |gradient|, over its deviation."""
    if subject.settings.batches < 2:
        raise NotDefined("a deviation needs two batches or more")
    total = 0.0
    for name in subject.gradients:
        gradients = torch.stack([each[name] for each in subject.gradients_by_batch]).double()
        deviation = gradients.std(0, correction=0)
        varies = deviation > 0
        ratios = float((gradients.abs().mean(0)[varies] / deviation[varies]).sum())
        if ratios > 0:
            total += math.log(ratios)
    return total


ZICO = Proxy("zico", zico, 1, "backward", "Li et al. 2023: inverse coefficient of variation of gradients")
