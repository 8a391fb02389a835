"""What every executor promises, and what only processes can: to outlive a job that brings its process down.

Jobs are functions of the standard library, since other processes must be able to import them.
"""

import math
import operator
import os
import random
import select
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from evaluators.evaluator import Failure
from nas.executors.executor import Job
from nas.executors.inline import InlineExecutor
from nas.executors.processes import ProcessExecutor

EXECUTORS = [
    pytest.param(InlineExecutor, id="inline"),
    pytest.param(lambda: ProcessExecutor(2), id="processes"),
]

KILLED = Job("is killed", signal.raise_signal, (signal.SIGKILL,))


def square(number):
    return Job(f"square {number}", pow, (number, 2))


def results_of(executor, jobs):
    """The results in the order of the jobs, whatever the order they came in."""
    handles = [executor.submit(job) for job in jobs]
    assert len(set(handles)) == len(jobs)
    ended = {}
    for _ in jobs:
        finished = executor.wait()
        assert finished.handle not in ended
        ended[finished.handle] = finished.result
    return [ended[handle] for handle in handles]


def children():
    """Processes that this one started, less multiprocessing's own tracker, which stays for good."""
    own = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and "resource_tracker" not in command:
            own.append(int(stat.parent.name))
    return own


def check_answers(executor):
    jobs = [square(number) for number in range(12)]
    jobs[3] = Job("divides by zero", operator.truediv, (1, 0))
    jobs[7] = Job("leaves", sys.exit, (3,))
    results = results_of(executor, jobs)
    assert results[3] == Failure("ZeroDivisionError: division by zero")
    assert isinstance(results[7], Failure)
    assert "SystemExit" in results[7].reason
    assert [result for place, result in enumerate(results) if place not in (3, 7)] == [
        number**2 for number in range(12) if number not in (3, 7)
    ]
    assert results_of(executor, [square(20)]) == [400], "an executor goes on after failures"


def check_what_cannot_be_sent(executor):
    (result,) = results_of(executor, [Job("locks", threading.Lock, ())])
    assert result == Failure("TypeError: cannot pickle '_thread.lock' object")


@pytest.mark.parametrize("make", EXECUTORS)
def test_every_job_is_answered_under_its_own_handle_failed_or_not(make):
    before = children()
    with closing(make()) as executor:
        check_answers(executor)
    assert children() == before


def test_a_result_that_cannot_be_sent_back_is_a_failure():
    with closing(ProcessExecutor(2)) as executor:
        check_what_cannot_be_sent(executor)


def test_a_job_that_kills_its_process_has_failed_and_the_others_have_not():
    before = children()
    # Some of the innocent are running and some are waiting when the pool breaks, and it breaks three times.
    innocent = [Job("sums", sum, (range(2_000_000 + number),)) for number in range(3)]
    with closing(ProcessExecutor(2)) as executor:
        results = results_of(executor, [innocent[0], KILLED, innocent[1], innocent[2]])
    died = Failure("its worker process died, killed or out of memory")
    expected = [n * (n - 1) // 2 for n in range(2_000_000, 2_000_003)]
    assert results == [expected[0], died, expected[1], expected[2]]
    assert children() == before


def test_closing_ends_workers_in_the_middle_of_a_job():
    before = children()
    executor = ProcessExecutor(1)
    executor.submit(square(2))
    executor.wait()
    executor.submit(Job("never ends", math.factorial, (10**8,)))
    assert children() != before
    executor.close()
    assert children() == before


DRIVER = """
from nas.executors.executor import Job
from nas.executors.processes import ProcessExecutor
if __name__ == "__main__":
    executor = ProcessExecutor(1)
    executor.submit(Job("names itself", __import__("os").getpid, ()))
    print(executor.wait().result, flush=True)
    input()
"""


def test_workers_end_when_their_driver_is_killed(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as driver:
        worker = os.pidfd_open(int(driver.stdout.readline()))
        driver.kill()
    try:
        # The descriptor of a process becomes readable when it ends.
        assert select.select([worker], [], [], 20)[0]
    finally:
        os.close(worker)


LATE = "took longer than the 3 s that an evaluation may take"


def check_time_limit(executor, hang):
    assert results_of(executor, [square(2), square(3)]) == [4, 9]  # the workers are there
    hangs = Job("hangs", *hang, limit_s=3)
    jobs = [Job("sums", sum, (range(30_000_000),)), hangs, *map(square, range(6))]
    results = results_of(executor, jobs)
    assert results == [30_000_000 * 29_999_999 // 2, Failure(LATE), *(number**2 for number in range(6))]


def test_a_job_that_takes_too_long_has_failed_and_the_others_have_not():
    before = children()
    with closing(ProcessExecutor(2)) as executor:
        # Stopped, it hears no signal but one: the driver must kill it.
        check_time_limit(executor, (signal.raise_signal, (signal.SIGSTOP,)))
    assert children() == before


def test_a_job_that_eats_memory_fails_and_its_worker_lives(monkeypatch):
    monkeypatch.setattr("nas.executors.worker_limits.LEAST_MEMORY_BYTES", 2**30)
    monkeypatch.setattr("nas.executors.worker_limits.memory_bytes", lambda: 2**30)
    with closing(ProcessExecutor(1)) as executor:
        own = Job("names itself", os.getpid, ())
        first, eaten, second = results_of(executor, [own, Job("eats memory", bytearray, (4 * 2**30,)), own])
    assert eaten == Failure("MemoryError: ")
    assert first == second


def test_workers_that_are_killed_from_outside_lose_nobody_their_work():
    rng = random.Random(0)
    jobs = [Job(f"sums {number}", sum, (range(3_000_000 + number),)) for number in range(6)]
    with closing(ProcessExecutor(2)) as executor:
        handles = [executor.submit(job) for job in jobs]
        ended = {}
        for done in range(len(jobs)):
            if done == 2:
                os.kill(rng.choice(children()), signal.SIGKILL)
            finished = executor.wait()
            ended[finished.handle] = finished.result
    expected = [n * (n - 1) // 2 for n in range(3_000_000, 3_000_006)]
    assert [ended[handle] for handle in handles] == expected
