"""What every named space promises of its members, asked of random ones."""

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluators.static import StaticCosts
from hardware.cost import cost
from hardware.kernels import fuse
from hardware.ops import Conv, ConvTranspose, MatMul
from hardware.targets import load_target
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rk import Rkp
from searchspace.cheapest import cheapest_member
from searchspace.choosers import random_choice, recording, replay
from searchspace.deploy_module import DeployModule, run_op
from searchspace.layouts import with_random_layouts
from searchspace.network import block_graph, build_network, deploy, deploy_graph
from searchspace.space import Task, gene_options, member, narrowed, stage_output
from searchspace.spaces import SPACES
from searchspace.spec import deploy_form, deploy_id, is_train_gene, read_spec, spec_from_dict, spec_to_dict, write_spec

TASK = Task(channels=3, classes=10)
MEMBERS = 200

# Over the seven spaces, 3500 members in eight seconds, and 280 that torch counts in six.
MANY_MEMBERS, COUNTED_BY_TORCH = 500, 40

every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@pytest.fixture(scope="module")
def costs():
    return StaticCosts(load_target("rk3288"))


def drawn(space, seed):
    """A random member and its genes."""
    genes = {}
    spec = member(space, recording(random_choice(random.Random(f"{space.name}/{seed}")), genes), TASK)
    return spec, genes


def members(space, count=MEMBERS):
    return [drawn(space, seed)[0] for seed in range(count)]


def blocks_with_shapes(spec):
    shape = spec.input_shape
    for _, block in spec.blocks():
        yield shape, block
        shape = block_graph(shape, block).output_shape


def price(costs, spec):
    return sum(costs.block(shape, block).latency_ms for shape, block in blocks_with_shapes(spec))


@every_space
def test_every_gene_is_asked_in_the_same_order_whatever_the_answers(space):
    options = gene_options(space)
    for seed in range(MEMBERS):
        _, genes = drawn(space, seed)
        assert list(genes) == list(options)
        assert all(genes[name] in options[name] for name in genes)


@every_space
def test_genes_are_a_record_of_the_member(space):
    for seed in range(MEMBERS):
        spec, genes = drawn(space, seed)
        assert member(space, replay(genes), TASK) == spec


@every_space
def test_a_member_survives_its_file(space, tmp_path):
    for spec in members(space, 25):
        write_spec(spec, tmp_path / "spec.yaml")
        assert read_spec(tmp_path / "spec.yaml") == spec


@every_space
def test_costs_are_those_of_the_whole_graph_and_sums_over_blocks(space, costs):
    for spec in members(space):
        whole, static = cost(deploy_graph(spec)), costs(spec)
        assert (static.macs, static.params) == (whole.macs, whole.params)
        assert static.peak_memory_bytes == whole.peak_memory_bytes
        kernels = kernels_of(spec, costs.target)
        latency_ms = sum(costs.target.latency_model.kernel(kernel).value_ms * kernels[kernel] for kernel in kernels)
        assert price(costs, spec) == pytest.approx(latency_ms, rel=1e-12)
        parts = [cost(block_graph(shape, block)) for shape, block in blocks_with_shapes(spec)]
        assert whole.macs == sum(part.macs for part in parts)
        assert whole.params == sum(part.params for part in parts)
        assert min(min(part.macs, part.params) for part in parts) >= 0
        assert static.latency.value_ms > 0


