"""Evaluates as Ray tasks: on this machine, or on a cluster that is already there."""

import os
import signal
import socket
import threading
from typing import Any

from evaluators.evaluator import failure_from
from hardware.strict_yaml import ConfigError
from nas.executors.executor import Finished, Job, too_long

OBJECT_STORE_BYTES = 200 * 2**20
ANSWER_WITHIN_S = 5.0


class RayExecutor:
    """One Ray task per job, one core each; Ray itself begins a task again whose worker died."""

    def __init__(self, workers: int, address: str | None) -> None:
        """Starts Ray on this machine with so many cores, or joins the cluster at `address`.

        Raises:
            ConfigError: no cluster answers there.
        """
        if address not in (None, "auto"):
            _check_answers(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray

        self._ray = ray
        own: dict[str, Any] = {} if address else {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address=address, include_dashboard=False if not address else None, log_to_driver=False, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray-address: no Ray cluster answers at {address!r} ({error})") from error
        self._task = ray.remote(num_cpus=1, max_retries=2)(_run_single_threaded)
        self._handles: dict[Any, int] = {}
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._handles[self._task.remote(job.function, job.arguments, job.limit_s)] = self._submitted
        return self._submitted

    def wait(self) -> Finished:
        (reference,), _ = self._ray.wait(list(self._handles), num_returns=1)
        handle = self._handles.pop(reference)
        try:
            return Finished(handle, self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            return Finished(handle, failure_from(error.cause))
        except self._ray.exceptions.RayError as error:
            return Finished(handle, failure_from(error))

    def close(self) -> None:
        self._handles.clear()
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    # Ray itself would go on trying for more than eight minutes.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ray-address: no Ray cluster answers at {address!r} ({error}); give HOST:PORT, ray://HOST:PORT or auto"
        ) from error


class _TooLong(BaseException):
    """Ends a job from inside; no job catches it by mistake."""


def _run_single_threaded(function: Any, arguments: tuple[Any, ...], limit_s: float | None) -> Any:
    import torch

    torch.set_num_threads(1)

    def stop(*_: object) -> None:
        raise _TooLong

    # Only the main thread hears signals, which is where Ray runs tasks. A hang inside a library's own code ends when
    # that comes back to Python.
    limited = limit_s is not None and threading.current_thread() is threading.main_thread()
    if limited:
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit_s or 0.0)
    try:
        return function(*arguments)
    except _TooLong:
        assert limit_s is not None
        return too_long(limit_s)
    except (Exception, SystemExit) as error:
        # Caught here, since Ray would run a task again that exits, and puts paths and colours into its messages.
        return failure_from(error)
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
