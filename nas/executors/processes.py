"""Evaluates in processes of this machine, each with one torch thread, so that they do not fight for the cores."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from evaluators.evaluator import Failure, failure_from
from nas.executors.executor import Finished, Job

# Has glibc keep freed memory for the next tensor of its size. By default it gives large blocks back, and a
# training step spends most of its time on page faults: 1.1 s against 0.3 s for 64 channels at 48x48 pixels.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


class ProcessExecutor:
    """Runs jobs in a pool of fresh processes.

    When a worker dies the pool is gone, and nothing says whose job did it. Every job that was out is then run again
    alone: one that brings down a pool of its own has failed, and the others lose nothing but time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._new_pool()
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[int] = deque()
        self._running: dict[Future[Any], int] = {}
        self._suspects: set[int] = set()
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs[self._submitted] = job
        self._waiting.append(self._submitted)
        self._dispatch()
        return self._submitted

    def wait(self) -> Finished:
        while True:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            future = min(done, key=self._running.__getitem__)
            handle = self._running[future]
            try:
                result = future.result()
            except BrokenProcessPool:
                # Futures that ended before the pool broke keep their results; they are run again all the same, which
                # is simpler than to tell them apart and gives the same result.
                lost = sorted(self._running.values())
                self._replace_pool()
                if len(lost) == 1:
                    return self._finished(lost[0], Failure("its worker process died, killed or out of memory"))
                self._suspects.update(lost)
                self._waiting.extendleft(reversed(lost))
                self._dispatch()
                continue
            except (Exception, SystemExit) as error:
                result = failure_from(error)
            del self._running[future]
            return self._finished(handle, result)

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()

    def _dispatch(self) -> None:
        while self._waiting and not (self._suspects and self._running):
            job = self._jobs[self._waiting[0]]
            try:
                future = self._pool.submit(job.function, *job.arguments)
            except BrokenProcessPool:
                if self._running:
                    return  # `wait` comes upon the broken ones and sorts it out
                self._replace_pool()
            else:
                self._running[future] = self._waiting.popleft()

    def _finished(self, handle: int, result: Any) -> Finished:
        del self._jobs[handle]
        self._suspects.discard(handle)
        self._dispatch()
        return Finished(handle, result)

    def _replace_pool(self) -> None:
        self.close()
        self._running.clear()
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)  # read by the C library when a worker starts
        return ProcessPoolExecutor(
            self._workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker
        )


def _prepare_worker() -> None:
    # Ctrl-C reaches the whole group; the driver alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _end_with_driver() -> None:
    # A pool's worker waits for work for ever, even when the driver was killed and none can come.
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
