"""Kernels of one family stand beside each other by their sizes, and times between measured ones follow from those."""

import itertools
import math

import pytest

from hardware import ops
from hardware.kernel_fit import FEWEST_POINTS, KernelFit, features
from hardware.kernels import DETAIL, Kernel
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
    Pool,
    Reshape,
    Slice,
    Softmax,
)

# One kernel of each kind and the same with other numbers, which must not be taken for the same place.
PAIRS = [
    (GlobalPool(), [(16, 8, 8)], GlobalPool(), [(16, 8, 9)]),
    (Pool("max", (3, 3), 2, (1, 1)), [(16, 8, 8)], Pool("max", (3, 3), 1, (1, 1)), [(16, 8, 8)]),
    (Activation("hardswish"), [(8, 4, 5)], Activation("hardswish"), [(8, 5, 5)]),
    (Add(), [(8, 4, 5), (8, 4, 5)], Add(), [(8, 4, 6), (8, 4, 6)]),
    (Mul(), [(8, 4, 5), (8, 4, 5)], Mul(), [(8, 4, 5), (8, 1, 1)]),
    (Flatten(), [(8, 1, 1)], Flatten(), [(9, 1, 1)]),
    (Concat(0), [(8, 4, 5), (8, 4, 5)], Concat(0), [(8, 4, 5), (64, 4, 5)]),
    (Slice(0, 2, 5), [(8, 4, 5)], Slice(0, 2, 7), [(8, 4, 5)]),
    (AddConstant((8, 1, 1)), [(8, 4, 5)], AddConstant((8, 4, 5)), [(8, 4, 5)]),
    (MulConstant((8, 1, 1)), [(8, 4, 5)], MulConstant((8, 4, 5)), [(8, 4, 5)]),
    (ChannelNorm(), [(8, 4, 5)], ChannelNorm(), [(16, 4, 5)]),
    (ConvTranspose(5, 2), [(8, 4, 5)], ConvTranspose(6, 2), [(8, 4, 5)]),
    (Reshape((4, 4, 10)), [(8, 4, 5)], Reshape((4, 10, 4)), [(8, 4, 5)]),
    (L2Normalize(), [(8, 4, 5)], L2Normalize(), [(8, 4, 7)]),
    (MatMul(), [(4, 8, 16), (4, 16, 8)], MatMul(), [(4, 8, 16), (4, 16, 80)]),
    (Softmax(), [(4, 16, 16)], Softmax(), [(4, 16, 17)]),
    (Conv(8, (3, 3)), [(8, 4, 5)], Conv(9, (3, 3)), [(8, 4, 5)]),
]


def key_of(op, shapes):
    return Kernel((op,), tuple(shapes), ops.output_shape(op, tuple(shapes))).key


def test_every_kind_of_kernel_has_a_place_of_its_own():
    assert {type(pair[0]) for pair in PAIRS} | {Input} == set(DETAIL)
    families = set()
    for op, shapes, other, other_shapes in PAIRS:
        here, there = features(key_of(op, shapes)), features(key_of(other, other_shapes))
        assert here.family == there.family
        assert here.position != there.position, here.family
        assert len(here.position) == len(there.position)
        assert all(map(math.isfinite, here.position))
        families.add(here.family)
    assert len(families) == len(PAIRS)


@pytest.mark.parametrize(
    ("key", "family", "sizes", "flags"),
    [
        # channels, out, height, width, kernel, stride, dilation; then out not by 16, its waste, in not by 16, sigmoid,
        # another input
        ("conv(16x32x24>48 k1x1 s1 p0x0 g1)+relu", "pointwise", (16, 48, 32, 24, 1, 1, 1, 1), (0, 1, 0, 0, 0)),
        ("conv(3x32x24>20 k5x3 s2 p2x1 g1)", "dense", (3, 20, 32, 24, 5, 3, 2, 1), (1, 32 / 20, 1, 0, 0)),
        ("conv(24x8x9>24 k3x3 s1 p2x2 d2 g24)", "depthwise", (24, 24, 8, 9, 3, 3, 1, 2), (1, 32 / 24, 1, 0, 0)),
        ("conv(16x8x8>16 k1x1 s1 p0x0 g1)+sigmoid", "pointwise", (16, 16, 8, 8, 1, 1, 1, 1), (0, 1, 0, 1, 0)),
        ("conv(16x8x8,16x8x8>16 k3x3 s1 p1x1 g1)+add", "dense", (16, 16, 8, 8, 3, 3, 1, 1), (0, 1, 0, 0, 1)),
    ],
)
def test_convolutions_by_hand(key, family, sizes, flags):
    found = features(key)
    assert found.family == family
    logs, group, rest = found.position[:8], found.position[8], found.position[9:]
    assert logs == pytest.approx(tuple(map(math.log, sizes)))
    assert group == 0.0
    uneven, waste, uneven_in, sigmoid, sided = flags
    assert rest == pytest.approx((uneven, 4 * math.log(waste), uneven_in, sigmoid, sided))


