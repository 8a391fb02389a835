"""The published networks against the figures that they are published with."""

from dataclasses import replace

import pytest
import torch

from hardware.cost import cost
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, build_network, deploy, deploy_graph
from searchspace.references import reference, reference_names
from searchspace.spec import spec_from_dict, spec_to_dict

# Parameters of the train form and multiply-adds, in millions. ParC-Net and its hosts: the authors' code, counted
# layer by layer, for the hosts in tests/searchspace/test_plugin_references.py. ResNet-34 with PPE: where a guess puts
# it. PPENet: the train form's 2173 and 4377 million less its branches, which tests/searchspace/blocks/test_rk.py
# sums. MixMobileNet: the train form does 239.8, 475.8 and 1219.0 (tests/searchspace/blocks/test_mix.py compares with
# the paper); the pool that its attention folds into a convolution saves 5 multiply-adds at each value that enters it.
# MobileNetV3: tests/searchspace/test_mobilenet_v3.py.
# The others: torchvision's documentation, RepVGG, and the tables of RDPNet's networks built from its text.
COUNTED = {
    "convnext_t_x0_5": (7.438, 1144),
    "mixmobilenet_s": (7.323, 1218),
    "mixmobilenet_xs": (3.157, 475),
    "mixmobilenet_xxs": (1.505, 239),
    "mobilenet_v2": (3.505, 301),
    "mobilenet_v3_large": (5.483, 217),
    "mobilenet_v3_large_ppe": (4.219, 218),
    "mobilenet_v3_small": (2.543, 57),
    "mobilenet_v3_small_ppe": (1.669, 56),
    "mobilenet_v3_small_v1": (2.938, 57),
    "parc_convnext_t_x0_5": (7.413, 1139),
    "parc_mobilenet_v2": (3.532, 302),
    "parc_resnet50": (23.738, 3941),
    "parcnet_s": (5.037, 1657),
    "parcnet_xs": (2.185, 944),
    "ppenet_l": (6.742, 2155),
    "ppenet_s": (2.420, 4354),
    "rdpnet_x0_25_cifar": (0.322, 8),
    "rdpnet_x0_25_imagenet": (1.590, 30),
    "rdpnet_x0_5_cifar": (0.862, 25),
    "rdpnet_x0_5_imagenet": (2.130, 87),
    "rdpnet_x0_75_cifar": (1.639, 51),
    "rdpnet_x0_75_imagenet": (2.907, 174),
    "rdpnet_x1_0_cifar": (2.652, 87),
    "rdpnet_x1_0_imagenet": (3.920, 289),
    "rdpnet_x1_25_cifar": (3.899, 130),
    "rdpnet_x1_25_imagenet": (5.167, 422),
    "rdpnet_x1_5_cifar": (5.381, 183),
    "rdpnet_x1_5_imagenet": (6.649, 582),
    "repvgg_a0": (9.109, 1361),
    "resnet18": (11.690, 1814),
    "resnet34": (21.287, 3663),
    "resnet34_ppe": (21.316, 3667),
    "resnet50": (25.557, 4089),
    "vgg16_cifar": (14.724, 313),
}


def test_every_reference_has_its_figures():
    assert set(reference_names()) == set(COUNTED)


@pytest.mark.parametrize(("name", "params", "macs"), [(name, *figures) for name, figures in COUNTED.items()])
def test_parameters_and_macs_are_the_published_ones(name, params, macs):
    spec = reference(name)
    with torch.device("meta"):
        trained = sum(parameter.numel() for parameter in Network(spec).parameters())
    assert round(trained / 1e6, 3) == params
    assert round(cost(deploy_graph(spec)).macs / 1e6) == macs


def test_folded_parameters_of_parcnet_s():
    model = deploy(build_network(reference("parcnet_s"), seed=1))
    size = {name: value.size for name, value in model.weights.items()}
    # The first of two circular convolutions and the one that enters the blocks have no bias to learn; every convolution
    # of a graph has one, so theirs are zeros.
    unlearnt = sum(
        size[name]
        for name in size
        if name.endswith(("height_first.first.bias", "width_first.first.bias", "enter.bias"))
    )
    assert unlearnt == (2 + 1) * 192 + (4 + 1) * 256 + (3 + 1) * 320
    assert round((sum(size.values()) - unlearnt) / 1e6, 3) == 5.019
    embeddings = sum(size[name] for name in size if name.endswith(("rows.constant", "columns.constant")))
    assert embeddings == 192 * (32 + 32) + 256 * (16 + 16) + 320 * (8 + 8)


def test_parcnet_s_at_224():
    spec = replace(reference("parcnet_s"), input_shape=(3, 224, 224))
    assert round(cost(deploy_graph(spec)).macs / 1e6) == 1266


def test_a_whole_parcnet_folds_at_another_size_than_it_was_trained_at():
    trained = build_network(reference("parcnet_xs"), seed=1).double()
    trained.train()
    with torch.no_grad():
        for seed in range(3):
            trained(torch.randn(4, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    smaller = Network(replace(trained.spec, input_shape=(3, 96, 64))).double()
    smaller.load_state_dict(trained.state_dict())
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = trained.eval()(x)
        folded = DeployModule(deploy(smaller.eval()))(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", reference_names())
def test_a_reference_survives_a_file(name):
    assert spec_from_dict(spec_to_dict(reference(name))) == reference(name)


def test_an_unknown_reference_suggests_one():
    with pytest.raises(ValueError, match="did you mean 'parcnet_xs'"):
        reference("parcnet-xs")
