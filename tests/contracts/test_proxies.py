"""What every registered proxy promises, on odd networks of every block family: registering one is testing it."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from evaluators.datasets import Splits
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_score, proxy_scores
from evaluators.recipe import Recipe
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.registry import families
from searchspace.spec import ArchSpec

SETTINGS = ProxySettings(batch_size=4, early=EarlySettings(iterations=2, recipe=Recipe(batch_size=4)))
CLASSES = 3
SMALL = ArchSpec((2, 9, 7), Rep(4, 2), ((Rep(6),),), Classifier(CLASSES, 8))


def spec_around(shape, block):
    """A network around one block."""
    if isinstance(block, Classifier):
        return ArchSpec(shape, Rep(shape[0]), (), replace(block, classes=CLASSES))
    return ArchSpec(shape, block, (), Classifier(CLASSES))


NETWORKS = [
    pytest.param(spec_around(shape, block), id=f"{family.name}-{index}")
    for family in families()
    for index, (shape, block) in enumerate(family.examples[:2])
]


def splits_for(spec, images=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, *spec.input_shape, generator=generator)
    y = torch.arange(images) % CLASSES
    return Splits(x, y, x[:2], y[:2])


def subject_of(spec, settings=SETTINGS, seed=3):
    return Subject(build_network(spec, 5), splits_for(spec), settings, seed)


@pytest.mark.parametrize("spec", NETWORKS)
def test_every_proxy_gives_a_finite_number_or_a_reason_and_changes_nothing(spec):
    subject = subject_of(spec)
    before = copy.deepcopy(subject.network.state_dict())
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    found = proxy_scores(PROXIES, subject)
    assert torch.equal(torch.rand(3), expected), "the generator of the caller has moved"
    for name, value in found.items():
        if isinstance(value, Failure):
            # A network that has no kernel, activation or map to look at; nothing else may fail.
            assert value.reason.startswith(("NotDefined: ", "ValueError: dispersion is defined for")), (name, value)
        else:
            assert math.isfinite(value), name
    assert subject.network.training
    for name, tensor in subject.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in subject.network.parameters())


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_alone_says_what_it_says_among_others_and_again_and_of_a_copy(name):
    among_others = proxy_scores(PROXIES, subject_of(SMALL))[name]
    torch.manual_seed(99)
    first = subject_of(SMALL)
    copied = Subject(copy.deepcopy(first.network), first.splits, SETTINGS, first.seed)
    assert isinstance(among_others, float)
    assert proxy_score(PROXIES[name], first) == among_others
    assert proxy_score(PROXIES[name], first) == among_others
    assert proxy_score(PROXIES[name], copied) == among_others


@pytest.mark.parametrize("name", [name for name, each in PROXIES.items() if each.work != "static"])
def test_a_network_in_eval_mode_is_judged_alike(name):
    evaluated = subject_of(SMALL)
    evaluated.network.eval()
    assert proxy_score(PROXIES[name], evaluated) == proxy_score(PROXIES[name], subject_of(SMALL))
    assert not evaluated.network.training


@pytest.mark.parametrize("name", [name for name, each in PROXIES.items() if each.work != "static"])
def test_images_that_are_not_numbers_are_a_failure_wherever_images_are_used(name):
    subject = subject_of(SMALL)
    broken = replace(subject.splits, train_x=subject.splits.train_x * float("nan"))
    found = proxy_score(PROXIES[name], Subject(subject.network, broken, SETTINGS, 3))
    # SynFlow and Zen-score bring images of their own.
    assert isinstance(found, float if name in ("synflow", "zen") else Failure)


@pytest.mark.parametrize("name", [name for name, each in PROXIES.items() if each.work == "backward"])
def test_a_batch_of_one_is_a_reason_where_batch_norm_needs_two_values(name):
    spec = ArchSpec((2, 2, 2), Rep(4, 2), (), Classifier(CLASSES))
    settings = replace(SETTINGS, batch_size=1)
    found = proxy_score(PROXIES[name], Subject(build_network(spec, 0), splits_for(spec), settings, 0))
    if name == "synflow":
        assert isinstance(found, float)
    else:
        assert isinstance(found, Failure)
        assert found.reason.startswith("ValueError: Expected more than 1 value per channel when training")


def test_names_and_sources():
    assert all(name == each.name and each.source and each.sign in (1, -1) for name, each in PROXIES.items())
    wanted = (
        "macs params receptive-field naswot meco zen synflow jacov snip grad-norm zico "
        "dispersion dispersion-gain training-speed loss"
    )
    assert set(PROXIES) == set(wanted.split())
