"""Drivers that are killed at random moments, disks that are full, folders that cannot be written.

A driver is a child of this process, forked and not started anew, so that ten of them take seconds.
"""

import datetime
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from nas.cli import main
from nas.exit_codes import BROKE, DONE, INTERRUPTED
from nas.storage import driver_lock, open_study
from nas.study import RESULTS, Search
from tests.nas.conftest import FormulaExecutor, Stopped, StudyExecutor, formula

TRIALS = 20

# Runs that are interrupted twice in a row.
TWICE = 4

# So many that ten killed drivers do not come to the end of them.
KILLED, MANY = 10, 48


@pytest.fixture
def drive(tmp_path, changed, fastest):
    """A driver in its own process that evaluates a network in some milliseconds; where it stands is in the files."""

    def slowly(spec):
        time.sleep(0.003)
        return formula(spec)

    def run():
        problem = changed(trials=MANY)
        with driver_lock(tmp_path):
            record = SimpleNamespace(durable_name="study", owner="me")
            Search(problem, tmp_path, FormulaExecutor(2, 0, answer=slowly), record).run(fastest, lambda _: None)
        os._exit(0)

    return lambda: multiprocessing.get_context("fork").Process(target=run)


def whole_lines(path):
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_drivers_that_are_killed_at_random_moments_lose_nothing(tmp_path, drive, run_search, changed):
    rng = random.Random(4)
    killed = progressed = 0
    reported = []
    while killed < KILLED:
        driver = drive()
        driver.start()
        before = (tmp_path / RESULTS).stat().st_size if (tmp_path / RESULTS).exists() else 0
        if rng.random() < 0.8:  # the others die before they have found anything new
            while driver.is_alive() and len(whole_lines(tmp_path / RESULTS)) == len(reported):
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        driver.kill()
        driver.join()
        killed += driver.exitcode == -signal.SIGKILL
        found = [each["arch"] for each in whole_lines(tmp_path / RESULTS)]
        assert found[: len(reported)] == reported, "what was reported stays"
        assert len(set(found)) == len(found), "nothing is evaluated twice"
        progressed += (tmp_path / RESULTS).exists() and (tmp_path / RESULTS).stat().st_size > before
        reported = found
        assert driver.exitcode == -signal.SIGKILL
    assert progressed >= KILLED // 2
    last = drive()
    last.start()
    last.join()
    assert last.exitcode == 0
    whole = run_search(FormulaExecutor(), "whole", changed(trials=MANY)).evaluated
    kept = open_study(tmp_path, "study", None).get_trials(deepcopy=False)
    assert [trial.user_attrs["arch"] for trial in kept] == [each.arch_id for each in whole]
    assert [each["arch"] for each in whole_lines(tmp_path / RESULTS)][: len(reported)] == reported


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_interrupted_twice_ends_in_one_line_and_goes_on(tmp_path, monkeypatch, fastest, sent):
    from nas import driver

    class Slow(StudyExecutor):
        def __init__(self):
            super().__init__()
            answer, self._answer = self._answer, lambda asked: (time.sleep(0.005), answer(asked))[1]

    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)
    monkeypatch.setattr(driver, "_executor", lambda problem: Slow())

    def run():
        err = (tmp_path / "err").open("w", buffering=1)
        os.dup2(err.fileno(), 2)
        sys.stderr = err
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = INTERRUPTED
        try:
            code = main([*SEARCH, "--trials", str(MANY), "--out", str(tmp_path)])
        finally:
            os._exit(code)  # at once: the second may come when all is over

    rng = random.Random(1)
    for number in range(TWICE):
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        results = tmp_path / "mine" / RESULTS
        before = len(whole_lines(results))
        while process.is_alive() and len(whole_lines(results)) < before + 1:
            time.sleep(0.001)
        for _ in range(2):
            os.kill(process.pid, sent)
            time.sleep(rng.uniform(0, 0.01))
        process.join()
        assert process.exitcode == INTERRUPTED, f"{number}: {(tmp_path / 'err').read_text()}"
        assert "Traceback" not in (tmp_path / "err").read_text()
    last = multiprocessing.get_context("fork").Process(target=run)
    last.start()
    last.join()
    assert last.exitcode == DONE, (tmp_path / "err").read_text()
    found = [each["arch"] for each in whole_lines(results) if each["fidelity"] == "early"]
    assert len(found) == len(set(found)) == MANY


