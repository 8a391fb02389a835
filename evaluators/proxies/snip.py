"""SNIP: how much the loss hangs on single weights.

Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", Eq. 4 without its
normalisation; summed over the network: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", section 3.
"""

import torch

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import Subject


def log_sensitivity(subject: Subject) -> float:
    """Natural logarithm of the sum over weights of |weight x gradient|."""
    weights = subject.first_pass.weights
    parts = [(weights[name].detach() * gradient).abs().sum() for name, gradient in subject.gradients.items()]
    return float(torch.stack(parts).double().sum().log())


SNIP = Proxy("snip", log_sensitivity, 1, "backward", "Lee et al. 2019: logarithm of summed connection sensitivity")
