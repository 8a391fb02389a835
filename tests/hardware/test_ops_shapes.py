"""What the operations that cut, join and rearrange refuse."""

import pytest

from hardware.graph import GraphBuilder
from hardware.ops import (
    AddConstant,
    ChannelNorm,
    Concat,
    MatMul,
    MulConstant,
    Reshape,
    Slice,
    output_shape,
    weight_shapes,
)


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (Concat(0), [(3, 5, 7)], "Concat takes 2 or more inputs, got 1"),
        (Concat(0), [(3, 5, 7), (3, 5, 6)], "only axis 0 may differ"),
        (Concat(3), [(3, 5, 7), (3, 5, 7)], "from 0 to 2, got 3"),
        (Concat(1), [(3, 5, 7), (3,)], "from 0 to 0, got 1"),
        (Slice(1, 0, 6), [(3, 5, 7)], "ends at 5 at the latest, got 6"),
        (AddConstant((3, 5)), [(3, 5, 7)], r"has that shape, or 1 in some of its places, got \(3, 5\)"),
        (MulConstant((1, 7, 1)), [(3, 5, 7)], "or 1 in some of its places"),
        (Reshape((3, 36)), [(3, 5, 7)], "with 105 for .* with 108"),
        (MatMul(), [(3, 5, 7), (3, 5, 7)], "do not fit ones of"),
        (MatMul(transpose_second=True), [(3, 5, 7), (3, 7, 5)], "do not fit transposed ones"),
        (MatMul(), [(3, 5, 7), (2, 7, 5)], "stacks and inner lengths must agree"),
        (MatMul(), [(3, 5, 7), (3, 7, 5), (3, 5, 7)], "takes 2 inputs, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        output_shape(op, tuple(shapes))


@pytest.mark.parametrize("bounds", [(2, 2), (3, 1), (-1, 2)])
def test_a_slice_takes_something_and_counts_from_the_start(bounds):
    with pytest.raises(ValueError, match="to a later stop"):
        Slice(0, *bounds)


def test_many_tensors_join_at_once():
    graph = GraphBuilder((3, 5, 7))
    assert graph.add("rows", Concat(1), graph.input, graph.input, graph.input).shape == (3, 15, 7)


def test_a_channel_norm_learns_two_numbers_for_each_channel():
    assert weight_shapes(ChannelNorm(), ((3, 5, 7),)) == {"scale": (3,), "shift": (3,)}


def test_a_channel_norm_whose_scale_was_folded_learns_nothing():
    assert weight_shapes(ChannelNorm(affine=False), ((3, 5, 7),)) == {}
