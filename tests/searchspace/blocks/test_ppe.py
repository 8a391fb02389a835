"""PPE against the paper's equations, written out as they stand."""

import itertools

import pytest
import torch
from torch.nn import functional

from searchspace.blocks.ppe import Ppe, PpeBlock, PpeConv, position_map
from searchspace.coverage import Layout, Rectangle

SHAPE = (5, 4, 7)
COLUMNS = Layout(3, tuple(Rectangle(0, column, 3, 1) for column in range(3)))


def trained(shape, layout=None):
    """A PPE whose parameters and statistics are those of no fresh one, the same for every shape of map."""
    generator = torch.Generator().manual_seed(4)
    conv = PpeConv(shape, layout).double().eval()
    with torch.no_grad():
        for name, value in conv.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(torch.rand(value.shape, dtype=torch.float64, generator=generator) + 0.5)
    return conv


def image(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def by_the_equations(conv, x):
    channels, height, width = x.shape[1:]
    half = channels // 2
    x_w, x_h = x[:, :half], x[:, half:]
    p_w, p_h = torch.empty_like(x_w), torch.empty_like(x_h)
    for i, j in itertools.product(range(height), range(width)):
        p_w[:, :, i, j] = x_w[:, :, i, j] + conv.scale[:half] * j / (width - 1)  # Equation 11
        p_h[:, :, i, j] = x_h[:, :, i, j] + conv.scale[half:] * i / (height - 1)  # Equation 10
    weight = conv.positioned.conv.weight
    first = torch.cat(
        [
            functional.conv2d(p_w, weight[:half], padding=1, groups=half),
            functional.conv2d(p_h, weight[half:], padding=1, groups=channels - half),
        ],
        1,
    )
    second = functional.conv2d(x, refocused_by_loops(conv), padding=1, groups=channels)
    total, norm = first + second, conv.norm
    return functional.batch_norm(
        total, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    ).clamp_min(0)


def refocused_by_loops(conv):
    """W_b[c, y, x] = W_0[c, y, x] + the sum over u, v of R[c, u, v] W_0[c, y + u - 1, x + v - 1], 0 outside."""
    original, refocus = conv.refocused.weight.detach(), conv.refocus.weight.detach()
    result = original.clone()
    for c, y, x, u, v in itertools.product(range(len(original)), *[range(3)] * 4):
        if 0 <= y + u - 1 < 3 and 0 <= x + v - 1 < 3:
            result[c, 0, y, x] += refocus[c, 0, u, v] * original[c, 0, y + u - 1, x + v - 1]
    return result


@pytest.mark.parametrize("shape", [SHAPE, (4, 6, 6), (6, 9, 2)])
def test_it_computes_what_the_equations_say(shape):
    conv, x = trained(shape), image(*shape)
    with torch.no_grad():
        expected = by_the_equations(conv, x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


def test_the_refocused_kernel_is_the_explicit_sum():
    conv = trained(SHAPE)
    torch.testing.assert_close(conv.refocused_kernel().detach(), refocused_by_loops(conv), rtol=0, atol=1e-13)


def test_positions_run_from_0_to_the_learnt_scale():
    conv = trained(SHAPE)
    positions = position_map(conv.scale.detach(), 4, 7)
    by_column, by_row = conv.scale[:2].detach(), conv.scale[2:].detach()
    assert (positions[:, 0, 0] == 0).all()
    assert torch.equal(positions[:2, 1, -1], by_column)
    assert torch.equal(positions[2:, -1, 1], by_row)
    torch.testing.assert_close(positions[:2, 3, 2], by_column / 3)
    torch.testing.assert_close(positions[2:, 2, 5], by_row * 2 / 3)
    assert (position_map(conv.scale, 1, 1) == 0).all()


def test_the_constant_map_is_a_sum_of_row_and_column_only_away_from_the_border():
    constant = trained((4, 6, 8)).folded()["positions"].constant
    # Zero for every sum of a row and a column.
    mixed = constant[:, 1:, 1:] - constant[:, 1:, :-1] - constant[:, :-1, 1:] + constant[:, :-1, :-1]
    assert mixed[:, 1:-1, 1:-1].abs().max() < 1e-12
    assert mixed[:2, 0].abs().min() > 1e-3
    assert mixed[2:, :, 0].abs().min() > 1e-3


def test_weights_learnt_at_one_size_fold_at_another():
    small, large = trained((4, 3, 5)), trained((4, 8, 6))
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in large.state_dict().items()
    }
    x = image(4, 8, 6)
    with torch.no_grad():
        torch.testing.assert_close(small(x), large(x), rtol=0, atol=0)
    assert small.folded()["positions"].constant.shape == (4, 3, 5)
    assert torch.equal(small.folded()["conv"].weight, large.folded()["conv"].weight)


def test_a_layout_trains_norms_beside_each_of_its_branches():
    plain, branched = PpeBlock(SHAPE, Ppe()), PpeBlock(SHAPE, Ppe(layout=COLUMNS))
    added = sum(p.numel() for p in branched.parameters()) - sum(p.numel() for p in plain.parameters())
    # Three columns of three cells, and a norm for each and for the kernel itself.
    assert added == 5 * (3 * 3 + 4 * 2)


def test_a_layout_of_another_size_is_refused():
    with pytest.raises(ValueError, match="a layout fits kernels of its own size"):
        PpeBlock(SHAPE, Ppe(layout=Layout(2, (Rectangle(0, 0, 1, 2), Rectangle(1, 0, 1, 2)))))
