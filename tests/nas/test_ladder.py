"""Who is trained how far, by an executor that answers at once."""

import pytest

from evaluators.accuracy import Accuracy
from evaluators.evaluator import Failure
from nas import stints
from nas.contenders import Climbed
from nas.ladder import Ladder
from nas.ladder import climb as climb_by
from nas.results import ResultStore
from nas.shortlist import Finalist
from nas.study import Evaluated
from nas.trainings import CHECKPOINTS
from searchspace.choosers import random_choice
from searchspace.space import member
from searchspace.spec import spec_id
from tests.nas.conftest import Stopped, StudyExecutor, trained


@pytest.fixture(scope="module")
def pool(problem):
    """Eight networks of the space, the first looks at which took 0.32 s for 640 images."""
    import random

    found = {}
    rng = random.Random(0)
    while len(found) < 8:
        spec = member(problem.space, random_choice(rng), problem.task)
        found[spec_id(spec)] = spec
    return [
        Finalist(Evaluated(number, spec, name, problem.costs(spec), {"seconds": 0.32}, 0.0), ())
        for number, (name, spec) in enumerate(found.items())
    ]


class World:
    """What accuracy each trial has after a little training, and what an epoch takes."""

    def __init__(self, pool, accuracies=None, epoch_s=0.1):
        self.numbers = {each.candidate.arch_id: each.candidate.number for each in pool}
        self.accuracies = accuracies or {}
        self.epoch_s = epoch_s

    def contend(self, stint):
        number = self.numbers[spec_id(stint.plan.spec)]
        value = self.accuracies.get(number, 0.5)
        if isinstance(value, Failure):
            return value
        reached = Accuracy(value, 1.0, 249, 0.1)
        state = f"{number} at {stint.until_epoch}".encode()
        return Climbed(stint.plan.spec, [], stint.until_epoch, reached, 1.0, self.epoch_s * stint.until_epoch, state)


class Heard:
    """An audience that keeps what it is told."""

    def __init__(self):
        self.notes = []
        self.progress = []
        self.note = self.notes.append

    def training(self, done, total):
        self.progress.append((done, total))


@pytest.fixture
def climb(tmp_path, problem, pool, changed, monkeypatch):
    def climb(world, executor=None, **settings):
        own = changed(**{"finalists": 4, "epochs": 12, "workers": 1} | settings)
        executor = executor or StudyExecutor(contend=world.contend)
        heard = Heard()
        found = climb_by(Ladder(own, tmp_path, ResultStore(tmp_path / "results.jsonl"), pool, heard), executor)
        return found, executor, heard.notes, heard.progress

    climb.folder = tmp_path
    return climb


def trials(plans):
    return [plan.trial for plan in plans]


def test_the_best_after_a_little_training_are_trained_to_the_end(climb, pool):
    # By accuracy alone, each being as slow as it is: ranks follow from accuracy and latency together.
    fastest = min(pool, key=lambda each: each.candidate.cost.latency.value_ms).candidate.number
    accurate = next(each.candidate.number for each in pool if each.candidate.number != fastest)
    world = World(pool, dict.fromkeys(range(8), 0.3) | {accurate: 0.9, fastest: 0.35})
    found, executor, notes, heard = climb(world)
    assert [stint.until_epoch for stint in executor.stints] == [3] * 8
    assert len(executor.plans) == 4
    assert set(trials(executor.plans)[:2]) == {accurate, fastest}, "the front comes before all others"
    assert len(found.members) == 4
    assert found.failures == []
    assert heard[0] == (0, 12)
    assert heard[-1] == (12, 12)
    assert [(rung.epochs, rung.candidates) for rung in found.rungs] == [(3, 8), (12, 4)]
    assert notes[0].startswith("to train: 8 for 3, then 4 for 12 epochs, about ")


def test_what_is_promoted_goes_on_with_the_state_that_it_has(climb, pool):
    befores = {}

    def finish(plan, before):
        befores[plan.trial] = before
        return trained(plan)

    world = World(pool)
    climb(world, StudyExecutor(finish, contend=world.contend, with_before=True))
    assert len(befores) == 4
    assert all(before.epochs == 3 and before.state == f"{n} at 3".encode() for n, before in befores.items())


