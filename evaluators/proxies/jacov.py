"""Jacobian covariance: whether a fresh network's answer changes in different ways around different images.

Source: Mellor et al., "Neural Architecture Search without Training", first version (arXiv:2006.04647v1), section 3.
"""

import torch

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import NotDefined, Subject

# The published code's, which keeps an eigenvalue of zero from counting for everything.
EPSILON = 1e-5


def jacobian_covariance(subject: Subject) -> float:
    """Sum over the eigenvalues v of the correlations between the images' gradients: log(v + e) + 1 / (v + e).

    At least the number of images; reached where no two images are alike to the network.
    """
    rows = subject.input_gradients.flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        raise NotDefined("an image has no gradient, so that it correlates with nothing")
    rows = rows / lengths
    # Rounding may put an eigenvalue of zero below it.
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0) + EPSILON
    return float((values.log() + 1 / values).sum())


JACOV = Proxy("jacov", jacobian_covariance, -1, "backward", "Mellor et al. 2020 (v1): correlation of input gradients")
