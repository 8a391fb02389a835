"""Every operation has an answer on a calibrated target: what ncnn runs for it, or what comes nearest to that."""

from typing import get_args

import pytest

from hardware.kernels import Kernel
from hardware.latency_table import Tier
from hardware.ncnn_layers import AMOUNTS, NEAREST, layers_of, work
from hardware.ops import (
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    Flatten,
    GlobalPool,
    Input,
    L2Normalize,
    MatMul,
    Mul,
    MulConstant,
    Op,
    Pool,
    Reshape,
    Slice,
    Softmax,
    output_shape,
)
from hardware.targets import load_target

MAP, GATE, TOKENS, SCORES = (16, 7, 5), (16, 1, 1), (4, 4, 35), (4, 4, 4)

# Each operation on the shapes that it can see, with a word of why nothing measured speaks for it, '' where it does.
CASES = [
    (Conv(16, (3, 3), padding=(1, 1)), [MAP], ""),
    (Conv(16, (4, 4), 2, (1, 1), groups=16), [(16, 8, 8)], "3x3 and 5x5"),
    (Conv(4, (9, 9), padding=(4, 4)), [(4, 7, 5)], ""),
    (Conv(24, (1, 1)), [GATE], ""),
    (Pool("average", (2, 2), 2), [(16, 8, 6)], "averages"),
    (GlobalPool(), [MAP], ""),
    (Activation("gelu"), [MAP], "'gelu'"),
    (Activation("gelu"), [(16,)], "'gelu'"),
    (Add(), [MAP, MAP], ""),
    (Mul(), [MAP, GATE], ""),
    (Flatten(), [GATE], ""),
    (Concat(0), [MAP, (4, 7, 5), (1, 7, 5)], ""),
    (Concat(1), [MAP, (16, 6, 5)], "another axis"),
    (Concat(2), [MAP, (16, 7, 1)], "another axis"),
    (Concat(0), [(35, 16), (1, 16)], "another axis"),
    (Slice(0, 3, 7), [MAP], ""),
    (Slice(0, 0, 58), [(116, 7, 7)], ""),
    (Slice(1, 0, 6), [MAP], "another axis"),
    (Slice(0, 0, 1), [(35, 16)], "another axis"),
    (AddConstant((16, 7, 1)), [MAP], "'add_constant'"),
    (AddConstant((35, 16)), [(35, 16)], "'add_constant'"),
    (MulConstant((4, 1, 1)), [SCORES], "'mul_constant'"),
    (ChannelNorm(), [MAP], "'channel_norm'"),
    (ChannelNorm(affine=False), [GATE], "'channel_norm'"),
    (ConvTranspose(16), [MAP], "'conv_transpose'"),
    (ConvTranspose(3, size=3), [(5, 1, 1)], "'conv_transpose'"),
    (Reshape(TOKENS), [MAP], "'reshape'"),
    (Reshape((16, 35)), [MAP], "'reshape'"),
    (L2Normalize(), [MAP], "'l2_normalize'"),
    (MatMul(), [SCORES, TOKENS], "'matmul'"),
    (MatMul(transpose_second=True), [TOKENS, TOKENS], "'matmul'"),
    (MatMul(), [(35, 16), (16, 3)], "'matmul'"),
    (MatMul(), [(8, 1, 1), (8, 1, 9)], "'matmul'"),
    (Softmax(), [SCORES], "attention"),
    (Softmax(), [(35, 16)], "attention"),
    (Softmax(), [(1000,)], ""),
]


def kernel_of(op, shapes):
    return Kernel((op,), tuple(shapes), output_shape(op, tuple(shapes)))


def test_every_operation_is_among_the_cases():
    # An input is what enters the first kernel and never one itself.
    assert {type(op) for op, _, _ in CASES} == set(get_args(Op)) - {Input}


@pytest.mark.parametrize(("op", "shapes", "why"), CASES, ids=str)
@pytest.mark.parametrize("threads", [1, 4])
def test_every_operation_takes_time_and_says_why_it_is_known(op, shapes, why, threads):
    answer = load_target("rk3288", threads=threads).latency_model.kernel(kernel_of(op, shapes))
    assert answer.tier is (Tier.extrapolated if why else Tier.calibrated)
    assert why in answer.why
    assert answer.why
    assert 1e-4 < answer.value_ms < 1


@pytest.mark.parametrize(("op", "shapes", "why"), CASES, ids=str)
def test_no_operation_falls_back_on_the_family_of_last_resort(op, shapes, why):
    for layer in layers_of(kernel_of(op, shapes)):
        assert work(layer).family in NEAREST or layer.kind in ("global_pool", "free")


def amount(op, shapes, name):
    return sum(work(layer).amounts[AMOUNTS.index(name)] for layer in layers_of(kernel_of(op, shapes)))


@pytest.mark.parametrize(
    ("op", "shapes", "macs"),
    [
        (MatMul(), [(4, 12, 12), (4, 12, 35)], 4 * 12 * 12 * 35),
        (MatMul(transpose_second=True), [(4, 12, 35), (4, 8, 35)], 4 * 12 * 35 * 8),
        (MatMul(), [(7, 5), (5, 3)], 7 * 5 * 3),
        (ConvTranspose(20), [(16, 7, 5)], 16 * 20 * 4 * 35),
        (ConvTranspose(3, size=3), [(5, 2, 1)], 5 * 3 * 9 * 2),
    ],
    ids=str,
)
def test_products_are_costed_by_their_multiply_adds(op, shapes, macs):
    assert amount(op, shapes, "macs") == macs


def test_a_product_of_matrices_takes_as_long_as_the_1x1_convolution_that_it_is():
    (product,) = layers_of(kernel_of(MatMul(), [(16, 8), (8, 35)]))
    (convolution,) = layers_of(kernel_of(Conv(16, (1, 1)), [(8, 7, 5)]))
    assert work(product).family == work(convolution).family == "conv1x1"
    assert amount(MatMul(), [(16, 8), (8, 35)], "weights") == amount(Conv(16, (1, 1)), [(8, 7, 5)], "weights")


def test_twice_the_matrices_are_twice_the_work():
    one, two = (layers_of(kernel_of(MatMul(), [(stack, 8, 8), (stack, 8, 35)]))[0] for stack in (1, 2))
    assert work(two).amounts == tuple(2 * value for value in work(one).amounts)


def test_a_norm_over_channels_moves_them_to_the_end_and_back():
    layers = layers_of(kernel_of(ChannelNorm(), [(16, 7, 5)]))
    assert [layer.kind for layer in layers] == ["Permute", "channel_norm", "Permute"]
    assert [layer.out_shape for layer in layers] == [(7, 5, 16), (7, 5, 16), (16, 7, 5)]