def test_a_clock_that_jumps_changes_nothing(run_search, changed, monkeypatch):
    whole = run_search(FormulaExecutor(), "whole", changed(trials=TRIALS)).evaluated
    true_time, rng = time.time, random.Random(2)
    moment = [0.0]

    class JumpingDate(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(time.time(), tz)

    def jumping():
        moment[0] = rng.choice((-1, 1)) * rng.choice((3_600, 86_400, 10 * 365 * 86_400))
        return true_time() + moment[0]

    monkeypatch.setattr(time, "time", jumping)
    for name in ("optuna.storages._in_memory", "optuna.storages.journal._storage"):
        monkeypatch.setattr(f"{name}.datetime", JumpingDate)
    own = changed(trials=TRIALS, time="1h")
    with pytest.raises(Stopped):
        run_search(FormulaExecutor(stop_after=7), own_problem=own)
    outcome = run_search(FormulaExecutor(), own_problem=own)
    assert outcome.evaluated == whole
    assert outcome.ended == "all trials done", "an hour is an hour"
    assert moment[0] != 0, "somebody asked for the time"
    kept = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    assert [trial.user_attrs["arch"] for trial in kept] == [each.arch_id for each in whole]


@contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [300, 1_500, 5_000, 20_000])
def test_a_disk_that_fills_up_costs_what_was_being_written_and_no_more(run_search, changed, room):
    # A limit on the size of files fails like a full disk, in the middle of a line.
    whole = run_search(FormulaExecutor(), "whole", changed(trials=TRIALS)).evaluated
    with largest_file(room), pytest.raises(OSError, match="File too large"):
        run_search(FormulaExecutor(), own_problem=changed(trials=TRIALS))
    left = whole_lines(run_search.folder / "study" / RESULTS)
    rest = FormulaExecutor()
    assert run_search(rest, own_problem=changed(trials=TRIALS)).evaluated == whole
    assert len(rest.specs) == TRIALS - len(left)
    kept = open_study(run_search.folder / "study", "study", None).get_trials(deepcopy=False)
    assert [trial.user_attrs["arch"] for trial in kept] == [each.arch_id for each in whole]


SEARCH = [
    "search",
    "--target",
    "rk3288",
    "--budget",
    "100ms",
    "--data-limit",
    "200",
    "--trials",
    "6",
    "--study",
    "mine",
]


@pytest.fixture
def by_command(monkeypatch, fastest, capsys):
    from nas import driver

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)

    def run(*words):
        monkeypatch.setattr(driver, "_executor", lambda settings: StudyExecutor())
        code = main(list(map(str, words)))
        return code, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


def mounted(folder, options):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a file system")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "size=512k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_in_one_line_and_resume_goes_on(by_command, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500 * 1024))
    code, err = by_command(*SEARCH, "--out", small_disk, "--quiet")
    assert code == BROKE
    assert "No space left on device" in err
    assert "`nas resume` goes on" in err
    assert err.count("\n") == 1
    ballast.unlink()
    code, err = by_command(*SEARCH, "--out", small_disk, "--quiet")
    assert code == DONE, err


def test_a_folder_that_cannot_be_written_is_said_in_one_line(by_command, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "ro")
    try:
        code, err = by_command(*SEARCH, "--out", folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert code == BROKE
    assert "Read-only file system" in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["drivers", "workers"])
def test_killed_searches_with_real_evaluations_lose_nothing(what):
    script = "studies/faults/run.py"
    done = subprocess.run([sys.executable, script, "--kills", "2", "--what", what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[what]
    assert found["killed"] == 2
    assert found["lost"] == found["evaluated_twice"] == found["kept_twice"] == found["short_of_their_total"] == 0
    assert found["resumes_that_failed"] == 0
