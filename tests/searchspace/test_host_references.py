"""RDPNet and the networks that the papers put their operators into, built here from their tables, kept as YAML."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.kernels import fuse
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.resnet import Basic, Bottleneck
from searchspace.coverage import parse_layout
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, block_graph, build_network, deploy, deploy_graph
from searchspace.references import reference
from searchspace.registry import family_of
from searchspace.spec import ArchSpec

PHOTO = (3, 224, 224)
THUMBNAIL = (3, 32, 32)


def repeated(block, widths, depths, strides):
    """One stage per width, its stride in its first block."""
    return tuple(
        (block(width, stride), *(block(width, 1),) * (depth - 1))
        for width, depth, stride in zip(widths, depths, strides, strict=True)
    )


def vgg16():
    """Simonyan and Zisserman, Table 1, column D, with one linear layer, as usual for CIFAR."""
    rows = ((64, 1), (128, 2), (256, 3), (512, 3), (512, 3))
    stages = tuple((*(PlainConv(width),) * (depth - 1), PlainConv(width, max_pool=2)) for width, depth in rows)
    return ArchSpec(THUMBNAIL, PlainConv(64), stages, Classifier(10))


def resnet(block, depths, classes):
    """He et al., Table 1."""
    stages = repeated(block, (64, 128, 256, 512), depths, (1, 2, 2, 2))
    return ArchSpec(PHOTO, PlainConv(64, 2, 7, max_pool=3), stages, Classifier(classes))


def mobilenet_v2():
    """Sandler et al., Table 2."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    stages = tuple(
        (InvertedResidual(width, stride, expand=expand), *(InvertedResidual(width, expand=expand),) * (depth - 1))
        for expand, width, depth, stride in rows
    )
    return ArchSpec(PHOTO, PlainConv(32, 2, activation="relu6"), stages, Classifier(1000, 1280, "relu6"))


def repvgg_a0(classes=1000):
    """Ding et al., "RepVGG", Tables 2 and 3."""
    return ArchSpec(PHOTO, Rep(48, 2), repeated(Rep, (48, 96, 192, 1280), (2, 4, 14, 1), (2,) * 4), Classifier(classes))


def rdpnet(multiplier, in_shape, classes, strides):
    """Seed 004, Table 2; the last stage has 1280 channels at every multiplier, as in RepVGG-A."""
    widths = [round(multiplier * width) for width in (64, 128, 256)]
    stages = repeated(Rdp, (*widths, 1280), (1, 4, 14, 1), strides[1:])
    return ArchSpec(in_shape, Rep(min(64, widths[0]), strides[0]), stages, Classifier(classes))


# "We swap out the Stride in the first two Stages for 1" (seed 004, on CIFAR).
CIFAR_STRIDES, PHOTO_STRIDES = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2)
MULTIPLIERS = {"x0_25": 0.25, "x0_5": 0.5, "x0_75": 0.75, "x1_0": 1.0, "x1_25": 1.25, "x1_5": 1.5}

BUILT = {
    "vgg16_cifar": vgg16(),
    "resnet18": resnet(Basic, (2, 2, 2, 2), 1000),
    "resnet34": resnet(Basic, (3, 4, 6, 3), 5),
    "resnet50": resnet(lambda inner, stride: Bottleneck(4 * inner, inner, stride), (3, 4, 6, 3), 1000),
    "mobilenet_v2": mobilenet_v2(),
    "repvgg_a0": repvgg_a0(),
    **{f"rdpnet_{name}_cifar": rdpnet(times, THUMBNAIL, 10, CIFAR_STRIDES) for name, times in MULTIPLIERS.items()},
    **{f"rdpnet_{name}_imagenet": rdpnet(times, PHOTO, 1000, PHOTO_STRIDES) for name, times in MULTIPLIERS.items()},
}

# Parameters of the folded form in millions; `test_references` has the train forms and multiply-adds. RepVGG's authors
# give 8.30 M for A0.
FOLDED = {
    "vgg16_cifar": 14.720,
    "resnet18": 11.685,
    "resnet34": 21.279,
    "resnet50": 25.530,
    "mobilenet_v2": 3.488,
    "repvgg_a0": 8.309,
    "rdpnet_x0_25_cifar": 0.167,
    "rdpnet_x0_5_cifar": 0.439,
    "rdpnet_x0_75_cifar": 0.828,
    "rdpnet_x1_0_cifar": 1.336,
    "rdpnet_x1_25_cifar": 1.960,
    "rdpnet_x1_5_cifar": 2.703,
    "rdpnet_x0_25_imagenet": 1.435,
    "rdpnet_x0_5_imagenet": 1.707,
    "rdpnet_x0_75_imagenet": 2.096,
    "rdpnet_x1_0_imagenet": 2.604,
    "rdpnet_x1_25_imagenet": 3.229,
    "rdpnet_x1_5_imagenet": 3.971,
}


def trained_parameters(spec):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Network(spec).parameters())


