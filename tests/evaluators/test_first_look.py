"""The first look at a candidate: numbers that repeat themselves, or a reason."""

import math
from dataclasses import replace

import pytest
import torch

from evaluators import first_look
from evaluators.datasets import Splits, open_dataset
from evaluators.dispersion import network_dispersion
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.first_look import look_early
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_score
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.spec import ArchSpec

SPEC = ArchSpec((1, 16, 16), Rep(8, 2), ((Rdp(12, 2),),), Classifier(10))
SHORT = EarlySettings(iterations=9)
NAMES = ("naswot", "params", "training-speed")


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", seed=0, limit=200).at(16)


def test_what_is_found_is_what_the_iterations_leave_behind(digits):
    found = look_early(SPEC, digits, SHORT, seed=4)
    network = build_network(SPEC, 4)
    start = network_dispersion(network).of_mean
    losses = list(train_steps(network, digits, Recipe(batch_size=32), 9, 4))
    assert set(found) == {"dispersion", "dispersion_start", "loss", "seconds"}
    assert found["dispersion_start"] == start
    assert found["dispersion"] == network_dispersion(network).of_mean
    # The last quarter of nine, rounded down.
    assert found["loss"] == pytest.approx(sum(losses[-2:]) / 2)
    assert found["seconds"] > 0


def numbers(found):
    return {name: value for name, value in found.items() if name != "seconds"}


def test_the_same_seed_finds_the_same_and_another_does_not(digits):
    torch.manual_seed(1)
    first = look_early(SPEC, digits, SHORT, seed=0)
    torch.manual_seed(2)
    again = look_early(SPEC, digits, SHORT, seed=0)
    assert numbers(first) == numbers(again)
    assert numbers(look_early(SPEC, digits, SHORT, seed=1)) != numbers(first)


def test_looking_leaves_torchs_generator_where_it_was(digits):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    look_early(SPEC, digits, EarlySettings(iterations=1), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_a_single_iteration_is_enough(digits):
    found = look_early(SPEC, digits, EarlySettings(iterations=1), seed=0)
    assert all(map(math.isfinite, found.values()))
    assert found["dispersion"] != found["dispersion_start"]


@pytest.mark.parametrize("iterations", [1, 2, 9])
@pytest.mark.parametrize("learning_rate", [1e30, float("inf")])
def test_a_training_that_breaks_is_a_failure_with_a_reason_and_never_a_number(digits, iterations, learning_rate):
    recipe = replace(SHORT.recipe, learning_rate=learning_rate)
    found = look_early(SPEC, digits, EarlySettings(iterations=iterations, recipe=recipe), seed=0)
    assert isinstance(found, Failure)
    assert found.reason.startswith(("TrainingDiverged: the loss became nan at step", "not finite: dispersion = nan"))


def test_images_that_are_not_numbers_are_a_failure(digits):
    broken = Splits(digits.train_x * float("nan"), digits.train_y, digits.val_x, digits.val_y)
    found = look_early(SPEC, broken, SHORT, seed=0)
    assert found == Failure("TrainingDiverged: the loss became nan at step 1 of 9; lower the learning rate")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (lambda labels: labels.clamp(min=1), "WrongLabels: class 0 has no training image"),
        (lambda labels: labels + 1, "WrongLabels: label 10 is out of range"),
    ],
)
def test_labels_that_are_not_the_networks_are_a_failure(digits, labels, reason):
    broken = Splits(digits.train_x, labels(digits.train_y), digits.val_x, digits.val_y)
    found = look_early(SPEC, broken, SHORT, seed=0)
    assert isinstance(found, Failure)
    assert found.reason.startswith(reason)


def test_a_batch_of_one_is_a_failure_where_a_norm_sees_one_pixel(digits):
    # Input 4, halved by the stem and twice more: the last norm has one value per channel to take a variance of.
    spec = ArchSpec((1, 4, 4), Rep(8, 2), ((Rdp(12, 2), Rdp(12, 2)),), Classifier(1))
    one = Splits(digits.train_x[:1, :, :4, :4], torch.tensor([0]), digits.val_x, digits.val_y)
    found = look_early(spec, one, SHORT, seed=0)
    assert isinstance(found, Failure)
    assert found.reason.startswith("ValueError: Expected more than 1 value per channel when training")


def test_no_memory_is_a_failure(digits, monkeypatch):
    def no_memory(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(first_look, "network_dispersion", no_memory)
    found = look_early(SPEC, digits, SHORT, seed=0)
    assert isinstance(found, Failure)
    assert "can't allocate memory" in found.reason


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            ArchSpec((1, 16, 16), PlainConv(8, kernel=1), (), Classifier(10)),
            "ValueError: dispersion is defined for networks with at least one convolution larger than 1x1",
        ),
        (ArchSpec((1, 16, 16), Rep(6), ((Rdp(8),),), Classifier(10)), "ValueError: shuffle groups must divide"),
        (ArchSpec((3, 16, 16), Rep(8), ((Rdp(8),),), Classifier(10)), "RuntimeError: "),
    ],
    ids=["no kernel", "cannot be built", "other channels"],
)
def test_a_candidate_that_cannot_be_looked_at_is_a_failure(digits, spec, reason):
    found = look_early(spec, digits, SHORT, seed=0)
    assert isinstance(found, Failure)
    assert found.reason.startswith(reason)
    assert "\n" not in found.reason


def test_with_proxies_it_finds_what_each_finds_alone(digits):
    found = dict(look_early(SPEC, digits, SHORT, 3, NAMES))
    alone = dict(look_early(SPEC, digits, SHORT, 3))
    assert found.pop("seconds") > 0
    del alone["seconds"]
    for name in NAMES:
        subject = Subject(build_network(SPEC, 3), digits, ProxySettings(early=SHORT), 3)
        assert found.pop(f"proxy-{name}") == proxy_score(PROXIES[name], subject)
    assert found == alone


def test_a_proxy_that_says_nothing_fails_the_candidate(digits, monkeypatch):
    monkeypatch.setattr(first_look, "proxy_scores", lambda names, subject: {"zen": Failure("no gradient")})
    assert look_early(SPEC, digits, SHORT, 0, ("zen",)) == Failure("proxy zen: no gradient")


def test_images_that_are_not_numbers_are_a_failure_with_proxies_too(digits):
    broken = Splits(digits.train_x * float("nan"), digits.train_y, digits.val_x, digits.val_y)
    found = look_early(SPEC, broken, SHORT, 0, ("params",))
    assert isinstance(found, Failure)
    assert found.reason.startswith("TrainingDiverged")
