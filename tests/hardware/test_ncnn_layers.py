"""Every operation has an answer on a calibrated target: counted, or by the formula of the code path that it takes."""

from typing import get_args

import pytest

from hardware.kernels import Kernel
from hardware.latency_table import Tier
from hardware.ncnn_layers import AMOUNTS, Work, families_above, instructions, is_known, layers_of, work
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

# Each operation on shapes that it can see.
CASES = [
    (Conv(16, (3, 3), padding=(1, 1)), [MAP]),
    (Conv(16, (4, 4), 2, (1, 1), groups=16), [(16, 8, 8)]),
    (Conv(4, (9, 9), padding=(4, 4)), [(4, 7, 5)]),
    (Conv(24, (1, 1)), [GATE]),
    (Pool("average", (2, 2), 2), [(16, 8, 6)]),
    (GlobalPool(), [MAP]),
    (Activation("gelu"), [MAP]),
    (Activation("gelu"), [(16,)]),
    (Add(), [MAP, MAP]),
    (Mul(), [MAP, GATE]),
    (Flatten(), [GATE]),
    (Concat(0), [MAP, (4, 7, 5), (1, 7, 5)]),
    (Concat(1), [MAP, (16, 6, 5)]),
    (Concat(2), [MAP, (16, 7, 1)]),
    (Concat(0), [(35, 16), (1, 16)]),
    (Slice(0, 3, 7), [MAP]),
    (Slice(0, 0, 58), [(116, 7, 7)]),
    (Slice(1, 0, 6), [MAP]),
    (Slice(0, 0, 1), [(35, 16)]),
    (AddConstant((16, 7, 1)), [MAP]),
    (AddConstant((35, 16)), [(35, 16)]),
    (MulConstant((4, 1, 1)), [SCORES]),
    (ChannelNorm(), [MAP]),
    (ChannelNorm(affine=False), [GATE]),
    (ConvTranspose(16), [MAP]),
    (ConvTranspose(3, size=3), [(5, 1, 1)]),
    (Reshape(TOKENS), [MAP]),
    (Reshape((16, 35)), [MAP]),
    (L2Normalize(), [MAP]),
    (MatMul(), [SCORES, TOKENS]),
    (MatMul(transpose_second=True), [TOKENS, TOKENS]),
    (MatMul(), [(35, 16), (16, 3)]),
    (MatMul(), [(8, 1, 1), (8, 1, 9)]),
    (Softmax(), [SCORES]),
    (Softmax(), [(35, 16)]),
    (Softmax(), [(1000,)]),
]


def kernel_of(op, shapes):
    return Kernel((op,), tuple(shapes), output_shape(op, tuple(shapes)))


def test_every_operation_is_among_the_cases():
    # An input is what enters the first kernel and never one itself.
    assert {type(op) for op, _ in CASES} == set(get_args(Op)) - {Input}


@pytest.mark.parametrize(("op", "shapes"), CASES, ids=str)
@pytest.mark.parametrize("threads", [1, 4])
def test_every_operation_takes_time_and_says_why_it_is_known(op, shapes, threads):
    model = load_target("rk3288", threads=threads).latency_model
    kernel = kernel_of(op, shapes)
    answer = model.kernel(kernel)
    counted = kernel.key in model.counts
    assert answer.tier is (Tier.calibrated if counted else Tier.extrapolated)
    assert (f"{model.counts[kernel.key]} instructions counted" if counted else "not counted") in answer.why
    assert 1e-4 < answer.value_ms < 1


@pytest.mark.parametrize(("op", "shapes"), CASES, ids=str)
def test_the_formula_knows_every_family(op, shapes):
    formula = load_target("rk3288").latency_model.formula
    for layer in layers_of(kernel_of(op, shapes)):
        assert is_known(work(layer).family, formula)


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


def test_twice_the_matrices_are_twice_the_multiply_adds():
    one, two = (amount(MatMul(), [(stack, 8, 8), (stack, 8, 35)], "macs") for stack in (1, 2))
    assert two == 2 * one


def test_a_family_without_data_goes_by_what_it_is_part_of():
    assert list(families_above("a/b/c")) == ["a/b/c", "a/b", "a"]
    amounts = tuple(float(name == "calls") for name in AMOUNTS)
    formula = {"a": tuple(10 * each for each in amounts), "a/b": tuple(20 * each for each in amounts)}
    assert [instructions(Work(family, amounts), formula) for family in ("a/b/c", "a/b", "a/x", "a")] == [20, 20, 10, 10]


def test_a_convolution_is_of_the_family_of_its_kernel_stride_and_channels():
    (odd,) = layers_of(kernel_of(Conv(16, (5, 5), 2, (2, 2)), [(6, 8, 8)]))
    (packed,) = layers_of(kernel_of(Conv(16, (3, 3), 2, (1, 1)), [(8, 8, 8)]))
    (grey,) = layers_of(kernel_of(Conv(16, (3, 3), 1, (1, 1)), [(1, 8, 8)]))
    assert [work(layer).family for layer in (odd, packed, grey)] == [
        "stem/5x5s2/odd",
        "convkxk/3x3s2/packed",
        "stem3/3x3s1/1",
    ]
