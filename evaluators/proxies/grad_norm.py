"""Gradient norm: how strongly one batch pulls at a fresh network.

Source: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", section 3: Euclidean norms, summed over layers.
"""

import torch

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import Subject


def log_gradient_norm(subject: Subject) -> float:
    """Natural logarithm of the sum over weight tensors of the Euclidean norm of their gradient."""
    return float(torch.stack([each.norm() for each in subject.gradients.values()]).double().sum().log())


GRAD_NORM = Proxy("grad-norm", log_gradient_norm, 1, "backward", "Abdelfattah et al. 2021: log of gradient norms")
