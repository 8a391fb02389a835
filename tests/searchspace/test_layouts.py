"""Layouts on a whole network: one per kernel size, on every convolution that can carry one."""

import random

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import Layout, find_sequence
from searchspace.layouts import MAX_BRANCHES, with_random_layouts
from searchspace.network import build_network, deploy_graph
from searchspace.spec import ArchSpec, deploy_form, deploy_id, spec_id

SPEC = ArchSpec(
    (3, 16, 16),
    Rep(8, 2),
    (
        (Rdp(8), InvertedResidual(8, kernel=7), InvertedResidual(16, 2, kernel=5), PlainConv(16, kernel=5)),
        (InvertedResidual(16, kernel=7), InvertedResidual(16, kernel=1), PlainConv(8, kernel=1), Rdp(8)),
    ),
    Classifier(4, 8),
)


def layouts(spec):
    """By kernel size, what the blocks carry."""
    found = {}
    for _, block in spec.blocks():
        kernel = getattr(block, "kernel", 3)
        if not isinstance(block, Classifier):
            found.setdefault(kernel, []).append(block.layout)
    return found


def test_equal_kernels_carry_one_layout_and_single_cells_none():
    found = layouts(with_random_layouts(SPEC, random.Random(0)))
    assert {kernel: len(carried) for kernel, carried in found.items()} == {3: 3, 7: 2, 5: 2, 1: 2}
    assert found.pop(1) == [None, None]
    for kernel, carried in found.items():
        assert len(set(carried)) == 1
        assert isinstance(carried[0], Layout)
        assert carried[0].kernel == kernel


def test_layouts_are_ones_that_the_papers_rules_place():
    for seed in range(20):
        for carried in layouts(with_random_layouts(SPEC, random.Random(seed))).values():
            if carried[0] is not None:
                assert find_sequence(carried[0])


def test_large_kernels_do_not_get_a_branch_for_every_cell():
    sizes = {5: set(), 7: set()}
    for seed in range(40):
        found = layouts(with_random_layouts(SPEC, random.Random(seed)))
        for kernel, lengths in sizes.items():
            lengths.add(len(found[kernel][0].rectangles))
    assert max(max(lengths) for lengths in sizes.values()) <= MAX_BRANCHES
    assert all(len(lengths) > 2 for lengths in sizes.values())


def test_the_generator_decides():
    first, again, other = (with_random_layouts(SPEC, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_what_a_device_runs_stays_as_it_was():
    branched = with_random_layouts(SPEC, random.Random(0))
    assert deploy_id(branched) == deploy_id(SPEC)
    assert spec_id(branched) != spec_id(SPEC)
    assert deploy_form(branched) == SPEC
    assert deploy_graph(branched).fingerprint() == deploy_graph(SPEC).fingerprint()


def test_a_network_that_has_layouts_already_gets_new_ones():
    once = with_random_layouts(SPEC, random.Random(0))
    assert with_random_layouts(once, random.Random(5)) == with_random_layouts(SPEC, random.Random(5))


def test_branches_are_trained():
    plain, branched = build_network(SPEC, 0), build_network(with_random_layouts(SPEC, random.Random(0)), 0)
    assert sum(1 for _ in branched.parameters()) > sum(1 for _ in plain.parameters())
