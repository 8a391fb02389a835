"""The fold algebra against torch's own modules."""

import pytest
import torch
from torch import nn

from searchspace.fold import (
    absorb_input_affine,
    absorb_input_norm,
    add_identity,
    average_pairs,
    conv_weights,
    fold_batchnorm,
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
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
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
