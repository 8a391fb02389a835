"""Deploy graphs as ncnn's text and bytes; that the numbers are right is `tests/contracts/test_runtimes.py`."""

import struct

import numpy as np
import pytest
import torch

from hardware.graph import GraphBuilder, with_weights
from hardware.kernels import fuse
from hardware.ncnn_model import FUSION_RULES, graph_param, to_ncnn
from hardware.ops import (
    ACTIVATIONS,
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    Flatten,
    GlobalPool,
    Mul,
    Pool,
    Reshape,
    Slice,
)
from hardware.runners import ncnn
from searchspace.deploy_module import DeployModule

SHAPE = (8, 5, 6)


def lines(param):
    return [line.split() for line in param.splitlines()[2:]]


def kinds(param):
    return [line[0] for line in lines(param)]


def computed(graph, tmp_path):
    """What ncnn and torch make of two images."""
    rng = np.random.default_rng(1)
    model = with_weights(graph, {name: rng.normal(size=shape) for name, shape in graph.weight_shapes().items()})
    images = rng.normal(size=(2, *graph.input_shape))
    to_ncnn(model).save(tmp_path / "model.param")
    return ncnn.run(tmp_path / "model.param", images), DeployModule(model)(torch.from_numpy(images)).numpy()


def test_a_small_network_is_the_text_that_ncnn_documents():
    graph = GraphBuilder((3, 8, 8))
    x = graph.add("stem", Conv(4, (3, 5), 2, (1, 2)), graph.input)
    x = graph.add("clip", Activation("relu6"), x)
    x = graph.add("depthwise", Conv(4, (3, 3), 1, (1, 1), groups=4), x)
    x = graph.add("pool", GlobalPool(), x)
    x = graph.add("logits", Conv(10, (1, 1)), x)
    graph.add("flat", Flatten(), x)
    assert graph_param(graph.build()) == (
        "7767517\n"
        "6 6\n"
        "Input in0 0 1 in0 0=8 1=8 2=3\n"
        "Convolution clip 1 1 in0 clip 0=4 1=5 2=1 3=2 4=2 5=1 6=180 9=3 -23310=2,0.0,6.0 11=3 14=1\n"
        "ConvolutionDepthWise depthwise 1 1 clip depthwise 0=4 1=3 2=1 3=1 4=1 5=1 6=36 7=4 11=3 14=1\n"
        "Pooling pool 1 1 depthwise pool 0=1 4=1\n"
        "InnerProduct logits 1 1 pool logits 0=10 1=1 2=40\n"
        "Flatten out0 1 1 logits out0\n"
    )


def test_the_weights_lie_in_the_order_of_the_layers_with_flags_where_ncnn_expects_them():
    graph = GraphBuilder((2, 1, 1))
    x = graph.add("conv", Conv(1, (1, 1)), graph.input)
    graph.add("up", ConvTranspose(1), graph.add("shift", AddConstant((1, 1, 1)), x))
    weights = {
        "conv.weight": np.array([[[[1.0]], [[2.0]]]]),
        "conv.bias": np.array([3.0]),
        "shift.constant": np.array([[[4.0]]]),
        "up.weight": np.array([[[[5.0, 6.0], [7.0, 8.0]]]]),
        "up.bias": np.array([9.0]),
    }
    model = to_ncnn(with_weights(graph.build(), weights))
    assert model.weights == struct.pack("<i3f f i5f", 0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9)


def test_what_runs_inside_a_convolution_is_what_the_fusion_rules_say():
    for op in (Conv(8, (1, 1)), Conv(8, (3, 3), 1, (1, 1), groups=8), ConvTranspose(8)):
        for kind in ACTIVATIONS:
            graph = GraphBuilder(SHAPE)
            graph.add("activation", Activation(kind), graph.add("conv", op, graph.input))
            built = graph.build()
            assert len(kinds(graph_param(built))) == 1 + len(fuse(built, FUSION_RULES)), (op, kind)


