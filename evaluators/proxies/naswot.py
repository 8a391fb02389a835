"""NASWOT: how differently a fresh network's units switch for different images.

Source: Mellor et al., "Neural Architecture Search without Training", section 3, Eq. 2, with the kernel of the published
code, which counts units that are both on or both off. Units of SiLU, hard swish and GELU count as on above zero.
"""

import torch

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import NotDefined, Subject


def log_determinant(subject: Subject) -> float:
    """Log |det K|, where K[i, j] is the number of units that images i and j switch alike."""
    images = len(subject.first_pass.images)
    kernel = torch.zeros(images, images, dtype=torch.float64)
    for signs in subject.first_pass.watch.signs:
        on = signs.float()
        off = 1 - on
        kernel += on @ on.T + off @ off.T
    if not subject.first_pass.watch.signs:
        raise NotDefined("the activation pattern needs an activation, and the network has none")
    sign, value = torch.linalg.slogdet(kernel)
    if sign == 0:
        raise NotDefined("two images switch every unit alike, so that the kernel has no inverse")
    return float(value)


NASWOT = Proxy("naswot", log_determinant, 1, "forward", "Mellor et al. 2021: log-determinant of the activation kernel")
