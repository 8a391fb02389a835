"""Graphs refuse what no device could run."""

import numpy as np
import pytest

from hardware.graph import GraphBuilder, with_weights
from hardware.ops import Activation, Add, Conv, Mul, Pool


def conv_graph(kernel=3):
    graph = GraphBuilder((2, 5, 5))
    graph.add("conv", Conv(4, (kernel, kernel), 1, (1, 1)), graph.input)
    return graph.build()


def test_shapes_of_a_strided_dilated_convolution():
    graph = GraphBuilder((2, 11, 7))
    # By hand: (11 + 2 * 2 - 2 * 2 - 1) // 2 + 1 = 6 and (7 + 0 - 2 * 0 - 1) // 2 + 1 = 4.
    x = graph.add("conv", Conv(3, (3, 1), 2, (2, 0), 2), graph.input)
    assert x.shape == (3, 6, 4)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Conv(4, (7, 7)), "needs an input of at least 7"),
        (Conv(4, (1, 1), groups=3), "groups must divide"),
        (Pool("max", (9, 9), 1), "at least 9"),
        (Add(), "takes 2 inputs, got 1"),
    ],
)
def test_an_op_that_does_not_fit_is_refused(op, message):
    graph = GraphBuilder((2, 5, 5))
    with pytest.raises(ValueError, match=message):
        graph.add("bad", op, graph.input)


def test_a_gate_must_have_the_channels_of_its_map():
    graph = GraphBuilder((2, 5, 5))
    other = graph.add("other", Conv(3, (5, 5)), graph.input)
    with pytest.raises(ValueError, match=r"has the same shape or \(2, 1, 1\)"):
        graph.add("gated", Mul(), graph.input, other)


def test_names_are_unique_and_scoped():
    graph = GraphBuilder((2, 5, 5))
    with graph.scope("a"), graph.scope("b"):
        x = graph.add("relu", Activation("relu"), graph.input)
        with pytest.raises(ValueError, match=r"'a\.b\.relu' is taken"):
            graph.add("relu", Activation("relu"), x)
    assert graph.build().nodes[-1].name == "a.b.relu"


def test_an_unused_value_is_refused():
    graph = GraphBuilder((2, 5, 5))
    graph.add("lost", Activation("relu"), graph.input)
    graph.add("kept", Activation("relu6"), graph.input)
    with pytest.raises(ValueError, match="lost"):
        graph.build()


def test_a_graph_takes_exactly_its_weights():
    graph = conv_graph()
    good = {"conv.weight": np.zeros((4, 2, 3, 3)), "conv.bias": np.zeros(4)}
    assert with_weights(graph, good).weights["conv.bias"].shape == (4,)
    with pytest.raises(ValueError, match=r"missing: \['conv\.bias'\]"):
        with_weights(graph, {"conv.weight": good["conv.weight"]})
    with pytest.raises(ValueError, match=r"not needed: \['spare'\]"):
        with_weights(graph, {**good, "spare": np.zeros(1)})
    with pytest.raises(ValueError, match=r"must have shape \(4, 2, 3, 3\)"):
        with_weights(graph, {**good, "conv.weight": np.zeros((4, 2, 1, 3))})


def test_fingerprint_follows_the_operations_not_the_names():
    renamed = GraphBuilder((2, 5, 5))
    renamed.add("another", Conv(4, (3, 3), 1, (1, 1)), renamed.input)
    assert renamed.build().fingerprint() == conv_graph().fingerprint() != conv_graph(1).fingerprint()
