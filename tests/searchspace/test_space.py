"""Spaces held to fewer options."""

import random
import re
from dataclasses import replace

import pytest

from searchspace.blocks.rdp import Rdp
from searchspace.choosers import every_outcome, random_choice, recording, replay
from searchspace.part import Part, Question
from searchspace.space import Task, gene_options, member, narrowed
from searchspace.spaces import EDGE_SMALL, PBCONV_LAYOUTS, SPACES, space_named
from searchspace.spec import SpecError

TASK = Task(3, 10)


def asked(space, seed=0):
    genes = {}
    spec = member(space, recording(random_choice(random.Random(seed)), genes), TASK)
    return genes, spec


def test_nothing_narrowed_is_the_same_space():
    space = narrowed(EDGE_SMALL, {})
    for seed in range(20):
        assert asked(space, seed) == asked(EDGE_SMALL, seed)


def test_a_gene_keeps_its_place_and_name_and_loses_options():
    space = narrowed(EDGE_SMALL, {"stage2.width": (96, 16), "resolution": (48,)})
    before, after = gene_options(EDGE_SMALL), gene_options(space)
    assert list(after) == list(before)
    changed = {name: options for name, options in after.items() if options != before[name]}
    # In the space's order, whatever the order they were given in.
    assert changed == {"stage2.width": (16, 96), "resolution": (48,)}


def test_a_pattern_names_several_genes_and_the_last_word_is_not_the_only_one():
    space = narrowed(EDGE_SMALL, {"stage*.kernel": (3, 5), "stage?.kernel": (5, 7), "stage1.*_excite": (False,)})
    options = gene_options(space)
    assert {options[f"stage{index}.kernel"] for index in (1, 2, 3, 4)} == {(5,)}
    assert options["stage1.squeeze_excite"] == (False,)
    assert options["stage2.squeeze_excite"] == (False, True)


def test_members_of_a_narrowed_space_are_members_of_the_wide_one():
    space = narrowed(EDGE_SMALL, {"stage*.family": ("ir",), "head.width": (128, 512)})
    for seed in range(30):
        genes, spec = asked(space, seed)
        assert member(EDGE_SMALL, replay(genes), TASK) == spec
        assert spec.head.width in (128, 512)


def test_train_genes_can_be_narrowed_too():
    space = narrowed(PBCONV_LAYOUTS, {"layout.type*": ("1x3",)})
    specs = {spec for _, spec in (asked(space, seed) for seed in range(20))}
    assert len(specs) == 1
    (only,) = specs
    assert str(only.stem.layout) == "K3:0.0.1.3-1.0.1.3-2.0.1.3"


def test_a_space_held_to_one_answer_has_one_member():
    genes, spec = asked(EDGE_SMALL, 3)
    space = narrowed(EDGE_SMALL, {name: (value,) for name, value in genes.items()})
    assert [outcome for _, outcome in every_outcome(lambda choose: member(space, choose, TASK))] == [spec]


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ({"stem.widht": (8,)}, "genes.stem.widht: space edge-small has no such gene; did you mean 'stem.width'?"),
        ({"stage9.*": (8,)}, "genes.stage9.*: space edge-small has no such gene"),
        ({"stem.width": (9,)}, "genes.stem.width: stem.width is one of 8, 16, 24, 32, 48, 64; got 9"),
        ({"stem.width": (8, 9)}, "got 9"),
        ({"stem.width": ("8",)}, "got 8"),
        ({"stem.width": ()}, "genes.stem.width: stem.width is one of"),
        ({"stage1.squeeze_excite": (1,)}, "stage1.squeeze_excite is one of False, True; got 1"),
        ({"stem.stride": (True,)}, "stem.stride is one of 1, 2; got True"),
        # 14 is offered in the third stage alone.
        ({"stage*.depth": (14,)}, "genes.stage*.depth: stage1.depth is one of 1, 2, 3; got 14"),
        ({"stem.width": (8,), "stem.*": (1,)}, "got 1"),
        ({"stage*.kernel": (3,), "stage1.kernel": (5,)}, "genes.stage1.kernel: stage1.kernel is one of 3, 5, 7; got 5"),
    ],
)
def test_what_names_no_gene_or_no_option_is_refused(allowed, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        narrowed(EDGE_SMALL, allowed)


def test_spaces_go_by_their_names():
    for name, space in SPACES.items():
        assert space.name == name
        assert space_named(name) is space


def test_an_unknown_space_is_named_with_those_that_are_known():
    with pytest.raises(SpecError, match=r"unknown space 'edge-smal'; did you mean 'edge-small'\? known: .*rdp"):
        space_named("edge-smal")


def test_stages_are_asked_under_their_own_names():
    def stage(width):
        question = Question("x", (width,))
        return Part((question,), lambda answer, shape: (Rdp(answer(question)),))

    space = replace(EDGE_SMALL, stages=(stage(4), stage(8)))
    genes, spec = asked(space)
    assert spec.stages == ((Rdp(4),), (Rdp(8),))
    assert list(genes)[-2:] == ["stage1.x", "stage2.x"]
    assert list(genes) == list(gene_options(space))
