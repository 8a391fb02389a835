"""A study in PostgreSQL: against a real server, which is also stopped and killed. Skipped where none is installed."""

import importlib.util
import json
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardware.strict_yaml import ConfigError
from nas import storage
from nas.storage import StorageLost, check_free, open_study, remember
from nas.study import Search
from tests.nas.conftest import FormulaExecutor, Stopped, formula
from tests.nas.postgres_server import PostgresServer, programs
from tests.nas.test_storage import trial

pytestmark = pytest.mark.skipif(
    programs() is None or importlib.util.find_spec("psycopg") is None,
    reason="needs a PostgreSQL server and psycopg: apt-get install postgresql, pip install psycopg[binary]",
)

TRIALS = 12


@pytest.fixture(scope="module")
def server():
    # Not below pytest's own folder, which is closed to the server's user.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def by_psql(server):
    """What PostgreSQL's own client reads."""

    def query(text):
        command = [str(programs() / "psql"), "-h", str(server.folder), "-U", "postgres", "-At", "-c", text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    return query


@pytest.fixture
def search(tmp_path, server, changed, fastest):
    """A study in the server, run or gone on with in its folder."""

    def run(executor, name, folder=tmp_path, on_progress=lambda progress: None, owner="me"):
        problem = changed(storage=server.url, study=name, trials=TRIALS)
        record = SimpleNamespace(durable_name=name, owner=owner)
        return Search(problem, folder, executor, record).run(fastest, on_progress)

    return run


def kept(server, tmp_path, name):
    return open_study(tmp_path, name, server.url).get_trials(deepcopy=False)


def told(trials):
    return [(each.number, each.state, each.values, each.params, each.user_attrs, each.constraints) for each in trials]


def test_a_study_in_postgres_is_the_study_in_a_journal(search, server, by_psql, run_search, tmp_path, changed):
    outcome = search(FormulaExecutor(), "same")
    assert run_search(FormulaExecutor(), own_problem=changed(trials=TRIALS)).evaluated == outcome.evaluated
    own = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    assert told(kept(server, tmp_path, "same")) == told(own)
    rows = by_psql("select count(*) from trials join studies using (study_id) where study_name = 'same'")
    assert rows == [str(TRIALS)]
    assert not (tmp_path / "journal.log").exists()


def test_a_study_that_is_stopped_is_finished_and_evaluates_nothing_twice(search, server, tmp_path):
    first, rest = FormulaExecutor(3, 1, stop_after=7), FormulaExecutor()
    with pytest.raises(Stopped):
        search(first, "stopped")
    search(rest, "stopped")
    known = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["arch"] for line in known}) == len(known) == TRIALS
    assert [each.number for each in kept(server, tmp_path, "stopped")] == list(range(TRIALS))


@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.slow), "immediate"])
def test_a_server_that_restarts_in_the_middle_costs_nothing(search, server, tmp_path, mode):
    away = []

    def restart(progress):
        if progress.done == 4:
            server.stop(mode)
            away.append(threading.Timer(0.7, server.start))
            away[-1].start()

    outcome = search(FormulaExecutor(), mode, on_progress=restart)
    for timer in away:
        timer.join()
    assert len(away) == 1
    assert outcome.progress.done == TRIALS
    assert [each.user_attrs["arch"] for each in kept(server, tmp_path, mode)] == [
        each.arch_id for each in outcome.evaluated
    ]


def test_a_trial_that_was_committed_before_the_answer_was_lost_is_not_added_again(server, tmp_path, monkeypatch):
    study = open_study(tmp_path, "answered late", server.url)
    add = study.add_trial

    def committed_and_lost(one):
        add(one)
        monkeypatch.undo()
        raise storage.StorageInternalError("the connection broke")

    monkeypatch.setattr(storage, "ASK_AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(study, "add_trial", committed_and_lost)
    remember(study, trial(0), 0)
    remember(study, trial(1), 1)
    assert [each.user_attrs["number"] for each in kept(server, tmp_path, "answered late")] == [0, 1]


def test_a_server_that_stays_away_ends_the_run_and_says_how_to_go_on(server, tmp_path, monkeypatch):
    study = open_study(tmp_path, "away", server.url)
    monkeypatch.setattr(storage, "RESTART_WITHIN_S", 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.stop()
    try:
        with pytest.raises(StorageLost, match=r"has not answered for 0 s .*`nas resume` goes on") as caught:
            remember(study, trial(0), 0)
        with pytest.raises(ConfigError, match=r"storage postgresql.* cannot be opened") as refused:
            check_free(tmp_path, "away", server.url)
    finally:
        server.start()
    assert "\n" not in str(caught.value) + str(refused.value)


def test_a_name_that_another_folder_has_taken_is_refused(search, server, tmp_path):
    search(FormulaExecutor(), "taken")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ConfigError, match=r"holds a study taken already, which is another folder's; .*--study NAME"):
        search(FormulaExecutor(), "taken", elsewhere, owner="somebody else")
    assert not (elsewhere / "results.jsonl").exists()
    with pytest.raises(ConfigError, match=r"holds a study taken already; give another --study NAME"):
        check_free(tmp_path, "taken", server.url)
    check_free(tmp_path, "free", server.url)


def test_a_study_that_optuna_made_by_itself_is_not_written_into(search, server, tmp_path):
    open_study(tmp_path, "foreign", server.url).add_trial(trial(0))
    with pytest.raises(ConfigError, match="which is of another program"):
        search(FormulaExecutor(), "foreign")


def test_a_database_that_was_emptied_is_filled_again_from_the_results(search, server, by_psql, tmp_path):
    outcome = search(FormulaExecutor(), "emptied")
    by_psql("truncate studies cascade")
    again = FormulaExecutor()
    assert search(again, "emptied").evaluated == outcome.evaluated
    assert again.specs == []
    assert len(kept(server, tmp_path, "emptied")) == TRIALS


def test_a_password_is_never_shown(tmp_path):
    url = "postgresql+psycopg://me:s3cret@127.0.0.1:1/nowhere"
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/nowhere") as caught:
        check_free(tmp_path, "study", url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.slow
def test_drivers_that_are_killed_at_random_moments_lose_nothing(search, server, tmp_path):
    def slowly(spec):
        time.sleep(0.02)
        return formula(spec)

    def drive():
        search(FormulaExecutor(2, 0, answer=slowly), "killed")
        os._exit(0)

    def names():
        path = tmp_path / "results.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line)["arch"] for line in text.splitlines(keepends=True) if line.endswith("\n")]

    rng, killed, reported = random.Random(7), 0, []
    while killed < 20 and len(reported) < TRIALS:
        driver = multiprocessing.get_context("fork").Process(target=drive)
        driver.start()
        if killed % 2:
            while driver.is_alive() and names() == reported:
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        driver.kill()
        driver.join()
        killed += driver.exitcode == -signal.SIGKILL
        assert names()[: len(reported)] == reported
        reported = names()
        kept_so_far = [each.user_attrs["arch"] for each in kept(server, tmp_path, "killed")]
        assert len(set(kept_so_far)) == len(kept_so_far)
        assert set(kept_so_far) <= set(reported), "a trial is kept after its result"
    assert killed >= 5
    outcome = search(FormulaExecutor(), "killed")
    assert len(names()) == len(set(names())) == TRIALS
    assert [each.user_attrs["arch"] for each in kept(server, tmp_path, "killed")] == [
        each.arch_id for each in outcome.evaluated
    ]
