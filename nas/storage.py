"""The durable Optuna study: where evaluated trials are kept, under which lock, and how damage is mended.

Only the driver of a study writes, and each trial is one write when it is told. The default is a journal file in the
study's folder; any Optuna URL is taken in its place.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from hardware.strict_yaml import ConfigError
from nas.sampling import DIRECTIONS

JOURNAL = "journal.log"
LOCK = "driver.lock"
# What stands in the lock instead of a process once a driver ended well; one that was killed leaves its own number.
STOPPED, FINISHED = "stopped", "finished"


@contextmanager
def driver_lock(folder: Path) -> Iterator[None]:
    """Holds the study: a second driver is refused. The system drops the lock of a process that died.

    Afterwards the file says how it ended: `stopped`, `finished`, or still the process that broke or was killed.

    Raises:
        ConfigError: another process drives the study.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConfigError(
                f"study {folder.name}: one driver at a time, process {holder} is running it; wait for it or stop it"
            ) from error
        _replace(file, str(os.getpid()))
        try:
            yield
        except KeyboardInterrupt:
            _replace(file, STOPPED)
            raise
        _replace(file, FINISHED)


def _replace(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def open_study(folder: Path, name: str, url: str | None) -> optuna.Study:
    """The durable study, made where it does not exist; call it under `driver_lock`.

    Raises:
        ConfigError: the storage cannot be reached, or its journal is damaged.
    """
    storage = open_storage(folder, url)
    return optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage at `url`, or the journal in a study's folder.

    Raises:
        ConfigError: it cannot be reached, or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return journal_storage(folder)
    try:
        return url_storage(url)
    except Exception as error:
        # Optuna, SQLAlchemy and every database driver have errors of their own; all of them mean this.
        raise ConfigError(f"storage {url}: cannot be opened ({' '.join(str(error).split())[:300]})") from error


def journal_storage(folder: Path) -> BaseStorage:
    """The journal of a study, mended: no lock of a dead writer, no half line at its end.

    Raises:
        ConfigError: a line is damaged in a way that no dying writer leaves behind.
    """
    path = (folder / JOURNAL).resolve()  # with a relative path the backend's lock can wait for ever
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if path.exists():
        cut_torn_tail(path)
        check_lines(path)
    return JournalStorage(JournalFileBackend(str(path)))


def cut_torn_tail(path: Path) -> None:
    """Removes what follows the last line break: a line that a dying writer did not finish."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)


def check_lines(path: Path) -> None:
    """Makes sure that every line of a journal is an entry.

    Raises:
        ConfigError: one is not; the message names it.
    """
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            _ = json.loads(line)["op_code"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}:{number}: not an entry of an Optuna journal ({error}); "
                "remove the file: what was evaluated is in the results beside it, and resuming the study writes it anew"
            ) from error


def url_storage(url: str) -> BaseStorage:
    """An Optuna storage by its URL; SQLite waits for other readers instead of failing."""
    arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=arguments)
