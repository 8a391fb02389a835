"""What is read of studies: numbers against sums by hand, files that grow, and a database."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hardware.strict_yaml import ConfigError
from nas.storage import JOURNAL, open_study
from nas.web.charts import outline, ticks
from nas.web.journals import Journals, ReadOnlyStorage, TailReader
from nas.web.runs import Runs
from nas.web.studies import NoSuchStudy, Point, Studies, age, database, hypervolumes, rate_per_minute
from tests.nas.conftest import StudyExecutor
from tests.nas.web.conftest import searched


def covered_by_counting(points, budget_ms, low, high, steps=200):
    """The share of the box's cells whose middle some point beats."""
    cells = 0
    for row in range(steps):
        score = low + (high - low) * (row + 0.5) / steps
        reach = [latency for own, latency in points if own >= score and latency < budget_ms]
        if reach:
            cells += sum(budget_ms * (column + 0.5) / steps >= min(reach) for column in range(steps))
    return cells / steps**2


@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_the_share_of_the_box_that_the_points_cover(seed):
    rng = random.Random(seed)
    # Ties, repeats and points above the budget among them.
    points = [(rng.choice([0.1, 0.2, 0.5, rng.random()]), rng.choice([1.0, 4.0, 12 * rng.random()])) for _ in range(25)]
    low, high = min(score for score, _ in points), max(score for score, _ in points)
    found = hypervolumes(points, 10.0)
    for count in (1, 2, 7, 25):
        assert found[count - 1] == pytest.approx(covered_by_counting(points[:count], 10.0, low, high), abs=0.02)
    assert found == sorted(found)


def test_hypervolume_of_a_rectangle_by_hand():
    # The box is 10 ms by 1; the second point covers 6 ms of the upper half and the first 8 ms of the lower.
    assert hypervolumes([(0.5, 2.0), (1.0, 4.0), (0.0, 1.0)], 10.0) == pytest.approx([0.4, 0.7, 0.7])
    assert hypervolumes([], 10.0) == []
    assert hypervolumes([(1.0, 2.0)], 10.0) == [0.0]


def point(number, seconds):
    began = datetime(2026, 1, 1)
    done = None if seconds is None else began + timedelta(seconds=seconds)
    return Point(number, "", 0.5, 1.0, 1.0, "measured", True, done)


def test_the_rate_is_that_of_this_run_alone():
    began = datetime(2026, 1, 1)
    before = [point(0, -1000), point(1, -990)]
    now = [point(2, 10), point(3, 20), point(4, 40), point(5, None)]
    assert rate_per_minute(before + now, began) == pytest.approx(60 * 2 / 30)
    assert rate_per_minute(before + now[:1], began) is None
    assert rate_per_minute([], began) is None


def test_the_rate_forgets_what_was_long_ago():
    slow_start = [point(number, 100 * number) for number in range(10)]
    fast = [point(10 + number, 900 + number + 1) for number in range(40)]
    assert rate_per_minute(slow_start + fast, datetime(2026, 1, 1)) == pytest.approx(60)


def test_a_half_written_line_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "lines"
    tail = TailReader(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == [b"one"]
    assert tail.lines() == []
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert tail.lines() == [b"two", b"three"]
    assert not tail.replaced
    path.write_bytes(b"one\n")
    assert tail.replaced


def test_the_journals_together_are_what_each_is_alone(tmp_path, finished, problem, fastest):
    searched(problem, fastest, tmp_path, StudyExecutor(), study="first", seed=3)
    searched(problem, fastest, tmp_path, StudyExecutor(), study="second", seed=4)
    searched(problem, fastest, tmp_path, StudyExecutor(), study="first", seed=3, trials=12)  # begun a second time
    together = JournalStorage(Journals(tmp_path))
    for name, count in (("first", 12), ("second", 9)):
        alone = JournalStorage(JournalFileBackend(str(tmp_path / name / JOURNAL)))
        wanted = alone.get_all_trials(alone.get_study_id_from_name(name))
        trials = together.get_all_trials(together.get_study_id_from_name(name))
        assert len(trials) == count
        assert [(t.number, t.params, t.values, t.user_attrs, t.state) for t in trials] == [
            (t.number, t.params, t.values, t.user_attrs, t.state) for t in wanted
        ]


def test_trials_that_are_told_step_by_step_keep_to_their_study(tmp_path):
    # Not how our driver writes, but how Optuna does.
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    studies = [open_study(tmp_path / name, name, None) for name in ("a", "b")]
    for number in range(3):
        for index, study in enumerate(studies):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, (number, 10 * index))
    together = JournalStorage(Journals(tmp_path))
    for index, name in enumerate(("a", "b")):
        trials = together.get_all_trials(together.get_study_id_from_name(name))
        assert [trial.values for trial in trials] == [[number, 10 * index] for number in range(3)]
        assert all("x" in trial.params for trial in trials)


def test_journals_cannot_be_written(tmp_path):
    with pytest.raises(ReadOnlyStorage):
        JournalStorage(Journals(tmp_path)).create_new_study([], "new")
    assert list(tmp_path.iterdir()) == []


def test_a_study_in_a_database_is_read_without_writing_it(tmp_path, problem, fastest):
    url = f"sqlite:///{tmp_path}/trials.db"
    searched(problem, fastest, tmp_path / "studies", StudyExecutor(), study="mine", storage=url)
    before = (tmp_path / "trials.db").read_bytes()
    live = Studies(tmp_path / "studies", Runs()).live("mine")
    assert (live.overview.done, live.overview.trouble) == (9, None)
    with pytest.raises(StorageInternalError):
        database(url).create_new_study([], "new")
    assert (tmp_path / "trials.db").read_bytes() == before


def test_a_database_that_is_gone_is_said_and_not_made(tmp_path, finished):
    with pytest.raises(ConfigError, match="does not exist"):
        database(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "mine/../mine", "/etc", "mine\n", "-x", "a" * 101])
def test_only_names_of_studies_name_studies(finished, name):
    with pytest.raises(NoSuchStudy):
        Studies(finished, Runs()).folder(name)


def test_accuracies_appear_before_the_study_has_its_front(tmp_path, problem, fastest):
    searched(problem, fastest, tmp_path, StudyExecutor(), study="mine")
    studies = Studies(tmp_path, Runs())
    front = json.loads((tmp_path / "mine" / "front.json").read_text())["members"]
    members = {each["trial"]: each["accuracy"]["value"] for each in front}
    live = studies.live("mine")
    assert {each.number: each.accuracy for each in live.trained if each.on_front} == members
    (tmp_path / "mine" / "front.json").unlink()
    live = studies.live("mine")
    assert len(live.trained) == 3
    assert {each.on_front for each in live.trained} == {None}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 5.4, [0, 1, 2, 3, 4, 5]),
        (9.84, 10.24, [9.9, 10, 10.1, 10.2]),
        (-0.3, 0.3, [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_tiers_have_shapes_of_their_own():
    assert len({outline(tier, 0, 0, 3) for tier in ("measured", "calibrated", "extrapolated")}) == 3


@pytest.mark.parametrize(("seconds", "text"), [(10, "now"), (60, "1 min"), (7200, "2 h"), (3 * 86400, "3 d")])
def test_age_is_in_the_unit_that_suits_it(seconds, text):
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert age((now - timedelta(seconds=seconds)).isoformat(), now) == text
