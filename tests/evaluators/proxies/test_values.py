"""Each proxy against a second computation of the same quantity: numpy by hand, finite differences, plain autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.datasets import Splits
from evaluators.dispersion import network_dispersion
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_score
from evaluators.training import Recipe, train_steps
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.spec import ArchSpec

CLASSES = 3
COUNT = 5
SPEC = ArchSpec((2, 6, 5), PlainConv(4, 2), ((PlainConv(3),),), Classifier(CLASSES))
SETTINGS = ProxySettings(batch_size=COUNT, early=EarlySettings(iterations=9, recipe=Recipe(batch_size=4)))


@pytest.fixture
def subject():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2 * COUNT, *SPEC.input_shape, generator=generator)
    y = torch.arange(2 * COUNT) % CLASSES
    return Subject(build_network(SPEC, 4), Splits(x, y, x, y), SETTINGS, seed=6)


def measured(name, subject):
    return PROXIES[name].measure(subject)


def test_static_counts_by_hand(subject):
    # 3x3 maps: 4 filters of 2x3x3, then 3 of 4x3x3; then 3 classes of 3 features on one value.
    macs = 9 * 4 * 18 + 9 * 3 * 36 + 9
    params = 4 * 18 + 4 + 3 * 36 + 3 + 9 + 3
    assert measured("macs", subject) == pytest.approx(math.log(macs), rel=1e-12)
    assert measured("params", subject) == pytest.approx(math.log(params), rel=1e-12)
    # 3 pixels, then 2 x 2 more at distance 2.
    assert measured("receptive-field", subject) == pytest.approx(math.log(7), rel=1e-12)


def activations(subject):
    """What enters each ReLU, taken by hooks."""
    found = []
    network = build_network(SPEC, 4).train()
    for part in network.modules():
        if isinstance(part, nn.ReLU):
            part.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].detach().numpy()))
    network(subject.splits.train_x[:COUNT])
    return found


def test_naswot_is_the_determinant_of_counted_agreements(subject):
    codes = np.concatenate([each.reshape(COUNT, -1) > 0 for each in activations(subject)[:2]], axis=1)
    kernel = np.zeros((COUNT, COUNT))
    for i, j in itertools.product(range(COUNT), repeat=2):
        kernel[i, j] = sum(a == b for a, b in zip(codes[i], codes[j], strict=True))
    assert measured("naswot", subject) == pytest.approx(math.log(abs(np.linalg.det(kernel))), rel=1e-9)


def test_naswot_of_equal_images_is_a_failure(subject):
    twice = torch.cat([subject.splits.train_x[:1]] * 2 + [subject.splits.train_x[2:]])
    same = Subject(subject.network, Splits(twice, *[subject.splits.train_y] * 3), SETTINGS, 6)
    assert isinstance(proxy_score(PROXIES["naswot"], same), Failure)


def test_meco_is_numpys_smallest_eigenvalue_of_correlations(subject):
    maps = []
    network = build_network(SPEC, 4).train()
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda module, inputs, output: maps.append(output[0].detach().double().numpy()))
    network(subject.splits.train_x[:COUNT])
    # The classifier's map has one position, where nothing correlates.
    assert [each.shape for each in maps] == [(4, 3, 3), (3, 3, 3), (3, 1, 1)]
    expected = sum(np.linalg.eig(np.corrcoef(each.reshape(len(each), -1)))[0].real.min() for each in maps[:2])
    assert expected > 0.01
    assert measured("meco", subject) == pytest.approx(expected, rel=1e-6)


def test_synflow_by_hand(subject):
    """Each layer's sum of weight times gradient is the whole flow, as there is no bias before the last layer."""
    parameters = {name: value.detach().double().abs().numpy() for name, value in subject.network.named_parameters()}
    first, second, last = (value for value in parameters.values() if value.ndim == 4)

    def convolved(x, weight, stride):
        channels, height, width = x.shape
        padded = np.zeros((channels, height + 2, width + 2))
        padded[:, 1:-1, 1:-1] = x
        rows, columns = range(0, height, stride), range(0, width, stride)
        return np.array(
            [[[np.sum(padded[:, r : r + 3, c : c + 3] * one) for c in columns] for r in rows] for one in weight]
        )

    features = convolved(convolved(np.ones(SPEC.input_shape), first, 2), second, 1).mean((1, 2))
    flow = float((last[:, :, 0, 0] @ features).sum())
    assert measured("synflow", subject) == pytest.approx(math.log(3 * flow), rel=1e-9)


def test_synflow_is_not_cut_by_an_activation_that_ends_at_six():
    # Widths differ, so that no link leads around the activations.
    blocks = (InvertedResidual(12, 1, 3, 6), InvertedResidual(8, 1, 3, 6))
    network = build_network(ArchSpec((2, 6, 6), PlainConv(8), (blocks,), Classifier(CLASSES)), 0)
    splits = Splits(*[torch.zeros(1)] * 4)
    before = proxy_score(PROXIES["synflow"], Subject(network, splits, SETTINGS, 0))
    with torch.no_grad():
        network.blocks[0].conv.conv.weight.mul_(1e6)
    after = proxy_score(PROXIES["synflow"], Subject(network, splits, SETTINGS, 0))
    assert after - before == pytest.approx(math.log(1e6), rel=1e-9)


