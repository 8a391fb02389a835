"""The loop, with an evaluator that answers at once and in any order."""

import contextlib
import itertools
import json
import math
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from evaluators.evaluator import Failure
from evaluators.scores import SCORES
from hardware.strict_yaml import ConfigError
from nas import proposals, sampling
from nas.jobs import early_job
from nas.settings import WINDOW
from nas.storage import open_study
from nas.study import RESULTS, EvaluationsBroken, InfeasibleBudget, Search, TooManyFailures, check_budget
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.part import Part, Question
from searchspace.space import Entrance, Space
from searchspace.spec import deploy_id, read_spec, spec_from_dict, spec_id, write_spec
from tests.nas.conftest import FormulaExecutor, Stopped, formula, share


def durable_trials(folder, name="study", url=None):
    return open_study(folder, name, url).get_trials(deepcopy=False)


def told(trial):
    """All of a trial but the times of day."""
    return (
        trial.number,
        trial.state,
        trial.values,
        trial.params,
        trial.user_attrs,
        trial.constraints,
        trial.system_attrs,
    )


@pytest.fixture(scope="module", autouse=True)
def small_population():
    """So that scores steer a study of 36 trials from the sixteenth on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "POPULATION", 8)
        yield


@pytest.fixture(scope="module")
def whole(small_population, tmp_path_factory, problem, fastest):
    """The study of 36 trials, run in one go: its folder and what it evaluated."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, Search(problem, folder, FormulaExecutor()).run(fastest, lambda progress: None).evaluated


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_same_seed_proposes_the_same_however_many_work_and_whoever_ends_first(whole, run_search, workers, seed):
    folder, evaluated = whole
    assert run_search(FormulaExecutor(workers, seed)).evaluated == evaluated
    assert list(map(told, durable_trials(run_search.folder / "study"))) == list(map(told, durable_trials(folder)))


def opposite(spec):
    found = formula(spec)
    return found if isinstance(found, Failure) else found | {"loss": -found["loss"]}


def test_other_scores_lead_to_other_proposals(whole, run_search):
    # Were it otherwise, that runs are alike would prove nothing about the order of results.
    led = run_search(FormulaExecutor(answer=opposite)).evaluated
    same = [one.arch_id == other.arch_id for one, other in zip(whole[1], led, strict=True)]
    assert all(same[: WINDOW + 1])
    assert same[20:].count(False) >= 8


def test_another_seed_proposes_other_architectures(whole, run_search, changed):
    other = run_search(FormulaExecutor(), own_problem=changed(seed=1))
    both = {each.arch_id for each in whole[1]} & {each.arch_id for each in other.evaluated}
    assert both == {each.arch_id for each in whole[1][:7]}, "the fastest member and six RDPNets head either"


def test_a_study_has_as_many_trials_as_were_asked_for(whole):
    folder, evaluated = whole
    assert [each.number for each in evaluated] == list(range(36))
    assert [trial.number for trial in durable_trials(folder)] == list(range(36))


@pytest.fixture
def tight(changed, monkeypatch):
    """A budget that about one random network in seven keeps."""
    monkeypatch.setattr(sampling, "POPULATION", 30)
    return changed(budget="5ms")


def test_infeasible_networks_are_neither_evaluated_nor_kept(run_search, tight):
    executor = FormulaExecutor()
    outcome = run_search(executor, own_problem=tight)
    assert outcome.progress.rejected > 36, "a budget that turns nothing down proves nothing"
    assert max(tight.costs(spec).latency.high_ms for spec in executor.specs) <= 5
    assert max(trial.user_attrs["latency_high_ms"] for trial in durable_trials(run_search.folder / "study")) <= 5


def test_the_upper_end_of_the_interval_must_keep_the_budget_and_not_the_middle(run_search, tight):
    costs = [each.cost.latency for each in run_search(FormulaExecutor(), own_problem=tight).evaluated]
    # Outside the calibrated range the interval ends a fifth above the value or more (targets/calibration.csv).
    assert max(latency.value_ms for latency in costs) <= 5 / 1.2
    assert max(latency.value_ms for latency in costs) > 2, "the budget is used"


def test_no_deploy_architecture_is_evaluated_twice(run_search, changed):
    executor = FormulaExecutor()
    run_search(executor, own_problem=changed(trials=60))
    assert max(Counter(map(deploy_id, executor.specs)).values()) == 1
    assert len(executor.specs) == 60


