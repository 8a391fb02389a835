"""RKP against the paper's description layer by layer, and PPENet against the counts that it is published with."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.ops import AddConstant
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.dbc import Dbc, DbcBlock
from searchspace.blocks.ppe import Ppe
from searchspace.blocks.rk import RkConvs, Rkp, RkpBlock
from searchspace.coverage import Layout, Rectangle
from searchspace.layouts import with_random_layouts
from searchspace.network import Network, deploy_graph
from searchspace.references import reference
from searchspace.registry import BlockSpec, family_named
from searchspace.spec import ArchSpec, deploy_id

ROWS = Layout(3, tuple(Rectangle(row, 0, 1, 3) for row in range(3)))


def ppenet(widths: tuple[int, ...], blocks: tuple[BlockSpec, ...], last: Dbc) -> ArchSpec:
    """A DBC of each width before its block, and one at the end; five classes, 224 x 224 (Table 2)."""
    first, *others = widths
    stages = zip(blocks, (*map(Dbc, others), last), strict=True)
    return ArchSpec((3, 224, 224), Dbc(first), tuple(stages), Classifier(5))


def rkps(kernels: tuple[int, ...], pointwise: tuple[bool, ...], rkp: Rkp) -> tuple[Rkp, ...]:
    return tuple(replace(rkp, kernel=k, pointwise=p) for k, p in zip(kernels, pointwise, strict=True))


DENSE = Rkp(variant="dense")
WIDTHS_L, POINTWISE_L = (32, 48, 72, 96, 156), (False, False, False, True, True)


def ppenet_l(kernels: tuple[int, ...], rkp: Rkp = DENSE) -> ArchSpec:
    return ppenet(WIDTHS_L, rkps(kernels, POINTWISE_L, rkp), Dbc(196, stride=1))


def ppenet_s(kernels: tuple[int, ...]) -> ArchSpec:
    return ppenet((32, 72, 96), rkps(kernels, (False, True, True), DENSE), Dbc(128))


PPE_ONLY = ppenet(WIDTHS_L, (Ppe(),) * 5, Dbc(196, stride=1))


def on_paper(spec: ArchSpec) -> Network:
    """The train form without memory for its weights."""
    with torch.device("meta"):
        return Network(spec).eval()


def train_params(spec: ArchSpec) -> int:
    return sum(parameter.numel() for parameter in on_paper(spec).parameters())


def train_macs(spec: ArchSpec) -> int:
    network = on_paper(spec).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *spec.input_shape, device="meta"))
    return counter.get_total_flops() // 2


# What is published counts the train form. Parameters in millions and multiply-adds in billions as published, and as
# counted here. The paper prints no kernels: each row has a draw that comes near it.
PUBLISHED = {
    "L, Table 5": (ppenet_l((3, 9, 3, 9, 9)), (6.7, 6.742), (2.175, 2.173)),
    "L, Table 1": (ppenet_l((3, 7, 7, 7, 5)), (3.7, 3.694), (None, 1.787)),
    "L, only PPE": (PPE_ONLY, (0.58, 0.591), (0.147, 0.1346)),
    "L, only RK": (ppenet_l((7, 5, 3, 5, 9), replace(DENSE, ppe=False)), (5.4, 5.522), (2.115, 2.178)),
    "S, Table 1": (ppenet_s((7, 7, 9)), (2.4, 2.420), (None, 4.377)),
    "S, Table 4": (ppenet_s((3, 9, 5)), (1.65, 1.638), (None, 3.581)),
}


@pytest.mark.parametrize(("spec", "params", "macs"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_train_form_counts_as_published(spec, params, macs):
    published, counted = params
    assert train_params(spec) == pytest.approx(counted * 1e6, abs=500)
    assert counted == pytest.approx(published, rel=0.025)
    published, counted = macs
    assert train_macs(spec) == pytest.approx(counted * 1e9, abs=5e5)
    if published is not None:
        assert counted == pytest.approx(published, rel=0.085)


@pytest.mark.parametrize(("rkp", "smallest", "largest"), [(DENSE, 1.58, 7.64), (Rkp(), 0.906, 0.964)])
def test_only_dense_kernels_span_the_published_sizes(rkp, smallest, largest):
    # Tables 1 and 5 print 3.7 M and 6.7 M for the same network.
    assert train_params(ppenet_l((3,) * 5, rkp)) == pytest.approx(smallest * 1e6, rel=1e-3)
    assert train_params(ppenet_l((9,) * 5, rkp)) == pytest.approx(largest * 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "params", "maps"),
    [
        (ppenet_l((3, 9, 3, 9, 9)), 6.672, 32 * 112**2 + 48 * 56**2 + 72 * 28**2 + 96 * 14**2 + 156 * 7**2),
        (ppenet_s((7, 7, 9)), 2.392, 32 * 112**2 + 72 * 56**2 + 96 * 28**2),
    ],
)
def test_the_deploy_form_has_the_folded_weights_and_a_dense_map_per_ppe(spec, params, maps):
    graph = deploy_graph(spec)
    constants = [node.shape for node in graph.nodes if isinstance(node.op, AddConstant)]
    assert sum(c * h * w for c, h, w in constants) == maps
    assert cost(graph).params - maps == pytest.approx(params * 1e6, abs=500)


def test_the_device_is_spared_the_branches():
    spec = ppenet_l((3, 9, 3, 9, 9))
    # (in, out, size): the 1x1 branches of DBC.
    branches = [(3, 32, 112), (32, 48, 56), (48, 72, 28), (72, 96, 14), (96, 156, 7), (156, 196, 7)]
    spared = sum(before * after * size**2 for before, after, size in branches)
    # Of PPE the second depthwise convolution, and the one that runs over the 3x3 kernels.
    spared += sum(9 * channels * (size**2 + 9) for _, channels, size in branches[:-1])
    assert train_macs(spec) - cost(deploy_graph(spec)).macs == spared


@pytest.mark.parametrize(("name", "spec"), [("ppenet_l", ppenet_l((3, 9, 3, 9, 9))), ("ppenet_s", ppenet_s((7, 7, 9)))])
def test_the_reference_is_the_published_network(name, spec):
    assert reference(name) == spec


def conv_norm(in_channels, out_channels, kernel, *, dilation=1, groups=1):
    padding = dilation * (kernel - 3) // 2 + dilation  # the paper's 1 + n, times the dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


# Channels 3, hidden 6.
LAYERS = {
    Rkp(kernel=7, dilation=2): [
        *(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(*conv_norm(6, 6, 7, dilation=2, groups=6), nn.ReLU()),
        *(nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)),
    ],
    Rkp(kernel=5, pointwise=True): [
        *(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(*conv_norm(6, 6, 5, groups=6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)),
    ],
    Rkp(kernel=9, dilation=3, pointwise=True, variant="dense"): [
        *(*conv_norm(3, 6, 9, dilation=3), nn.ReLU()),
        *(*conv_norm(6, 6, 3, groups=6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)),
    ],
}


@pytest.mark.parametrize(("spec", "layers"), LAYERS.items())
def test_rk_is_the_sequence_of_layers_that_the_paper_describes(spec, layers):
    block, expected = RkConvs(3, spec), nn.Sequential(*layers)
    for own, other in zip(block.parameters(), expected.parameters(), strict=True):
        other.data.copy_(own.data)
    x = torch.randn(4, 3, 8, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # In training, so that each norm takes part with the statistics of what reaches it.
        torch.testing.assert_close(block(x), expected(x))


def test_rkp_adds_rk_and_ppe_to_its_input():
    block = RkpBlock((4, 6, 5), Rkp(kernel=5)).eval()
    x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(block(x), x + block.rk(x) + block.ppe(x))


def test_dbc_has_no_identity_even_where_a_repvgg_block_has_one():
    block = DbcBlock((4, 6, 6), Dbc(4, stride=1))
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 2


def test_layouts_reach_every_kernel_and_change_nothing_on_the_device():
    spec = ppenet_l((3, 9, 5, 7, 9), Rkp(dilation=2))
    branched = with_random_layouts(spec, random.Random(3))
    rkp_blocks = [block for _, block in branched.blocks() if isinstance(block, Rkp)]
    assert [block.layout.kernel for block in rkp_blocks] == [3, 9, 5, 7, 9]
    assert {block.ppe_layout for block in rkp_blocks} == {branched.stem.layout}
    assert deploy_id(branched) == deploy_id(spec)
    assert train_params(branched) > train_params(spec)
    assert deploy_graph(branched).fingerprint() == deploy_graph(spec).fingerprint()


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"kernel": 11}, r"kernel must be one of \(3, 5, 7, 9\), got 11"),
        ({"kernel": 4}, "got 4"),
        ({"dilation": 4}, r"dilation must be one of \(1, 2, 3\), got 4"),
        ({"dilation": 0}, "got 0"),
        ({"expand": 0}, "expand must be above 0, got 0"),
        ({"variant": "depthwise"}, "unknown variant 'depthwise'; known: dw, dense"),
        ({"ppe": False, "ppe_layout": ROWS}, "ppe_layout needs ppe"),
    ],
)
def test_genes_that_do_not_fit_are_refused(genes, message):
    with pytest.raises(ValueError, match=message):
        Rkp(**genes)


def test_the_contract_sees_every_value_and_both_variants_with_each_option():
    specs = [spec for _, spec in family_named("rkp").examples]
    assert {spec.kernel for spec in specs} == {3, 5, 7, 9}
    assert {spec.dilation for spec in specs} == {1, 2, 3}
    assert {spec.expand for spec in specs} == {1, 2, 3, 4}
    shown = {(spec.variant, spec.pointwise, spec.ppe) for spec in specs}
    assert {variant for variant, *_ in shown} == {"dw", "dense"}
    for variant, option in itertools.product(("dw", "dense"), (1, 2)):
        assert {row[option] for row in shown if row[0] == variant} == {False, True}
