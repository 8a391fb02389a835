"""ParC and PPE in the networks that their papers put them into, built here from the hosts' tables, kept as YAML."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.convnext import ConvNext
from searchspace.blocks.parc_hosts import ParcBottleneck, ParcConvNext, ParcInvertedResidual
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.ppe import Ppe
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, build_network, deploy, deploy_graph
from searchspace.references import reference
from searchspace.spec import ArchSpec


def convnext():
    """Liu et al., appendix A, ConvNeXt-T, at half its width."""
    stages = [(ConvNext(),) * depth for depth in (3, 3, 9, 3)]
    steps = [(NormDown(width),) for width in (96, 192, 384)]
    later = tuple(step + stage for step, stage in zip(steps, stages[1:], strict=True))
    return ArchSpec((3, 224, 224), Patch(48), (stages[0], *later), Classifier(1000, norm=True))


def with_last_blocks(spec, counts, change):
    """`change(block, number)` in the place of the last blocks of some stages; counts by stage."""
    stages = list(spec.stages)
    for stage, count in counts.items():
        kept, changed = stages[stage][:-count], stages[stage][-count:]
        stages[stage] = (*kept, *(change(block, number) for number, block in enumerate(changed)))
    return replace(spec, stages=tuple(stages))


def with_ppe_behind_stages(spec):
    return replace(spec, stages=tuple((*stage, Ppe()) for stage in spec.stages))


PARC_BLOCKS = ParcBottleneck | ParcInvertedResidual | ParcConvNext

BUILT = {
    "convnext_t_x0_5": convnext(),
    "parc_convnext_t_x0_5": with_last_blocks(convnext(), {2: 3, 3: 1}, lambda block, number: ParcConvNext()),
    "parc_resnet50": with_last_blocks(
        reference("resnet50"), {2: 3, 3: 1}, lambda block, number: ParcBottleneck(block.width, block.inner_width)
    ),
    "parc_mobilenet_v2": with_last_blocks(
        reference("mobilenet_v2"),
        {3: 2, 4: 1, 5: 1},
        lambda block, number: ParcInvertedResidual(block.width, position_embedding=number == 0),
    ),
    "resnet34_ppe": with_ppe_behind_stages(reference("resnet34")),
}


@pytest.mark.parametrize("name", BUILT)
def test_the_file_describes_what_the_papers_table_does(name):
    assert reference(name) == BUILT[name]


def parc(in_half, out_half, length, embedding=True):
    """Parameters of one half: kernel, bias and position embedding; in_half is 1 for each channel of a depthwise one."""
    return out_half * (in_half * length + 1) + embedding * (out_half * length)


# What ParC has more than the host's KxK convolution, by hand: two halves less the kernel that was there.
RESNET50_CHANGE = 3 * (2 * parc(128, 128, 14) - 9 * 256**2) + 2 * parc(256, 256, 7) - 9 * 512**2
MOBILENET_CHANGE = (
    (2 * parc(1, 192, 14) - 9 * 384)
    + (2 * parc(1, 192, 14, embedding=False) - 9 * 384)
    + (2 * parc(1, 288, 14) - 9 * 576)
    + (2 * parc(1, 480, 7) - 9 * 960)
)
CONVNEXT_CHANGE = 3 * (2 * parc(1, 96, 14) - 50 * 192) + 2 * parc(1, 192, 7) - 50 * 384


def trained(spec):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Network(spec).parameters())


# Train parameters in all, and multiply-adds less those of the host (three stages of one map size each: 14, 14, 7).
@pytest.mark.parametrize(
    ("name", "host", "params", "macs"),
    [
        (
            "parc_resnet50",
            25_557_032 + RESNET50_CHANGE,
            23_737_640,
            3 * 196 * (2 * 14 * 128**2 - 9 * 256**2) + 49 * (2 * 7 * 256**2 - 9 * 512**2),
        ),
        (
            "parc_mobilenet_v2",
            3_504_872 + MOBILENET_CHANGE,
            3_532_136,
            196 * (384 * 2 + 576) * (14 - 9) + 49 * 960 * (7 - 9),
        ),
        (
            "parc_convnext_t_x0_5",
            trained(convnext()) + CONVNEXT_CHANGE,
            7_412_824,
            3 * 196 * 192 * (14 - 49) + 49 * 384 * (7 - 49),
        ),
    ],
)
def test_counts_are_those_of_the_host_and_the_change_by_hand(name, host, params, macs):
    hosts = {
        "parc_resnet50": "resnet50",
        "parc_mobilenet_v2": "mobilenet_v2",
        "parc_convnext_t_x0_5": "convnext_t_x0_5",
    }
    assert trained(reference(name)) == host == params
    assert cost(deploy_graph(reference(name))).macs == cost(deploy_graph(reference(hosts[name]))).macs + macs


def train_macs(spec):
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        Network(spec).eval().requires_grad_(False)(torch.zeros(1, *spec.input_shape))
    return counter.get_total_flops() / 2


# In millions, as published (ParC: Table 3 of seed 002, MobileNetV2's FLOPs at two for a multiply-add), and how far off.
@pytest.mark.parametrize(
    ("name", "params", "macs", "within"),
    [
        ("parc_resnet50", 24, 4000, 0.02),
        ("parc_mobilenet_v2", 3.5, 300, 0.01),
        ("convnext_t_x0_5", 7.4, 1100, 0.041),
        ("parc_convnext_t_x0_5", 7.4, 1100, 0.037),
        # The places of PPE are a guess, which the counts allow.
        ("resnet34_ppe", 21.2, 3680, 0.006),
    ],
)
def test_train_forms_come_as_near_as_the_papers_rounding_allows(name, params, macs, within):
    spec = reference(name)
    assert trained(spec) / 1e6 == pytest.approx(params, rel=within)
    assert train_macs(spec) / 1e6 == pytest.approx(macs, rel=within)


def test_no_place_of_ppe_is_told_by_its_cost():
    # Table 3 has 10 M multiply-adds, rounded, and less than 0.1 M parameters; a PPE costs that little anywhere.
    host = reference("resnet34")
    behind_one = [
        replace(host, stages=tuple((*stage, *(Ppe(),) * (index == chosen)) for index, stage in enumerate(host.stages)))
        for chosen in range(4)
    ]
    for spec in (*behind_one, reference("resnet34_ppe")):
        assert 0 < train_macs(spec) - train_macs(host) < 10e6
        assert 0 < trained(spec) - trained(host) < 0.1e6


def drawn(spec):
    network = build_network(spec, seed=1).double().train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
        for name, parameter in network.named_parameters():
            if name.endswith("layer_scale"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name.endswith(("embedding", "along_height.bias", "along_width.bias")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for _ in range(2):
            network(torch.randn(2, *spec.input_shape, generator=generator, dtype=torch.float64))
    return network.eval()


@pytest.mark.parametrize("name", BUILT)
def test_a_whole_network_folds_at_another_size_than_it_learnt_at(name):
    # ParC's kernels are 14 long, its maps 5 x 6 and 3 x 3, or 4 x 6 and 2 x 3 in ConvNeXt.
    spec = replace(reference(name), input_shape=(3, 76, 96)).map_blocks(
        lambda block: replace(block, base=14) if isinstance(block, PARC_BLOCKS) else block
    )
    network = drawn(spec)
    x = torch.randn(2, *spec.input_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        expected, folded = network(x), DeployModule(deploy(network))(x)
    assert expected.std() > 1e-3
    assert (folded - expected).abs().max() < 1e-11
