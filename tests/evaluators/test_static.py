"""Costs from a table, and what happens where the table has nothing."""

import math
from dataclasses import replace

import pytest

from evaluators.static import StaticCosts
from hardware.kernels import REUSE_CLASSES, fuse
from hardware.latency_table import Tier, UnmeasuredKernel
from hardware.profiled_table import ProfiledModel, empty_table
from hardware.table_fit import NO_STEPS, Overheads, Row, TableFit
from hardware.targets import load_target
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import parse_layout
from searchspace.network import deploy_graph
from searchspace.spec import ArchSpec

SPEC = ArchSpec((3, 16, 16), Rep(8, 2), ((Rdp(8),), (InvertedResidual(12, 2),)), Classifier(5))


def test_costs_by_hand():
    spec = ArchSpec((3, 16, 16), Rep(8, 2), ((Rdp(8),),), Classifier(5))
    found = StaticCosts(load_target("rk3288"))(spec)
    # Stem 3x3 to 8x8x8; depthwise 3x3 and 1x1 there; linear. A bias for every output channel.
    assert found.macs == 8 * 8 * 8 * 27 + 8 * 8 * 8 * 9 + 8 * 8 * 8 * 8 + 8 * 5
    assert found.params == 8 * 28 + 8 * 10 + 8 * 9 + 5 * 9
    # The image and the stem's result are the most that is alive at once.
    assert found.peak_memory_bytes == 4 * (found.params + max(3 * 16 * 16 + 8 * 8 * 8, 2 * 8 * 8 * 8))
    assert found.latency.low_ms < found.latency.value_ms < found.latency.high_ms


def test_an_unmeasured_kernel_is_an_error_that_names_it_and_never_zero():
    target = load_target("host")
    kernels = fuse(deploy_graph(SPEC), target.fusion_rules)
    costs = StaticCosts(target)
    with pytest.raises(UnmeasuredKernel) as caught:
        costs(SPEC)
    assert set(caught.value.keys) <= {kernel.key for kernel in kernels}
    with pytest.raises(UnmeasuredKernel):
        costs(SPEC)  # and what failed once is not remembered as known


def test_a_table_that_knows_all_kernels_but_one_still_refuses():
    target = load_target("host")
    # From 0.25 MB of weights on all kernels take longer, which these networks do not reach.
    overheads = Overheads(0.125, 0.002, ((math.log(2.0), *NO_STEPS[1:]),) * REUSE_CLASSES)
    rows = {}

    def costs():
        table = replace(empty_table(target.latency_model.profiled.identity), fit=TableFit(rows, overheads))
        return StaticCosts(replace(target, latency_model=ProfiledModel(table)))

    kernels = list(dict.fromkeys(fuse(deploy_graph(SPEC), target.fusion_rules)))
    for number, kernel in enumerate(kernels):
        with pytest.raises(UnmeasuredKernel) as caught:
            costs()(SPEC)
        assert kernel.key in caught.value.keys
        rows[kernel.key] = Row(0.5 + number, 0.1, 1)
    # Distinct kernels here run once each.
    assert len(kernels) == len(fuse(deploy_graph(SPEC), target.fusion_rules))
    whole = sum(0.5 + number for number in range(len(kernels))) + 0.125
    assert costs()(SPEC).latency.value_ms == pytest.approx(whole)


def test_weights_beyond_the_caches_are_paid_for():
    target = load_target("host")
    spec = replace(SPEC, head=Classifier(50_000))
    kernels = fuse(deploy_graph(spec), target.fusion_rules)
    # The head uses each of its weights once and doubles.
    doubles = (math.log(2.0), *NO_STEPS[1:])
    overheads = Overheads(0.0, 0.0, (doubles, *[NO_STEPS] * (REUSE_CLASSES - 1)))
    rows = {kernel.key: Row(1.0, 0.1, 1) for kernel in kernels}
    table = replace(empty_table(target.latency_model.profiled.identity), fit=TableFit(rows, overheads))
    found = StaticCosts(replace(target, latency_model=ProfiledModel(table)))(spec)
    assert 4 * found.params > 2 * 2**20, "beyond the first step"
    assert found.latency.value_ms == pytest.approx(len(kernels) + 1)


def test_layouts_and_other_train_genes_cost_nothing():
    costs = StaticCosts(load_target("rk3288"))
    layout = parse_layout("K3:0.0.3.2-0.1.3.2")
    branched = ArchSpec(
        SPEC.input_shape,
        Rep(8, 2, layout),
        ((Rdp(8, shuffle_groups=2, layout=layout),), (InvertedResidual(12, 2, layout=layout),)),
        SPEC.head,
    )
    assert costs(branched) == costs(SPEC)


def test_one_kernel_out_of_the_calibrated_families_makes_the_whole_extrapolated():
    costs = StaticCosts(load_target("rk3288"))
    tiers = {costs.block((8, 16, 16), block).tier for block in (Rdp(16), Rep(16))}
    assert tiers == {Tier.calibrated}
    assert costs(SPEC).latency.tier is Tier.extrapolated, "it is faster than any published network"


def test_a_block_is_worked_out_once_for_each_shape(monkeypatch):
    asked = []
    target = load_target("rk3288")
    model = type(target.latency_model)
    original = model.kernel
    monkeypatch.setattr(model, "kernel", lambda self, kernel: asked.append(kernel) or original(self, kernel))
    costs = StaticCosts(target)
    first = costs(SPEC)
    count = len(asked)
    assert costs(SPEC) == first
    assert len(asked) == count
    costs.block((8, 9, 9), Rdp(8))
    assert len(asked) == count + 2