def test_a_failed_candidate_is_kept_with_its_reason_and_the_search_goes_on(whole):
    folder, evaluated = whole
    failed = [each for each in evaluated if each.score is None]
    assert failed, "the formula fails one in ten"
    assert failed[0].number < 35, "something comes after it"
    trials = durable_trials(folder)
    for each in failed:
        reason = f"ValueError: {each.arch_id} would not train"
        assert each.outcome == Failure(reason)
        assert trials[each.number].state is TrialState.FAIL
        assert trials[each.number].user_attrs["failure"] == reason
    assert all(trials[each.number].state is TrialState.COMPLETE for each in evaluated if each.score is not None)


def test_a_trial_keeps_everything_that_is_known_of_its_candidate(whole, problem):
    folder, evaluated = whole
    for each, trial in zip(evaluated, durable_trials(folder), strict=True):
        cost = problem.costs(each.spec)
        assert trial.user_attrs["arch"] == spec_id(each.spec)
        assert trial.user_attrs["latency_tier"] == cost.latency.tier.value
        assert trial.user_attrs["latency_high_ms"] == cost.latency.high_ms
        if each.score is not None:
            found = formula(each.spec)
            assert trial.values == [-found["loss"], cost.latency.value_ms]
            assert {name: trial.user_attrs[name] for name in found} == found
            assert trial.user_attrs["macs"] == cost.macs
            assert trial.user_attrs["params"] == cost.params


def test_the_constraint_is_optunas_own_so_that_only_feasible_trials_are_its_best(whole):
    folder, _ = whole
    study = open_study(folder, "study", None)
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        (violation,) = trial.constraints.values()
        assert violation == pytest.approx((trial.user_attrs["latency_high_ms"] - 100) / 100, rel=1e-12)
        assert violation <= 0
    best = study.best_trials
    assert best
    broken = replace_constraint(trials, best[0].number)
    assert best[0].number not in {trial.number for trial in broken.best_trials}


def replace_constraint(trials, number):
    """A study in memory that differs in one thing: this trial is infeasible."""
    study = optuna.create_study(directions=("maximize", "minimize"))
    for trial in trials:
        constraints = {name: 0.1 if trial.number == number else value for name, value in trial.constraints.items()}
        study.add_trial(
            optuna.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                constraints=constraints,
            )
        )
    return study


@pytest.mark.parametrize("score", ["loss", "macs", "dispersion", "dispersion-gain"])
def test_what_is_maximised_can_be_chosen(run_search, changed, score):
    problem = changed(score=score, trials=6)
    own = replace(problem, score=SCORES[score])
    expected = {
        "loss": lambda found, cost: -found["loss"],
        "macs": lambda found, cost: math.log(cost.macs),
        "dispersion": lambda found, cost: found["dispersion"],
        "dispersion-gain": lambda found, cost: found["dispersion"] - found["dispersion_start"],
    }[score]
    for each in run_search(FormulaExecutor(), own_problem=own).evaluated:
        if each.score is not None:
            assert each.score == expected(formula(each.spec), each.cost)


# Stopping and going on


