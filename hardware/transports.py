"""Ways to have a job folder measured where it shall be: on this machine, or over ssh on a board.

Over adb see `hardware.adb`; for a board that no wire leads to, `hardware.bundle`. All of them run `hardware.board` and
leave its records in samples.jsonl of the folder, so that each goes on where any measurement of the folder ended.
"""

import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from hardware import board
from hardware.job_folder import JobList, load_jobs
from hardware.strict_yaml import ConfigError


class TransportError(Exception):
    """A device, or the way to it, failed; what had arrived stays in the folder, and measuring again goes on there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many jobs of the folder have a result, and which came last."""

    done: int
    total: int
    job: str


OnProgress = Callable[[Progress], None]


class Transport(Protocol):
    """A way to have job folders measured."""

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        """Measures the jobs that are left, in the order of the list, into samples.jsonl of the folder.

        Raises:
            ConfigError: the folder cannot be measured there; the text says what to install or change.
            TransportError: the device or the connection failed on the way.
        """


@dataclass(frozen=True, slots=True)
class Local:
    """The machine that it is called on, in a process of its own."""

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        """See `Transport`."""
        jobs = load_jobs(folder)
        watcher = Watcher(folder, jobs, on_progress)
        command = [sys.executable, str(board.__file__), "--stream", str(folder)]
        code, errors = follow(command, watcher.hear)
        check_exit(code, errors, "this machine", watcher)


@dataclass(frozen=True, slots=True)
class Ssh:
    """A board that the OpenSSH client of this system reaches without asking for a password.

    options go to ssh before the host, such as ("-p", "2222"). python is looked up on the board.
    """

    host: str
    options: tuple[str, ...] = ()
    python: str = "python3"
    connect_timeout_s: int = 10

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.@:%\[\]][A-Za-z0-9_.@:%\[\]-]*", self.host):
            raise ConfigError(f"an ssh host must be [USER@]NAME and not begin with '-', got {self.host!r}")

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        """See `Transport`."""
        measure_by_shell(self, folder, on_progress)

    @property
    def name(self) -> str:
        return self.host

    @property
    def directory(self) -> str:
        return ".cache/edge-nas"

    def command(self, script: str) -> list[str]:
        """What runs a script for /bin/sh on the board."""
        return [
            *("ssh", "-T", "-o", "BatchMode=yes", *self.options),
            *("-o", f"ConnectTimeout={self.connect_timeout_s}"),
            *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3"),
            *("--", self.host, f"exec sh -c {shlex.quote(script)}"),
        ]

    def is_lost(self, code: int, errors: str) -> bool:
        """Whether it was ssh that failed, and not what it ran."""
        return code == 255


class Shell(Protocol):
    """A device that scripts for /bin/sh can be run on, with python somewhere."""

    @property
    def name(self) -> str:
        """What messages call the device."""

    @property
    def python(self) -> str:
        """Name or path of Python on the device."""

    @property
    def directory(self) -> str:
        """Where folders may be put on the device."""

    def command(self, script: str) -> list[str]:
        """What runs a script for /bin/sh on the device."""

    def is_lost(self, code: int, errors: str) -> bool:
        """Whether the way to the device failed, and not what was run there."""


# Exit codes of the probe, which no shell and no signal uses.
_NO_PYTHON, _OLD_PYTHON, _NO_RUNTIME = 90, 91, 92

# Has to be understood by any Python, to be told that it is too old.
_PROBE = f"""
import sys
if sys.version_info < (3, 7):
    sys.stderr.write("%d.%d" % sys.version_info[:2])
    sys.exit({_OLD_PYTHON})
try:
    __import__(sys.argv[1])
except ImportError as error:
    sys.stderr.write(str(error))
    sys.exit({_NO_RUNTIME})
"""

# Takes a tar archive from standard input. What an older process still writes into its samples stays its own: the name
# is freed, and not the file overwritten.
_UNPACK = """
import os, sys, tarfile
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
if os.path.exists("jobs/samples.jsonl"):
    os.remove("jobs/samples.jsonl")
options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
tarfile.open(fileobj=sys.stdin.buffer, mode="r|").extractall(**options)
"""


def measure_by_shell(shell: Shell, folder: Path, on_progress: OnProgress) -> None:
    """Measures a folder on a device: probes it, copies runner and folder there, and takes in each record as it comes.

    Raises:
        ConfigError: the folder cannot be measured there; the text says what to install or change.
        TransportError: the device or the connection failed on the way.
    """
    jobs = load_jobs(folder)
    watcher = Watcher(folder, jobs, on_progress)
    if watcher.is_done:
        return
    _probe(shell, jobs)
    # Of its own for every folder and machine, and found again after a lost connection.
    own = f"{platform.node()}\n{folder.resolve()}".encode() + (folder / board.JOBS).read_bytes()
    there = f"{shell.directory}/{hashlib.sha256(own).hexdigest()[:16]}"
    _push(shell, folder, jobs, there)
    journal = board.Journal.resume(folder / board.SAMPLES, watcher.hear)
    # A shell that lives as long turns a death by a signal into an exit code, which ssh would call a lost connection.
    python = shlex.quote(shell.python)
    script = f"cd {shlex.quote(there)} && {python} -u board.py --stream --take-over jobs; exit $?"

    def take(line: str) -> None:
        # Login scripts of boards have been seen to greet, even where nobody sits in front of them.
        if line.startswith("{"):
            journal.write(json.loads(line))

    try:
        code, errors = follow(shell.command(script), take)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TransportError(f"{shell.name}: a record of a measurement must come, got {error!r}") from error
    finally:
        journal.close()
    if shell.is_lost(code, errors):
        raise TransportError(f"{shell.name}: the connection was lost, {watcher.tally} ({_last(errors)})")
    check_exit(code, errors, shell.name, watcher)
    subprocess.run(shell.command(f"rm -rf {shlex.quote(there)}"), stdin=subprocess.DEVNULL, capture_output=True)


