"""The default space holds what it was made to hold: six published networks, and sizes for boards small and large."""

import random

import pytest
import torch
import yaml
from torch import nn

from evaluators.static import StaticCosts
from hardware.cost import cost
from hardware.kernels import fuse
from hardware.latency_table import kernel_sums
from hardware.targets import load_target
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.cheapest import cheapest_member
from searchspace.choosers import random_choice, replay
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, build_network, deploy, deploy_graph
from searchspace.part import ask
from searchspace.space import Task, gene_options, largest_useful_kernel, member, stage_output
from searchspace.spaces import EDGE_SMALL
from searchspace.spec import ArchSpec, spec_from_dict, spec_id, spec_to_dict

# libyaml's are ten times faster where they are built in.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

CIFAR10 = Task(channels=3, classes=10)

# RDPNet (seed 004), Table 2 in its CIFAR form: widths of stem and first three stages by multiplier; what the networks
# then have was counted from the paper's text, apart from this code (architectures.md, 1.4): parameters of the deploy
# and of the train form and multiply-adds, all in millions.
RDPNETS = {
    0.25: ((16, 16, 32, 64), 0.1672, 0.3216, 7.590),
    0.5: ((32, 32, 64, 128), 0.4386, 0.8619, 24.605),
    0.75: ((48, 48, 96, 192), 0.8282, 1.6387, 51.057),
    1.0: ((64, 64, 128, 256), 1.3361, 2.6520, 86.946),
    1.25: ((64, 80, 160, 320), 1.9604, 3.8986, 130.372),
    1.5: ((64, 96, 192, 384), 2.7025, 5.3806, 182.711),
}

# What a stage of RDP modules leaves unused; each still has to be answered.
UNUSED = {"kernel": 5, "expand": 4, "squeeze_excite": True}


def rdpnet_genes(widths):
    genes = {"resolution": 32, "stem.width": widths[0], "stem.stride": 1, "head.width": 0}
    rows = zip((*widths[1:], 1280), (1, 4, 14, 1), (1, 2, 2, 2), strict=True)
    for index, (width, depth, stride) in enumerate(rows, start=1):
        answers = {"family": "rdp", "width": width, "depth": depth, "stride": stride, **UNUSED}
        genes |= {f"stage{index}.{name}": answer for name, answer in answers.items()}
    return genes


def rdpnet(widths):
    stem, first, second, third = widths
    return ArchSpec(
        (3, 32, 32),
        Rep(stem, 1),
        (
            (Rdp(first, 1),),
            (Rdp(second, 2), *(Rdp(second),) * 3),
            (Rdp(third, 2), *(Rdp(third),) * 13),
            (Rdp(1280, 2),),
        ),
        Classifier(10),
    )


@pytest.mark.parametrize(("widths", "params", "train_params", "macs"), RDPNETS.values(), ids=map(str, RDPNETS))
def test_the_published_rdpnets_are_members_with_their_own_figures(widths, params, train_params, macs):
    spec = member(EDGE_SMALL, replay(rdpnet_genes(widths)), CIFAR10)
    assert spec == rdpnet(widths)
    own = cost(deploy_graph(spec))
    assert round(own.params / 1e6, 4) == params
    assert round(own.macs / 1e6, 3) == macs
    with torch.device("meta"):
        network = Network(spec)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 4) == train_params


def members(count, seed=0):
    rng = random.Random(seed)
    return [member(EDGE_SMALL, random_choice(rng), CIFAR10) for _ in range(count)]


def test_there_are_members_of_about_one_and_about_two_hundred_million_macs():
    macs = [cost(deploy_graph(spec)).macs / 1e6 for spec in members(2000)]
    assert any(0.8 <= one <= 1.2 for one in macs)
    assert any(190 <= one <= 210 for one in macs)
    assert min(macs) < 1.2
    assert max(macs) > 200


def test_five_milliseconds_are_a_budget_that_some_members_keep_and_most_do_not():
    costs = StaticCosts(load_target("rk3288"))
    within = sum(costs(spec).latency.high_ms <= 5 for spec in members(500))
    assert 5 <= within <= 250


