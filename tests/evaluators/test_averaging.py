"""Averaged weights against a sum by hand, and norms against torch's own statistics."""

import math

import pytest
import torch
from torch import nn

from evaluators.averaging import WeightAverage, with_average


def test_the_average_is_that_of_the_first_steps_and_then_forgets():
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, time_constant=2.0)
    decay, expected = math.exp(-0.5), float(network.weight.detach())
    for step, weight in enumerate([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0] * 3, start=1):
        network.weight.data.fill_(weight)
        average.update(network)
        # 9 / (9 + step), 0.39 at step 14, while that is more than 1 - exp(-1/2) = 0.393.
        share = 9 / (9 + step) if step <= 13 else 1 - decay
        expected += share * (weight - expected)
        assert float(average.weights[0]) == pytest.approx(expected, rel=1e-5)


def test_norms_get_the_statistics_of_the_averaged_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    network[0].weight.data.fill_(2.0)
    network[0].bias.data.fill_(0.0)
    average = WeightAverage(network, time_constant=1e9)
    for scale in (1.0, 3.0):
        network[0].weight.data.fill_(scale)
        average.update(network)
    network(torch.full((5, 1, 3, 3), 100.0))  # what other weights made of other images must not count
    images = torch.randn(21, 1, 3, 3)
    found = with_average(network, average, images, batch_size=10)
    # Weights 1 and 3; two whole batches of ten, the last image in neither; the variance is each batch's own.
    weight = float(average.weights[0].flatten()[0])
    assert 1 < weight < 3
    halves = [weight * images[:10], weight * images[10:20]]
    mean = sum(float(half.mean()) for half in halves) / 2
    variance = sum(float(half.var()) for half in halves) / 2
    assert found[1].running_mean.tolist() == pytest.approx([mean] * 2, rel=1e-4)
    assert found[1].running_var.tolist() == pytest.approx([variance] * 2, rel=1e-4)
    assert not found.training
    assert found[1].momentum == network[1].momentum == 0.1


def test_the_network_itself_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    average = WeightAverage(network, time_constant=3.0)
    network[0].weight.data.add_(1.0)
    average.update(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with_average(network, average, torch.randn(8, 1, 2, 2), batch_size=4)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
