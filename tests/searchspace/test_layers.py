"""Parts that several families share, on their own."""

import importlib.util
import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from searchspace.coverage import Layout, Rectangle, generate_layout, parse_layout
from searchspace.layers import BranchedConv, ChannelLayerNorm, DropPath, SqueezeExcite, layout_rectangles


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


def trained(module, seed=0):
    """In eval mode and double precision, with statistics as after training and one variance close to zero."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.running_mean, part.weight.data, part.bias.data):
                values.copy_(torch.randn(values.shape, generator=generator))
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.1)
            part.running_var[0] = 1e-7
    return module


def assert_folds(branched, channels, height, width):
    """The one convolution that it folds into, run by torch with the host's own settings, computes the same."""
    host = branched.conv
    x = torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = branched(x)
        weights = branched.folded()
        assert weights.weight.shape == host.weight.shape
        plain = functional.conv2d(x, *weights, host.stride, host.padding, host.dilation, host.groups)
    assert expected.std() > 0
    assert (plain - expected).abs().max() < 1e-11 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kernel", range(2, 8))
def test_pbconv_folds_for_every_stride_dilation_group_and_padding(kernel, norm):
    rng = random.Random(kernel)
    cropped = 0
    settings = itertools.product((1, 2, 3), (1, 2), (1, 2, 4), (0, 1, kernel // 2, kernel + 1), (True, False))
    for stride, dilation, groups, padding, bias in settings:
        host = nn.Conv2d(4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
        layout = generate_layout(kernel, rng, None if kernel <= 3 else 6)
        branched = trained(BranchedConv(host, rectangles=layout.rectangles, norm=norm), seed=kernel)
        cropped += any(branch.pad is not None and min(branch.pad) < 0 for branch in branched.branches)
        # Odd and even sizes, with and without a remainder at this stride.
        extent = dilation * (kernel - 1) + 1
        assert_folds(branched, 4, extent + rng.randrange(4), extent + rng.randrange(4, 8))
    assert cropped > 10, "the negative paddings of section 4.2 come up"


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (2, 1)},
        {"kernel_size": (2, 7), "stride": (1, 3), "padding": (3, 0), "groups": 2},
        {"kernel_size": (4, 3), "padding": "same", "dilation": (2, 1)},
        {"kernel_size": (3, 2), "padding": "valid", "groups": 4},
    ],
)
@pytest.mark.parametrize("size", [(9, 11), (12, 10)])
def test_a_branch_follows_its_host_where_height_and_width_differ(settings, size):
    host = nn.Conv2d(4, 4, **settings)
    height, width = host.kernel_size
    corners = [
        Rectangle(row, column, tall, wide)
        for tall, wide in {(1, 1), (1, width), (height, 1), (height - 1, width - 1)}
        for row in {0, height - tall}
        for column in {0, width - wide}
    ]
    assert_folds(trained(BranchedConv(host, rectangles=corners)), 4, *size)


