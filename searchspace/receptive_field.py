"""PPENet's own measure of how far a network sees, next to the true one in `hardware.cost`.

It counts kernels without the strides between them, so it says nothing of pixels; what it is good for is to compare
draws of RK kernels within the paper's own terms.

Source: PPENet (seed 000), section 3.1, Equations 1 to 3.
"""

from collections.abc import Callable, Mapping

from searchspace.blocks import dbc, ppe
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.ppe import Ppe
from searchspace.blocks.rk import Rkp
from searchspace.spec import ArchSpec

# K_i of Equation 1, k_i a_i, of the blocks that add to RF_i; the paper sets K_0 to 3, the smallest kernel.
EXTENT: Mapping[type, Callable[..., int]] = {
    Rkp: lambda block: block.kernel * block.dilation,
    Ppe: lambda block: ppe.KERNEL,
}

# RF_DBC, which the paper leaves open: its 3x3 kernel.
DBC_EXTENT = dbc.KERNEL


def rf_paper(spec: ArchSpec) -> int:
    """RF_DBC + sum over i of (RF_DBC,i + RF_i), where RF_i = RF_(i-1) + K_i and RF_0 = K_0; the head does not count.

    Of RKP blocks with nothing between them each has its RF_i; the paper always puts a DBC there.

    Raises:
        ValueError: the network has blocks that the paper's formula does not know.
    """
    reached = total = 0
    for path, block in spec.blocks():
        if path == "head":
            continue
        if isinstance(block, Dbc):
            total += DBC_EXTENT
        elif type(block) in EXTENT:
            reached += EXTENT[type(block)](block)
            total += reached
        else:
            raise ValueError(
                "the paper's receptive field is defined for networks of dbc, rkp and ppe blocks, got "
                f"{type(block).__name__} as {path}; hardware.cost.receptive_field takes any network"
            )
    return total
