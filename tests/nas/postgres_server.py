"""A PostgreSQL server of its own in a folder, run by an unprivileged user and reached through a socket there."""

import os
import shutil
import subprocess
from pathlib import Path

# The user that Debian's package makes; the server refuses to be run by root.
SERVER_USER = "postgres"


def programs() -> Path | None:
    """Where the newest server's programs are, None where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    return Path(on_path).resolve().parent if on_path and shutil.which("initdb") else None


class PostgresServer:
    """Started and stopped at will; what it holds stays in its folder."""

    def __init__(self, folder: Path, fsync: bool = False) -> None:
        """`folder` is empty and lies where any user may go; only a crash of the whole machine would need `fsync`."""
        self.folder = folder
        self._fsync = "on" if fsync else "off"
        self.url = f"postgresql+psycopg://{SERVER_USER}@/postgres?host={folder}"
        if os.getuid() == 0:
            shutil.chown(folder, SERVER_USER)
        self._run("initdb", "--auth=trust", "--no-sync", f"--username={SERVER_USER}", "--pgdata", self.data)

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync={self._fsync}"
        self._run("pg_ctl", "--pgdata", self.data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Ends it; `immediate` is what a crash would do."""
        self._run("pg_ctl", "--pgdata", self.data, "-w", "-m", mode, "stop")

    def _run(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        user = {"user": SERVER_USER, "group": SERVER_USER, "extra_groups": []} if os.getuid() == 0 else {}
        # A log file and not a pipe: the server would keep the pipe open.
        subprocess.run(
            [str(folder / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **user,
        )