def loss_gradients(subject, start):
    """By loss.backward() on a fresh network, for the weights of convolutions."""
    network = build_network(SPEC, 4).train()
    chosen = slice(start, start + COUNT)
    nn.functional.cross_entropy(network(subject.splits.train_x[chosen]), subject.splits.train_y[chosen]).backward()
    convs = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert len(convs) == 3
    return [(conv.weight.detach().numpy(), conv.weight.grad.numpy()) for conv in convs]


def test_snip_and_gradient_norm_by_plain_autograd(subject):
    pairs = loss_gradients(subject, 0)
    sensitivity = sum(np.abs(weight * gradient).sum() for weight, gradient in pairs)
    norms = sum(np.sqrt((gradient.astype(np.float64) ** 2).sum()) for _, gradient in pairs)
    assert measured("snip", subject) == pytest.approx(math.log(sensitivity), abs=1e-5)
    assert measured("grad-norm", subject) == pytest.approx(math.log(norms), abs=1e-5)


def test_zico_by_loops(subject):
    first, second = (loss_gradients(subject, start) for start in (0, COUNT))
    total = 0.0
    for (_, a), (_, b) in zip(first, second, strict=True):
        ratios = 0.0
        for one, other in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
            deviation = abs(one - other) / 2
            if deviation > 0:
                ratios += (abs(one) + abs(other)) / 2 / deviation
        total += math.log(ratios)
    assert measured("zico", subject) == pytest.approx(total, abs=1e-4)


def test_jacov_by_finite_differences(subject):
    network = build_network(SPEC, 4).train().double()
    x = subject.splits.train_x[:COUNT].double().numpy()
    step = 1e-6

    def answer(images):
        with torch.no_grad():
            return float(network(torch.from_numpy(images)).sum())

    jacobian = np.zeros((COUNT, x[0].size))
    for i, j in np.ndindex(jacobian.shape):
        up, down = x.copy(), x.copy()
        up[i].flat[j] += step
        down[i].flat[j] -= step
        jacobian[i, j] = (answer(up) - answer(down)) / (2 * step)
    values = np.linalg.eig(np.corrcoef(jacobian))[0].real
    expected = sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in values)
    assert measured("jacov", subject) == pytest.approx(expected, rel=1e-3)
    assert PROXIES["jacov"].score(subject) == -measured("jacov", subject)


def test_zen_score_by_hand(subject):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(COUNT, 2, 6, 5, generator=generator)
    other = x + 0.01 * torch.randn(COUNT, 2, 6, 5, generator=generator)
    logs = 0.0
    for width, stride in ((4, 2), (3, 1)):
        weight = torch.randn(width, x.shape[1], 3, 3, generator=generator)
        x, other = (nn.functional.conv2d(each, weight, stride=stride, padding=1) for each in (x, other))
        by_channel = x.transpose(0, 1).flatten(1).numpy()
        mean, variance = by_channel.mean(1), by_channel.var(1)
        logs += 0.5 * math.log(variance.mean())
        x, other = (
            torch.relu((each - torch.tensor(mean)[:, None, None]) / torch.tensor(variance + 1e-5).sqrt()[:, None, None])
            for each in (x, other)
        )
    distance = np.mean([np.linalg.norm(row) for row in (x - other).flatten(1).numpy()])
    assert measured("zen", subject) == pytest.approx(math.log(distance) + logs, abs=1e-4)


def test_zen_score_leaves_links_and_gates_out():
    """With stride 1 and equal widths the block has a link; what it returns is then its own path alone."""
    from evaluators.proxies.zen import main_path
    from hardware.ops import Add, GlobalPool, Mul
    from searchspace.network import deploy_graph

    spec = ArchSpec((2, 6, 6), Rep(8), ((InvertedResidual(8, 1, 3, 4, squeeze_excite=True),),), Classifier(CLASSES))
    graph = deploy_graph(spec)
    kinds = [type(graph.nodes[index].op) for index in main_path(graph)]
    assert {Add, Mul} <= set(kinds)
    assert GlobalPool not in kinds
    # Stem, expansion, depthwise, projection; neither the gate's two nor the classifier's.
    assert [kind.__name__ for kind in kinds].count("Conv") == 4


def test_training_proxies_by_the_loop_itself(subject):
    network = build_network(SPEC, 4)
    start = network_dispersion(network).of_mean
    losses = list(train_steps(network, subject.splits, SETTINGS.early.recipe, 9, 6))
    end = network_dispersion(network).of_mean
    assert measured("dispersion", subject) == end
    assert measured("dispersion-gain", subject) == end - start
    assert measured("training-speed", subject) == pytest.approx(sum(losses) / 9, rel=1e-12)
    assert measured("loss", subject) == pytest.approx(sum(losses[-2:]) / 2, rel=1e-12)
    assert PROXIES["loss"].score(subject) == -measured("loss", subject)
    assert PROXIES["training-speed"].score(subject) == -measured("training-speed", subject)