@pytest.mark.parametrize("name", BUILT)
def test_the_file_describes_what_the_papers_table_does(name):
    assert reference(name) == BUILT[name]


@pytest.mark.parametrize(("name", "params"), FOLDED.items())
def test_folded_parameters_are_the_published_ones(name, params):
    assert round(cost(deploy_graph(reference(name))).params / 1e6, 3) == params


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("mobilenet_v2", 3_504_872)]
)
def test_train_forms_have_torchvisions_parameters(name, parameters):
    assert trained_parameters(reference(name)) == parameters


def test_resnet34_with_a_thousand_classes_has_torchvisions_parameters():
    spec = reference("resnet34")
    assert trained_parameters(replace(spec, head=replace(spec.head, classes=1000))) == 21_797_672


def test_repvgg_a0_with_ten_classes():
    # Seed 004, Table 1 has 7.0 M for it, next to RDPNets with ten classes.
    spec = repvgg_a0(10)
    assert round(trained_parameters(spec) / 1e6, 3) == 7.841
    assert round(cost(deploy_graph(spec)).params / 1e6, 3) == 7.041


# Millions of multiply-adds with the strides of the text, with strides of 1 in the second and third stage, which the
# paper's FLOPs fit better, and of the train form with the strides of the text.
@pytest.mark.parametrize(
    ("name", "folded", "other", "trained"),
    [
        ("x0_25", 7.590, 6.841, 13.79),
        ("x0_5", 24.605, 22.713, 46.45),
        ("x0_75", 51.057, 47.629, 97.97),
        ("x1_0", 86.946, 81.589, 168.37),
        ("x1_25", 130.372, 124.118, 254.37),
        ("x1_5", 182.711, 175.559, 358.20),
    ],
)
def test_macs_of_rdpnet_by_strides_and_form(name, folded, other, trained):
    spec = reference(f"rdpnet_{name}_cifar")
    assert round(cost(deploy_graph(spec)).macs / 1e6, 3) == folded
    early = rdpnet(MULTIPLIERS[name], THUMBNAIL, 10, (2, 1, 1, 2, 2))
    assert round(cost(deploy_graph(early)).macs / 1e6, 3) == other
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        Network(spec).eval()(torch.zeros(1, *spec.input_shape))
    assert round(counter.get_total_flops() / 2e6, 2) == trained


@pytest.mark.parametrize("window", [-1, 1])
def test_a_pool_that_pools_nothing_is_refused(window):
    with pytest.raises(ValueError, match="max_pool must"):
        PlainConv(8, max_pool=window)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_a_pool_halves_an_even_map(window):
    assert block_graph((4, 12, 10), PlainConv(8, max_pool=window)).output_shape == (8, 6, 5)


@pytest.mark.parametrize(
    ("spec", "last"),
    [
        (Basic(8), "conv(8x6x6,8x6x6>8 k3x3 s1 p1x1 g1)+add+relu"),
        (Basic(12, 2), "conv(12x3x3,12x3x3>12 k3x3 s1 p1x1 g1)+add+relu"),
        (Bottleneck(8, 4), "conv(4x6x6,8x6x6>8 k1x1 s1 p0x0 g1)+add+relu"),
        (Bottleneck(12, 4, 2), "conv(4x3x3,12x3x3>12 k1x1 s1 p0x0 g1)+add+relu"),
    ],
)
def test_the_sum_of_a_residual_block_fuses_into_its_last_convolution(spec, last):
    kernels = fuse(block_graph((8, 6, 6), spec), [("conv", "relu"), ("conv", "add", "relu")])
    assert all(kernel.key.startswith("conv") for kernel in kernels)
    assert kernels[-1].key == last


def with_layouts(spec):
    layouts = {3: parse_layout("K3:0.0.3.1-0.1.3.1-0.2.3.1-1.0.1.3"), 7: parse_layout("K7:0.0.7.4-0.3.7.4")}

    def change(block):
        carried = family_of(block).layout_kernels(block)
        return replace(block, **{name: layouts[size] for name, size in carried.items()})

    return spec.map_blocks(change)


@pytest.mark.parametrize(
    "name", ["vgg16_cifar", "resnet18", "resnet50", "mobilenet_v2", "repvgg_a0", "rdpnet_x0_25_cifar"]
)
def test_a_whole_network_with_layouts_folds_into_the_published_one(name):
    spec = with_layouts(replace(reference(name), input_shape=(3, 35, 33)))
    network = build_network(spec, seed=1).train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, *spec.input_shape, generator=generator))
        x = torch.randn(2, *spec.input_shape, generator=generator)
        single = network.eval()(x)
        folded = deploy(network)
        assert (DeployModule(folded)(x) - single).abs().max() < 1e-5 * single.abs().max()
        double = network.double()(x.double())
        assert double.std() > 1e-3
        assert (DeployModule(deploy(network))(x.double()) - double).abs().max() < 1e-11
    assert sum(value.size for value in folded.weights.values()) == cost(deploy_graph(BUILT[name])).params