@every_space
def test_macs_and_parameters_are_those_that_torch_counts(space):
    for spec in members(space, COUNTED_BY_TORCH):
        graph = deploy_graph(spec)
        weights = {
            name: torch.empty(shape, device="meta", dtype=torch.float32)
            for name, shape in graph.weight_shapes().items()
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits = run_on_meta(graph, weights)
        assert logits.shape == (1, TASK.classes)
        # Twice the multiply-adds.
        assert counter.get_total_flops() == 2 * cost(graph).macs
        assert sum(weight.numel() for weight in weights.values()) == cost(graph).params


def run_on_meta(graph, weights):
    """The graph on an image of one, without numbers: torch refuses weights that do not fit, and counts."""
    values = []
    own = {}
    for name, weight in weights.items():
        node, _, tensor = name.rpartition(".")
        own.setdefault(node, {})[tensor] = weight
    image = torch.empty(1, *graph.input_shape, device="meta")
    for node in graph.nodes:
        inputs = [values[index] for index in node.inputs] or [image]
        values.append(run_op(node.op, inputs, own.get(node.name, {})))
        assert values[-1].shape == (1, *node.shape)
    return values[-1]


def macs_by_hand(graph):
    """Multiply-adds from the shapes alone: what each value of a result is a sum of."""
    total = 0
    for node in graph.nodes:
        inputs = graph.input_shapes(node)
        match node.op:
            case Conv(kernel=(height, width), groups=groups):
                total += math.prod(node.shape) * inputs[0][0] // groups * height * width
            case ConvTranspose(out_channels=channels, size=size):
                total += math.prod(inputs[0]) * channels * size**2
            case MatMul():
                total += math.prod(node.shape) * inputs[0][-1]
    return total


@every_space
def test_thousands_of_members_survive_their_text_emit_and_cost_what_their_shapes_say(space):
    changed = 0
    for seed, spec in enumerate(members(space, MANY_MEMBERS)):
        assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
        graph = deploy_graph(spec)
        assert graph.output_shape == (TASK.classes,)
        counted = cost(graph)
        assert counted.macs == macs_by_hand(graph)
        # Another layout on every convolution that takes one.
        other = with_random_layouts(spec, random.Random(seed))
        changed += other != spec
        assert cost(deploy_graph(other)) == counted
    # By chance the layouts are those that `pbconv-layouts` has chosen.
    assert changed >= 0.95 * MANY_MEMBERS


# A value of each train gene that is not a layout and is not its default.
OTHER_TRAIN_GENES = {"shuffle_groups": 2, "drop_path": 0.3, "drop_key": 0.4, "dropout": 0.5}


@every_space
def test_train_genes_cost_nothing(space, costs):
    changed = set()
    for seed, spec in enumerate(members(space, 40)):

        def retrained(block):
            own = {gene.name for gene in fields(block) if is_train_gene(gene)}
            values = {name: value for name, value in OTHER_TRAIN_GENES.items() if name in own}
            changed.update(values)
            return replace(block, **values)

        other = with_random_layouts(spec, random.Random(seed)).map_blocks(retrained)
        assert other != spec
        assert deploy_form(other) == deploy_form(spec)
        assert deploy_id(other) == deploy_id(spec)
        assert deploy_graph(other) == deploy_graph(spec)
        assert costs(other) == costs(spec)
    assert changed or space.name in ("rkp",), "PPENet has layouts alone"


@every_space
def test_no_kernel_has_cells_that_only_see_padding(space):
    for spec in members(space):
        graph = deploy_graph(spec)
        for node in graph.nodes:
            if isinstance(node.op, Conv):
                (_, *sizes), *_ = graph.input_shapes(node)
                for kernel, size in zip(node.op.kernel, sizes, strict=True):
                    # The even one of GFAE is a 3x3 that a pool of 2x2 was folded into; no gene makes it.
                    assert kernel % 2 == 0 or node.op.dilation * (kernel - 1) + 1 <= 2 * size - 1


@every_space
def test_channels_can_be_divided_as_the_blocks_want(space):
    families = set()
    for spec in members(space):
        for (channels, *_), block in blocks_with_shapes(spec):
            families.add(type(block))
            match block:
                case Rdp():
                    assert channels % block.shuffle_groups == 0
                case Lfae():
                    assert channels // block.divisions >= 1
                    assert not block.squeeze_excite or channels // 16 >= 1
                case Gfae():
                    assert channels % block.heads == 0
                case Parc():
                    assert block.inner_width % 2 == 0
                    assert not block.channel_attention or block.inner_width // 16 >= 1
                case Rkp():
                    assert block.variant == "dw", "the dense reading is for references alone"
                    assert channels % 2 == 0, "PPE sees columns in one half and rows in the other"
    checked = {Rdp, Lfae, Gfae, Parc, Rkp}
    assert families & checked


def randomly_narrowed(space, rng, least_kept):
    """The space with every gene held to a random choice of its options, as many as `least_kept` says or more."""
    allowed = {}
    for name, options in gene_options(space).items():
        count = rng.randint(min(least_kept, len(options)), len(options))
        allowed[name] = rng.sample(options, count)
    return narrowed(space, allowed), allowed


@every_space
def test_a_narrowed_space_never_leaves_its_range(space):
    for seed in range(20):
        rng = random.Random(seed)
        less, allowed = randomly_narrowed(space, rng, 1)
        for _ in range(10):
            genes = {}
            spec = member(less, recording(random_choice(rng), genes), TASK)
            assert all(genes[name] in allowed[name] for name in genes)
            assert list(genes) == list(gene_options(space))
            assert member(space, replay(genes), TASK) == spec


@every_space
def test_the_cheapest_member_is_no_dearer_than_any_other(space, costs):
    cheapest = cheapest_member(space, TASK, lambda shape, block: costs.block(shape, block).latency_ms)
    assert price(costs, cheapest.spec) == pytest.approx(cheapest.price)
    described = member(space, replay(first_train_genes(space) | cheapest.genes), TASK)
    assert deploy_form(described) == deploy_form(cheapest.spec)
    assert cheapest.price <= min(price(costs, spec) for spec in members(space)) * (1 + 1e-9)


def first_train_genes(space):
    return {question.name: question.options[0] for question in space.train.questions}


@every_space
@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_of_a_narrowed_space_is_that_of_brute_force(space, seed, costs):
    # Two options for some genes and one for all others: few enough members to try each of them.
    rng = random.Random(seed)
    options = gene_options(space)
    free = rng.sample(sorted(name for name in options if len(options[name]) > 1), min(7, len(options)))
    allowed = {name: rng.sample(values, 2 if name in free else 1) for name, values in options.items()}
    less = narrowed(space, allowed)
    found = cheapest_member(less, TASK, lambda shape, block: costs.block(shape, block).latency_ms)
    every = [dict(zip(allowed, genes, strict=True)) for genes in itertools.product(*allowed.values())]
    assert len(every) == 2 ** len(free)
    lowest = min(price(costs, member(less, replay(genes), TASK)) for genes in every)
    assert found.price == pytest.approx(lowest, rel=1e-12)


# In so many members must a question that only adds have a say before the claim is believed, out of so many tried.
WITH_A_SAY, TRIED = 3, 300


@every_space
def test_options_that_only_add_keep_every_kernel_and_shape(space, costs):
    for name, options in only_adding(space).items():
        seen = 0
        for seed in range(TRIED):
            genes = drawn(space, seed)[1]
            specs = [member(space, replay(genes | {name: option}), TASK) for option in options]
            if specs[0] == specs[-1]:
                continue
            seen += 1
            # Whatever a kernel costs on a device, more of them cost no less.
            for less, more in itertools.pairwise(kernels_of(spec, costs.target) for spec in specs):
                assert less < more, name
            assert len({stage_ends(spec) for spec in specs}) == 1, name
            if seen == WITH_A_SAY:
                break
        # In `rdp` the questions of the other family are still asked.
        assert seen == WITH_A_SAY or (space.name == "rdp" and name.endswith("squeeze_excite")), name


def only_adding(space):
    return {
        prefix + question.name: question.options
        for prefix, part in space.parts()
        for question in part.questions
        if question.only_adds
    }


def kernels_of(spec, target):
    """How often each kernel runs."""
    return Counter(fuse(deploy_graph(spec), target.fusion_rules))


def test_most_spaces_have_questions_that_only_add():
    assert {name for name, space in SPACES.items() if not only_adding(space)} == {"pbconv-layouts"}


def stage_ends(spec):
    """The shape behind each stage."""
    shape, ends = block_graph(spec.input_shape, spec.stem).output_shape, []
    for stage in spec.stages:
        ends.append(shape := stage_output(shape, stage))
    return tuple(ends)


def few_small(space):
    """The space held to its smallest image, its two smallest widths and depths: members that a test can run."""
    options = gene_options(space)
    small = {name: values[:1] for name, values in options.items() if name == "resolution"}
    small |= {
        name: values[:2] for name, values in options.items() if name.split(".")[-1] in ("width", "depth", "blocks")
    }
    return narrowed(space, small)


@every_space
@pytest.mark.parametrize("seed", range(3))
def test_members_fold_to_what_they_compute(space, seed):
    spec = with_random_layouts(drawn(few_small(space), seed)[0], random.Random(seed))
    images = torch.randn(2, *spec.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    network = build_network(spec, seed=seed).double().train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Statistics of what reaches each norm, not those of a fresh one.
        network(images.flip(0, 2))
        expected = network.eval()(images)
        folded = DeployModule(deploy(network))(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-11)