def test_inputs_are_from_32_to_96_pixels():
    options = gene_options(EDGE_SMALL)
    assert (min(options["resolution"]), max(options["resolution"])) == (32, 96)
    assert {spec.input_shape[1] for spec in members(100)} == set(options["resolution"])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_a_map_is_not_made_smaller_than_two_by_two(size):
    shape, choose = (8, size, size), random_choice(random.Random(size))
    stages = [tuple(part.build(ask(part, choose), shape)) for part in EDGE_SMALL.stages for _ in range(40)]
    # A stage of stride 2 halves, rounding up; one of stride 1 leaves the size.
    halved = {(size + 1) // 2} if size > 2 else set()
    assert {stage_output(shape, stage)[1] for stage in stages} == {size} | halved


def test_a_thousand_members_emit_a_graph_for_their_task_and_survive_yaml():
    ids = {}
    for spec in members(1000, seed=2):
        graph = deploy_graph(spec)
        assert (graph.input_shape, graph.output_shape) == (spec.input_shape, (10,))
        text = yaml.dump(spec_to_dict(spec), Dumper=DUMPER, sort_keys=False)
        again = spec_from_dict(yaml.load(text, Loader=LOADER))
        assert again == spec
        assert spec_id(again) == spec_id(spec)
        assert ids.setdefault(spec_id(spec), spec) == spec, "an id names one network"
    assert len(ids) > 900


@pytest.mark.parametrize("target", [("rk3288", 1), ("rk3288", 4)], ids=str)
def test_costs_summed_over_blocks_are_those_of_the_whole_graph(target):
    device = load_target(target[0], threads=target[1])
    costs = StaticCosts(device)
    for spec in members(300, seed=3):
        graph, found = deploy_graph(spec), costs(spec)
        assert found.peak_memory_bytes == cost(graph).peak_memory_bytes
        kernels = fuse(graph, device.fusion_rules)
        whole = device.latency_model.network(kernel_sums(device.latency_model, kernels))
        assert found.latency.value_ms == pytest.approx(whole.value_ms, rel=1e-12)
        assert found.latency.high_ms == pytest.approx(whole.high_ms, rel=1e-12)
        assert found.latency.tier is whole.tier


def test_no_random_member_of_two_thousand_is_cheaper_than_the_cheapest():
    costs = StaticCosts(load_target("rk3288"))
    cheapest = cheapest_member(EDGE_SMALL, CIFAR10, lambda shape, block: costs.block(shape, block).latency_ms)
    assert cheapest.price == pytest.approx(costs(cheapest.spec).latency.value_ms, rel=1e-12)
    assert min(costs(spec).latency.value_ms for spec in members(2000, seed=4)) >= cheapest.price * (1 - 1e-12)


def randomise_norms(network, seed):
    """Statistics and scales as after training, one variance in each norm close to zero."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.running_mean.shape
            part.running_mean.copy_(0.3 * torch.randn(size, generator=generator))
            part.running_var.copy_(torch.rand(size, generator=generator) + 0.3)
            part.running_var[0] = 1e-4
            part.weight.data.copy_(1 + 0.3 * torch.randn(size, generator=generator))
            part.weight.data[0] = 1e-2
            part.bias.data.copy_(0.3 * torch.randn(size, generator=generator))


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_members_with_any_statistics_deploy_to_what_they_compute_in_either_precision(seed):
    spec = next(spec for spec in members(200, seed) if cost(deploy_graph(spec)).macs <= 20_000_000)
    network = build_network(spec, seed).eval()
    randomise_norms(network, seed)
    images = torch.randn(2, *spec.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
            network.to(dtype)
            trained = network(images.to(dtype))
            deployed = DeployModule(deploy(network))(images.to(dtype))
            assert trained.isfinite().all()
            assert trained.std() > 1e-3 * trained.abs().max(), "a network that returns a constant proves nothing"
            assert (trained - deployed).abs().max() <= bound * trained.abs().max()


def test_no_kernel_has_cells_that_only_see_padding():
    seen = set()
    for spec in members(400, seed=1):
        shape = spec.input_shape
        for _, block in spec.blocks():
            if isinstance(block, InvertedResidual):
                assert block.kernel <= 2 * min(shape[1:]) - 1
                seen.add(block.kernel)
            shape = stage_output(shape, (block,))
    assert seen == {3, 5, 7}


@pytest.mark.parametrize(("size", "kernel"), [(1, 1), (2, 3), (3, 5), (4, 7)])
def test_the_largest_useful_kernel_reaches_from_one_corner_to_the_other(size, kernel):
    assert largest_useful_kernel(size) == kernel
    # From the first cell its outermost one sees the last cell of the map, and a larger kernel's would see beyond.
    assert (kernel - 1) // 2 == size - 1


def test_grey_images_and_any_number_of_classes_are_served():
    spec = member(EDGE_SMALL, random_choice(random.Random(0)), Task(1, 37))
    assert spec.input_shape[0] == 1
    assert deploy_graph(spec).output_shape == (37,)
