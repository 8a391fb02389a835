"""MobileNetV3 from its paper's tables, and with PPE, against a plain build in torch and against what is published."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.ppe import Ppe
from searchspace.layers import squeezed_width
from searchspace.network import Network, build_network
from searchspace.references import reference
from searchspace.references.comparison import compare
from searchspace.spec import ArchSpec, spec_id

# Howard et al., ICCV 2019: kernel, inner width, width, squeeze-and-excite, activation, stride.
RE, HS = nn.ReLU, nn.Hardswish
TABLE_1 = (
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)
TABLE_2 = (
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)
# The inner widths of squeeze-and-excite in the published weights, by the channels that it scales.
SQUEEZED = {16: 8, 72: 24, 96: 24, 120: 32, 144: 40, 240: 64, 288: 72, 480: 120, 576: 144, 672: 168, 960: 240}


class Gate(nn.Module):
    def __init__(self, channels, inner, bias):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, inner, bias), nn.Linear(inner, channels, bias)

    def forward(self, x):
        inner = nn.functional.relu(self.squeeze(x.flatten(2).mean(2)))
        return x * nn.functional.relu6(self.excite(inner) + 3)[:, :, None, None] / 6


class Bottleneck(nn.Module):
    def __init__(self, channels, row, inner, bias):
        super().__init__()
        kernel, hidden, width, gated, activation, stride = row
        widen = (*conv_norm(channels, hidden, 1, 1), activation()) if hidden != channels else ()
        self.layers = nn.Sequential(
            *widen,
            *conv_norm(hidden, hidden, kernel, stride, hidden),
            activation(),
            *((Gate(hidden, inner(hidden), bias),) if gated else ()),
            *conv_norm(hidden, width, 1, 1),
        )
        self.adds = stride == 1 and channels == width

    def forward(self, x):
        return x + self.layers(x) if self.adds else self.layers(x)


def conv_norm(channels, width, kernel, stride, groups=1):
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(width)


def plain(table, last, hidden, *, classes=1000, inner=SQUEEZED.get, bias=True, behind=lambda index, width: ()):
    """The network in plain torch; `behind` is what follows a block."""
    layers, channels = [*conv_norm(3, 16, 3, 2), nn.Hardswish()], 16
    for index, row in enumerate(table):
        layers += [Bottleneck(channels, row, inner, bias), *behind(index, row[2])]
        channels = row[2]
    layers += [*conv_norm(channels, last, 1, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, hidden), nn.Hardswish(), nn.Linear(hidden, classes))


def quarter(channels):
    return channels // 4


PLAIN = {
    "mobilenet_v3_large": lambda: plain(TABLE_1, 960, 1280),
    "mobilenet_v3_small": lambda: plain(TABLE_2, 576, 1024),
    "mobilenet_v3_small_v1": lambda: plain(TABLE_2, 576, 1280, inner=quarter, bias=False),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_file_computes_what_a_plain_build_does(name):
    spec = reference(name)
    ours = build_network(replace(spec, input_shape=(3, 75, 66)), seed=1).double().eval()
    theirs = PLAIN[name]().double().eval()
    # Both run in one order, so their parameters and statistics do too, but for the shapes of 1x1 convolutions.
    values = ours.state_dict().values()
    assert len(values) == len(theirs.state_dict())
    with torch.no_grad():
        for mine, other in zip(values, theirs.state_dict().values(), strict=True):
            if mine.is_floating_point():
                other.copy_(mine.uniform_(0.5, 1) if mine.dim() == 1 else mine.reshape(other.shape))
        x = torch.randn(2, 3, 75, 66, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        expected, found = theirs(x), ours(x)
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() < 1e-11


def counted(network, size=224):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval().requires_grad_(False)(torch.empty(1, 3, size, size))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


# Parameters as PyTorch's documentation has them for the two that it has weights of.
@pytest.mark.parametrize(("name", "params"), [("mobilenet_v3_large", 5_483_032), ("mobilenet_v3_small", 2_542_856)])
def test_parameters_are_those_of_the_networks_with_public_weights(name, params):
    with torch.device("meta"):
        assert counted(Network(reference(name)))[0] == params


@pytest.mark.parametrize("name", PLAIN)
def test_both_forms_of_the_file_count_as_the_plain_build(name):
    with torch.device("meta"):
        expected = counted(PLAIN[name]())
    found = compare(name)
    assert (found.trained.params, found.trained.macs) == expected
    # Folding takes a scale, a shift and leaves a bias for each channel of a norm.
    with torch.device("meta"):
        norms = sum(part.num_features for part in PLAIN[name]().modules() if isinstance(part, nn.BatchNorm2d))
        biases = sum(
            layer.out_features
            for layer in PLAIN[name]().modules()
            if isinstance(layer, nn.Linear) and layer.bias is None
        )
    assert found.deployed.params == expected[0] - norms + biases
    assert found.deployed.macs == expected[1]


def test_squeezed_widths():
    assert {channels: squeezed_width(channels, 4, 8) for channels in SQUEEZED} == SQUEEZED
    # 8 and 16 are the nearest to 11 and 18, but lose more than a tenth; 12 and 20 lie halfway.
    assert [squeezed_width(4 * wanted, 4, 8) for wanted in (0, 1, 4, 11, 12, 18, 20, 72)] == [
        8,
        8,
        8,
        16,
        16,
        24,
        24,
        72,
    ]
    assert [squeezed_width(channels, 4) for channels in (1, 7, 72, 120)] == [1, 1, 18, 30]


def with_ppe(host):
    """PPE behind the last block of each map size."""
    return replace(reference(host), stages=tuple((*stage, Ppe()) for stage in reference(host).stages))


@pytest.mark.parametrize(
    ("name", "host"),
    [("mobilenet_v3_small_ppe", "mobilenet_v3_small_v1"), ("mobilenet_v3_large_ppe", "mobilenet_v3_large")],
)
def test_ppe_stands_behind_the_last_block_of_each_map_size(name, host):
    spec = with_ppe(host)
    assert reference(name) == replace(spec, head=replace(spec.head, classes=5))
    for stage in spec.stages[1:]:
        assert [getattr(block, "stride", 1) for block in stage] == [2] + [1] * (len(stage) - 1)


def params_and_macs(name):
    (row,) = [row for row in compare(name).rows if row.paper == "PPENet"]
    return row.counted.params, row.flops


def test_small_with_ppe_has_the_figures_that_the_paper_prints():
    # Seed 000, Table 3: 0.01 M parameters more in Small, and no more multiply-adds that show. By hand: a PPE has a
    # scale, three depthwise 3x3 kernels and a norm, and convolves twice; the third runs over the kernels.
    small, with_it = params_and_macs("mobilenet_v3_small_v1"), params_and_macs("mobilenet_v3_small_ppe")
    places = {16: 56, 24: 28, 48: 14, 96: 7}
    assert with_it[0] - small[0] == sum(width * (1 + 27 + 2) for width in places)
    assert with_it[1] - small[1] == sum(width * (2 * 9 * size**2 + 81) for width, size in places.items())
    assert (round(small[0] / 1e6, 2), round(with_it[0] / 1e6, 2)) == (1.66, 1.67)
    assert round(small[1] / 1e9, 2) == round(with_it[1] / 1e9, 2) == 0.06


def first_version_large():
    """Howard et al., arXiv 1905.02244, first version, table 1: 672 to 160 at 14 x 14, and one row less behind."""
    return (*TABLE_1[:12], (5, 672, 160, True, HS, 1), (5, 672, 160, True, HS, 2), (5, 960, 160, True, HS, 1))


def test_no_large_network_has_both_figures_of_the_paper():
    # Seed 000, Table 3: 4.2 M and 0.24 G, trained with 5 classes.
    with torch.device("meta"):
        later = counted(plain(TABLE_1, 960, 1280, classes=5))
        first = counted(plain(first_version_large(), 960, 1280, classes=5))
    assert (round(later[0] / 1e6, 1), round(later[1] / 1e9, 2)) == (4.2, 0.22)
    assert (round(first[0] / 1e6, 1), round(first[1] / 1e9, 2)) == (3.9, 0.24)
    assert {row.verdict for row in compare("mobilenet_v3_large").rows if row.paper == "PPENet"} == {"unexplained"}


def test_spec_ids_from_before_the_new_fields_stay():
    # Taken down before `squeeze_multiple`, `squeeze_bias` and `hidden` were there.
    spec = ArchSpec(
        (3, 32, 32),
        PlainConv(8),
        ((InvertedResidual(8, squeeze_excite=True),),),
        Classifier(10, width=16, norm=True),
    )
    assert spec_id(spec) == "2c4aadddf799"
