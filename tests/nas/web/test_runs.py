"""Who drives a study, and starting and stopping one from outside."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware.strict_yaml import ConfigError
from nas.storage import LOCK, driver_lock
from nas.study_log import LOG, add_line, study_log
from nas.web import runs as module
from nas.web.runs import Refused, Runs, driver_of, resume_command
from nas.web.studies import state_of

HOLD = """
import signal, sys, time
from pathlib import Path
from nas.storage import driver_lock
signal.signal(signal.SIGTERM, signal.default_int_handler)
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def holder(tmp_path):
    """A process that drives the study in tmp_path."""
    program = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_study_is_driven_while_its_lock_is_held_and_no_longer(tmp_path, holder):
    assert driver_of(tmp_path) == holder.pid
    assert state_of(tmp_path, Runs()) == "running"
    holder.kill()
    holder.wait()
    assert driver_of(tmp_path) is None
    assert state_of(tmp_path, Runs()) == "crashed"


def test_a_process_that_has_the_number_of_a_dead_driver_is_none(tmp_path):
    (tmp_path / LOCK).write_text(str(os.getpid()))
    assert driver_of(tmp_path) is None
    assert state_of(tmp_path, Runs()) == "crashed"


def test_where_the_system_lists_no_locks_a_living_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCKS", tmp_path / "no such list")
    (tmp_path / LOCK).write_text(str(os.getpid()))
    assert driver_of(tmp_path) == os.getpid()
    for text in ("", "finished", str(2**22 + 1)):
        (tmp_path / LOCK).write_text(text)
        assert driver_of(tmp_path) is None


def test_a_lock_says_how_its_run_ended(tmp_path):
    assert state_of(tmp_path, Runs()) == "stopped"
    with driver_lock(tmp_path):
        assert driver_of(tmp_path) == os.getpid()
    assert state_of(tmp_path, Runs()) == "finished"
    with pytest.raises(ConfigError), driver_lock(tmp_path):
        raise ConfigError("wrong input is no run that broke")
    assert state_of(tmp_path, Runs()) == "finished"
    with pytest.raises(KeyboardInterrupt), driver_lock(tmp_path):
        raise KeyboardInterrupt
    assert state_of(tmp_path, Runs()) == "stopped"
    with pytest.raises(ZeroDivisionError), driver_lock(tmp_path):
        _ = 1 / 0
    assert state_of(tmp_path, Runs()) == "crashed"


def test_a_run_is_stopped_as_ctrl_c_would_and_the_press_is_kept(tmp_path, holder):
    Runs().stop(tmp_path)
    holder.wait()
    assert state_of(tmp_path, Runs()) == "stopped"
    assert (tmp_path / LOG).read_text().endswith(" dashboard: Stop was pressed\n")


def test_a_process_of_another_user_is_refused_by_name(tmp_path, monkeypatch, holder):
    def refuse(handle, number):
        raise PermissionError

    monkeypatch.setattr("signal.pidfd_send_signal", refuse)
    with pytest.raises(
        Refused, match=f"process {holder.pid} is at work on {tmp_path.name} and belongs to another user"
    ):
        Runs().stop(tmp_path)


def test_a_study_that_does_not_run_cannot_be_stopped(tmp_path):
    (tmp_path / LOCK).write_text(str(os.getpid()))
    with pytest.raises(Refused, match="nothing to stop"):
        Runs().stop(tmp_path)
    assert not (tmp_path / LOG).exists()


def test_a_study_that_runs_is_not_started_again(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: pytest.fail("a second driver was started"))
    with pytest.raises(Refused, match="running already; a study has one driver at a time"):
        Runs().resume(tmp_path, {})
    assert not (tmp_path / LOG).exists()


