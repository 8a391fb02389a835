"""Evaluates in processes of this machine, each with a torch thread of its own or a few."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from evaluators.evaluator import Failure, failure_from
from nas.executors.executor import Finished, Job, too_long
from nas.executors.worker_limits import KEEP_MEMORY, limit_memory, memory_share, pin_threads

logger = logging.getLogger(__name__)

# Once may be somebody else's kill.
DEATHS_ALONE = 2


class ProcessExecutor:
    """Runs jobs in a pool of fresh processes, one job to a process at a time.

    A job that takes longer than it may is ended with the pool, and what else was out runs again. One that asks for more
    memory than its share gets an error, so that the system need not choose whom to kill.

    When a worker dies the pool is gone, and nothing says whose job did it. Every job that was out is then run again
    alone: one that brings down two pools of its own has failed, and the others lose nothing but time.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        """So many processes, each computing with so many threads."""
        self._workers = workers
        self._threads = threads
        self._pool = self._new_pool()
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[int] = deque()
        self._running: dict[Future[Any], int] = {}
        self._started: dict[int, float] = {}
        self._suspects: set[int] = set()
        self._deaths_alone: Counter[int] = Counter()
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs[self._submitted] = job
        self._waiting.append(self._submitted)
        self._dispatch()
        return self._submitted

    def wait(self) -> Finished:
        while True:
            done, _ = wait(self._running, timeout=self._time_left(), return_when=FIRST_COMPLETED)
            if not done:
                ended = self._end_overdue()
                if ended is not None:
                    return ended
                continue
            future = min(done, key=self._running.__getitem__)
            handle = self._running[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                # Futures that ended before the pool broke keep their results; they are run again all the same, which
                # is simpler than to tell them apart and gives the same result.
                lost = self._replace_pool()
                if len(lost) == 1:
                    self._deaths_alone[lost[0]] += 1
                    if self._deaths_alone[lost[0]] == DEATHS_ALONE:
                        return self._finished(lost[0], Failure("its worker process died, killed or out of memory"))
                logger.warning("a worker process died; run again, one at a time: %s", self._labels(lost))
                self._suspects.update(lost)
                self._waiting.extendleft(reversed(lost))
                self._dispatch()
                continue
            except (Exception, SystemExit) as error:
                result = failure_from(error)
            del self._running[future]
            return self._finished(handle, result)

    def _time_left(self) -> float | None:
        """Seconds until the next job that is out has taken too long."""
        now = time.monotonic()
        limits = ((self._jobs[handle].limit_s, self._started[handle]) for handle in self._running.values())
        return min((max(0.0, started + limit - now) for limit, started in limits if limit is not None), default=None)

    def _end_overdue(self) -> Finished | None:
        now = time.monotonic()
        for handle in sorted(self._running.values()):
            limit_s = self._jobs[handle].limit_s
            if limit_s is not None and now >= self._started[handle] + limit_s:
                others = [other for other in self._replace_pool() if other != handle]
                if others:
                    logger.warning("%s took too long; run again: %s", self._jobs[handle].label, self._labels(others))
                self._waiting.extendleft(reversed(others))
                return self._finished(handle, too_long(limit_s))
        return None

    def _labels(self, handles: list[int]) -> str:
        return ", ".join(self._jobs[handle].label for handle in handles)

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # one that hangs may not hear anything else
        for process in processes:
            process.join()

    def _dispatch(self) -> None:
        # No more than there are processes, so that each begins when it is sent.
        while self._waiting and len(self._running) < (1 if self._suspects else self._workers):
            job = self._jobs[self._waiting[0]]
            try:
                future = self._pool.submit(job.function, *job.arguments)
            except BrokenProcessPool:
                if self._running:
                    return  # `wait` comes upon the broken ones and sorts it out
                self._replace_pool()
            else:
                handle = self._waiting.popleft()
                self._running[future] = handle
                self._started[handle] = time.monotonic()

    def _finished(self, handle: int, result: Any) -> Finished:
        del self._jobs[handle]
        self._suspects.discard(handle)
        self._dispatch()
        return Finished(handle, result)

    def _replace_pool(self) -> list[int]:
        """Starts anew and says what was out."""
        lost = sorted(self._running.values())
        self.close()
        self._running.clear()
        self._pool = self._new_pool()
        return lost

    def _new_pool(self) -> ProcessPoolExecutor:
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare_worker,
            initargs=(memory_share(self._workers), self._threads),
        )


def _prepare_worker(most_bytes: int, threads: int) -> None:
    limit_memory(most_bytes)
    # Ctrl-C reaches the whole group; the driver alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    pin_threads(threads)


def _end_with_driver() -> None:
    # A pool's worker waits for work for ever, even when the driver was killed and none can come.
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
