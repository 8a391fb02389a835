"""What is proposed before the sampler proposes, and that it is part of the population."""

import json

import pytest

from hardware.strict_yaml import ConfigError
from nas import sampling
from nas.ground import Ground
from nas.starts import EARLIER, earlier_members, published_members, read_earlier, write_earlier
from nas.storage import open_study
from searchspace.references import reference
from searchspace.spec import deploy_id
from tests.nas.conftest import FormulaExecutor, formula

# RDPNet for CIFAR at its six widths; within 100 ms on the rk3288 are all of them.
WITHIN_100_MS = [f"rdpnet_x{width}_cifar" for width in ("0_25", "0_5", "0_75", "1_0", "1_25", "1_5")]


def test_published_networks_that_keep_the_budget_are_evaluated_first(run_search, problem, changed):
    outcome = run_search(FormulaExecutor(), own_problem=changed(trials=12))
    trials = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    assert [trial.user_attrs.get("origin") for trial in trials] == [
        "fastest member",
        *(f"published {name}" for name in WITHIN_100_MS),
        *[None] * 5,
    ]
    for name, each in zip(WITHIN_100_MS, outcome.evaluated[1:], strict=False):
        published, found = reference(name), each.spec
        assert found.stages == published.stages
        assert found.stem == published.stem
        assert found.input_shape == (1, 32, 32)  # digits are grey
        assert each.cost.latency.high_ms <= 100


def test_tight_budgets_have_none_and_looser_ones_some(changed, fastest):
    counts = [len(published_members(Ground(changed(budget=budget), fastest))) for budget in ("5ms", "20ms", "10s")]
    assert counts == [0, 2, 6]


def test_a_search_can_start_without_them(run_search, changed):
    run_search(FormulaExecutor(), own_problem=changed(trials=9, start="fastest"))
    trials = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    assert [trial.user_attrs.get("origin") for trial in trials] == ["fastest member", *[None] * 8]


@pytest.mark.parametrize(
    ("sampler", "generation"), [("nsga2", "NSGAIISampler:generation"), ("nsga3", "NSGAIIISampler:generation")]
)
def test_published_networks_are_parents(run_search, changed, monkeypatch, sampler, generation):
    # Optuna leaves what is enqueued out of NSGA-II's population; its children would not resemble it.
    monkeypatch.setattr(sampling, "POPULATION", 6)
    names = {deploy_id(spec) for spec in (reference(name) for name in WITHIN_100_MS)}
    assert names

    def published_are_best(spec):
        good = spec.input_shape[1] == 32 and all(block.__class__.__name__ == "Rdp" for s in spec.stages for block in s)
        return (
            formula(spec) | {"dispersion": 1.0 if good else 0.0} if isinstance(formula(spec), dict) else formula(spec)
        )

    run_search(FormulaExecutor(answer=published_are_best), own_problem=changed(sampler=sampler, trials=40))
    trials = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    # The first, and where eight are out and six make a generation the second: that in which a result comes back.
    assert {trial.system_attrs[generation] for trial in trials[:6]} <= {0, 1}
    alike = [
        sum(trial.params[f"stage{stage}.family"] == "rdp" for stage in (1, 2, 3, 4))
        for trial in trials
        if trial.system_attrs[generation] >= 2
    ]
    assert sum(alike) / len(alike) > 2.8, "by chance it is two of four"


@pytest.fixture
def ground(problem, fastest):
    return Ground(problem, fastest)


def test_what_was_evaluated_under_an_earlier_table_is_kept_once_and_in_order(tmp_path, fastest):
    assert read_earlier(tmp_path) == []
    other = dict(fastest) | {"stem.width": 16}
    write_earlier(tmp_path, [fastest, other])
    write_earlier(tmp_path, [other, fastest, fastest | {"head.width": 128}])
    assert read_earlier(tmp_path) == [fastest, other, fastest | {"head.width": 128}]


def test_what_is_no_member_is_left_out_and_what_breaks_the_budget_is_not(tmp_path, ground, fastest):
    slow = dict(fastest) | {
        "resolution": 96,
        "stage3.depth": 14,
        "stage3.width": 384,
        "stage1.width": 96,
        "stem.stride": 1,
    }
    unknown = dict(fastest) | {"resolution": 33}
    write_earlier(tmp_path, [slow, unknown, fastest])
    assert not ground.keeps_budget(ground.place(slow))
    assert [place.genes for place in earlier_members(ground, tmp_path)] == [slow, fastest]


@pytest.mark.parametrize("content", ["", "{", "7", "[7]", '{"a": 1}'])
def test_a_damaged_record_of_earlier_genes_is_named(tmp_path, content):
    (tmp_path / EARLIER).write_text(content)
    with pytest.raises(ConfigError, match=f"{EARLIER}:1: not genes of this program"):
        read_earlier(tmp_path)


def test_the_record_is_plain_json(tmp_path, fastest):
    write_earlier(tmp_path, [fastest])
    assert json.loads((tmp_path / EARLIER).read_text()) == [fastest]