class Watcher:
    """Counts the jobs of a folder that are measured, and tells of each."""

    def __init__(self, folder: Path, jobs: JobList, on_progress: OnProgress) -> None:
        """Begins with what the folder's samples.jsonl says.

        Raises:
            ConfigError: the file has a line that is no record.
        """
        try:
            journal = board.Journal.read(folder / board.SAMPLES)
        except board.Refused as error:
            raise ConfigError(str(error)) from error
        ids = {job.id for job in jobs.jobs}
        self._seen = {job for job in ids if journal.is_done(job)}
        self._total = len(ids)
        self._folder = folder
        self._on_progress = on_progress

    @property
    def is_done(self) -> bool:
        return len(self._seen) == self._total

    @property
    def tally(self) -> str:
        """How far it is, and how to go on."""
        return f"{len(self._seen)} of {self._total} jobs are kept in {self._folder}; run it again to go on from there"

    def hear(self, line: str) -> None:
        """Takes in a record."""
        record = json.loads(line)
        if "id" in record:
            self._seen.add(record["id"])
            self._on_progress(Progress(len(self._seen), self._total, record["id"]))


def follow(command: Sequence[str], hear: Callable[[str], None]) -> tuple[int, str]:
    """Runs a command, tells each whole line of its output at once, and returns its exit code and what it complained of.

    Raises:
        ConfigError: there is no such program.
    """
    with tempfile.TemporaryFile() as complaints, _running(command, complaints) as process:
        assert process.stdout is not None
        for line in process.stdout:
            # What was torn off in the middle is measured again.
            if line.endswith(b"\n"):
                hear(line.decode("utf-8", errors="replace").rstrip("\r\n"))
        code = process.wait()
        complaints.seek(0)
        return code, complaints.read().decode("utf-8", errors="replace")


@contextmanager
def _running(command: Sequence[str], complaints: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
    except FileNotFoundError as error:
        raise ConfigError(missing_program(command[0])) from error
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def run_program(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with no input.

    Raises:
        ConfigError: there is no such program.
    """
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise ConfigError(missing_program(command[0])) from error


def missing_program(name: str) -> str:
    """What to say where a program is not installed."""
    package = {"ssh": "openssh-client"}.get(name, name)
    return f"the program {name!r} is needed, and is not on the PATH; install it, such as by `apt install {package}`"


def check_exit(code: int, errors: str, where: str, watcher: Watcher) -> None:
    """Does nothing if the runner ended well.

    Raises:
        ConfigError: it refused the folder.
        TransportError: it ended in another way.
    """
    if code == board.REFUSED:
        raise ConfigError(f"{where}: {_last(errors).removeprefix('error: ')}")
    if code != 0:
        raise TransportError(f"{where}: measuring ended with code {code}, {watcher.tally} ({_last(errors)})")


def _last(errors: str) -> str:
    """The last line, which says what it was all about."""
    lines = errors.strip().splitlines()
    return lines[-1][:300] if lines else "it says nothing more"


def _probe(shell: Shell, jobs: JobList) -> None:
    python, module = shlex.quote(shell.python), board.MODULES[jobs.runtime]
    script = (
        f"command -v {python} >/dev/null 2>&1 || exit {_NO_PYTHON}; {python} -c {shlex.quote(_PROBE)} {module}; exit $?"
    )
    done = run_program(shell.command(script))
    if done.returncode == 0:
        return
    said = _last(done.stderr)
    if shell.is_lost(done.returncode, done.stderr):
        raise TransportError(f"{shell.name}: cannot be reached ({said})")
    install = f"{shell.python} -m pip install {board.WHEELS[jobs.runtime]}"
    rules = {
        _NO_PYTHON: f"{shell.python} is needed on the board, and is not there; install it, or name where it is",
        _OLD_PYTHON: f"Python must be 3.7 or newer on the board, got {said}; install another, or name where it is",
        _NO_RUNTIME: f"{jobs.runtime} is needed on the board, and is not there ({said}); run there: {install}",
    }
    if done.returncode in rules:
        raise ConfigError(f"{shell.name}: {rules[done.returncode]}")
    raise ConfigError(
        f"{shell.name}: {jobs.runtime} must load on the board, its import ends with code {done.returncode} ({said}); "
        "another release of it may suit the processor"
    )


def _push(shell: Shell, folder: Path, jobs: JobList, there: str) -> None:
    python = shlex.quote(shell.python)
    command = shell.command(f"exec {python} -c {shlex.quote(_UNPACK)} {shlex.quote(there)}")
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints)
        assert process.stdin is not None
        try:
            with process, tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                for name, path in files_to_measure(folder, jobs).items():
                    archive.add(path, name)
                archive.add(folder / board.SAMPLES, f"jobs/{board.SAMPLES}")
        except BrokenPipeError:
            pass  # The exit code says why nobody reads any more.
        code = process.wait()
        complaints.seek(0)
        if code != 0:
            said = _last(complaints.read().decode("utf-8", errors="replace"))
            raise TransportError(f"{shell.name}: the folder cannot be copied to {there} ({said})")


def files_to_measure(folder: Path, jobs: JobList) -> dict[str, Path]:
    """What a device needs, by the path that `python3 board.py jobs` expects it at."""
    files = {"board.py": Path(board.__file__), f"jobs/{board.JOBS}": folder / board.JOBS}
    return files | {f"jobs/{job.file}": folder / job.file for job in jobs.jobs}
