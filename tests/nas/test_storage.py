"""The durable study: one driver at a time, and whatever a dying one left behind is mended."""

import os
import re
import signal
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from hardware.strict_yaml import ConfigError
from nas.storage import JOURNAL, driver_lock, open_study, remember

HOLDER = """
import sys
from pathlib import Path
from nas.storage import driver_lock, open_study
folder = Path(sys.argv[1])
with driver_lock(folder):
    open_study(folder, "study", None)
    print("holds it", flush=True)
    input()
"""


@pytest.fixture
def dead_one(tmp_path):
    """What a driver leaves behind that is no more, its number longer than any of today."""
    (tmp_path / "driver.lock").write_text("123456789")


@pytest.fixture
def holder(tmp_path):
    """Another process that drives the study."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "holds it\n"
        yield process
        process.kill()


def trial(number):
    return optuna.create_trial(
        values=(number / 3, 1.0),
        params={"width": 8},
        distributions={"width": CategoricalDistribution((8, 16))},
        user_attrs={"number": number},
        constraints={"over": -0.5},
    )


def numbers(study):
    return [one.user_attrs["number"] for one in study.get_trials(deepcopy=False)]


@pytest.fixture
def three(tmp_path):
    study = open_study(tmp_path, "study", None)
    for number in range(3):
        study.add_trial(trial(number))
    return tmp_path / JOURNAL


# The lock


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path, dead_one, holder):
    for _ in range(2):  # to be refused does not damage the first one's hold, nor its name
        with (
            pytest.raises(ConfigError, match=rf"one driver at a time, process {holder.pid} is running it"),
            driver_lock(tmp_path),
        ):
            pytest.fail("two drivers at once")
    assert holder.poll() is None


def test_a_process_that_was_killed_keeps_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL
    with driver_lock(tmp_path):
        study = open_study(tmp_path, "study", None)
        study.add_trial(trial(0))
    assert numbers(open_study(tmp_path, "study", None)) == [0]


def test_the_lock_is_given_back_by_success_and_by_failure(tmp_path):
    with driver_lock(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError), driver_lock(tmp_path):
        _ = 1 / 0
    with driver_lock(tmp_path):
        pass


def test_workers_of_a_killed_driver_do_not_hold_its_study(tmp_path):
    # A lock lives as long as any process that inherited its file.
    script = tmp_path / "driver.py"
    script.write_text(
        "from pathlib import Path\n"
        "from nas.executors.executor import Job\n"
        "from nas.executors.processes import ProcessExecutor\n"
        "from nas.storage import driver_lock\n"
        "if __name__ == '__main__':\n"
        f"    with driver_lock(Path({str(tmp_path)!r})):\n"
        "        executor = ProcessExecutor(1)\n"
        "        executor.submit(Job('a', pow, (2, 3)))\n"
        "        print(executor.wait().result, flush=True)\n"
        "        input()\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as driver:
        assert driver.stdout.readline() == b"8\n"
        driver.kill()
        driver.wait()
        with driver_lock(tmp_path):
            pass


# What a dying writer leaves behind


def test_a_stale_lock_of_the_journal_does_not_hold_anybody_up(three):
    lock = three.with_name(JOURNAL + ".lock")
    lock.symlink_to(three)
    study = open_study(three.parent, "study", None)
    study.add_trial(trial(3))
    assert numbers(study) == [0, 1, 2, 3]
    assert not lock.is_symlink()


def test_a_stale_lock_that_points_nowhere_does_not_either(three):
    three.with_name(JOURNAL + ".lock").symlink_to(three.parent / "gone")
    assert numbers(open_study(three.parent, "study", None)) == [0, 1, 2]


@pytest.mark.parametrize("call", ["rename", "unlink"])
@pytest.mark.parametrize("is_done", [True, False])
def test_an_interruption_while_the_journals_lock_is_let_go_is_one(three, monkeypatch, call, is_done):
    study = open_study(three.parent, "study", None)
    own = getattr(os, call)

    def interrupted(path, *to):
        if ".lock" in str(path):
            monkeypatch.undo()
            if is_done:
                own(path, *to)
            raise KeyboardInterrupt
        return own(path, *to)

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        remember(study, trial(3), 3)
    again = open_study(three.parent, "study", None)
    again.add_trial(trial(4))
    assert numbers(again) == [0, 1, 2, 3, 4]


def test_a_journal_cut_anywhere_in_its_last_line_loses_that_line_alone(three):
    whole = three.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for end in range(start, len(whole), 7):
        three.write_bytes(whole[:end])
        study = open_study(three.parent, "study", None)
        assert numbers(study) == [0, 1]
        study.add_trial(trial(9))
        assert numbers(open_study(three.parent, "study", None)) == [0, 1, 9]


def test_a_journal_cut_in_its_first_line_is_a_new_study(three):
    three.write_bytes(three.read_bytes()[:10])
    study = open_study(three.parent, "study", None)
    study.add_trial(trial(0))
    assert numbers(open_study(three.parent, "study", None)) == [0]


# Lines that are JSON and that this Optuna cannot read: of another version, and without what they need.
ENTRIES = [b'{"op_code": 99}\n', b'{"op_code": 4}\n']


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00\x00\n", b'{"op_code": \n', b"[]\n", b"7\n", b"{}\n", b"\n", b"\xff\n", *ENTRIES]
)
def test_a_journal_with_damage_in_its_middle_is_set_aside_and_the_line_is_named(three, garbage, caplog):
    lines = three.read_bytes().splitlines(keepends=True)
    lines[1:2] = [garbage]
    three.write_bytes(b"".join(lines))
    damaged = three.read_bytes()
    for attempt in (1, 2):
        study = open_study(three.parent, "study", None)
        assert numbers(study) == []
        study.add_trial(trial(5))
        assert numbers(open_study(three.parent, "study", None)) == [5]
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith(f"{three}:2: not an entry of an Optuna journal (")
        assert said.endswith(f"is kept as journal.log.damaged-{attempt}")
        assert three.with_name(f"journal.log.damaged-{attempt}").read_bytes() == damaged
        three.write_bytes(damaged)
        caplog.clear()


def test_a_study_in_a_folder_given_relative_to_here_is_the_same_study(three, monkeypatch):
    monkeypatch.chdir(three.parents[1])
    study = open_study(three.parent.relative_to(three.parents[1]), "study", None)
    study.add_trial(trial(3))
    assert numbers(open_study(three.parent, "study", None)) == [0, 1, 2, 3]


# Other storages


def test_a_database_keeps_what_a_journal_keeps(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(tmp_path, "study", url).add_trial(trial(0))
    (kept,) = open_study(tmp_path, "study", url).get_trials()
    assert kept.user_attrs == {"number": 0}
    assert kept.constraints == {"over": -0.5}
    assert not (tmp_path / JOURNAL).exists()


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/study.db", "nonsense", "mysql://nobody@127.0.0.1:1/none", "sqlite:///{tmp}"]
)
def test_a_storage_that_cannot_be_opened_is_the_users_mistake(tmp_path, url):
    url = url.format(tmp=tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"storage {url}: cannot be opened (")) as caught:
        open_study(tmp_path, "study", url)
    assert "\n" not in str(caught.value)
    assert "sqlalche.me" not in str(caught.value)
    assert re.search(r"; mend that, or give a URL such as postgresql\S+ or sqlite\S+$|pip install", str(caught.value))
