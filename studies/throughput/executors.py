"""What executors cost: evaluations per second where one takes 5 ms and where it takes 5 s, against workers' best.

    python studies/throughput/executors.py [--workers 1,2] [--work sleep] [--executors inline,processes,ray,pool,joblib]

With `--work sleep` an evaluation sleeps, so that the figures say what sending, waiting and fetching cost and not how
busy the cores are. With `--work compute` it computes on one core, so long as it takes on an idle one, as a candidate's
training does: workers and driver then share the cores. Four are out for each worker, as in a search. `pool` is
concurrent.futures.ProcessPoolExecutor and `joblib` its default of processes, by themselves, as who knows them would use
them. Workers are there before the clock starts; that is given by itself. Prints a JSON line for each.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial

import joblib

from nas.executors.executor import Executor, Job
from nas.executors.inline import InlineExecutor
from nas.executors.processes import ProcessExecutor
from nas.executors.ray import RayExecutor

# How long an evaluation takes, and how many are timed for each worker.
CASES = ((0.005, 400), (5.0, 2))

# How many are out for each worker.
OUT = 4

# Does a number of evaluations of so many seconds, and is done when they are.
Run = Callable[[float, int], None]

# What an evaluation is: a function of the standard library and its arguments, for so many seconds.
Work = Callable[[float], tuple[Callable[..., object], tuple[object, ...]]]


def sleeping(seconds: float) -> tuple[Callable[..., object], tuple[object, ...]]:
    return time.sleep, (seconds,)


def computing(rounds_per_s: float, seconds: float) -> tuple[Callable[..., object], tuple[object, ...]]:
    return hashlib.pbkdf2_hmac, ("sha256", b"password", b"salt", round(rounds_per_s * seconds))


def speed() -> float:
    """Rounds of a hash per second on one core, by the fastest of some tries."""
    rounds, took = 100_000, []
    for _ in range(10):
        started = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", rounds)
        took.append(time.perf_counter() - started)
    return rounds / min(took)


def by_executor(executor: Executor, out: int, work: Work) -> Run:
    """By one of ours, with so many out at a time."""

    def run(seconds: float, count: int) -> None:
        job = Job("evaluation", *work(seconds))
        sent = 0
        for ended in range(count):
            while sent < min(count, ended + out):
                executor.submit(job)
                sent += 1
            executor.wait()

    return run


def by_pool(pool: ProcessPoolExecutor, work: Work) -> Run:
    """All submitted at once."""

    def run(seconds: float, count: int) -> None:
        function, arguments = work(seconds)
        for each in wait([pool.submit(function, *arguments) for _ in range(count)]).done:
            each.result()

    return run


def by_joblib(parallel: joblib.Parallel, work: Work) -> Run:
    """All given at once."""

    def run(seconds: float, count: int) -> None:
        function, arguments = work(seconds)
        parallel(joblib.delayed(function)(*arguments) for _ in range(count))

    return run


def started(name: str, workers: int, work: Work) -> tuple[Run, Callable[[], None]]:
    """What runs evaluations, and what frees it."""
    if name == "pool":
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        return by_pool(pool, work), pool.shutdown
    if name == "joblib":
        parallel = joblib.Parallel(n_jobs=workers)
        parallel.__enter__()
        return by_joblib(parallel, work), lambda: parallel.__exit__(None, None, None)
    makers: dict[str, Callable[[], Executor]] = {
        "inline": lambda: InlineExecutor(1),
        "processes": lambda: ProcessExecutor(workers),
        "ray": lambda: RayExecutor(workers, None),
    }
    executor = makers[name]()
    return by_executor(executor, OUT * workers, work), executor.close


def measured(name: str, workers: int, work: Work) -> dict[str, object]:
    """One of them, started and warmed up."""
    begun = time.perf_counter()
    run, close = started(name, workers, work)
    run(0.1, OUT * workers)
    found: dict[str, object] = {
        "executor": name,
        "workers": workers,
        "start_s": round(time.perf_counter() - begun, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    for seconds, each in CASES:
        count = each * workers
        begun = time.perf_counter()
        run(seconds, count)
        took = time.perf_counter() - begun
        found[f"per_second_at_{seconds:g}_s"] = round(count / took, 3)
        found[f"efficiency_at_{seconds:g}_s"] = round(count * seconds / took / workers, 3)
    close()
    return found


def main() -> None:
    """Measures each with each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--work", choices=("sleep", "compute"), default="sleep")
    parser.add_argument("--executors", default="inline,processes,ray,pool,joblib")
    options = parser.parse_args()
    work: Work = sleeping if options.work == "sleep" else partial(computing, speed())
    for name in options.executors.split(","):
        for workers in map(int, options.workers.split(",")):
            if name != "inline" or workers == 1:
                print(json.dumps({"work": options.work, **measured(name, workers, work)}), flush=True)


if __name__ == "__main__":
    main()
