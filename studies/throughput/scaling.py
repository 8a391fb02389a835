"""How many workers one driver keeps busy: the real search with simulated evaluations, on a simulated clock.

    python studies/throughput/scaling.py --sampler nsga2 --workers 1,10,100,1000 [--mean-s 5] [--window 8]

Evaluations take what a table says, 5 s on average, and no time in truth. What the driver itself computes is measured as
its processor time and put onto the same clock, so that it shows where workers wait for it; the storage and results lie
in memory (--folder), so that waiting for a disk is not part of it. Prints a JSON line for each number of workers.
"""

import argparse
import hashlib
import heapq
import json
import math
import statistics
import time
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

from nas.executors.executor import Finished, Job
from nas.problem import resolve
from nas.settings import StudySettings
from nas.storage import JOURNAL
from nas.study import RESULTS, Search, check_budget
from searchspace.spec import spec_id

# Durations differ as those of real candidates do: the logarithm's standard deviation.
SPREAD = 0.5


def share(text: str) -> float:
    """A number from 0 to 1 that follows from the text alone."""
    return (int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) + 0.5) / 16**12


class SimulatedExecutor:
    """So many workers on a clock that moves by what evaluations cost and by what the driver computes."""

    def __init__(self, workers: int, mean_s: float) -> None:
        self._mean_s = mean_s
        self._free = workers
        self._waiting: deque[tuple[int, str]] = deque()
        self._running: list[tuple[float, int, str]] = []
        self._ended: deque[tuple[int, str]] = deque()
        self._submitted = 0
        self._driver_left_at = time.process_time()
        self.clock_s = self.busy_s = self.driver_s = 0.0

    def _driver_worked(self) -> None:
        took = time.process_time() - self._driver_left_at
        self.driver_s += took
        self._advance(self.clock_s + took)

    def _advance(self, until_s: float) -> None:
        """Moves the clock; whoever ends meanwhile takes what waits, without asking the driver."""
        while self._running and self._running[0][0] <= until_s:
            self.clock_s, handle, name = heapq.heappop(self._running)
            self._ended.append((handle, name))
            self._free += 1
            self._start()
        self.clock_s = max(self.clock_s, until_s)

    def _start(self) -> None:
        while self._free and self._waiting:
            handle, name = self._waiting.popleft()
            seconds = self._mean_s * math.exp(SPREAD * statistics.NormalDist().inv_cdf(share(name)) - SPREAD**2 / 2)
            self.busy_s += seconds
            self._free -= 1
            heapq.heappush(self._running, (self.clock_s + seconds, handle, name))

    def submit(self, job: Job) -> int:
        self._driver_worked()
        self._submitted += 1
        self._waiting.append((self._submitted, spec_id(job.arguments[0])))
        self._start()
        self._driver_left_at = time.process_time()
        return self._submitted

    def wait(self) -> Finished:
        self._driver_worked()
        if not self._ended:
            self._advance(self._running[0][0])
        handle, name = self._ended.popleft()
        self._driver_left_at = time.process_time()
        score = share(f"score {name}")
        return Finished(handle, {"dispersion": 0.0, "dispersion_start": 0.0, "loss": -score, "seconds": self._mean_s})

    def close(self) -> None:
        self._waiting.clear()


def measured(settings: StudySettings, mean_s: float, place: Path | None) -> dict[str, float | str]:
    """One search with so many workers."""
    problem = resolve(settings)
    fastest = check_budget(problem)
    with TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        executor = SimulatedExecutor(settings.workers, mean_s)
        Search(problem, folder, executor).run(fastest, lambda _: None)
        size = (folder / JOURNAL).stat().st_size + (folder / RESULTS).stat().st_size
    trials = settings.trials
    return {
        "sampler": settings.sampler,
        "workers": settings.workers,
        "window": settings.window,
        "mean_s": mean_s,
        "trials": trials,
        "clock_s": round(executor.clock_s, 1),
        "trials_per_s": round(trials / executor.clock_s, 3),
        "idle_share": round(1 - executor.busy_s / executor.clock_s / settings.workers, 3),
        "driver_ms_per_trial": round(1e3 * executor.driver_s / trials, 2),
        "driver_share": round(executor.driver_s / executor.clock_s, 3),
        "bytes_per_trial": round(size / trials),
    }


def main() -> None:
    """Runs every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampler", default="nsga2")
    parser.add_argument("--workers", default="1,10,100,1000")
    parser.add_argument("--window", type=int, help="without, twice the workers and at least 8")
    parser.add_argument("--mean-s", type=float, default=5.0)
    parser.add_argument("--trials", type=int, help="without, six times the workers, 200 to 4,000")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where studies are kept meanwhile")
    options = parser.parse_args()
    for workers in map(int, options.workers.split(",")):
        settings = StudySettings(
            study="scaling",
            target="rk3288",
            budget="20ms",
            data_limit=100,
            score="loss",
            sampler=options.sampler,
            workers=workers,
            window=options.window or max(8, 2 * workers),
            trials=options.trials or min(4000, max(200, 6 * workers)),
        )
        print(json.dumps(measured(settings, options.mean_s, options.folder)), flush=True)


if __name__ == "__main__":
    main()
