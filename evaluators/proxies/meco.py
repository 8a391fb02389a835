"""MeCo: feature maps of which none follows from the others.

Source: Jiang et al., "MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of Correlation",
Eq. 10. The paper's single random image would have batch norm divide by the spread of one value wherever maps are 1x1;
here the first image is seen among its batch, and a layer is a convolution.
"""

import torch
from torch import Tensor

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import NotDefined, Subject


def smallest_eigenvalue(maps: Tensor) -> float:
    """Of the correlations between the channels of (c, h, w); a channel that is constant correlates with nothing.

    There are at most h w - 1 independent channels, so that it is zero without a look where there are more.
    """
    rows = maps.flatten(1).double()
    channels, positions = rows.shape
    if channels >= positions:
        return 0.0
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > 0, rows / lengths.clamp_min(torch.finfo(torch.float64).tiny), 0)
    # Rounding may put an eigenvalue of zero below it.
    return max(0.0, float(torch.linalg.eigvalsh(rows @ rows.T)[0]))


def meco(subject: Subject) -> float:
    """Sum over convolutions of the smallest eigenvalue of the correlations between their channels."""
    maps = [each for each in subject.first_pass.watch.maps if len(each) > 1]
    if not maps:
        raise NotDefined("correlations need a convolution with two channels or more, and the network has none")
    return sum(map(smallest_eigenvalue, maps))


MECO = Proxy("meco", meco, 1, "forward", "Jiang et al. 2023: smallest eigenvalues of feature maps' correlations")