@pytest.mark.parametrize(("kernel", "groups", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 4, 2), (5, 2, 1)])
def test_an_identity_folds_into_the_middle_of_the_kernel(kernel, groups, dilation):
    padding = dilation * (kernel - 1) // 2
    host = nn.Conv2d(4, 4, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    middle = [Rectangle(kernel // 2, kernel // 2, 1, 1)]
    assert_folds(trained(BranchedConv(host, rectangles=middle, identity=True)), 4, 7, 6)


@pytest.mark.parametrize("host", [nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)])
def test_an_identity_needs_an_output_like_the_input(host):
    with pytest.raises(ValueError, match="an identity branch needs equal channels and stride 1"):
        BranchedConv(host, identity=True)


def test_a_branch_in_training_reaches_the_same_outputs_as_its_rectangle_of_the_kernel():
    # A kernel that is zero but for the rectangle is the branch: an oracle that needs no norm and no folding.
    rectangle = Rectangle(1, 0, 1, 2)
    host = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    branched = BranchedConv(host, rectangles=[rectangle], norm=False).double()
    (branch,) = branched.branches
    masked = torch.zeros_like(host.weight)
    masked[:, :, 1:2, 0:2] = branch.conv.weight.detach()
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64)
    torch.testing.assert_close(branch(x), functional.conv2d(x, masked, None, 2, 1), rtol=0, atol=1e-13)


def plain_formulation(branched, x):
    """The sum of every kernel, zero around its rectangle, and its norm, as the paper writes it (seed 001, Eq. 8-9)."""
    host = branched.conv
    height, width = host.kernel_size
    y = 0
    for branch in (None, *branched.branches):
        conv, norm = (host, branched.norm) if branch is None else (branch.conv, branch.norm)
        weight = conv.weight
        if branch is not None:
            at = branch.rectangle
            right, below = width - at.column - at.width, height - at.row - at.height
            weight = functional.pad(weight, (at.column, right, at.row, below))
        z = functional.conv2d(x, weight, conv.bias, host.stride, host.padding, host.dilation, host.groups)
        if norm is not None:
            z = functional.batch_norm(z, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        y = y + z
    return y


# Maps of one and two cells, on which strips see little but padding, and larger ones.
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (5, 4)])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": (1, 2), "groups": 4},
        {"kernel_size": (3, 5), "padding": (3, 2)},
        {"kernel_size": 4, "padding": 2},
        {"kernel_size": 5, "padding": 2, "groups": 4},
    ],
)
@pytest.mark.parametrize("norm", [True, False])
def test_training_gives_the_outputs_and_gradients_of_the_plain_formulation(size, settings, norm):
    host = nn.Conv2d(4, 4, **settings)
    height, width = host.kernel_size
    everywhere = [
        Rectangle(row, column, tall, wide)
        for tall, wide in itertools.product(range(1, height + 1), range(1, width + 1))
        for row, column in itertools.product({0, (height - tall) // 2, height - tall}, {0, width - wide})
        if (tall, wide) != (height, width)
    ]
    branched = BranchedConv(host, rectangles=everywhere, norm=norm).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in branched.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, 4, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    found, expected = branched.train()(x), plain_formulation(branched, x)
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() < 1e-11 * expected.abs().max()
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    inputs = [x, *branched.parameters()]
    ours = torch.autograd.grad(found, inputs, towards)
    theirs = torch.autograd.grad(expected, inputs, towards)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-11 * max(1, float(other.abs().max()))


def formulations():
    path = Path(__file__).parents[2] / "studies/pbconv_train_step/formulations.py"
    spec = importlib.util.spec_from_file_location("formulations", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FORMULATIONS


FORMULATIONS = formulations()


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize(("stride", "size"), [(1, (2, 3)), (1, (6, 5)), (2, (5, 8))])
@pytest.mark.parametrize("layout", ["K3:0.0.1.3-0.1.3.1-1.0.1.3-2.0.1.3", "K3:0.0.2.1-0.1.2.1-0.1.3.2-2.0.1.1"])
def test_what_the_study_times_computes_the_plain_formulation(name, stride, size, layout):
    host = nn.Conv2d(3, 4, 3, stride=stride, padding=1, bias=False)
    branched = BranchedConv(host, rectangles=parse_layout(layout).rectangles).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in branched.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, 3, *size, dtype=torch.float64, generator=generator, requires_grad=True)
    found, expected = FORMULATIONS[name](branched, x), plain_formulation(branched, x)
    assert (found - expected).abs().max() < 1e-12
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    inputs = [x, *branched.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards), strict=True
    ):
        assert (one - other).abs().max() < 1e-11


def test_rows_that_only_see_padding_are_not_computed():
    # On a map of 2x2 a strip of one row, moved up by one, sees padding in one of two rows.
    host = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    (branch,) = BranchedConv(host, rectangles=[Rectangle(0, 0, 1, 3)]).branches
    with FlopCounterMode(display=False) as counter:
        branch(torch.randn(1, 8, 2, 2))
    assert counter.get_total_flops() == 2 * (8 * 8 * 3) * (1 * 2)


def test_a_layout_for_another_kernel_is_refused():
    layout = Layout(3, (Rectangle(0, 0, 3, 2), Rectangle(0, 1, 3, 2)))
    assert layout_rectangles(layout, 3) == layout.rectangles
    assert layout_rectangles(None, 3) == ()
    with pytest.raises(ValueError, match=r"a layout fits kernels of its own size, got K3:.* for a 5x5 convolution"):
        layout_rectangles(layout, 5)
