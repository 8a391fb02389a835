"""Evolution and the surrogate: what they propose keeps the budget, follows from the seed, and gets better."""

import contextlib
import math
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern
from threadpoolctl import threadpool_info, threadpool_limits

from evaluators.evaluator import Failure
from nas import evolution, sampling, screening
from nas.gaussian_process import GaussianProcess, Inputs, Settings, likeliest_settings
from nas.ground import Ground, Visited
from nas.pareto import crowding
from nas.sampling import OWN_SAMPLERS, Sampling, choice_of, set_constraint
from nas.screening import expected_gain, largest, telling
from nas.storage import open_study
from nas.study import check_budget
from searchspace.blocks.inverted import InvertedResidual
from searchspace.space import gene_options
from tests.nas.conftest import FormulaExecutor, Stopped, formula

OWN = list(OWN_SAMPLERS)


@pytest.fixture(scope="module", autouse=True)
def small():
    """So that scores steer after eight, and a proposal takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolution, "FIRST", 8)
        patch.setattr(evolution, "POPULATION", 8)
        patch.setattr(screening, "FIRST", 8)
        patch.setattr(screening, "CHILDREN", 20)
        patch.setattr(screening, "STRANGERS", 4)
        yield


@pytest.fixture(scope="module")
def tight(changed):
    """A budget that one random network in twenty keeps."""
    return changed(budget="5ms", trials=24, start="fastest")


@pytest.fixture(scope="module")
def quickest(tight):
    return check_budget(tight)


@pytest.fixture
def search(run_search, tight, quickest):
    def run(sampler, executor, name="study", **settings):
        problem = replace(tight, settings=tight.settings.model_copy(update={"sampler": sampler, **settings}))
        return run_search(executor, name, problem, quickest)

    return run


@pytest.mark.parametrize("sampler", OWN)
def test_everything_that_is_proposed_keeps_the_budget_and_is_new(search, sampler):
    executor = FormulaExecutor()
    outcome = search(sampler, executor)
    assert outcome.progress.done == 24
    assert outcome.progress.rejected == outcome.progress.duplicates == 0
    assert max(each.cost.latency.high_ms for each in outcome.evaluated) <= 5
    assert len(set(executor.specs)) == 24


@pytest.mark.parametrize("sampler", OWN)
def test_a_stopped_search_goes_on_as_the_one_that_was_not(search, run_search, sampler):
    whole = search(sampler, FormulaExecutor(), "whole").evaluated
    for stop_after, seed in ((5, 1), (8, 2), (None, 3)):
        with contextlib.suppress(Stopped):
            found = search(sampler, FormulaExecutor(3, seed, stop_after), "stopped").evaluated
    assert found == whole
    kept = open_study(run_search.folder / "stopped", "study", None).get_trials(deepcopy=False)
    assert [each.user_attrs["arch"] for each in kept] == [each.arch_id for each in whole]


@pytest.mark.parametrize("sampler", OWN)
def test_another_seed_proposes_other_networks(search, sampler):
    first, other = (
        {each.arch_id for each in search(sampler, FormulaExecutor(), str(seed), seed=seed).evaluated} for seed in (0, 1)
    )
    assert len(first & other) < 4, "the fastest member, and what both find good"


def share_of_inverted(spec):
    return sum(isinstance(stage[0], InvertedResidual) for stage in spec.stages) / 4


def prefers_inverted(spec):
    found = formula(spec)
    return found if isinstance(found, Failure) else found | {"loss": -share_of_inverted(spec)}


@pytest.mark.parametrize("sampler", OWN)
def test_scores_lead(search, sampler):
    evaluated = search(sampler, FormulaExecutor(answer=prefers_inverted), trials=40).evaluated
    by_chance = search(sampler, FormulaExecutor(), "other", trials=40).evaluated
    late, other = (sum(share_of_inverted(each.spec) for each in run[20:]) / 20 for run in (evaluated, by_chance))
    assert late > other + 0.1


# Evolution


def visited(score, latency_ms):
    return Visited(SimpleNamespace(latency_ms=latency_ms), score)


def test_the_best_come_first_by_rank_and_the_lonely_before_the_crowded():
    # The front: (1, 1), (2, 2), (2.1, 2.1), (5, 9); (1.5, 9) is beaten by three of them.
    all_of_them = [visited(2, 2), visited(1.5, 9), visited(5, 9), visited(2.1, 2.1), visited(1, 1)]
    points = [(each.score, each.place.latency_ms) for each in evolution.ranked(all_of_them, 5)]
    assert set(points[:2]) == {(1, 1), (5, 9)}
    # By hand: (2.1, 2.1) lies between neighbours 3/4 and 7/8 apart, (2, 2) between 1.1/4 and 1.1/8.
    assert points[2:] == [(2.1, 2.1), (2, 2), (1.5, 9)]
    assert len(evolution.ranked(all_of_them, 2)) == 2


def test_crowding_of_equal_points_is_finite():
    assert crowding([(1.0, 1.0)] * 4)[1:3] == [0, 0]


def test_mutants_differ_and_crosses_mix(tight, quickest):
    ground = Ground(tight, quickest)
    rng = random.Random(0)
    changed = [sum(ground.mutant(quickest, rng)[name] != quickest[name] for name in quickest) for _ in range(300)]
    assert max(changed) > 2
    assert sum(changed) / 300 == pytest.approx(1.9, abs=0.2), "half of the mutants have one gene changed"
    other = {name: options[-1] for name, options in ground.options.items()}
    first = {name: options[0] for name, options in ground.options.items()}
    crossed = ground.cross(first, other, rng)
    assert all(crossed[name] in (first[name], other[name]) for name in first)
    assert 5 < sum(crossed[name] == first[name] for name in first) < len(first) - 5


def test_random_networks_are_within_the_budget_even_where_hardly_any_are(changed, quickest, tight):
    least = tight.costs(Ground(tight, quickest).place(quickest).spec).latency.high_ms
    ground = Ground(changed(budget=f"{1.02 * least!r}ms"), quickest)
    places = [ground.random_place(random.Random(seed)) for seed in range(5)]
    assert all(ground.keeps_budget(place) for place in places)


# The surrogate


def test_expected_gain_is_what_chance_gives():
    known = (np.array([0.2, 0.5, 0.9]), np.array([1.0, 3.0, 6.0]))
    asked = (np.array([0.6, 0.3, 1.2]), np.array([0.2, 0.3, 0.1]), np.array([2.0, 0.5, 7.0]))
    found = expected_gain(known, asked, budget_ms=8.0)

    def volume(points):
        # By small steps of latency, from the lowest known score up.
        grid = np.arange(0, 8, 0.02) + 0.01
        best = [max([score for score, ms in points if ms <= at] + [0.2]) - 0.2 for at in grid]
        return 0.02 * sum(best)

    base = list(zip(*known, strict=True))
    rng = np.random.default_rng(0)
    for index in range(3):
        mean, spread, ms = (column[index] for column in asked)
        gains = [volume([*base, (mean + spread * draw, ms)]) - volume(base) for draw in rng.normal(size=200)]
        error = np.std(gains) / math.sqrt(len(gains))
        assert found[index] == pytest.approx(np.mean(gains), abs=4 * error + 0.02)


def test_what_is_slower_than_the_budget_gains_nothing():
    gain = expected_gain((np.array([0.5]), np.array([1.0])), (np.array([9.0]), np.array([0.1]), np.array([8.5])), 8.0)
    assert gain.tolist() == [0.0]


def test_ties_go_to_the_first_whatever_the_last_digit_is():
    assert largest(np.array([0.1, 0.7, 0.7 + 1e-15, 0.2])) == 1
    assert largest(np.array([-1.0, -2.0])) == 0
    assert largest(np.array([0.0, 0.0])) == 0


def inputs(rows):
    rows = np.asarray(rows, dtype=float)
    return Inputs((rows - rows.mean(0)) / rows.std(0), (rows[:, :1] - rows[:, :1].mean(0)) / rows[:, :1].std(0))


def test_a_process_follows_a_function_and_knows_where_it_does_not():
    rng = np.random.default_rng(1)
    rows = rng.uniform(-2, 2, (120, 3))
    truth = np.sin(2 * rows[:, 0]) + 0.5 * rows[:, 1]
    scores = truth + rng.normal(0, 0.05, 120)
    everything = inputs(rows)
    known, asked = everything.rows(slice(0, 90)), everything.rows(slice(90, 120))
    settings = likeliest_settings(known, scores[:90], seed=0)
    mean, spread = GaussianProcess(known, scores[:90], settings).predict(asked)
    assert np.corrcoef(mean, truth[90:])[0, 1] > 0.9
    assert np.mean(np.abs(mean - truth[90:]) < 3 * spread + 0.05) > 0.9
    far = Inputs(asked.structure + 10, asked.cost + 10)
    assert GaussianProcess(known, scores[:90], settings).predict(far)[1].min() > spread.max()


def test_a_process_of_equal_scores_says_that_score():
    everything = inputs(np.random.default_rng(0).normal(size=(10, 2)))
    settings = Settings(1.0, 1.0, 0.5, 0.3, 0.2, 0.1)
    mean, _ = GaussianProcess(everything, np.full(10, 0.25), settings).predict(everything)
    assert mean == pytest.approx(np.full(10, 0.25))


def by_scikit_learn(rows, scores, settings):
    """The same process by another library, both groups of features being the same."""
    size = rows.shape[1]
    kernel = (
        ConstantKernel(settings.structure) * Matern(settings.structure_scale * math.sqrt(size), nu=2.5)
        + ConstantKernel(settings.cost) * Matern(settings.cost_scale * math.sqrt(size), nu=2.5)
        + ConstantKernel(settings.linear / size) * DotProduct(0.0, "fixed")
    )
    found = GaussianProcessRegressor(kernel, alpha=settings.noise, optimizer=None, normalize_y=True)
    return found.fit(rows, scores)


def test_a_process_is_the_one_of_scikit_learn():
    rng = np.random.default_rng(2)
    rows, asked = rng.normal(size=(40, 3)), rng.normal(size=(9, 3))
    rows[7] = rows[3]
    scores = 2 + 0.3 * rng.normal(size=40)
    settings = Settings(0.7, 1.9, 0.5, 0.3, 0.2, 0.05)
    other = by_scikit_learn(rows, scores, settings)
    own = GaussianProcess(Inputs(rows, rows), scores, settings)
    mean, spread = own.predict(Inputs(asked, asked))
    expected_mean, expected_spread = other.predict(asked, return_std=True)
    assert mean == pytest.approx(expected_mean, abs=1e-9)
    assert spread == pytest.approx(expected_spread, abs=1e-9)
    assert own.guesses == pytest.approx(other.predict(rows), abs=1e-9)
    constant = 20 * math.log(2 * math.pi)
    assert own.log_likelihood == pytest.approx(other.log_marginal_likelihood() + constant, abs=1e-8)


def test_awaited_scores_make_surer_and_change_no_guess():
    rng = np.random.default_rng(3)
    rows, asked = rng.normal(size=(25, 3)), rng.normal(size=(9, 3))
    scores = rng.normal(size=20)
    settings = Settings(0.7, 1.9, 0.5, 0.3, 0.2, 0.05)
    without = by_scikit_learn(rows[:20], scores, settings)
    own = GaussianProcess(Inputs(rows, rows), scores, settings)
    mean, spread = own.predict(Inputs(asked, asked))
    assert mean == pytest.approx(without.predict(asked), abs=1e-9)
    assert own.guesses == pytest.approx(without.predict(rows), abs=1e-9)
    # How sure it is does not depend on the scores, but on where they are and on their unit.
    with_all = by_scikit_learn(rows, np.concatenate([scores, np.zeros(5)]), settings)
    unit = scores.std() / np.concatenate([scores, np.zeros(5)]).std()
    assert spread == pytest.approx(with_all.predict(asked, return_std=True)[1] * unit, abs=1e-9)
    assert np.all(spread < without.predict(asked, return_std=True)[1])


def test_of_many_scores_the_front_and_the_latest_tell_most(monkeypatch):
    monkeypatch.setattr(screening, "MOST_SCORES", 6)
    rng = random.Random(0)
    # The first three are a front and beat all that come after them.
    scored = [visited(10 + step, 1 + step) for step in range(3)]
    scored += [visited(rng.random(), 5 + rng.random()) for _ in range(40)]
    assert telling(scored) == [*scored[:3], *scored[-3:]]
    assert telling(scored[:6]) == scored[:6]


def test_a_surrogate_goes_on_beyond_the_scores_that_it_guesses_from(search, monkeypatch):
    monkeypatch.setattr(screening, "MOST_SCORES", 12)
    evaluated = search("surrogate", FormulaExecutor(answer=prefers_inverted), trials=40).evaluated
    before, beyond = (
        sum(share_of_inverted(each.spec) for each in part) / 12 for part in (evaluated[:12], evaluated[-12:])
    )
    assert beyond > before + 0.2


def test_a_proposal_leaves_the_other_cores_to_the_workers(search, monkeypatch):
    threads = []

    def spy(*arguments):
        threads.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
        return expected_gain(*arguments)

    monkeypatch.setattr(screening, "expected_gain", spy)
    with threadpool_limits(2, user_api="blas"):
        search("surrogate", FormulaExecutor())
        assert {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"} == {2}
    assert len(threads) > 2
    assert set(threads) == {1}


# What a sampler of ours is told


def test_history_is_what_was_proposed_and_told_whatever_the_order(tight, quickest, monkeypatch):
    ground, options = Ground(tight, quickest), gene_options(tight.space)
    heard = []

    def propose(own, history, rng):
        heard.append(history)
        return own.random_place(rng)

    monkeypatch.setitem(sampling.OWN_SAMPLERS, "heard", lambda own: partial(propose, own))
    one = Sampling("heard", 0, options, ground)
    rng = random.Random(0)
    out, ended = [], {}
    one.enqueue(quickest, "fastest member")
    for _ in range(40):
        trial = one.ask()
        if trial.number:
            (history, *_), heard[:] = heard, []
            specs = [spec for spec, *_ in ended.values()] + [ground.place(each.params).spec for each in out]
            assert history.seen == set(specs)
            assert [each.spec for each in history.pending] == [ground.place(each.params).spec for each in out]
            scores = [(spec, score) for _, (spec, score) in sorted(ended.items()) if score is not None]
            assert [(each.place.spec, each.score) for each in history.scored] == scores
        place = ground.place({name: choice_of(trial)(name, offered) for name, offered in options.items()})
        set_constraint(trial, place.cost.latency.high_ms, tight.settings.budget_ms)
        out.append(trial)
        while len(out) > rng.randrange(4):
            told = out.pop(rng.randrange(len(out)))
            score = rng.choice([None, rng.random()])
            if score is None:
                rng.choice([one.tell_skipped, lambda trial: one.tell_rejected(trial, 1.0)])(told)
            else:
                one.tell_scored(told, score, 1.0)
            ended[told.number] = ground.place(told.params).spec, score
    assert len(ended) > 30
