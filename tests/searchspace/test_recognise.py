"""Genes from a network: every member is recognised, and nothing else is."""

import random
from dataclasses import replace

import pytest

from searchspace.choosers import random_choice, recording, replay
from searchspace.layouts import with_random_layouts
from searchspace.recognise import for_task, genes_of
from searchspace.references import reference, reference_names
from searchspace.space import Task, gene_options, member, narrowed
from searchspace.spaces import SPACES
from searchspace.spec import deploy_form

TASK = Task(1, 7)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_member_is_recognised_by_genes_that_lead_back_to_it(space):
    for seed in range(12):
        genes = {}
        spec = member(space, recording(random_choice(random.Random(seed)), genes), TASK)
        found = genes_of(space, spec, TASK)
        assert found is not None
        assert list(found) == list(gene_options(space))
        assert deploy_form(member(space, replay(found), TASK)) == deploy_form(spec)


def test_branches_of_training_do_not_hide_a_member():
    space = SPACES["edge-small"]
    spec = member(space, random_choice(random.Random(0)), TASK)
    branched = with_random_layouts(spec, random.Random(1))
    assert branched != spec
    assert genes_of(space, branched, TASK) == genes_of(space, spec, TASK)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: replace(spec, input_shape=(1, 40, 40)),
        lambda spec: replace(spec, input_shape=(3, *spec.input_shape[1:])),
        lambda spec: replace(spec, stem=replace(spec.stem, width=9)),
        lambda spec: replace(spec, head=replace(spec.head, classes=8)),
        lambda spec: replace(spec, stages=spec.stages[:-1]),
        lambda spec: replace(spec, stages=(*spec.stages, spec.stages[-1])),
        lambda spec: replace(spec, stages=(*spec.stages[:-1], spec.stages[-1] * 9)),
        lambda spec: replace(spec, stages=(*spec.stages[:-1], (replace(spec.stages[-1][0], width=50),))),
    ],
)
def test_what_differs_in_anything_is_no_member(change):
    space = SPACES["edge-small"]
    spec = member(space, random_choice(random.Random(3)), TASK)
    assert genes_of(space, spec, TASK) is not None
    assert genes_of(space, change(spec), TASK) is None


def test_a_narrowed_space_has_fewer_members():
    space = narrowed(SPACES["edge-small"], {"stage2.width": [16, 24]})
    wide = member(SPACES["edge-small"], replay(genes_with(SPACES["edge-small"], {"stage2.width": 64})), TASK)
    slim = member(SPACES["edge-small"], replay(genes_with(SPACES["edge-small"], {"stage2.width": 24})), TASK)
    assert genes_of(space, wide, TASK) is None
    assert genes_of(space, slim, TASK)["stage2.width"] == 24


def genes_with(space, changes):
    return {name: options[0] for name, options in gene_options(space).items()} | changes


# What the docstrings of the spaces say of themselves.
@pytest.mark.parametrize(
    ("space", "published"),
    [
        ("edge-small", [f"rdpnet_x{width}_cifar" for width in ("0_25", "0_5", "0_75", "1_0", "1_25", "1_5")]),
        ("rdp", [f"rdpnet_x{width}_cifar" for width in ("0_25", "0_5", "0_75", "1_0", "1_25", "1_5")]),
        ("mix", ["mixmobilenet_xxs", "mixmobilenet_xs", "mixmobilenet_s"]),
        ("parc", ["parcnet_s", "parcnet_xs"]),
        ("pbconv-layouts", ["rdpnet_x0_25_cifar"]),
    ],
)
def test_published_networks_are_found_where_the_space_says_so(space, published):
    task = Task(3, 100)
    found = {
        name for name in reference_names() if genes_of(SPACES[space], for_task(reference(name), task), task) is not None
    }
    assert found == set(published)
