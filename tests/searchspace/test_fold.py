"""The fold algebra against torch's own modules."""

import pytest
import torch
from torch import nn

from searchspace.fold import absorb_input_norm, conv_weights, fold_batchnorm


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
