"""What executors cost: evaluations per second where one takes 5 ms and where it takes 5 s, against two workers' best.

    python studies/throughput/executors.py [--workers 2] [--executors processes,ray]

An evaluation sleeps, so that the figures say what sending, waiting and fetching cost and not how busy the cores are;
four are out for each worker, as in a search. Workers are there before the clock starts; that is given by itself.
Prints a JSON line for each.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

from nas.executors.executor import Executor, Job
from nas.executors.inline import InlineExecutor
from nas.executors.processes import ProcessExecutor
from nas.executors.ray import RayExecutor

# How long an evaluation takes, and how many are timed.
CASES = ((0.005, 400), (5.0, 8))

EXECUTORS: dict[str, Callable[[int], Executor]] = {
    "inline": lambda workers: InlineExecutor(1),
    "processes": ProcessExecutor,
    "ray": lambda workers: RayExecutor(workers, None),
}


def run(executor: Executor, seconds: float, count: int, out: int) -> float:
    """Seconds for so many evaluations with so many out at a time."""
    job = Job("sleep", time.sleep, (seconds,))
    started = time.perf_counter()
    sent = 0
    for ended in range(count):
        while sent < min(count, ended + out):
            executor.submit(job)
            sent += 1
        executor.wait()
    return time.perf_counter() - started


def measured(name: str, workers: int) -> dict[str, object]:
    """One executor, started and warmed up."""
    started = time.perf_counter()
    executor = EXECUTORS[name](workers)
    own_workers = 1 if name == "inline" else workers
    run(executor, 0.1, 4 * workers, 4 * workers)
    found: dict[str, object] = {
        "executor": name,
        "workers": own_workers,
        "start_s": round(time.perf_counter() - started, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    for seconds, count in CASES:
        took = run(executor, seconds, count, 4 * workers)
        found[f"per_second_at_{seconds:g}_s"] = round(count / took, 3)
        found[f"efficiency_at_{seconds:g}_s"] = round(count * seconds / took / own_workers, 3)
    executor.close()
    return found


def main() -> None:
    """Measures every executor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executors", default="inline,processes,ray")
    options = parser.parse_args()
    for name in options.executors.split(","):
        print(json.dumps(measured(name, options.workers)), flush=True)


if __name__ == "__main__":
    main()
