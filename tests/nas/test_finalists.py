"""What becomes of a finalist, on a network so small that training it takes a second."""

import hashlib
import json
import math
from dataclasses import replace

import onnx
import pytest
import torch

from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.layout_search import LayoutSettings
from evaluators.recipe import Recipe
from nas import finalists
from nas.contenders import Climbed, TrainingPlan, choose_layouts, climbed_from, contender_job
from nas.finalists import FinalistPlan, finalist_job
from nas.problem import DataKey, dataset
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import parse_layout
from searchspace.spec import ArchSpec, deploy_form, deploy_id, read_spec, spec_id

SPEC = ArchSpec(
    (1, 16, 16), Rep(8, 2), ((Rdp(16, 2),), (InvertedResidual(16, 1, 5, 2, True, "hardswish"),)), Classifier(10)
)


@pytest.fixture
def plan(tmp_path):
    data = DataKey("digits", 0, 200)
    layouts = LayoutSettings(candidates=2, early=EarlySettings(iterations=3))
    training = TrainingPlan(SPEC, data, Recipe(), 1, 0, layouts)
    return FinalistPlan(3, training, tmp_path / "models" / "3")


@pytest.fixture
def splits(plan):
    return dataset(plan.training.data).at(16)


# Layouts


def trying(plan, **changes):
    return replace(plan.training, layouts=replace(plan.training.layouts, **changes))


def test_the_layout_whose_kernels_disperse_most_is_taken(plan, splits):
    best, tried = choose_layouts(trying(plan, candidates=4), splits)
    most = max(tried, key=lambda each: each["dispersion"])
    assert spec_id(best) == most["spec_id"]
    assert len({each["spec_id"] for each in tried}) == 4
    assert best != SPEC
    assert deploy_form(best) == SPEC


def test_each_stage_may_have_its_own(plan, splits):
    best, tried = choose_layouts(trying(plan, candidates=3, scope="stage"), splits)
    assert len(tried) == 3
    assert deploy_form(best) == SPEC
    stem, rdp = best.stem.layout, best.stages[0][0].layout
    assert stem is not None
    assert rdp not in (None, stem)


def test_without_a_layout_that_works_there_are_no_branches(plan, splits):
    broken = EarlySettings(iterations=2, recipe=Recipe(learning_rate=1e30))
    best, tried = choose_layouts(trying(plan, early=broken), splits)
    assert best == SPEC
    assert all("became" in each["failure"] or "not finite" in each["failure"] for each in tried)
    assert choose_layouts(trying(plan, candidates=0), splits) == (SPEC, [])


def test_a_network_without_such_a_kernel_is_left_alone(plan, splits):
    pointwise = ArchSpec((1, 16, 16), PlainConv(8, kernel=1), (), Classifier(10))
    assert choose_layouts(replace(plan.training, spec=pointwise), splits) == (pointwise, [])


def test_what_a_space_has_chosen_is_left_alone(plan, splits):
    layout = parse_layout("K3:0.0.3.2-0.1.3.2")
    chosen = replace(SPEC, stem=Rep(8, 2, layout))
    assert choose_layouts(replace(plan.training, spec=chosen), splits) == (chosen, [])


def test_layouts_follow_from_the_seed_and_the_network(plan, splits):
    first = plan.training
    tried = [choose_layouts(own, splits)[1] for own in (first, first, replace(first, seed=1))]
    assert tried[0] == tried[1] != tried[2]


# The whole job


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_finalist_leaves_a_whole_folder_and_says_what_is_in_it(plan):
    found = finalist_job(plan)
    assert sorted(path.name for path in plan.folder.parent.iterdir()) == ["3"]
    assert found["files"] == hashes(plan.folder)
    assert set(found["files"]) == {"spec.yaml", "model.onnx", "weights.safetensors"}
    spec = read_spec(plan.folder / "spec.yaml")
    assert found["spec_id"] == spec_id(spec)
    assert found["deploy_id"] == deploy_id(SPEC) == deploy_id(spec)
    assert len(found["layouts_tried"]) == 2
    data = dataset(plan.training.data)
    assert (found["images"], found["test_images"]) == (data.num_val, data.num_test)
    assert all(0 <= found[name] <= 1 for name in ("accuracy", "test_accuracy"))
    for parity in (found["folded"], found["onnxruntime"]):
        assert 0 <= parity["max_rel"] < 1e-4
    json.dumps(found, allow_nan=False)
    onnx.checker.check_model(onnx.load(plan.folder / "model.onnx"))


def test_the_same_plan_makes_the_same_model_to_the_last_bit(plan, tmp_path):
    torch.manual_seed(1)
    first = finalist_job(plan)
    torch.manual_seed(2)
    again = finalist_job(replace(plan, folder=tmp_path / "again"))
    assert first.pop("seconds") > 0
    assert again.pop("seconds") > 0
    assert again == first


def test_a_training_that_diverges_is_a_failure_and_leaves_nothing(plan):
    steep = replace(plan.training, recipe=Recipe(learning_rate=1e30))
    found = finalist_job(replace(plan, training=steep))
    assert isinstance(found, Failure)
    assert "the loss became nan" in found.reason
    assert not plan.folder.exists()


def test_a_form_that_computes_nonsense_is_a_failure_and_leaves_nothing(plan, monkeypatch):
    original = finalists.difference
    monkeypatch.setattr(finalists, "difference", lambda first, second: original(first, second * math.nan))
    assert finalist_job(plan) == Failure("its folded or exported form computes values that are not finite")
    assert list(plan.folder.parent.iterdir()) == []


def test_what_a_killed_worker_left_half_done_is_replaced(plan):
    partial = plan.folder.with_name("3.partial")
    partial.mkdir(parents=True)
    (partial / "rubbish").write_text("x")
    plan.folder.mkdir()
    (plan.folder / "older").write_text("x")
    found = finalist_job(plan)
    assert hashes(plan.folder) == found["files"]
    assert not partial.exists()


# A way in parts


def test_a_way_in_parts_ends_at_the_same_bits_as_one_in_one_go(plan, tmp_path):
    whole = replace(plan, training=replace(plan.training, epochs=3))
    expected = finalist_job(replace(whole, folder=tmp_path / "whole"))
    first = contender_job(whole.training, None, 1)
    assert isinstance(first, Climbed)
    assert len(first.layouts_tried) == 2
    # As the study keeps it: a line of JSON, and a file.
    kept = climbed_from(json.loads(json.dumps(first.as_finding(), allow_nan=False)), first.state)
    second = contender_job(whole.training, kept, 2)
    assert (first.epochs, second.epochs) == (1, 2)
    assert second.seconds > first.seconds
    found = finalist_job(whole, second)
    for each in (expected, found):
        del each["seconds"]
    assert found == expected


@pytest.mark.parametrize("state", [None, b"", b"damaged"])
def test_a_state_that_is_gone_or_damaged_costs_time_and_nothing_else(plan, state):
    plan = replace(trying(plan, candidates=0), epochs=2)
    first = contender_job(plan, None, 1)
    second = contender_job(plan, first, 2)
    again = contender_job(plan, replace(first, state=state), 2)
    assert (again.epochs, again.reached, again.train_loss) == (2, second.reached, second.train_loss)


def test_labels_that_the_network_does_not_have_are_a_failure(plan):
    narrow = replace(SPEC, head=Classifier(7))
    found = contender_job(replace(plan.training, spec=narrow), None, 1)
    assert isinstance(found, Failure)
    assert found.reason.startswith("WrongLabels: ")
