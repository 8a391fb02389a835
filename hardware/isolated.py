"""Calls in a process of their own: what crashes or hangs there is an answer here, not the end of the caller.

Converters and runtimes are native code that is fed with models nobody has fed them before. Some end the process, some
never return, many print; none of it may reach a search that has run for hours.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PACKAGE_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a call came to nothing."""

    reason: str


def run_isolated(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, timeout_s: float
) -> Iterator[Any | Failed]:
    """What `function` returns for the arguments of each call, in order, or why it returns nothing.

    The next call is taken when the answer to the one before has been taken.

    One process works through all of them, and another goes on after a call that crashed, or hung for longer than
    timeout_s. The function is one of a module, arguments and results are what pickle takes. Starting a process takes
    about 0.2 s, a call 0.1 ms more than it would here.
    """
    process: _Process | None = None
    try:
        for arguments in calls:
            if process is None:
                process = _Process()
            answer, is_alive = process.call(function, arguments, timeout_s)
            if not is_alive:
                process.close()
                process = None
            yield answer
    finally:
        if process is not None:
            process.close()


class _Process:
    """A process that answers one call after the other."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: a file of the user's called like a library must not stand in for it.
            [sys.executable, "-P", "-c", "from hardware.isolated import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={**os.environ, "PYTHONPATH": path},
        )

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float) -> tuple[Any, bool]:
        """The answer, and whether the process can take another call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.start()
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout), True
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.wait()
            reason = f"did not end within {timeout_s:g} s" if expired.is_set() else self._how_it_ended()
            return Failed(reason), False
        finally:
            timer.cancel()

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended its process with code {code}"
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(0, size - 300))
        printed = " ".join(self._printed.read().decode(errors="replace").split())
        return f"{how} ({printed})" if printed else how

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A call that the caller has not waited for.
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._printed.close()
        # What is left to write has nobody to read it any more.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def _answer_calls(requests: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            function, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = function(*arguments)
        except Exception as error:
            answer = Failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        pickle.dump(answer, answers)
        answers.flush()


def serve() -> None:
    """Answers the calls that come in on standard input until it is closed: the other side of `run_isolated`."""
    # Libraries print where the answers would go; they print to the errors instead.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _answer_calls(sys.stdin.buffer, answers)
