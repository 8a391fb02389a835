"""Who drives a study, and its resuming, stopping and exporting from outside, each run a process of its own.

Whether a study runs is read off the system's list of locks: taking its lock to find out, if only for a moment, could
turn a driver away that starts in that moment.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.storage import LOCK
from nas.study_log import LOG, add_line
from nas.web.export_job import LOCK as EXPORT_LOCK

LOCKS = Path("/proc/locks")

# What `nas resume` can be given here, and how that is said in the log.
MORE = {"trials": "by {} trials", "finalists": "to {} finalists", "budget": "to a budget of {}"}


class Refused(Exception):
    """What was asked cannot be done to the study as it is; the message says why."""


def driver_of(folder: Path) -> int | None:
    """The process that drives the study, None where none does."""
    return holder_of(folder / LOCK)


def holder_of(lock: Path) -> int | None:
    """The process that holds a lock and has written its number into it, None where none does."""
    try:
        inode = lock.stat().st_ino
    except FileNotFoundError:
        return None
    try:
        rows = [line.split() for line in LOCKS.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        return _recorded_holder(lock)
    written = lock.read_text(encoding="utf-8").strip()
    for row in rows:
        # 1: FLOCK  ADVISORY  WRITE 4233 fe:00:3092119 0 EOF; one that only waits has an arrow. The device is left out:
        # some file systems give another one here than to those who ask for the file itself.
        if row[1:2] == ["FLOCK"] and row[5].rpartition(":")[2] == str(inode) and row[4] == written:
            return int(row[4])
    return None


def _recorded_holder(lock: Path) -> int | None:
    # Where the system does not list its locks: whether the process that wrote itself down is alive.
    text = lock.read_text(encoding="utf-8").strip()
    if not text.isdigit():
        return None
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return int(text)


class Runs:
    """The runs and exports that were started here, and those that were started elsewhere."""

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._exports: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def state(self, folder: Path) -> str | None:
        """`running`, `starting` before the process has taken the study, or None."""
        if driver_of(folder) is not None:
            return "running"
        child = self._children.get(folder)
        return "starting" if child is not None and child.poll() is None else None

    def resume(self, folder: Path, more: Mapping[str, str]) -> None:
        """Starts `nas resume` for the study: to its total, or to more than it was, by the flags in `more`.

        Raises:
            Refused: the study runs, or starts already.
        """
        with self._lock:
            state = self.state(folder)
            if state is not None:
                raise Refused(f"{folder.name} is {state} already; a study has one driver at a time")
            words = ", ".join(MORE[name].format(value) for name, value in more.items())
            add_line(folder, f"dashboard: {f'Extend {words}' if more else 'Resume'} was pressed")
            self._children[folder] = _started(resume_command(folder, more), folder)

    def is_exporting(self, folder: Path) -> bool:
        """Whether the study's front is being exported, by whomever."""
        child = self._exports.get(folder)
        return holder_of(folder / EXPORT_LOCK) is not None or (child is not None and child.poll() is None)

    def export(self, folder: Path, formats: Sequence[str], *, int8: bool) -> None:
        """Starts the export of the study's front.

        Raises:
            Refused: the study runs, so that its front may change, or it is being exported already.
        """
        with self._lock:
            if self.state(folder) is not None:
                raise Refused(f"{folder.name} runs, so its front may change; stop it, or export when it has finished")
            if self.is_exporting(folder):
                raise Refused(f"{folder.name} is being exported already; wait for that")
            what = ", ".join([*formats, *(["int8"] if int8 else [])])
            add_line(folder, f"dashboard: Export of {what} was pressed")
            self._exports[folder] = _started(export_command(folder, formats, int8=int8), folder)

    def cancel_export(self, folder: Path) -> None:
        """Asks the export of the study's front to end and to take away what it has written.

        Raises:
            Refused: there is none, or it is that of someone whose processes are not ours to stop.
        """
        with self._lock:
            if not self.is_exporting(folder):
                raise Refused(f"{folder.name} is not being exported, so there is nothing to cancel")
            add_line(folder, "dashboard: Cancel of the export was pressed")
            _end(folder / EXPORT_LOCK, self._exports.get(folder))

    def stop(self, folder: Path) -> None:
        """Asks the driver of the study to end, as Ctrl-C does.

        Raises:
            Refused: nobody drives it, or someone whose processes are not ours to stop.
        """
        with self._lock:
            if self.state(folder) is None:
                raise Refused(f"{folder.name} does not run, so there is nothing to stop")
            add_line(folder, "dashboard: Stop was pressed")
            _end(folder / LOCK, self._children.get(folder))


def _end(lock: Path, child: subprocess.Popen[bytes] | None) -> None:
    """Asks the process that holds a lock to end, or the one started here that does not hold it yet."""
    holder = holder_of(lock)
    if holder is None:
        if child is not None:
            child.terminate()  # which does nothing to one that has ended
        return
    try:
        handle = os.pidfd_open(holder)
    except ProcessLookupError:
        return
    try:
        # Only now is it certain that the number still belongs to the holder and will go on doing so.
        if holder_of(lock) == holder:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended since
    except PermissionError as error:
        raise Refused(f"process {holder} is at work on {lock.parent.name} and belongs to another user") from error
    finally:
        os.close(handle)


def _started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The library logs there itself; this is for what ends a process before it begins.
            stderr=log,
            # Ctrl-C in the terminal of the dashboard is not meant for studies.
            start_new_session=True,
        )


def export_command(folder: Path, formats: Sequence[str], *, int8: bool) -> list[str]:
    """A process that exports the front."""
    command = [sys.executable, "-m", "nas.web.export_job", str(folder), ",".join(formats)]
    return [*command, "--int8"] if int8 else command


def resume_command(folder: Path, more: Mapping[str, str]) -> list[str]:
    """What a person would type."""
    command = [sys.executable, "-m", "nas", "resume", str(folder), "--quiet"]
    return [*command, *(f"--{name}={value}" for name, value in more.items())]
