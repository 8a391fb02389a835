"""The layout search: what is drawn, trained and compared, on networks that train in a moment."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from evaluators.datasets import open_dataset
from evaluators.dispersion import network_dispersion, position_importance
from evaluators.early import EarlySettings
from evaluators.layout_search import LayoutSettings, ModuleHost, SpecHost, by_convolution, search_layouts
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.layouts import draw_layouts, module_places, spec_places, with_layouts
from searchspace.network import build_network
from searchspace.reparam import keep_drawn, merge, with_pbconv
from searchspace.spec import ArchSpec, deploy_form

SPEC = ArchSpec((1, 16, 16), Rep(8, 2), ((Rdp(8, 2), Rdp(8)), (InvertedResidual(8, 1, 5, 2),)), Classifier(10))
EARLY = EarlySettings(iterations=3, recipe=Recipe(batch_size=16))


@pytest.fixture(scope="module")
def splits():
    return open_dataset("digits", seed=0, limit=100).at(16)


def small_module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Conv2d(6, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


# Places and draws


def test_a_specs_places_are_its_blocks_with_their_stages():
    found = [(place.path, place.stage, place.kernels) for place in spec_places(SPEC)]
    assert found == [
        ("stem", "stem", (3,)),
        ("stages.0.0", "stages.0", (3,)),
        ("stages.0.1", "stages.0", (3,)),
        ("stages.1.0", "stages.1", (5,)),
    ]


def test_a_modules_places_are_its_convolutions_with_the_size_of_their_maps():
    module = small_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = [(place.path, place.stage, place.kernels) for place in module_places(module, torch.zeros(2, 1, 16, 16))]
    assert found == [("0", "16x16", (3,)), ("3", "8x8", (5,)), ("5", "8x8", (3,))]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize(
    ("scope", "groups"),
    [
        ("network", {"network": {3, 5}}),
        ("stage", {"stem": {3}, "stages.0": {3}, "stages.1": {5}}),
        ("layer", {"stem": {3}, "stages.0.0": {3}, "stages.0.1": {3}, "stages.1.0": {5}}),
    ],
)
def test_each_group_draws_one_layout_for_each_size(scope, groups):
    drawn = draw_layouts(spec_places(SPEC), scope, random.Random(0))
    assert {group: set(layouts) for group, layouts in drawn.items()} == groups
    assert all(layout.kernel == size for layouts in drawn.values() for size, layout in layouts.items())


def test_layouts_reach_their_blocks_and_change_nothing_that_is_deployed():
    drawn = draw_layouts(spec_places(SPEC), "layer", random.Random(1))
    dressed = with_layouts(SPEC, drawn, "layer")
    assert deploy_form(dressed) == SPEC
    assert dressed.stem.layout == drawn["stem"][3]
    assert [block.layout for block in dressed.stages[0]] == [drawn["stages.0.0"][3], drawn["stages.0.1"][3]]
    assert dressed.stages[1][0].layout == drawn["stages.1.0"][5]
    assert with_layouts(SPEC, {"stem": drawn["stem"]}, "layer").stages == SPEC.stages


# The search


def test_for_the_whole_network_the_search_is_the_papers(splits):
    settings = LayoutSettings(candidates=3, early=EARLY)
    choice = search_layouts(SpecHost(SPEC, 4), splits, settings, rng=random.Random(2), seed=5)
    expected = []
    for tried in choice.tried:
        network = build_network(with_layouts(SPEC, tried.layouts, "network"), 4)
        start = network_dispersion(network).of_mean
        list(train_steps(network, splits, EARLY.recipe, 3, 5))
        expected.append((start, network_dispersion(network).of_mean))
    assert [(each.start["network"], each.end["network"]) for each in choice.tried] == expected
    best = max(range(3), key=lambda index: expected[index][1])
    assert choice.winners == {"network": best}
    assert choice.layouts == {"network": choice.tried[best].layouts["network"]}


def test_the_increase_can_decide_in_the_place_of_the_value(splits):
    settings = LayoutSettings(candidates=6, early=EARLY)
    by_value, by_gain = (
        search_layouts(SpecHost(SPEC, 4), splits, replace(settings, score=score), rng=random.Random(2), seed=5)
        for score in ("dispersion", "gain")
    )
    gains = [each.end["network"] - each.start["network"] for each in by_gain.tried]
    assert by_gain.winners == {"network": gains.index(max(gains))}
    assert by_gain.winners != by_value.winners


@pytest.mark.parametrize("scope", ["stage", "layer"])
def test_each_group_takes_its_layout_from_the_candidate_in_which_it_dispersed_most(splits, scope):
    settings = LayoutSettings(candidates=4, scope=scope, early=EARLY)
    choice = search_layouts(SpecHost(SPEC, 0), splits, settings, rng=random.Random(0), seed=0)
    assert set(choice.winners) == {place.group(scope) for place in spec_places(SPEC)}
    for group, winner in choice.winners.items():
        values = [each.end[group] for each in choice.tried]
        assert values[winner] == max(values)
        assert choice.layouts[group] == choice.tried[winner].layouts[group]
    assert len(set(choice.winners.values())) > 1, "else the test would not tell groups apart"


def test_a_module_is_searched_with_the_same_measure(splits):
    module = small_module()
    settings = LayoutSettings(candidates=2, scope="layer", early=EARLY)
    host = ModuleHost(module, splits.train_x[:2], seed=1)
    choice = search_layouts(host, splits, settings, rng=random.Random(0), seed=5)
    tried = choice.tried[1]
    own = by_convolution(host.places, tried.layouts, "layer")
    assert list(own) == ["0", "3", "5"]
    trained = with_pbconv(module, lambda path, conv: own.get(path), start=keep_drawn, seed=1)
    list(train_steps(trained, splits, EARLY.recipe, 3, 5))
    merged = merge(trained.eval())
    for path in own:
        weight = merged.get_submodule(path).weight.detach()
        assert tried.end[path] == pytest.approx(float(position_importance(weight).std(correction=0)), rel=1e-5)


def test_layouts_that_cannot_be_trained_are_told_and_passed_over(splits):
    broken = EarlySettings(iterations=2, recipe=Recipe(batch_size=16, learning_rate=float("inf")))
    choice = search_layouts(
        SpecHost(SPEC, 0), splits, LayoutSettings(candidates=2, early=broken), rng=random.Random(0), seed=0
    )
    assert all(each.failure is not None for each in choice.tried)
    assert (choice.layouts, choice.winners) == ({}, {})
    with pytest.raises(ValueError, match="no candidate could be trained"):
        choice.share_of_training(1000)


def test_a_network_without_a_kernel_has_nothing_to_search(splits):
    pointwise = ArchSpec((1, 16, 16), PlainConv(8, kernel=1), (), Classifier(10))
    with pytest.raises(ValueError, match="the network has none"):
        search_layouts(SpecHost(pointwise, 0), splits, LayoutSettings(), rng=random.Random(0), seed=0)


def test_candidates_differ_as_long_as_there_are_layouts_left(splits):
    two = ArchSpec((1, 16, 16), PlainConv(4, 2), (), Classifier(10))
    host = SpecHost(two, 0)
    early = EarlySettings(iterations=1, recipe=Recipe(batch_size=4))
    choice = search_layouts(host, splits, LayoutSettings(candidates=30, early=early), rng=random.Random(0), seed=0)
    assert len({str(each.layouts["network"][3]) for each in choice.tried}) == 30


def test_the_share_of_training_counts_images(splits):
    settings = LayoutSettings(candidates=2, early=EARLY)
    choice = search_layouts(SpecHost(SPEC, 0), splits, settings, rng=random.Random(0), seed=0)
    own = replace(choice, tried=tuple(replace(each, seconds=3.0, training_seconds=2.0) for each in choice.tried))
    # Two candidates saw 3 x 16 images in two seconds each: 24 a second; a training on 4,800 takes 200 seconds.
    assert own.share_of_training(4800) == pytest.approx(6 / 200)
