"""What every named space promises, asked with random answers: naming one is testing it."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evaluators.static import StaticCosts
from hardware.cost import cost
from hardware.graph import with_weights
from hardware.kernels import fuse
from hardware.latency_table import worst_tier
from hardware.targets import load_target
from searchspace.cheapest import cheapest_member
from searchspace.choosers import random_choice, recording, replay
from searchspace.deploy_module import DeployModule
from searchspace.network import build_network, deploy, deploy_graph
from searchspace.space import Task, gene_options, member
from searchspace.spaces import SPACES
from searchspace.spec import ArchSpec, deploy_form, deploy_id, spec_from_dict, spec_id, spec_to_dict

TASK = Task(channels=3, classes=7)

# libyaml's are ten times faster where they are built in.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

each_space = pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))


def random_members(space, count, seed=0) -> Iterator[ArchSpec]:
    rng = random.Random(seed)
    for _ in range(count):
        yield member(space, random_choice(rng), TASK)


def small_members(space, count, largest_macs, seed=0) -> list[ArchSpec]:
    """The first random members that cost little to run in torch."""
    found = []
    for spec in random_members(space, 100_000, seed):
        if cost(deploy_graph(spec)).macs <= largest_macs:
            found.append(spec)
            if len(found) == count:
                return found
    raise AssertionError("no such members")


def size_of(space):
    return 1000 if space.name == "edge-small" else 100


@each_space
def test_every_gene_is_asked_in_one_order_whatever_the_answers(space):
    rng = random.Random(1)
    expected = gene_options(space, TASK)
    for _ in range(50):
        genes, asked = {}, {}

        def choose(name, options, asked=asked):
            asked[name] = tuple(options)
            return options[rng.randrange(len(options))]

        member(space, recording(choose, genes), TASK)
        # Options too: a sampler that meets a gene with other options than before refuses it.
        assert list(asked.items()) == list(expected.items())
        assert all(len(set(options)) == len(options) for options in asked.values())


@each_space
def test_recorded_genes_give_the_same_member_again(space):
    rng = random.Random(2)
    for _ in range(50):
        genes = {}
        spec = member(space, recording(random_choice(rng), genes), TASK)
        assert member(space, replay(genes), TASK) == spec


@each_space
def test_random_members_emit_a_graph_for_their_task_and_survive_yaml(space):
    ids = {}
    for spec in random_members(space, size_of(space)):
        graph = deploy_graph(spec)
        assert graph.output_shape == (TASK.classes,)
        assert graph.input_shape == spec.input_shape
        assert spec.input_shape[0] == TASK.channels
        text = yaml.dump(spec_to_dict(spec), Dumper=DUMPER, sort_keys=False)
        again = spec_from_dict(yaml.load(text, Loader=LOADER))
        assert again == spec
        assert spec_id(again) == spec_id(spec)
        ids.setdefault(spec_id(spec), spec)
        assert ids[spec_id(spec)] == spec, "an id names one network"
        assert deploy_id(spec) == spec_id(deploy_form(spec))


@each_space
def test_costs_summed_over_blocks_are_those_of_the_whole_graph(space):
    target = load_target("rk3288")
    costs = StaticCosts(target)
    for spec in random_members(space, size_of(space) // 5, seed=1):
        graph = deploy_graph(spec)
        own = cost(graph)
        found = costs(spec)
        assert (found.macs, found.params) == (own.macs, own.params)
        assert found.peak_memory_bytes == own.peak_memory_bytes
        kernels = [target.latency_model.kernel(kernel) for kernel in fuse(graph, target.fusion_rules)]
        whole = target.latency_model.network(
            sum(kernel.value_ms for kernel in kernels), worst_tier(kernel.tier for kernel in kernels)
        )
        assert found.latency.value_ms == pytest.approx(whole.value_ms, rel=1e-12)
        assert found.latency.high_ms == pytest.approx(whole.high_ms, rel=1e-12)
        assert found.latency.tier is whole.tier
        assert found.latency.value_ms > 0


@each_space
def test_macs_and_params_of_members_equal_torchs_own_count(space):
    for spec in random_members(space, 15 if space.name == "edge-small" else 4, seed=3):
        graph = deploy_graph(spec)
        zeros = {name: np.zeros(shape, np.float32) for name, shape in graph.weight_shapes().items()}
        # Shapes alone: nothing is computed, so large members cost no more than small ones.
        module = DeployModule(with_weights(graph, zeros)).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.zeros(1, *spec.input_shape, device="meta"))
        assert counter.get_total_flops() == 2 * cost(graph).macs
        assert sum(buffer.numel() for buffer in module.buffers()) == cost(graph).params


@each_space
def test_no_random_member_is_cheaper_than_the_cheapest(space):
    costs = StaticCosts(load_target("rk3288"))
    cheapest = cheapest_member(space, TASK, lambda shape, block: costs.block(shape, block).latency_ms)
    assert cheapest.price == pytest.approx(costs(cheapest.spec).latency.value_ms, rel=1e-12)
    assert deploy_form(member(space, replay(with_defaults(space, cheapest.genes)), TASK)) == deploy_form(cheapest.spec)
    for spec in random_members(space, 2 * size_of(space), seed=4):
        assert costs(spec).latency.value_ms >= cheapest.price * (1 - 1e-12)


def with_defaults(space, genes):
    """Genes that cost nothing have no say in what is cheapest."""
    return {name: options[0] for name, options in gene_options(space, TASK).items()} | genes


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


@each_space
@pytest.mark.parametrize("seed", [5, 6])
def test_members_with_any_statistics_deploy_to_what_they_compute(space, seed):
    (spec,) = small_members(space, 1, 20_000_000, seed)
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
