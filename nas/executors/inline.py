"""Evaluates in the driver's own process: nothing to set up, and a debugger sees everything."""

from collections import deque

from evaluators.evaluator import failure_from
from nas.executors.executor import Finished, Job
from nas.executors.worker_limits import pin_threads


class InlineExecutor:
    """Runs a job when its result is waited for."""

    def __init__(self, threads: int | None = None) -> None:
        """None leaves the number of this process's threads as it is."""
        if threads is not None:
            pin_threads(threads)
        self._jobs: deque[tuple[int, Job]] = deque()
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs.append((self._submitted, job))
        return self._submitted

    def wait(self) -> Finished:
        handle, job = self._jobs.popleft()
        try:
            return Finished(handle, job.function(*job.arguments))
        except (Exception, SystemExit) as error:
            return Finished(handle, failure_from(error))

    def close(self) -> None:
        self._jobs.clear()
