"""From a spec to its two forms."""

import numpy as np
import pytest
import torch

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.fold import conv_weights
from searchspace.network import block_graph, build_network, deploy, deploy_graph
from searchspace.spec import ArchSpec

SPEC = ArchSpec((3, 13, 10), Rep(8, 2), ((Rdp(8), Rdp(12, 2)), (InvertedResidual(12),)), Classifier(5, 16))


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = build_network(SPEC, 7).state_dict()
    torch.manual_seed(2)
    again, other = build_network(SPEC, 7).state_dict(), build_network(SPEC, 8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_torchs_generator_where_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_network(SPEC, 7)
    assert torch.equal(torch.rand(4), expected)


def test_the_graph_is_its_blocks_one_behind_the_other():
    whole = deploy_graph(SPEC)
    shape, names = SPEC.input_shape, ["input"]
    for path, block in SPEC.blocks():
        graph = block_graph(shape, block)
        names += [f"{path}.{node.name}" for node in graph.nodes[1:]]
        shape = graph.output_shape
    assert [node.name for node in whole.nodes] == names
    assert whole.output_shape == shape == (5,)
    # By hand: 13x10 halved with padding is 7x5, then 4x3.
    by_name = {node.name: node.shape for node in whole.nodes}
    assert by_name["stem.conv"] == (8, 7, 5)
    assert by_name["stages.0.1.pointwise"] == (12, 4, 3)


def test_a_deployed_network_names_its_weights_as_its_graph_does():
    model = deploy(build_network(SPEC, 0).eval())
    assert set(model.weights) == set(model.graph.weight_shapes())
    assert {name: value.shape for name, value in model.weights.items()} == model.graph.weight_shapes()
    assert {value.dtype for value in model.weights.values()} == {np.dtype(np.float32)}


def test_deploying_leaves_the_network_as_it_was():
    network = build_network(SPEC, 0).eval()
    x = torch.randn(2, *SPEC.input_shape)
    with torch.no_grad():
        before = network(x)
        model = deploy(network)
        next(iter(model.weights.values()))[...] = 7
        assert torch.equal(network(x), before), "its weights are its own"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda block: {"conv": conv_weights(torch.nn.Conv2d(3, 8, 1))},
            r"stem.conv.weight must have shape \(8, 3, 3, 3\)",
        ),
        (lambda block: {}, r"missing: \['stem.conv.bias', 'stem.conv.weight'\]"),
        (
            lambda block: {"conv": block.conv.folded(), "more": block.conv.folded()},
            r"not needed: \['stem.more.bias', 'stem.more.weight'\]",
        ),
    ],
)
def test_a_block_that_folds_into_other_weights_than_its_graph_needs_is_refused(monkeypatch, wrong, message):
    network = build_network(SPEC, 0).eval()
    folded = wrong(network.blocks[0])
    monkeypatch.setattr(network.blocks[0], "folded", lambda: folded)
    with pytest.raises(ValueError, match=message):
        deploy(network)


def test_what_cannot_be_trained_is_refused_when_it_is_built():
    # The shuffle's groups do not divide the channels that enter; a device would not notice.
    spec = ArchSpec((3, 8, 8), Rep(6), ((Rdp(8, shuffle_groups=4),),), Classifier(2))
    with pytest.raises(ValueError, match="shuffle groups must divide the channels, got 4 groups for 6 channels"):
        build_network(spec, 0)


def test_what_cannot_be_run_is_refused_when_its_graph_is_made():
    # Halved to a single value, which leaves nothing for a window of two.
    spec = ArchSpec((3, 2, 2), Rep(8, 2), ((PlainConv(8, max_pool=2),),), Classifier(2))
    with pytest.raises(ValueError, match="an input of at least 2 along each axis, got 1"):
        deploy_graph(spec)
