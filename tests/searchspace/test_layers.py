"""Parts that several families share, on their own."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from searchspace.coverage import Rectangle
from searchspace.layers import BranchedConv, ChannelLayerNorm, DropPath, SqueezeExcite


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 4)])
def test_branches_that_see_only_padding_fold_too(size, norm):
    corners = [Rectangle(row, column, 2, 1) for row in (0, 7) for column in (0, 8)]
    conv = BranchedConv(nn.Conv2d(2, 3, 9, padding=4), rectangles=corners, norm=norm).double().eval()
    x = torch.randn(2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(functional.conv2d(x, *conv.folded(), padding=4), conv(x), rtol=0, atol=1e-13)


def test_a_channel_layer_norm_norms_each_position_on_its_own():
    norm = ChannelLayerNorm(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = norm(x).detach()
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std(1, correction=0), torch.ones(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_dropped_path_is_left_out_for_whole_images_and_its_mean_stays():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == y[:, :1, :1]).all()
    assert y.mean() == pytest.approx(1, abs=0.05)


def test_no_path_is_dropped_in_eval_mode_or_at_probability_zero():
    x = torch.randn(64, 2, 3, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_squeeze_excite_scales_each_channel_by_its_gate(gate):
    part = SqueezeExcite(8, 4, gate, bias=False).double()
    assert [name for name, _ in part.named_parameters()] == ["squeeze.weight", "excite.weight"]
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    inner = (x.mean((2, 3)) @ part.squeeze.weight[:, :, 0, 0].T).clamp(min=0)
    scores = inner @ part.excite.weight[:, :, 0, 0].T
    gates = scores.sigmoid() if gate == "sigmoid" else (scores / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(part(x), x * gates[:, :, None, None])