def test_only_grouped_convolutions_are_told_apart_by_their_groups():
    four, two = (features(f"conv(16x8x8>32 k3x3 s1 p1x1 g{groups})") for groups in (4, 2))
    assert four.family == two.family == "grouped"
    assert four.position[8] == pytest.approx(math.log(4))
    assert four.position[:8] == two.position[:8]


def power_law(channels, out, size):
    """ms: nearly as the arithmetic, as runtimes do it."""
    return 3e-7 * channels**0.9 * out**1.05 * size**1.9


def pointwise(channels, out, size):
    return f"conv({channels}x{size}x{size}>{out} k1x1 s1 p0x0 g1)+relu"


@pytest.fixture(scope="module")
def measured():
    grid = itertools.product((16, 64, 128, 256), (16, 48, 96, 192), (4, 8, 16, 32))
    return {pointwise(*sizes): power_law(*sizes) for sizes in grid}


@pytest.fixture(scope="module")
def fit(measured):
    return KernelFit(measured)


def test_between_measured_kernels_a_power_law_is_found(fit):
    held_out = list(itertools.product((48, 80, 160), (32, 64, 144), (6, 12, 24)))
    errors = []
    for sizes in held_out:
        answer = fit(pointwise(*sizes))
        assert answer.is_near, sizes
        errors.append(abs(answer.value_ms / power_law(*sizes) - 1))
    assert max(errors) < 0.05
    assert sum(errors) / len(errors) < 0.02


@pytest.mark.parametrize("sizes", [(16, 16, 100), (1024, 16, 8), (64, 1000, 8), (4, 48, 8)])
def test_beyond_the_measured_kernels_an_answer_says_so(fit, sizes):
    answer = fit(pointwise(*sizes))
    assert not answer.is_near
    assert answer.value_ms > 0


def test_what_was_measured_comes_back(fit, measured):
    for key, value_ms in measured.items():
        assert fit(key).value_ms == pytest.approx(value_ms, rel=0.05)


def test_scales_of_an_earlier_fit_give_the_same_answers_without_looking_again(fit, measured, monkeypatch):
    def search(*_):
        raise AssertionError("looked for scales")

    monkeypatch.setattr("sklearn.gaussian_process.GaussianProcessRegressor._constrained_optimization", search)
    with pytest.raises(AssertionError, match="looked for scales"):
        KernelFit(measured)
    again = KernelFit(measured, fit.scales)
    for sizes in ((48, 32, 6), (80, 144, 24)):
        assert again(pointwise(*sizes)).value_ms == pytest.approx(fit(pointwise(*sizes)).value_ms, rel=1e-9)
    assert again.scales == fit.scales


def test_too_few_of_a_family_say_nothing():
    keys = [pointwise(16, 16 * number, 8) for number in range(1, FEWEST_POINTS + 1)]
    times = dict.fromkeys(keys, 0.1)
    assert KernelFit(times)(pointwise(16, 24, 8)) is not None
    assert KernelFit({key: times[key] for key in keys[1:]})(pointwise(16, 24, 8)) is None
    assert KernelFit(times)("softmax(4x4x4)") is None
    assert KernelFit({})(keys[0]) is None


def test_products_of_matrices_are_told_apart_by_either_side():
    def key(inner, out):
        return f"matmul(4x16x{inner},4x{inner}x{out})"

    times = {key(inner, out): 1e-6 * inner * out for inner in (8, 16, 32, 64) for out in (8, 16, 32, 64, 128)}
    found = KernelFit(times)(key(24, 96))
    assert found.value_ms == pytest.approx(1e-6 * 24 * 96, rel=0.1)