def stops(seed, count):
    """After how many results runs are stopped, one after the other."""
    return [random.Random(seed).randrange(0, 12) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_a_study_that_is_stopped_anywhere_and_resumed_is_the_study_that_was_not(whole, run_search, seed):
    folder, evaluated = whole
    looked_at = []
    for stop_after in [*stops(seed, 4), None]:
        executor = FormulaExecutor(3, seed, stop_after)
        with contextlib.suppress(Stopped):
            outcome = run_search(executor)
        looked_at += [spec for handle, spec in enumerate(executor.specs, 1) if handle not in executor.out]
    assert outcome.evaluated == evaluated
    assert list(map(told, durable_trials(run_search.folder / "study"))) == list(map(told, durable_trials(folder)))
    assert len(looked_at) == len(set(looked_at)) == 36, "no result is computed again"


def test_what_is_no_candidates_fault_stops_the_search_and_is_not_held_against_any(whole, run_search):
    looked_at = itertools.count(1)

    def full_at_the_twelfth(spec):
        if next(looked_at) >= 12:
            raise OSError(28, "No space left on device")
        return formula(spec)

    with pytest.raises(EvaluationsBroken, match=r"No space left on device; this is no candidate's fault"):
        run_search(FormulaExecutor(answer=full_at_the_twelfth))
    results = (run_search.folder / "study" / RESULTS).read_text()
    assert "No space left" not in results
    assert len(results.splitlines()) == 11
    assert run_search(FormulaExecutor()).evaluated == whole[1]


@pytest.mark.parametrize(("every", "stops_at"), [(1, 26), (2, None), (3, None)])
def test_a_search_stops_when_more_than_half_of_the_last_fifty_failed(run_search, changed, every, stops_at):
    seen = []

    def answer(spec):
        seen.append(spec)
        fails = len(seen) % every == 0
        return Failure("ValueError: it cannot be built") if fails else formula_without_failures(spec)

    longer = changed(trials=80, sampler="random")
    if stops_at is None:
        outcome = run_search(FormulaExecutor(answer=answer), own_problem=longer)
        assert outcome.progress.failed == 80 // every
        return
    with pytest.raises(TooManyFailures) as caught:
        run_search(FormulaExecutor(answer=answer), own_problem=longer)
    first = spec_id(seen[0])
    assert str(caught.value) == (
        "26 of the last 26 candidates failed, so the search stops; 26 times: ValueError: it cannot be built "
        f"(the first of them is {first}; results.jsonl has its spec)"
    )
    lines = [json.loads(line) for line in (run_search.folder / "study" / "results.jsonl").read_text().splitlines()]
    assert [spec_from_dict(line["spec"]) for line in lines] == seen
    # What failed is not tried again; the search is as much at its end as it was.
    again = FormulaExecutor(answer=answer)
    with pytest.raises(TooManyFailures):
        run_search(again, own_problem=longer)
    assert len(again.specs) <= WINDOW


def test_failures_of_long_ago_are_forgiven(run_search, changed):
    seen = []

    def answer(spec):
        seen.append(spec)
        return Failure("no") if len(seen) <= 25 else formula_without_failures(spec)

    outcome = run_search(FormulaExecutor(answer=answer), own_problem=changed(trials=80, sampler="random"))
    assert outcome.progress.failed == 25


def formula_without_failures(spec):
    return {"dispersion": share(spec_id(spec)), "dispersion_start": 0.0, "loss": 2.0, "seconds": 0.1}


def test_a_crash_between_the_two_files_of_a_study_is_made_good(whole, run_search):
    # The result of trial 5 is on disk, the trial itself is not.
    def crash(progress):
        if progress.done == 5:
            raise Stopped

    folder, evaluated = whole
    with pytest.raises(Stopped):
        run_search(FormulaExecutor(5, 1), on_progress=crash)
    journal = run_search.folder / "study" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    assert len(durable_trials(run_search.folder / "study")) == 4
    assert run_search(FormulaExecutor()).evaluated == evaluated
    assert list(map(told, durable_trials(run_search.folder / "study"))) == list(map(told, durable_trials(folder)))


def test_a_journal_that_was_removed_is_written_anew_from_the_results(whole, run_search):
    run_search(FormulaExecutor())
    (run_search.folder / "study" / "journal.log").unlink()
    again = FormulaExecutor()
    assert run_search(again).evaluated == whole[1]
    assert again.specs == []
    assert list(map(told, durable_trials(run_search.folder / "study"))) == list(map(told, durable_trials(whole[0])))


@pytest.mark.parametrize("line", range(0, 42, 6))
def test_a_journal_with_a_broken_line_anywhere_is_recovered_whole(whole, run_search, line, caplog):
    run_search(FormulaExecutor())
    journal = run_search.folder / "study" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 36
    place = min(line, len(lines) - 2)
    lines[place] = lines[place][: len(lines[place]) // 2] + b"\n"
    journal.write_bytes(b"".join(lines))
    rest = FormulaExecutor()
    run_search(rest)
    assert rest.specs == [], "nothing is evaluated again"
    assert f"journal.log:{place + 1}: " in caplog.text
    assert list(map(told, durable_trials(run_search.folder / "study"))) == list(map(told, durable_trials(whole[0])))


def test_a_finished_study_that_gets_more_trials_is_the_longer_study(whole, run_search, changed):
    run_search(FormulaExecutor(2, 5), own_problem=changed(trials=7))
    run_search(FormulaExecutor(), own_problem=changed(trials=8))
    assert run_search(FormulaExecutor()).evaluated == whole[1]


def test_running_a_finished_study_again_evaluates_nothing(whole, run_search):
    run_search(FormulaExecutor())
    again = FormulaExecutor()
    assert run_search(again).evaluated == whole[1]
    assert again.specs == []
    assert len(durable_trials(run_search.folder / "study")) == 36


def test_a_study_that_does_not_repeat_itself_is_noticed(run_search):
    run_search(FormulaExecutor())
    path = run_search.folder / "study" / RESULTS
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "values" in line:
            line["values"]["loss"] = -line["values"]["loss"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"study study: trial \d+ does not repeat itself.* --study NAME"):
        run_search(FormulaExecutor())


def test_progress_counts_what_happened(run_search, problem):
    seen = []
    executor = FormulaExecutor(2, 3)
    outcome = run_search(executor, on_progress=seen.append)
    assert [progress.done for progress in seen] == list(range(1, 37))
    assert {progress.total for progress in seen} == {36}
    assert outcome.progress == seen[-1]
    assert outcome.ended == "all trials done"
    assert seen[-1].failed == sum(isinstance(formula(spec), Failure) for spec in executor.specs)
    best = max((each for each in outcome.evaluated if each.score is not None), key=lambda each: each.score)
    assert seen[-1].best == (best.score, best.cost.latency.value_ms)
    assert [progress.looked_at for progress in seen] == list(range(1, 37))
    again = run_search(FormulaExecutor()).progress
    assert (again.done, again.looked_at, again.best) == (36, 0, seen[-1].best)


def test_no_more_candidates_are_out_than_the_window_holds(run_search):
    executor = FormulaExecutor()
    most = []
    run_search(executor, on_progress=lambda progress: most.append(len(executor.out)))
    assert max(most) == WINDOW - 1


def test_time_that_is_up_ends_the_search_with_what_is_out_told(run_search, changed, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("nas.study.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    # Every proposal looks at the clock once, which moves on by a second.
    outcome = run_search(FormulaExecutor(), own_problem=changed(time="12s"))
    assert outcome.ended == "time is up (12s)"
    assert outcome.progress.done == 12
    assert len(durable_trials(run_search.folder / "study")) == 12


# Small spaces


def four_members():
    """Two widths by two depths, with a gene that changes nothing."""

    width, depth = Question("width", (8, 16)), Question("depth", (1, 2))
    return Space(
        "four",
        Part((Question("idle", (1, 2, 3)),), lambda answer, task: Entrance((task.channels, 16, 16), Rep(8, 2))),
        Part((), lambda answer, task: Classifier(task.classes)),
        (Part((width, depth), lambda answer, in_shape: (Rdp(answer(width), 2),) * answer(depth)),),
    )


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3", "tpe", "random"])
def test_a_space_that_is_used_up_ends_the_search(run_search, changed, monkeypatch, sampler):
    monkeypatch.setattr(proposals, "PATIENCE", 60)
    problem = replace(changed(sampler=sampler), space=four_members())
    outcome = run_search(FormulaExecutor(2, 1), own_problem=problem, genes=check_budget(problem))
    assert len({each.arch_id for each in outcome.evaluated}) == len(outcome.evaluated) == 4
    assert outcome.ended == "60 proposals in a row were known already or above the budget"
    assert outcome.progress.duplicates >= 60


# The budget


def test_a_budget_below_the_fastest_member_is_refused_with_that_members_figures(changed):
    problem = changed(budget="1us")
    with pytest.raises(InfeasibleBudget) as caught:
        check_budget(problem)
    fastest = problem.costs(caught.value.fastest)
    message = str(caught.value)
    assert spec_id(caught.value.fastest) in message
    assert f"{fastest.latency.value_ms:.3g} ms" in message
    assert f"{fastest.latency.high_ms:.3g} ms" in message
    assert message.startswith("no network of space edge-small keeps 1us on rk3288: the fastest member of the space")


def test_the_least_budget_that_a_refusal_names_is_enough(changed):
    with pytest.raises(InfeasibleBudget) as caught:
        check_budget(changed(budget="1us"))
    least = caught.value.cost.latency.high_ms
    assert check_budget(changed(budget=f"{least!r}ms"))
    with pytest.raises(InfeasibleBudget):
        check_budget(changed(budget=f"{least * (1 - 1e-9)!r}ms"))


def test_the_spec_that_is_sent_out_is_the_one_that_is_kept(run_search, tmp_path, changed):
    executor = FormulaExecutor()
    outcome = run_search(executor, own_problem=changed(trials=3))
    for spec, each in zip(executor.specs, outcome.evaluated, strict=True):
        write_spec(spec, tmp_path / "spec.yaml")
        assert read_spec(tmp_path / "spec.yaml") == each.spec
    assert early_job.__module__ == "nas.jobs"
