"""Ends what a Ray of our own leaves behind: a process that waits for its driver's end, however that comes.

    python -m nas.executors.ray_sweeper DRIVER_PID SESSIONS_FOLDER < a pipe that the driver holds open

When a driver is killed, Ray's servers end by themselves within seconds, its agents do not, and the folder of the
session stays in any case.
"""

import os
import shutil
import signal
import sys
from pathlib import Path


def sweep(driver: int, sessions: Path) -> None:
    """Kills every process that has a file of one of the driver's sessions open, and removes their folders."""
    # Ray puts the number of the process that began a session behind the last underscore.
    for session in sessions.glob(f"session_*_{driver}"):
        for process in users_of(session) - {driver}:  # one that ended well is still there
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(session, ignore_errors=True)


def users_of(folder: Path) -> set[int]:
    """Other processes that have a file below the folder open, or were started with it in their words."""
    prefix = f"{folder}/"
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            # Ray's agents and workers change their words; their logs stay open.
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        if int(process.name) != os.getpid() and (prefix.encode() in words or any(f.startswith(prefix) for f in files)):
            found.add(int(process.name))
    return found


def main() -> None:
    """Waits for the end of the pipe, then sweeps."""
    sys.stdin.buffer.read()
    sweep(int(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