def test_a_study_that_is_starting_is_not_started_again_and_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "resume_command", lambda *given: [sys.executable, "-c", "import time; time.sleep(60)"])
    runs = Runs()
    runs.resume(tmp_path, {})
    assert runs.state(tmp_path) == "starting"
    with pytest.raises(Refused, match="starting already"):
        runs.resume(tmp_path, {"trials": "5"})
    runs.stop(tmp_path)
    wait_for(lambda: runs.state(tmp_path) is None)
    pressed = [line.split("dashboard: ")[1] for line in (tmp_path / LOG).read_text().splitlines()]
    assert pressed == ["Resume was pressed", "Stop was pressed"]


def test_what_ends_a_run_before_it_begins_is_in_the_log(tmp_path):
    runs = Runs()
    runs.resume(tmp_path, {"trials": "3", "finalists": "6", "budget": "4ms"})  # where there is no study
    wait_for(lambda: runs.state(tmp_path) is None)
    text = (tmp_path / LOG).read_text()
    assert "dashboard: Extend by 3 trials, to 6 finalists, to a budget of 4ms was pressed" in text
    assert "nas: study: no study" in text


def test_a_run_begins_as_a_person_would_begin_it():
    folder = Path("/studies/mine")
    assert resume_command(folder, {})[1:] == ["-m", "nas", "resume", "/studies/mine", "--quiet"]
    assert resume_command(folder, {"trials": "5", "budget": "4 ms"})[-2:] == ["--trials=5", "--budget=4 ms"]


def test_a_run_outlives_the_terminal_of_the_dashboard(tmp_path, monkeypatch):
    script = f"import os; from pathlib import Path; Path({str(tmp_path / 'group')!r}).write_text(str(os.getsid(0)))"
    monkeypatch.setattr(module, "resume_command", lambda *given: [sys.executable, "-c", script])
    runs = Runs()
    runs.resume(tmp_path, {})
    wait_for(lambda: runs.state(tmp_path) is None)
    assert int((tmp_path / "group").read_text()) != os.getsid(0)


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (None, "run finished"),
        (KeyboardInterrupt(), "run stopped"),
        (ValueError("two\nlines"), "run broke: ValueError: two lines"),
    ],
)
def test_the_log_says_how_a_run_ended(tmp_path, error, last):
    add_line(tmp_path, "before")
    if error is None:
        with study_log(tmp_path):
            pass
    else:
        with pytest.raises(type(error)), study_log(tmp_path):
            raise error
    lines = [line.split(" ", 2)[2] for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines == ["before", "run begun", last]


def test_a_driver_that_ends_before_the_signal_comes_is_stopped(tmp_path, monkeypatch, holder):
    looks = []

    def look(lock):
        looks.append(lock)
        if len(looks) == 3:  # the last one before the signal
            holder.kill()
            holder.wait()
        return holder.pid

    monkeypatch.setattr(module, "holder_of", look)
    Runs().stop(tmp_path)
    assert len(looks) == 3


def test_a_stop_that_comes_too_late_hits_nobody_else(tmp_path, monkeypatch, holder):
    # The driver ends between the look at the list of locks and the signal; its number belongs to someone else now.
    seen = iter([holder.pid, holder.pid, None])
    monkeypatch.setattr(module, "holder_of", lambda lock: next(seen))
    Runs().stop(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        holder.wait(0.3)


def test_a_lock_on_a_file_of_that_number_elsewhere_is_another_lock(tmp_path, monkeypatch):
    lock = tmp_path / LOCK
    lock.write_text("4242")
    inode = lock.stat().st_ino
    rows = tmp_path / "locks"
    monkeypatch.setattr(module, "LOCKS", rows)
    of_another = f"1: FLOCK  ADVISORY  WRITE 4243 fe:01:{inode} 0 EOF\n"
    waiting = f"1: -> FLOCK  ADVISORY  WRITE 4242 fe:00:{inode} 0 EOF\n"
    rows.write_text(of_another + waiting)
    assert driver_of(tmp_path) is None
    rows.write_text(f"1: FLOCK  ADVISORY  WRITE 4242 fe:00:{inode} 0 EOF\n")
    assert driver_of(tmp_path) == 4242
