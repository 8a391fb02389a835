"""Evaluates as Ray tasks: on this machine, or on a cluster that is already there."""

import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from evaluators.evaluator import Failure, failure_from
from hardware.strict_yaml import ConfigError
from nas.executors.executor import Finished, Job, too_long
from nas.executors.worker_limits import KEEP_MEMORY, limit_memory, memory_share, pin_threads

logger = logging.getLogger(__name__)

# What Ray keeps of objects in shared memory, where it is of our own; the data set comes on top.
OBJECT_STORE_BYTES = 200 * 2**20
ANSWER_WITHIN_S = 5.0
# A node may have to begin a worker first.
NODE_ANSWERS_WITHIN_S = 60.0

# While nothing ends, whether anything still can is looked at so often.
LOOK_AFTER_S = 3.0

# A job that brings down so many workers has failed; fewer may be somebody else's kills.
DEATHS = 3
DIED = Failure("its worker process died, killed or out of memory")

# A job that does not hear its alarm, because a library does not come back to Python, is ended after so much more.
GRACE_S = 2.0

# Sent by whoever speaks HTTP/2, as gRPC and so Ray does: the preface and an empty frame of settings.
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HTTP2_SETTINGS = b"\x04"


@dataclass(frozen=True, slots=True)
class Share:
    """What a job is given of a node: cores, whose whole number is also its threads, and GPUs."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Baggage:
    """What workers need beside their jobs.

    `first` is run once in every worker process; its arguments travel once to every node, through Ray's object store.
    `modules` are the top-level modules that a cluster's nodes are sent, so that they run the code that the driver runs.
    """

    first: Job | None = None
    modules: Sequence[str] = ()
    size_bytes: int = 0


# The job that unpacks the data, threads for each worker, and how many workers share a machine (None: as cores say).
Luggage = tuple[list[Any], int, int | None]


class RayExecutor:
    """One Ray task per job. A job whose worker or node died is run again, which is said."""

    def __init__(self, workers: int, address: str | None, share: Share = Share(), baggage: Baggage = Baggage()) -> None:
        """Starts Ray on this machine with cores for so many jobs at once, or joins the cluster at `address`.

        Raises:
            ConfigError: no cluster answers there, or none of its nodes has the share of a job.
        """
        self._sweeper: subprocess.Popen[bytes] | None = None
        self._ray = _joined(address, baggage) if address is not None else self._started(workers, share, baggage)
        self._share = share
        _check_share(self._ray.nodes(), share)
        # On a cluster nobody else sees to it that no more than `workers` run; here the cores do, and a short queue
        # keeps them busy while a result travels.
        self._room = workers if address is not None else 2 * workers
        self._workers = workers
        first = None if baggage.first is None else self._ray.put(baggage.first)
        # In a list, so that only those who ask for it take it out of the store.
        self._luggage: Luggage = ([first], max(1, int(share.cpus)), None if address is not None else workers)
        self._task = self._ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0)(_run)
        self._jobs: dict[int, Job] = {}
        self._waiting: deque[int] = deque()
        self._running: dict[Any, int] = {}
        self._sent: dict[int, float] = {}
        self._deaths: Counter[int] = Counter()
        self._submitted = 0

    def _started(self, workers: int, share: Share, baggage: Baggage) -> Any:
        # Must be in place before Ray begins: it may be killed at any moment.
        sessions = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
        self._sweeper = subprocess.Popen(
            [sys.executable, "-m", "nas.executors.ray_sweeper", str(os.getpid()), str(sessions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        if "ray" not in sys.modules:  # Ray reads it once; newer ones do the same of their own accord
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Has Ray take 127.0.0.1 for this node's address, and so listen there alone; by default it listens everywhere.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray._private.ray_constants

        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # read from there when Ray was first imported
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
        cores = workers * max(1, round(share.cpus + 0.499))
        running = _init(
            address="local",  # never the one that RAY_ADDRESS names
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES + 2 * baggage.size_bytes,
        )
        token = Path.home() / ".ray" / "auth_token"
        if token.exists():
            token.chmod(0o600)  # Ray leaves it to be read by everybody
        return running

    @property
    def workers(self) -> int:
        """How many jobs run at once."""
        return self._workers

    @property
    def share(self) -> Share:
        """What each is given of a node."""
        return self._share

    @property
    def luggage(self) -> Luggage:
        """What a worker of any kind unpacks before it works."""
        return self._luggage

    @property
    def is_client(self) -> bool:
        """Whether the driver itself is no part of the cluster, but speaks to it through a ray:// address."""
        return bool(self._ray.util.client.ray.is_connected())

    def nodes_without(self, folder: Path) -> list[str]:
        """Addresses of the nodes that do not see a folder of the driver's, as far as a new file in it shows."""
        if self._sweeper is not None:
            return []
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self._ray.remote(num_cpus=0, max_retries=0)(Path.exists)
        with NamedTemporaryFile(dir=folder, prefix=".seen-") as file:
            asked = {}
            for node in self._alive():
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                asked[node] = look.options(scheduling_strategy=there).remote(Path(file.name))
            blind = [node for node, reference in asked.items() if not self._is_true(reference)]
        alive = self._alive()  # one that has ended meanwhile is in nobody's way
        return [alive[node] for node in blind if node in alive]

    def _alive(self) -> dict[str, str]:
        """Addresses of the nodes that are there, by their names."""
        return {node["NodeID"]: node["NodeManagerAddress"] for node in self._ray.nodes() if node["Alive"]}

    def _is_true(self, reference: Any) -> bool:
        try:
            return bool(self._ray.get(reference, timeout=NODE_ANSWERS_WITHIN_S))
        except self._ray.exceptions.RayError as error:
            logger.info("a node does not answer: %s", failure_from(error).reason)
            return False

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs[self._submitted] = job
        self._waiting.append(self._submitted)
        self._dispatch()
        return self._submitted

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self._room:
            handle = self._waiting.popleft()
            job = self._jobs[handle]
            self._running[self._task.remote(self._luggage, job.function, job.arguments, job.limit_s)] = handle
            self._sent[handle] = time.monotonic()

    def wait(self) -> Finished:
        errors = self._ray.exceptions
        deadly = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)
        while True:
            # Workers go on for a while where Ray has ended, and the driver is ended a minute later.
            why = self._ended()
            ended = [] if why else self._ray.wait(list(self._running), num_returns=1, timeout=LOOK_AFTER_S)[0]
            if not ended:
                if why := why or self.hopeless():
                    handle = self._running.pop(next(iter(self._running)))
                    return Finished(handle, Failure(why, lasting=False))
                continue
            (reference,) = ended
            handle = self._running.pop(reference)
            try:
                result = self._ray.get(reference)
            except errors.RayTaskError as error:
                result = failure_from(error.cause)
            except deadly as error:
                failure = self._death(handle, error)
                if failure is None:
                    self._waiting.appendleft(handle)
                    self._dispatch()
                    continue
                result = failure
            except errors.RayError as error:
                # Nothing that a job could have done.
                result = Failure(failure_from(error).reason, lasting=False)
            del self._jobs[handle]
            self._dispatch()
            return Finished(handle, result)

    def hopeless(self) -> str | None:
        """Why nothing that is out will ever end, None where it may."""
        if self._sweeper is not None:
            return self._ended()
        try:
            _check_share(self._ray.nodes(), self._share)
        except ConfigError as error:
            return str(error)
        return None

    def _ended(self) -> str | None:
        """Why the Ray that was started here is no more; None while it runs, and for one that was joined."""
        if self._sweeper is None:
            return None
        # Asking Ray whether it is there takes a minute where it is not, and then ends this process.
        dead = self._ray._private.worker._global_node.dead_processes()
        return f"Ray has ended ({dead[0][0]} is gone)" if dead else None

    def _death(self, handle: int, error: Exception) -> Failure | None:
        """What becomes of a job whose worker is gone; None where it is to run again."""
        job = self._jobs[handle]
        self._deaths[handle] += 1
        took_s = time.monotonic() - self._sent[handle]
        late = job.limit_s is not None and took_s >= job.limit_s
        # It may have waited for a worker, or been killed by somebody else; the second time it is itself.
        if late and self._deaths[handle] > 1:
            assert job.limit_s is not None
            return too_long(job.limit_s)
        if self._deaths[handle] == DEATHS:
            return DIED
        logger.warning("%s: %s; run again", job.label, _in_words(error, self._ray))
        return None

    def close(self) -> None:
        self._jobs.clear()
        self._running.clear()
        self._waiting.clear()
        self._ray.shutdown()
        if self._sweeper is not None:
            self._sweeper.communicate()
            self._sweeper = None


