"""The same as run.py with first looks of some milliseconds, so that many kills fit into minutes.

    python studies/faults/cheap.py --what drivers|workers [--kills 20] [--backend inline|local|ray] [--storage URL]

The search, its storage, its results, its executors and their processes are the real ones; the look itself is a sleep
and a number that follows from the network, and leaves a line before and after, so that every look is counted. Drivers
are forked from this process. Prints one JSON object per study and their sum.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cheap_look import look

from nas.executors.executor import Executor, Finished, Job
from nas.executors.inline import InlineExecutor
from nas.executors.processes import ProcessExecutor
from nas.executors.ray import RayExecutor
from nas.problem import Problem, resolve
from nas.settings import StudySettings
from nas.storage import driver_lock, open_study
from nas.study import RESULTS, Search, check_budget
from searchspace.spec import spec_id

TRIALS = 24
SECONDS = 0.03
KILLS_IN_A_STUDY = 4
TRACE, LOG = "looks.txt", "faults.log"

EXECUTORS = {
    "inline": lambda: InlineExecutor(1),
    "local": lambda: ProcessExecutor(2),
    "ray": lambda: RayExecutor(2, None),
}


class Cheap:
    """An executor whose first looks are replaced by cheap ones."""

    def __init__(self, executor: Executor, trace: Path, seconds: float) -> None:
        self._executor, self._trace, self._seconds = executor, trace, seconds

    def submit(self, job: Job) -> int:
        arguments = (spec_id(job.arguments[0]), self._trace, self._seconds)
        return self._executor.submit(replace(job, function=look, arguments=arguments))

    def wait(self) -> Finished:
        return self._executor.wait()

    def close(self) -> None:
        self._executor.close()


def drive(problem: Problem, folder: Path, backend: str, seconds: float, fastest: Mapping[str, Any]) -> None:
    """A driver from its beginning to its end."""
    logging.basicConfig(filename=folder / LOG, level=logging.WARNING, force=True)
    with driver_lock(folder) as before:
        if before.isdigit():
            logging.warning("process %s drove the study last and broke or was killed", before)
        executor = Cheap(EXECUTORS[backend](), folder / TRACE, seconds)
        try:
            Search(problem, folder, executor).run(fastest, lambda _: None)
        finally:
            executor.close()


def forked(*arguments: Any) -> multiprocessing.Process:
    # A fork has everything imported already.
    process = multiprocessing.get_context("fork").Process(target=drive, args=arguments)
    process.start()
    return process


def lines_of(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def archs_in(folder: Path) -> list[str]:
    return [json.loads(line)["arch"] for line in lines_of(folder / RESULTS)]


def workers_of(trace: Path, killed: set[int]) -> list[int]:
    """Workers in the middle of a look that were not killed yet."""
    at_work: dict[int, str] = {}
    for line in lines_of(trace):
        what, name, pid = line.split()
        if what == "begun":
            at_work[int(pid)] = name
        else:
            at_work.pop(int(pid), None)
    return [pid for pid in at_work if pid not in killed]


def kill_driver(problem: Problem, folder: Path, backend: str, rng: random.Random, fastest: Any) -> dict[str, int]:
    """One study, whose driver is killed after some of its results; the rest by `inline`."""
    driver = forked(problem, folder, backend, SECONDS, fastest)
    wanted = rng.randrange(TRIALS - 2)
    while driver.is_alive() and len(lines_of(folder / RESULTS)) < wanted:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    driver.kill()
    driver.join()
    reported, begun = set(archs_in(folder)), begun_in(folder)
    rest = forked(problem, folder, "inline", 0.0, fastest)
    rest.join()
    after = begun_in(folder)[len(begun) :]
    return judged(problem, folder, reported, rest.exitcode) | {
        "killed": int(driver.exitcode == -signal.SIGKILL),
        "reported_and_looked_at_again": len(reported & set(after)),
        "cut_off_and_looked_at_again": len((set(begun) - reported) & set(after)),
        "said_so": (folder / LOG).read_text().count("broke or was killed"),
    }


def kill_workers(problem: Problem, folder: Path, backend: str, rng: random.Random, fastest: Any) -> dict[str, int]:
    """One study, a few of whose workers are killed in the middle of a look."""
    driver = forked(problem, folder, backend, 0.3, fastest)
    killed: set[int] = set()
    known = 0
    while driver.is_alive() and len(killed) < KILLS_IN_A_STUDY:
        time.sleep(rng.uniform(0.02, 0.2))
        at_work = workers_of(folder / TRACE, killed)
        # Not the same candidate three times in a row: that is held against it.
        if at_work and len(lines_of(folder / RESULTS)) > known:
            pid = rng.choice(at_work)
            known = len(lines_of(folder / RESULTS))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
    driver.join()
    begun = Counter(begun_in(folder))
    return judged(problem, folder, set(archs_in(folder)), driver.exitcode) | {
        "killed": len(killed),
        "cut_off_and_looked_at_again": sum(count - 1 for count in begun.values()),
        "said_so": (folder / LOG).read_text().count("run again"),
    }


def judged(problem: Problem, folder: Path, reported: set[str], code: int | None) -> dict[str, int]:
    """What came of a study, against what was reported as evaluated before."""
    study = open_study(folder, problem.settings.study, problem.settings.storage)
    kept = [trial.user_attrs["arch"] for trial in study.get_trials(deepcopy=False)]
    return {
        "reported_before": len(reported),
        "lost": len(reported - set(kept)),
        "reported_twice": sum(count - 1 for count in Counter(archs_in(folder)).values()),
        "kept_twice": sum(count - 1 for count in Counter(kept).values()),
        "failed_candidates": sum("failure" in json.loads(line) for line in lines_of(folder / RESULTS)),
        "drivers_that_failed": int(code != 0),
        "short_of_their_total": int(len(kept) != TRIALS),
    }


def begun_in(folder: Path) -> list[str]:
    return [line.split()[1] for line in lines_of(folder / TRACE) if line.startswith("begun")]


def main() -> None:
    """Kills until there were enough, printing a line for each study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=["drivers", "workers"], required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backend", choices=list(EXECUTORS), default="inline")
    parser.add_argument("--storage", help="an Optuna storage URL; without, the journal in the study's folder")
    options = parser.parse_args()
    settings = StudySettings(
        study="cheap", target="rk3288", budget="100ms", data_limit=100, trials=TRIALS, sampler="nsga2"
    )
    fastest = check_budget(resolve(settings))
    rng = random.Random(0)
    sums = Counter[str]()
    run = kill_driver if options.what == "drivers" else kill_workers
    with TemporaryDirectory() as place:
        while sums["killed"] < options.kills:
            name = f"faults-{os.getpid()}-{sums['studies']}"
            folder = Path(place) / name
            folder.mkdir()
            own = settings.model_copy(update={"study": name, "storage": options.storage, "seed": sums["studies"]})
            found = run(resolve(own), folder, options.backend, rng, fastest)
            sums.update(found | {"studies": 1})
            print(json.dumps(found), flush=True)
    print(json.dumps({"what": options.what, "backend": options.backend} | sums, indent=2))


if __name__ == "__main__":
    main()
