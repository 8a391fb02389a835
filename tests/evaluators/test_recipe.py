"""Recipes: what they refuse, and that their optimizers are torch's own."""

from dataclasses import replace

import pytest
from torch import nn

from evaluators.recipe import Recipe, optimizer_for, recipe_for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, got 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be from 0 to below 1, got -0.1"),
        ({"average_share": 1.0}, "average_share must be from 0 to below 1, got 1.0"),
        ({"shift": 0.51}, "shift must be from 0 to 0.5, got 0.51"),
        ({"mixup": -1.0}, "mixup must be 0 or more, got -1.0"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, got 'adam'"),
    ],
)
def test_a_number_out_of_its_range_is_refused(change, message):
    with pytest.raises(ValueError) as caught:
        replace(Recipe(), **change)
    assert str(caught.value) == message


def test_digits_are_never_mirrored_and_photographs_are():
    assert not recipe_for("digits").flip
    assert not recipe_for("/home/me/signs").flip
    assert recipe_for("fashion-mnist:/there").flip
    assert recipe_for("cifar10:/there").flip


def test_sgd_takes_the_steps_of_its_textbook():
    # Nesterov's: v = m v + g; w -= rate (g + m v), the gradient of w^2 / 2 being w.
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    optimizer = optimizer_for(network, Recipe(optimizer="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.0))
    weight, speed = 1.0, 0.0
    for _ in range(4):
        optimizer.zero_grad()
        (network.weight**2 / 2).sum().backward()
        optimizer.step()
        speed = 0.5 * speed + weight
        weight -= 0.1 * (weight + 0.5 * speed)
        assert float(network.weight.detach()) == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_biases_and_norms_do_not_decay(optimizer):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer_for(network, Recipe(optimizer=optimizer)).param_groups
        for parameter in group["params"]
    }
    assert len(decays) == 4
    assert [name for name, each in network.named_parameters() if decays[id(each)] > 0] == ["0.weight"]
