"""Kernel dispersion by hand, and which kernels of a network it is taken of."""

import math

import numpy as np
import pytest
import torch

from evaluators.dispersion import Dispersion, dispersion, network_dispersion, position_importance
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.patch import Patch
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network, deploy
from searchspace.spec import ArchSpec


@pytest.mark.parametrize(
    ("block", "kernels"),
    [(Gfae(), ["depthwise"]), (Lfae(), ["depthwise", "partial"]), (Parc(8, 8, depth=1), ["local", "join"])],
)
def test_norms_constants_and_transposed_convolutions_are_left_out(block, kernels):
    network = build_network(ArchSpec((3, 16, 16), Patch(8), ((block,),), Classifier(2, norm=True)), seed=1).eval()
    stem, middle, _ = network.blocks
    expected = dispersion([stem.folded()["conv"].weight, *(middle.folded()[name].weight for name in kernels)])
    assert network_dispersion(network) == expected


# Two outputs, two inputs, 3x3; magnitudes summed over both are 1 to 9 in the order of text, whatever the signs.
COUNTED = torch.arange(1.0, 10.0).reshape(3, 3)
SIGNED = torch.stack(
    [
        torch.stack([COUNTED * 0.5, -COUNTED * 0.25]),
        torch.stack([-COUNTED * 0.125, COUNTED * 0.125]),
    ]
)


def by_hand(*maps):
    """The population's std of the mean map, and the mean of the maps' stds; maps of one size."""
    stacked = np.stack([np.asarray(one, float) for one in maps])
    return Dispersion(float(np.std(stacked.mean(0))), float(np.mean([np.std(one) for one in stacked])))


def close(found, expected):
    return (found.of_mean, found.mean_of) == pytest.approx((expected.of_mean, expected.mean_of), rel=1e-6, abs=1e-7)


def test_importance_is_the_sum_of_magnitudes_over_the_largest():
    torch.testing.assert_close(position_importance(SIGNED), COUNTED / 9)


def test_dispersion_of_one_kernel_is_the_std_of_nine_numbers():
    # Of 1/9, 2/9 ... 9/9: the variance of n equally spaced numbers is (n^2 - 1) / 12 steps squared.
    expected = math.sqrt((9**2 - 1) / 12) / 9
    found = dispersion([SIGNED])
    assert found.of_mean == pytest.approx(expected, rel=1e-6)
    assert found.mean_of == pytest.approx(expected, rel=1e-6)


def test_it_does_not_depend_on_the_scale_of_a_kernel():
    assert close(dispersion([SIGNED * 1e-6]), dispersion([SIGNED]))
    assert close(dispersion([SIGNED * -1e6]), dispersion([SIGNED]))


def test_opposite_patterns_cancel_in_one_reading_and_not_in_the_other():
    turned = SIGNED.flip(2, 3)
    found = dispersion([SIGNED, turned])
    assert close(found, by_hand(COUNTED / 9, COUNTED.flip(0, 1) / 9))
    assert found.of_mean == pytest.approx(0, abs=1e-7), "the mean of 1..9 and 9..1 is flat"
    assert found.mean_of == pytest.approx(math.sqrt(80 / 12) / 9, rel=1e-6)


def test_layers_count_alike_however_many_channels_they_have():
    wide = SIGNED.repeat(50, 30, 1, 1)
    other = torch.ones(1, 1, 3, 3)
    other[0, 0, 1, 1] = 4
    assert close(dispersion([wide, other]), by_hand(COUNTED / 9, other[0, 0] / 4))


@pytest.mark.parametrize("channels", [1, 7])
def test_depthwise_kernels_are_summed_over_their_channels(channels):
    depthwise = torch.randn(channels, 1, 5, 3, generator=torch.Generator().manual_seed(channels))
    magnitude = np.abs(depthwise.numpy()).sum((0, 1))
    assert close(dispersion([depthwise]), by_hand(magnitude / magnitude.max()))


def test_sizes_are_averaged_within_first_and_weighted_by_their_layers():
    generator = torch.Generator().manual_seed(0)
    threes = [torch.rand(2, 3, 3, 3, generator=generator) for _ in range(3)]
    five, oblong = torch.rand(4, 1, 5, 5, generator=generator), torch.rand(4, 2, 3, 5, generator=generator)

    def importance(weight):
        magnitude = weight.numpy().sum((0, 1))
        return magnitude / magnitude.max()

    parts = [by_hand(*map(importance, threes)), by_hand(importance(five)), by_hand(importance(oblong))]
    expected = Dispersion(
        (3 * parts[0].of_mean + parts[1].of_mean + parts[2].of_mean) / 5,
        (3 * parts[0].mean_of + parts[1].mean_of + parts[2].mean_of) / 5,
    )
    assert close(dispersion([threes[0], five, threes[1], oblong, threes[2]]), expected)


def test_kernels_without_a_pattern_in_two_dimensions_are_left_out():
    others = [torch.rand(4, 4, 1, 1), torch.rand(4, 4, 1, 7), torch.rand(4, 4, 5, 1)]
    assert dispersion([*others, SIGNED]) == dispersion([SIGNED])
    with pytest.raises(ValueError, match="at least one convolution larger than 1x1"):
        dispersion(others)
    with pytest.raises(ValueError, match="at least one convolution larger than 1x1"):
        dispersion([])


def test_a_kernel_of_zeros_and_a_flat_one_have_no_dispersion():
    assert dispersion([torch.zeros(2, 2, 3, 3)]) == Dispersion(0.0, 0.0)
    assert dispersion([-torch.ones(2, 2, 3, 3)]) == Dispersion(0.0, 0.0)


def test_a_kernel_that_is_not_a_number_has_no_number_for_a_dispersion():
    # The caller turns it into a failure; a zero here would hide a network that broke.
    broken = SIGNED.clone()
    broken[0, 0, 1, 1] = float("nan")
    assert not math.isfinite(dispersion([broken]).of_mean)


def test_a_networks_dispersion_is_that_of_its_folded_convolutions():
    spec = ArchSpec((3, 16, 16), Rep(8, 2), ((Rdp(8), InvertedResidual(8, kernel=5)),), Classifier(4, 8))
    network = build_network(spec, 0).eval()
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 16, 16))
        network.eval()
    weights = deploy(network).weights
    expected = dispersion(
        torch.from_numpy(weights[f"{name}.weight"])
        for name in ("stem.conv", "stages.0.0.depthwise", "stages.0.1.depthwise")
    )
    assert network_dispersion(network) == expected
    assert expected.of_mean > 0
