"""Which operations run as one kernel."""

import pytest

from hardware.graph import GraphBuilder
from hardware.kernels import DENSE_CLASSES, REUSE_CLASSES, REUSE_EDGES, fuse, reuse_class
from hardware.ops import (
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    GlobalPool,
    MatMul,
    Mul,
    Reshape,
    Slice,
)

CONV = Conv(4, (3, 3), 1, (1, 1))
RULES = [("conv", "relu"), ("conv", "add", "relu")]


def labels(kernels):
    return [kernel.key.split("(")[0] + "".join("+" + part for part in kernel.key.split("+")[1:]) for kernel in kernels]


def test_a_convolution_swallows_its_activation_and_only_the_named_one():
    graph = GraphBuilder((4, 6, 6))
    x = graph.add("a", CONV, graph.input)
    x = graph.add("a_relu", Activation("relu"), x)
    x = graph.add("b", CONV, x)
    graph.add("b_silu", Activation("silu"), x)
    assert labels(fuse(graph.build(), RULES)) == ["conv+relu", "conv", "silu"]


def test_a_value_that_is_read_twice_is_written_out():
    graph = GraphBuilder((4, 6, 6))
    x = graph.add("a", CONV, graph.input)
    y = graph.add("a_relu", Activation("relu"), x)
    graph.add("sum", Add(), y, x)
    assert labels(fuse(graph.build(), RULES)) == ["conv", "relu", "add"]


def test_the_longest_rule_wins_and_keeps_the_other_side():
    graph = GraphBuilder((4, 6, 6))
    y = graph.add("a", CONV, graph.input)
    y = graph.add("sum", Add(), graph.input, y)
    graph.add("relu", Activation("relu"), y)
    (kernel,) = fuse(graph.build(), RULES)
    assert kernel.in_shapes == ((4, 6, 6), (4, 6, 6))
    assert kernel.key == "conv(4x6x6,4x6x6>4 k3x3 s1 p1x1 g1)+add+relu"


def test_a_sum_waits_for_its_other_side():
    graph = GraphBuilder((4, 6, 6))
    first = graph.add("first", CONV, graph.input)
    later = graph.add("later", CONV, graph.input)
    graph.add("sum", Add(), first, later)
    # `first` runs before `later` exists, so the sum can only join the later one.
    kernels = fuse(graph.build(), [("conv", "add")])
    assert labels(kernels) == ["conv", "conv+add"]


def test_a_gate_does_not_enter_a_chain_by_its_side():
    graph = GraphBuilder((4, 6, 6))
    gate = graph.add("mean", GlobalPool(), graph.input)
    gate = graph.add("excite", Conv(4, (1, 1)), gate)
    graph.add("gated", Mul(), graph.input, gate)
    assert labels(fuse(graph.build(), [("conv", "mul")])) == ["global_pool", "conv", "mul"]


def test_keys_tell_apart_what_costs_differently():
    def key(op, shape=(4, 6, 6)):
        graph = GraphBuilder(shape)
        graph.add("op", op, graph.input)
        return fuse(graph.build(), [])[0].key

    ops = [CONV, Conv(4, (3, 3), 2, (1, 1)), Conv(4, (3, 3), 1, (2, 2), 2), Conv(4, (3, 3), 1, (1, 1), 1, 4)]
    assert len({key(op) for op in ops} | {key(CONV, (4, 6, 7))}) == 5


def test_keys_tell_apart_the_ways_to_cut_and_rearrange():
    def key(op, count=1):
        graph = GraphBuilder((6, 6, 6))
        graph.add("op", op, *[graph.input] * count)
        return fuse(graph.build(), [])[0].key

    ops = [Slice(0, 0, 3), Slice(1, 0, 3), Slice(1, 3, 6), Reshape((6, 36)), Reshape((36, 6)), ConvTranspose(6)]
    constants = [AddConstant((6, 6, 1)), AddConstant((6, 1, 6)), AddConstant((6, 6, 6))]
    pairs = [Concat(0), Concat(1), MatMul(), MatMul(transpose_second=True)]
    norms = [ChannelNorm(), ChannelNorm(affine=False)]
    keys = [*map(key, ops + constants + norms), *(key(op, 2) for op in pairs)]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "slice(6x6x6 a0 0:3)"
    assert key(Concat(1), 3) == "concat(6x6x6,6x6x6,6x6x6 a1)"


@pytest.mark.parametrize(
    ("shape", "conv", "uses"),
    [
        ((4, 1, 1), Conv(8, (1, 1), 1, (0, 0)), 1),
        ((4, 2, 2), Conv(8, (1, 1), 1, (0, 0)), 4),
        ((4, 3, 3), Conv(8, (3, 3), 2, (1, 1)), 4),
        ((4, 5, 1), Conv(8, (1, 1), 1, (0, 0)), 5),
        ((4, 8, 8), Conv(8, (1, 1), 1, (0, 0)), 64),
        ((4, 9, 9), Conv(8, (3, 3), 1, (1, 1)), 81),
        ((4, 32, 32), Conv(8, (1, 1), 1, (0, 0)), 1024),
    ],
)
def test_a_convolution_uses_a_weight_once_for_each_position_of_its_result(shape, conv, uses):
    graph = GraphBuilder(shape)
    graph.add("conv", conv, graph.input)
    (kernel,) = fuse(graph.build(), RULES)
    reuse = reuse_class(kernel)
    below = REUSE_EDGES[reuse - 1] if reuse else 0
    above = REUSE_EDGES[reuse] if reuse < len(REUSE_EDGES) else 10**9
    assert below < uses <= above


def test_grouped_convolutions_have_classes_of_their_own_and_what_has_no_weights_another():
    graph = GraphBuilder((4, 3, 3))
    dense = graph.add("dense", Conv(4, (1, 1), 1, (0, 0)), graph.input)
    depthwise = graph.add("depthwise", Conv(4, (3, 3), 1, (1, 1), groups=4), dense)
    graph.add("pool", GlobalPool(), depthwise)
    found = [reuse_class(kernel) for kernel in fuse(graph.build(), RULES)]
    # Nine positions each.
    assert found == [REUSE_EDGES.index(9), DENSE_CLASSES + REUSE_EDGES.index(9), REUSE_CLASSES - 1]
    assert REUSE_CLASSES - 1 == 2 * DENSE_CLASSES
