"""Which kernels of a network the dispersion is taken of."""

import pytest

from evaluators.dispersion import dispersion, network_dispersion
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.patch import Patch
from searchspace.network import build_network
from searchspace.spec import ArchSpec


@pytest.mark.parametrize(
    ("block", "kernels"),
    [(Gfae(), ["depthwise"]), (Lfae(), ["depthwise", "partial"]), (Parc(8, 8, depth=1), ["local", "join"])],
)
def test_norms_constants_and_transposed_convolutions_are_left_out(block, kernels):
    network = build_network(ArchSpec((3, 16, 16), Patch(8), ((block,),), Classifier(2, norm=True)), seed=1).eval()
    stem, middle, _ = network.blocks
    expected = dispersion([stem.folded()["conv"].weight, *(middle.folded()[name].weight for name in kernels)])
    assert network_dispersion(network) == expected
