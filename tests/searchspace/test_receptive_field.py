"""Both receptive fields of PPENet against sums by hand."""

from dataclasses import replace

import pytest

from hardware.cost import receptive_field
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.ppe import Ppe
from searchspace.blocks.rep import Rep
from searchspace.blocks.rk import Rkp
from searchspace.network import deploy_graph
from searchspace.receptive_field import rf_paper
from searchspace.references import reference
from searchspace.spec import ArchSpec


def ppenet_l(kernels, dilation=1):
    drawn = iter(kernels)
    return reference("ppenet_l").map_blocks(
        lambda block: replace(block, kernel=next(drawn), dilation=dilation) if isinstance(block, Rkp) else block
    )


# Six DBC of 3, and the sums of RF_i: for kernels of 3 these are 3, 6, 9, 12, 15.
# The true one: DBC add 2 j and RKP (k - 1) a j + 2 j, where j is 1, 2, 4, 8, 16, 32 before the DBC and doubled behind.
FIELDS = {
    "all 3": (ppenet_l((3,) * 5), 18 + 45, 1 + 2 * (1 + 2 + 4 + 8 + 16 + 32) + 4 * (2 + 4 + 8 + 16 + 32)),
    "all 9": (ppenet_l((9,) * 5), 18 + 135, 747),
    "drawn": (ppenet_l((3, 9, 3, 9, 9)), 105, 687),
    "dilated": (ppenet_l((3, 9, 3, 9, 9), dilation=2), 18 + 2 * 87, 1123),
}


@pytest.mark.parametrize(("spec", "on_paper", "true"), FIELDS.values(), ids=FIELDS)
def test_receptive_fields_of_ppenet_l(spec, on_paper, true):
    field = receptive_field(deploy_graph(spec))
    assert (field.height, field.width, field.jump) == (true, true, 32)
    assert rf_paper(spec) == on_paper


def test_the_true_field_of_depthwise_rk_is_that_of_its_larger_path():
    # Without RK's second 3x3; PPE looks 3 far, RK 9.
    spec = ArchSpec((3, 32, 32), Dbc(4), ((Rkp(kernel=9),), (Dbc(8), Ppe())), Classifier(5))
    assert receptive_field(deploy_graph(spec)).height == 1 + 2 + 2 * 8 + 2 * 2 + 4 * 2
    assert rf_paper(spec) == (3 + 9) + (3 + 9 + 3)


def test_the_papers_field_is_not_made_up_for_other_blocks():
    spec = ArchSpec((3, 32, 32), Dbc(4), ((Rkp(), Rep(8, stride=2)),), Classifier(5))
    with pytest.raises(ValueError, match=r"dbc, rkp and ppe blocks, got Rep as stages\.0\.1"):
        rf_paper(spec)