def test_a_value_that_others_read_too_is_not_hidden_inside_a_convolution(tmp_path):
    graph = GraphBuilder(SHAPE)
    x = graph.add("conv", Conv(8, (3, 3), 1, (1, 1)), graph.input)
    graph.add("sum", Add(), x, graph.add("relu", Activation("relu"), x))
    assert kinds(graph_param(graph.build())) == ["Input", "Convolution", "Split", "ReLU", "BinaryOp"]
    found, expected = computed(graph.build(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_second_activation_stays_outside():
    graph = GraphBuilder(SHAPE)
    x = graph.add("relu", Activation("relu"), graph.add("conv", Conv(8, (1, 1)), graph.input))
    graph.add("gate", Activation("sigmoid"), x)
    assert kinds(graph_param(graph.build())) == ["Input", "Convolution", "Sigmoid"]


@pytest.mark.parametrize("op", [Add(), Mul()])
def test_a_value_may_be_read_twice_by_one_operation(op, tmp_path):
    graph = GraphBuilder(SHAPE)
    graph.add("twice", op, graph.input, graph.input)
    found, expected = computed(graph.build(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def pooled(graph, source, name="pooled"):
    return graph.add(name, GlobalPool(), source)


AFTER_A_POOL = {
    "the output": lambda graph, x: x,
    "a pool again": lambda graph, x: pooled(graph, x, "again"),
    "a window": lambda graph, x: graph.add("window", Pool("average", (1, 1), 1), x),
    "a padded convolution": lambda graph, x: graph.add("conv", Conv(4, (3, 3), 1, (1, 1)), x),
    "a depthwise convolution": lambda graph, x: graph.add("conv", Conv(8, (1, 1), groups=8), x),
    "a gate": lambda graph, x: graph.add("gated", Mul(), graph.input, x),
    "a gate for itself": lambda graph, x: graph.add("gated", Mul(), x, x),
    "a gate that a convolution has made": lambda graph, x: graph.add(
        "gated", Mul(), x, graph.add("gate", Conv(8, SHAPE[1:]), graph.input)
    ),
    "a sum with another pool": lambda graph, x: graph.add("sum", Add(), x, pooled(graph, graph.input, "other")),
    "a sum that goes on as a map": lambda graph, x: graph.add(
        "conv",
        Conv(8, (1, 1), groups=8),
        graph.add("sum", Add(), x, graph.add("other", Conv(8, SHAPE[1:]), graph.input)),
    ),
    "a sum with a map": lambda graph, x: graph.add(
        "sum", Add(), graph.add("other", Conv(8, SHAPE[1:]), graph.input), x
    ),
    "a convolution after a sum": lambda graph, x: graph.add(
        "conv", Conv(3, (1, 1)), graph.add("sum", Add(), x, graph.add("other", Conv(8, SHAPE[1:]), graph.input))
    ),
    "a constant": lambda graph, x: graph.add("shift", AddConstant((8, 1, 1)), x),
    "a norm": lambda graph, x: graph.add("norm", ChannelNorm(), x),
    "a concatenation": lambda graph, x: graph.add(
        "wide", Concat(0), x, graph.add("other", Conv(3, SHAPE[1:]), graph.input)
    ),
    "a slice": lambda graph, x: graph.add("part", Slice(0, 2, 7), x),
    "a reshape": lambda graph, x: graph.add("square", Reshape((2, 2, 2)), x),
    "a transposed convolution": lambda graph, x: graph.add("up", ConvTranspose(4), x),
    "a convolution of a vector": lambda graph, x: graph.add(
        "square", Reshape((1, 2, 3)), graph.add("fc", Conv(6, (1, 1)), graph.add("relu", Activation("relu"), x))
    ),
}


@pytest.mark.parametrize("what", AFTER_A_POOL)
def test_what_a_global_pool_leaves_can_go_anywhere(what, tmp_path):
    graph = GraphBuilder(SHAPE)
    AFTER_A_POOL[what](graph, pooled(graph, graph.input))
    found, expected = computed(graph.build(), tmp_path)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_reshape_is_spent_on_what_is_a_map_already():
    graph = GraphBuilder(SHAPE)
    AFTER_A_POOL["a sum that goes on as a map"](graph, pooled(graph, graph.input))
    assert "Reshape" not in kinds(graph_param(graph.build()))


def test_a_pool_of_as_many_channels_as_columns_gates_channels(tmp_path):
    # ncnn spreads a vector along the axis whose length it has.
    graph = GraphBuilder((5, 4, 5))
    graph.add("gated", Mul(), graph.input, pooled(graph, graph.input))
    found, expected = computed(graph.build(), tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_values_given_to_ncnn_outlive_the_array_they_came_from():
    rng = np.random.default_rng(0)
    given = [ncnn.own_copy(rng.standard_normal((3, 65, 67), np.float32)) for _ in range(4)]
    rng = np.random.default_rng(0)
    for each in given:
        np.testing.assert_array_equal(np.array(each), rng.standard_normal((3, 65, 67), np.float32))


def test_more_than_four_axes_are_refused():
    graph = GraphBuilder((2, 3, 4))
    graph.add("far", Reshape((1, 1, 2, 3, 4)), graph.input)
    with pytest.raises(ValueError, match=r"1 to 4 axes, got \(1, 1, 2, 3, 4\)"):
        graph_param(graph.build())
