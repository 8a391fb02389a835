"""The first look with proxies is the first look, and the proxies."""

import pytest

from evaluators import first_look
from evaluators.datasets import Splits, open_dataset
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.first_look import look_early
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_score
from evaluators.recipe import Recipe
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.spec import ArchSpec

SPEC = ArchSpec((1, 16, 16), Rep(8, 2), ((Rdp(12, 2),),), Classifier(10))
SHORT = EarlySettings(iterations=4, recipe=Recipe(batch_size=16))
NAMES = ("naswot", "params", "training-speed")


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", seed=0, limit=200).at(16)


def test_it_finds_what_each_finds_alone(digits):
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


def test_a_network_that_cannot_be_trained_is_a_failure(digits):
    broken = Splits(digits.train_x * float("nan"), digits.train_y, digits.val_x, digits.val_y)
    found = look_early(SPEC, broken, SHORT, 0, ("params",))
    assert isinstance(found, Failure)
    assert found.reason.startswith("TrainingDiverged")
