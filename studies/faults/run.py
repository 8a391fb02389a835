"""Kills drivers and workers at random moments, and counts what was lost and what was done twice.

    python studies/faults/run.py [--kills 20] [--storage postgresql+psycopg://...] [--what drivers,workers,ray]

Every killed driver is a `nas search` of its own with real evaluations; `nas resume` finishes its study. Prints one JSON
object. A worker is killed while its driver runs, which must notice, say so and go on.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.settings import read_study_file
from nas.storage import open_study

TRIALS = 24
WORDS = ("--target", "rk3288", "--budget", "5ms", "--data-limit", "100", "--iterations", "2", "--finalists", "1")


def nas(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nas", *words, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def search(folder: Path, name: str, seed: int, more: list[str]) -> subprocess.Popen[str]:
    words = [*WORDS, "--epochs", "1", "--trials", str(TRIALS), "--study", name, "--seed", str(seed), *more]
    return nas(folder, "search", *words)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def early(lines: list[str]) -> list[str]:
    found = [json.loads(line) for line in lines]
    return [each["arch"] for each in found if each["fidelity"] == "early"]


def kill_driver(folder: Path, name: str, rng: random.Random, more: list[str]) -> dict[str, int]:
    """One study, whose driver is killed after some of its results, at a moment between two of them."""
    driver = search(folder, name, rng.randrange(1000), more)
    results = folder / name / "results.jsonl"
    wanted = rng.randrange(TRIALS)
    while driver.poll() is None and len(lines_of(results)) < wanted:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    driver.kill()
    driver.communicate()
    reported = set(early([line for line in lines_of(results) if line.endswith("}")]))
    resumed = nas(folder, "resume", name)
    errors = resumed.communicate()[1]
    if resumed.returncode:
        print(name, errors, file=sys.stderr)
    return judged(folder, name, reported, resumed.returncode)


def judged(folder: Path, name: str, reported: set[str], code: int) -> dict[str, int]:
    """What came of a study after `nas resume`, against what was reported as evaluated before."""
    names = early(lines_of(folder / name / "results.jsonl"))
    record = read_study_file(folder / name)
    trials = open_study(folder / name, record.durable_name, record.storage, record.owner).get_trials(deepcopy=False)
    kept = [trial.user_attrs["arch"] for trial in trials]
    return {
        "killed": 1,
        "reported_before": len(reported),
        "lost": len(reported - set(kept)),
        "evaluated_twice": sum(count - 1 for count in Counter(names).values()),
        "kept_twice": sum(count - 1 for count in Counter(kept).values()),
        "resumes_that_failed": int(code != 0),
        "short_of_their_total": int(len(kept) != TRIALS),
    }


def workers_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def kill_workers(folder: Path, name: str, rng: random.Random, more: list[str], kills: int) -> dict[str, int]:
    """One study, some of whose workers are killed; its driver must end well."""
    driver = search(folder, name, rng.randrange(1000), more)
    killed = 0
    results = folder / name / "results.jsonl"
    while driver.poll() is None and killed < kills:
        time.sleep(rng.uniform(0.2, 1.5))
        workers = workers_of(driver.pid)
        if lines_of(results) and workers:
            try:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    errors = driver.communicate()[1]
    found = judged(folder, name, set(), driver.returncode)
    failed = sum("failure" in json.loads(line) for line in lines_of(results))
    return found | {"killed": killed, "said_so": errors.count("worker process died"), "failed_candidates": failed}


def main() -> None:
    """Runs all faults and prints the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--storage", help="an Optuna storage URL; without, the journal in the study's folder")
    parser.add_argument("--what", default="drivers,workers")
    options = parser.parse_args()
    more = ["--storage", options.storage] if options.storage else []
    rng = random.Random(0)
    sums: dict[str, Counter[str]] = {}
    prefix = f"faults-{os.getpid()}"
    with TemporaryDirectory() as place:
        folder = Path(place)
        if "drivers" in options.what:
            found = [kill_driver(folder, f"{prefix}-driver-{index}", rng, more) for index in range(options.kills)]
            sums["drivers"] = sum(map(Counter, found), Counter())
        if "ray" in options.what:
            ray = [*more, "--backend", "ray"]
            found = [kill_driver(folder, f"{prefix}-ray-{index}", rng, ray) for index in range(options.kills)]
            sums["drivers on ray"] = sum(map(Counter, found), Counter())
        if "workers" in options.what:
            left, index, counted = options.kills, 0, Counter[str]()
            while left > 0:
                one = kill_workers(folder, f"{prefix}-worker-{index}", rng, more, min(left, 3))
                counted.update(one)
                left -= max(1, one["killed"])
                index += 1
            sums["workers"] = counted
    names = ("killed", "reported_before", "lost", "evaluated_twice", "kept_twice", "resumes_that_failed")
    names += ("short_of_their_total", "said_so", "failed_candidates")
    print(json.dumps({what: {name: counts[name] for name in names} for what, counts in sums.items()}, indent=2))


if __name__ == "__main__":
    main()
