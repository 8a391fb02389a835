"""Calibration, against a sum by hand and bins cut by numpy."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.accuracy import BINS, accuracy, calibration_error


def test_four_images_by_hand():
    # Two in the bin (0.8, 0.8667], one of them right: 2 (0.85 - 0.5) = 0.7; 1.0 right: 0; 0.3 wrong: 0.3.
    confidence = torch.tensor([0.84, 0.86, 1.0, 0.3], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert calibration_error(confidence, right) == pytest.approx((0.7 + 0 + 0.3) / 4)


def test_a_bin_holds_its_upper_end():
    # 0.6 is 9/15 and belongs to the bin of 0.55, where it makes up for it; in the next one both would count alone.
    confidence, right = torch.tensor([0.6, 0.55], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert calibration_error(confidence, right) == pytest.approx(abs(0.6 + 0.55 - 1) / 2)


def test_who_is_as_often_right_as_sure_is_calibrated():
    confidence = torch.full((10,), 0.7, dtype=torch.float64)
    assert calibration_error(confidence, torch.tensor([1.0] * 7 + [0.0] * 3).double()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bins_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    confidence, right = rng.uniform(0.1, 1, 300), (rng.random(300) < 0.6).astype(float)
    edges = np.linspace(0, 1, BINS + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(torch.tensor(confidence), torch.tensor(right)) == pytest.approx(expected)


def test_a_network_that_is_sure_and_wrong_is_told():
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([100.0, 0.0]))
    found = accuracy(network, torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 1, 1]))
    assert found.value == 0.25
    assert found.calibration_error == pytest.approx(0.75)