def test_prices_are_those_of_the_first_looks_and_then_those_that_were_measured(climb, pool, problem):
    # 0.32 s for 20 x 32 images and 200 images an epoch: 0.1 s, of which 8 x 3 + 4 x 9 = 60 are planned.
    found, _, notes, _ = climb(World(pool, epoch_s=1.0))
    assert problem.data.limit == 200
    assert notes == [
        "to train: 8 for 3, then 4 for 12 epochs, about 6 s",
        "to train: 4 for 12 epochs, about 36 s",
    ]
    assert [rung.expected_s for rung in found.rungs] == pytest.approx([6.0, 36.0])
    assert found.rungs[0].seconds == pytest.approx(24.0)


# Five cost 5 x 0.3 + 2 x 0.9 = 3.3 s, six 6 x 0.3 + 3 x 0.9 = 4.5 s; three 2.7 s, two 1.5 s. As this executor takes no
# time, all of it is left for the last rung, 0.9 s each.
@pytest.mark.parametrize(("time", "begin", "finish"), [("4s", 5, 4), ("2s", 2, 2), ("100s", 8, 4), ("0.01s", 1, 1)])
def test_where_time_is_short_fewer_are_trained(climb, pool, time, begin, finish):
    _, executor, *_ = climb(World(pool), training_time=time)
    assert (len(executor.stints), len(executor.plans)) == (begin, finish)


def test_what_the_first_ones_really_take_is_noticed_before_the_others_begin(climb, pool, caplog):
    # Ten times as slow as the first looks promised: after the first one, the rest of the rung is not to be paid.
    found, executor, *_ = climb(World(pool, epoch_s=1.0), training_time="5s")
    assert len(executor.stints) < 4
    assert len(executor.plans) == 1
    assert len(found.members) == 1
    assert "no time to train" in caplog.text


def test_one_that_fails_is_told_and_leaves_its_place_to_others(climb, pool):
    world = World(pool, {0: Failure("it broke"), 1: Failure("gone", lasting=False)})
    found, executor, *_ = climb(world)
    assert found.failures == ["contender 0: it broke", "contender 1: gone"]
    assert len(executor.plans) == 4
    again, executor, *_ = climb(World(pool))
    assert [stint.plan.spec for stint in executor.stints] == [pool[1].candidate.spec], "only the machine's own fault"
    assert again.failures == ["contender 0: it broke"]


def test_a_run_that_was_ended_goes_on_where_it_stood(climb, pool):
    world = World(pool)
    with pytest.raises(Stopped):
        climb(world, StudyExecutor(contend=world.contend, stop_after=5))
    assert len(list((climb.folder / CHECKPOINTS).iterdir())) == 5
    found, executor, *_ = climb(world)
    assert len(executor.stints) == 3
    assert len(found.members) == 4


def test_a_long_rung_is_put_down_on_the_way(climb, pool, monkeypatch):
    monkeypatch.setattr(stints, "CHECKPOINT_EVERY_S", 0.21)
    world = World(pool)
    with pytest.raises(Stopped):
        climb(world, StudyExecutor(contend=world.contend, stop_after=1))
    _, executor, *_ = climb(world)
    first = [stint for stint in executor.stints if stint.plan.spec == pool[0].candidate.spec]
    # 0.1 s an epoch: two at a time, and the first two are known already.
    assert first[0].before is not None
    assert (first[0].before.epochs, first[0].until_epoch) == (2, 3)
    others = [stint.until_epoch for stint in executor.stints if stint.plan.spec == pool[1].candidate.spec]
    assert others[:2] == [2, 3]
    finals = {stint.until_epoch for stint in executor.stints if stint.until_epoch > 3}
    assert finals == {5, 7, 9, 11}
    assert len(executor.plans) == 4


def test_a_run_that_was_ended_on_a_higher_rung_goes_on_from_there_and_not_from_the_rung_below(climb, pool, monkeypatch):
    monkeypatch.setattr(stints, "CHECKPOINT_EVERY_S", 0.21)
    world = World(pool)
    with pytest.raises(Stopped):
        climb(world, StudyExecutor(contend=world.contend, stop_after=8 * 2 + 6))  # four are at 5 epochs, two at 7
    _, executor, *_ = climb(world)
    begun = {}
    for stint in executor.stints:
        begun.setdefault(stint.plan.spec, (stint.before.epochs, stint.before.state.split()[-1], stint.until_epoch))
    assert sorted(begun.values()) == [(5, b"5", 7), (5, b"5", 7), (7, b"7", 9), (7, b"7", 9)]


def test_the_same_run_again_trains_nothing(climb, pool):
    world = World(pool)
    first, *_ = climb(world)
    again, executor, *_ = climb(world)
    assert executor.specs == []
    assert again.members == first.members