def _in_words(error: Exception, ray: Any) -> str:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray ended its worker, the node being short of memory"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node died"
    return "its worker process or its node died"


def _init(**options: Any) -> Any:
    """Ray, begun or joined, with what it does to the driver's signals undone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_terminate = signal.getsignal(signal.SIGTERM)
    import ray
    import ray._private.worker

    # Paragraphs about every worker that dies, on stdout; what they mean is said by the executor.
    ray._private.worker.print_to_stdstream = _into_log
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    return ray


def _into_log(data: Any, ignore_prefix: bool = False) -> None:
    logger.info("ray: %s", " ".join(" ".join(data["lines"]).split())[:300])


def _joined(address: str, baggage: Baggage) -> Any:
    modules = [sys.modules[name] for name in baggage.modules]
    environment = {"py_modules": modules, "excludes": ["__pycache__"], "env_vars": dict(KEEP_MEMORY)}
    _check_answers(address, _resolved(address))
    try:
        return _init(address=address, runtime_env=environment)
    except Exception as error:
        # Another version, another token, another program: Ray has no class for all that.
        raise _unanswered(address, error) from error


def _resolved(address: str) -> str:
    """HOST:PORT that Ray will ask: that of the latest cluster for `auto`, and never one of 127.0.0.1."""
    import ray._private.services

    if address.startswith("ray://"):
        return address.removeprefix("ray://")
    try:
        found: str = ray._private.services.canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, ValueError) as error:
        raise _unanswered(address, error) from error
    return found


def _check_answers(address: str, asked: str) -> None:
    # Ray itself would go on trying for many minutes, also where something else answers.
    host, _, port = asked.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S) as connection:
            connection.settimeout(ANSWER_WITHIN_S)
            connection.sendall(HTTP2_GREETING)
            # It greets with settings of its own, whose kind stands in the fourth byte.
            if connection.recv(4)[3:] != HTTP2_SETTINGS:
                raise ConnectionError("what listens there is no Ray")
    except (OSError, ValueError, OverflowError) as error:
        raise _unanswered(address, error) from error


def _unanswered(address: str, error: Exception) -> ConfigError:
    words = " ".join(str(error).split())[:300]
    return ConfigError(
        f"ray-address: no Ray cluster answers at {address!r} ({words}); "
        "give HOST:PORT, ray://HOST:PORT or auto, or start one with `ray start --head`"
    )


def _check_share(nodes: Sequence[dict[str, Any]], share: Share) -> None:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    for name, flag, wanted in (("CPU", "cpus-per-trial", share.cpus), ("GPU", "gpus-per-trial", share.gpus)):
        most = max((node.get(name, 0.0) for node in alive), default=0.0)
        if wanted > most:
            raise ConfigError(f"{flag}: no node of the Ray cluster has {wanted:g} {name}s; the most is {most:g}")


class _TooLong(BaseException):
    """Ends a job from inside; no job catches it by mistake."""


# What this worker process has unpacked.
_unpacked: set[str] = set()


def _run(luggage: Luggage, function: Any, arguments: tuple[Any, ...], limit_s: float | None) -> Any:
    if failure := unpack(luggage):
        return failure

    def stop(*_: object) -> None:
        raise _TooLong

    # Only the main thread hears signals, which is where Ray runs tasks.
    limited = limit_s is not None and threading.current_thread() is threading.main_thread()
    if limited:
        assert limit_s is not None
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        # Needs no Python to do it: ends a process that hangs in a library's own code.
        faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True)
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
            faulthandler.cancel_dump_traceback_later()


def unpack(luggage: Luggage) -> Failure | None:
    """Makes this worker process ready for its work, or says why it cannot be."""
    (first,), threads, workers = luggage
    key = "" if first is None else first.hex()
    try:
        pin_threads(threads)
        if key in _unpacked:
            return None
        limit_memory(memory_share((os.cpu_count() or 1) // threads if workers is None else workers))
        if first is not None:
            import ray

            job: Any = ray.get(first)
            job.function(*job.arguments)
    except Exception as error:
        return Failure(failure_from(error).reason, lasting=False)
    _unpacked.add(key)
    return None
