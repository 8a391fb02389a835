"""Costs against sums by hand and torch's counter."""

import pytest

from hardware.cost import cost, receptive_field
from hardware.graph import GraphBuilder
from hardware.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Flatten,
    GlobalPool,
    MatMul,
    Mul,
    Pool,
    Reshape,
    Slice,
)


def small_graph():
    graph = GraphBuilder((3, 8, 6))
    x = graph.add("a", Conv(4, (3, 3), 2, (1, 1)), graph.input)  # 4 x 4 x 3
    x = graph.add("a_relu", Activation("relu"), x)
    y = graph.add("b", Conv(4, (3, 3), 1, (1, 1), 1, 4), x)  # depthwise
    return graph, graph.add("sum", Add(), y, x)


def test_cost_of_a_small_graph_by_hand():
    graph, x = small_graph()
    x = graph.add("pool", GlobalPool(), x)
    x = graph.add("linear", Conv(5, (1, 1)), x)
    graph.add("logits", Flatten(), x)
    result = cost(graph.build())
    assert result.macs == 4 * 4 * 3 * (3 * 9) + 4 * 4 * 3 * 9 + 5 * 4
    assert result.params == (4 * 27 + 4) + (4 * 9 + 4) + (5 * 4 + 5)
    assert result.activation_bytes == 4 * (48 + 48 + 48 + 48 + 4 + 5 + 5)
    # Entering: the image of 144 and the first map of 48; ReLU works in place. Later three maps of 48 at once.
    assert result.peak_activation_bytes == 4 * max(144 + 48, 48 + 48 + 48)
    assert result.peak_memory_bytes == 4 * result.params + result.peak_activation_bytes


def test_a_value_that_is_read_again_is_not_overwritten_in_place():
    graph = GraphBuilder((1, 10, 10))
    y = graph.add("relu", Activation("relu"), graph.input)
    graph.add("sum", Add(), y, graph.input)
    assert cost(graph.build()).peak_activation_bytes == 4 * 300


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([(3, 1, 1)], (3, 1)),
        ([(3, 2, 1), (3, 1, 1)], (7, 2)),
        ([(3, 2, 1), (3, 1, 2), (1, 2, 1), (5, 1, 1)], (3 + 8 + 16, 4)),
    ],
)
def test_receptive_field_by_hand(layers, expected):
    graph = GraphBuilder((1, 64, 64))
    x = graph.input
    for index, (kernel, stride, dilation) in enumerate(layers):
        x = graph.add(str(index), Conv(1, (kernel, kernel), stride, (8, 8), dilation), x)
    field = receptive_field(graph.build())
    assert (field.height, field.width, field.jump) == (expected[0], expected[0], expected[1])


def test_receptive_field_keeps_axes_apart_and_takes_the_longer_path():
    graph = GraphBuilder((1, 9, 9))
    tall = graph.add("tall", Conv(1, (5, 1), 1, (2, 0)), graph.input)
    pooled = graph.add("pool", Pool("max", (3, 3), 1, (1, 1)), graph.input)
    graph.add("sum", Add(), tall, pooled)
    field = receptive_field(graph.build())
    assert (field.height, field.width) == (5, 3)


def test_a_gate_has_no_receptive_field_of_its_own():
    graph = GraphBuilder((2, 9, 9))
    x = graph.add("conv", Conv(2, (3, 3), 1, (1, 1)), graph.input)
    gate = graph.add("mean", GlobalPool(), x)
    graph.add("gated", Mul(), x, gate)
    assert receptive_field(graph.build()).height == 3


def test_macs_of_products_and_of_a_transposed_convolution_by_hand():
    graph = GraphBuilder((3, 5, 7))
    x = graph.add("up", ConvTranspose(4), graph.input)  # 4 x 10 x 14, each value from the 3 channels of one pixel
    graph.add("product", MatMul(transpose_second=True), x, x)  # 4 x 10 x 10, each a sum of 14 products
    result = cost(graph.build())
    assert result.macs == 4 * 10 * 14 * 3 + 4 * 10 * 10 * 14
    assert result.params == 3 * 4 * 4 + 4


def test_a_reshaped_map_stays_where_it_is():
    graph = GraphBuilder((3, 5, 7))
    x = graph.add("conv", Conv(6, (1, 1)), graph.input)
    graph.add("tokens", Reshape((6, 35)), x)
    assert cost(graph.build()).peak_activation_bytes == 4 * (105 + 210)


def test_receptive_field_returns_to_the_finer_map():
    graph = GraphBuilder((1, 8, 8))
    x = graph.add("down", Conv(1, (3, 3), 2, (1, 1)), graph.input)
    x = graph.add("up", ConvTranspose(1), x)
    graph.add("conv", Conv(1, (3, 3), 1, (1, 1)), x)
    # Three neighbours stand on two pixels of the coarse map, which see 3 pixels each, 2 apart.
    field = receptive_field(graph.build())
    assert (field.height, field.width, field.jump) == (5, 5, 1)


def test_receptive_field_on_a_map_larger_than_the_image():
    graph = GraphBuilder((1, 4, 4))
    x = graph.add("up", ConvTranspose(1), graph.input)
    graph.add("conv", Conv(1, (3, 3), 1, (1, 1)), x)
    # Three neighbours of the enlarged map come from two pixels.
    field = receptive_field(graph.build())
    assert (field.height, field.width, field.jump) == (2, 2, 0.5)


def test_a_convolution_over_a_map_behind_itself_sees_the_whole_axis():
    graph = GraphBuilder((1, 6, 6))
    head = graph.add("head", Slice(1, 0, 5), graph.input)
    x = graph.add("twice", Concat(1), graph.input, head)
    graph.add("circular", Conv(1, (6, 1)), x)
    field = receptive_field(graph.build())
    assert (field.height, field.width) == (6, 1)
