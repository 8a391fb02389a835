"""The fold algebra against torch's own modules."""

import pytest
import torch
from torch import nn

from searchspace.fold import (
    ConvWeights,
    absorb_input_affine,
    absorb_input_norm,
    absorb_input_order,
    add_branches,
    add_identity,
    average_pairs,
    conv_weights,
    embed,
    fold_batchnorm,
    identity_conv,
    shuffle_order,
)


def trained_norm(channels):
    generator = torch.Generator().manual_seed(1)
    norm = nn.BatchNorm2d(channels, dtype=torch.float64).eval()
    for values in (norm.running_mean, norm.weight.data, norm.bias.data):
        values.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator))
    norm.running_var[0] = 1e-7
    return norm


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 9, 1, dtype=torch.float64),
        nn.Conv2d(6, 9, 1, groups=3, bias=False, dtype=torch.float64),
        nn.Conv2d(6, 6, (3, 1), groups=6, dtype=torch.float64),
        nn.Conv2d(6, 4, 2, stride=2, groups=2, dtype=torch.float64),
    ],
    ids=str,
)
def test_a_norm_folds_into_the_convolution_before_or_behind_it(conv):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=generator)
    for parameter in conv.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    before, behind = trained_norm(6), trained_norm(conv.out_channels)
    weights = fold_batchnorm(absorb_input_norm(conv_weights(conv), before, conv.groups), behind)
    with torch.no_grad():
        expected = behind(conv(before(x)))
        folded = nn.functional.conv2d(x, weights.weight, weights.bias, conv.stride, groups=conv.groups)
    torch.testing.assert_close(folded, expected, rtol=1e-12, atol=1e-12)


def test_a_norm_without_statistics_cannot_be_folded():
    conv = conv_weights(nn.Conv2d(4, 4, 1))
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    for fold in (fold_batchnorm, absorb_input_norm):
        with pytest.raises(ValueError, match="without running statistics"):
            fold(conv, norm)


def image(channels, height, width):
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_scale_and_a_shift_fold_into_the_convolution_behind_them(groups):
    conv = nn.Conv2d(6, 9, 2, stride=2, groups=groups, dtype=torch.float64)
    scale, shift = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = image(6, 5, 4)
    folded = absorb_input_affine(conv_weights(conv), scale, shift, groups)
    with torch.no_grad():
        expected = conv(x * scale[:, None, None] + shift[:, None, None])
        result = nn.functional.conv2d(x, *folded, stride=2, groups=groups)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_and_its_input_are_one_convolution(groups):
    conv = nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=groups, dtype=torch.float64)
    x = image(6, 5, 7)
    with torch.no_grad():
        result = nn.functional.conv2d(x, *add_identity(conv_weights(conv), groups), padding=(1, 2), groups=groups)
        torch.testing.assert_close(result, conv(x) + x, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("kernel", "padding", "groups"), [(3, 1, 6), (3, 1, 2), (1, 0, 6), (5, 2, 1), (2, 0, 1)])
@pytest.mark.parametrize("size", [(6, 4), (2, 8)])
def test_a_convolution_and_the_mean_of_pairs_are_one_convolution(kernel, padding, groups, size):
    height, width = (length + kernel - 1 - 2 * padding for length in size)
    conv = nn.Conv2d(6, 12, kernel, padding=padding, groups=groups, dtype=torch.float64)
    x = image(6, height, width)
    with torch.no_grad():
        expected = nn.functional.avg_pool2d(conv(x), 2)
        result = nn.functional.conv2d(x, *average_pairs(conv_weights(conv)), 2, padding, groups=groups)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (8, 2), (8, 4), (8, 8), (12, 3), (6, 2)])
def test_a_shuffle_is_torchs_and_disappears_into_the_convolution_behind_it(channels, groups):
    x = image(channels, 5, 4)
    order = shuffle_order(channels, groups)
    shuffled = nn.functional.channel_shuffle(x, groups)
    assert torch.equal(x[:, order], shuffled)
    conv = nn.Conv2d(channels, 5, 3, stride=2, padding=1, dtype=torch.float64)
    with torch.no_grad():
        result = nn.functional.conv2d(x, *absorb_input_order(conv_weights(conv), order), stride=2, padding=1)
        torch.testing.assert_close(result, conv(shuffled), rtol=0, atol=1e-13)


def test_a_shuffle_needs_groups_that_divide_the_channels():
    with pytest.raises(ValueError, match="shuffle groups must divide the channels, got 3 groups for 8 channels"):
        shuffle_order(8, 3)


@pytest.mark.parametrize(("height", "width", "row", "column"), [(1, 1, 0, 0), (2, 3, 1, 2), (3, 5, 0, 0), (1, 5, 2, 0)])
def test_a_small_kernel_lies_where_it_was_put_and_nowhere_else(height, width, row, column):
    small = ConvWeights(torch.rand(4, 2, height, width) + 1, torch.rand(4))
    large = embed(small, (3, 5), row, column)
    assert torch.equal(large.weight[:, :, row : row + height, column : column + width], small.weight)
    assert large.weight.count_nonzero() == small.weight.numel()
    assert torch.equal(large.bias, small.bias)


@pytest.mark.parametrize(
    ("height", "width", "row", "column"), [(1, 1, 3, 0), (1, 1, 0, -1), (4, 1, 0, 0), (2, 2, 2, 4)]
)
def test_a_small_kernel_that_does_not_fit_is_refused(height, width, row, column):
    with pytest.raises(ValueError, match=rf"a {height}x{width} kernel at \({row}, {column}\) does not fit inside 3x5"):
        embed(ConvWeights(torch.ones(1, 1, height, width), torch.zeros(1)), (3, 5), row, column)


def test_parallel_convolutions_add_up():
    convs = [nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64) for _ in range(3)]
    x = image(4, 5, 6)
    with torch.no_grad():
        result = nn.functional.conv2d(x, *add_branches([conv_weights(conv) for conv in convs]), padding=1, groups=2)
        torch.testing.assert_close(result, sum(conv(x) for conv in convs), rtol=0, atol=1e-13)


def test_kernels_of_different_sizes_do_not_add_up():
    one, other = (conv_weights(nn.Conv2d(2, 2, kernel)) for kernel in (1, 3))
    with pytest.raises(ValueError, match="weights have one shape"):
        add_branches([one, other])


@pytest.mark.parametrize("shape", [(4, 4, 2, 2), (4, 4, 3, 2), (6, 4, 3, 3), (4, 2, 3, 3)])
def test_an_identity_that_cannot_be_is_refused(shape):
    with pytest.raises(ValueError, match="an identity needs equal channels in and out and odd kernels"):
        identity_conv(torch.zeros(shape), groups=1)


@pytest.mark.parametrize("affine", [True, False])
def test_folding_changes_nothing_it_was_given_and_keeps_the_precision(affine):
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine).eval()
    norm.running_mean.uniform_(-1, 1)
    before = [value.clone() for value in (*conv.state_dict().values(), *norm.state_dict().values())]
    folded = fold_batchnorm(conv_weights(conv), norm)
    after = [*conv.state_dict().values(), *norm.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert {value.dtype for value in folded} == {torch.float32}
    assert not any(value.requires_grad for value in folded)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(nn.functional.conv2d(x, *folded), norm(conv(x)))
