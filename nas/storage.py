"""The durable Optuna study: where evaluated trials are kept, under which lock, and how damage is mended.

Only the driver of a study writes, and each trial is one write when it is told. The default is a journal file in the
study's folder; any Optuna URL is taken in its place.
"""

import fcntl
import json
import logging
import os
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from hardware.strict_yaml import ConfigError
from nas.sampling import DIRECTIONS

logger = logging.getLogger(__name__)

JOURNAL = "journal.log"
LOCK = "driver.lock"
# What stands in the lock instead of a process once a driver ended well; one that was killed leaves its own number.
STOPPED, FINISHED = "stopped", "finished"

# Which study of ours a name in a shared storage belongs to: two folders may have chosen the same name.
OWNER = "edge-nas:owner"
# The settings of a study, for those who have the storage and not the folder; without the storage's own URL, which may
# hold a password.
RECORD = "edge-nas:record"

# A server that restarts is waited for so long, and asked this often.
RESTART_WITHIN_S = 120.0
ASK_AGAIN_AFTER_S = 0.5

EXAMPLE_URL = "postgresql+psycopg://USER@SERVER/DATABASE or sqlite:///FILE"

# A host that drops packets would be waited for minutes.
CONNECT_WITHIN_S = 10


class StorageLost(Exception):
    """The storage stopped answering in the middle of a study; everything evaluated is in the results."""


@contextmanager
def driver_lock(folder: Path) -> Iterator[str]:
    """Holds the study: a second driver is refused. The system drops the lock of a process that died.

    Afterwards the file says how it ended: `stopped`, `finished`, or still the process that broke or was killed; what it
    said before where the input was wrong. What it said before is given; empty where nobody ever held the study.

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
        file.seek(0)
        before = file.read().strip()
        _replace(file, str(os.getpid()))
        try:
            yield before
        except KeyboardInterrupt:
            _replace(file, STOPPED)
            raise
        except ConfigError:
            _replace(file, before)  # what cannot be begun is no run that broke
            raise
        _replace(file, FINISHED)


def _replace(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def open_study(folder: Path, name: str, url: str | None, owner: str | None = None) -> optuna.Study:
    """The durable study, made where it does not exist; call it under `driver_lock`.

    `owner` tells this study from others of the same name that share a storage; None does not look.

    Raises:
        ConfigError: the storage cannot be reached, or the name is another study's there.
    """
    storage = open_storage(folder, url)
    try:
        with _interruption_told():
            study = optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True)
        if url is not None and owner is not None:
            _check_owner(study, shown(url), owner)
    except StorageInternalError as error:
        raise _unreachable(url, error) from error
    return study


def _check_owner(study: optuna.Study, where: str, owner: str) -> None:
    found = study.user_attrs.get(OWNER)
    if found == owner:
        return
    if found is not None or study.get_trials(deepcopy=False):
        whose = "another folder's" if found else "of another program"
        raise ConfigError(
            f"storage {where}: holds a study {study.study_name} already, which is {whose}; give another --study NAME"
        )
    study.set_user_attr(OWNER, owner)


def describe(study: optuna.Study, url: str, record_json: str) -> None:
    """Leaves a study's settings in its storage, where they are not there yet.

    Raises:
        ConfigError: the storage does not answer.
    """
    try:
        if study.user_attrs.get(RECORD) != record_json:
            study.set_user_attr(RECORD, record_json)
    except StorageInternalError as error:
        raise _unreachable(url, error) from error


def check_free(folder: Path, name: str, url: str) -> None:
    """Makes sure, before a new study is begun, that a storage answers and has no study of that name yet.

    Raises:
        ConfigError: it cannot be reached, or the name is taken.
    """
    storage = open_storage(folder, url)
    try:
        names = optuna.get_all_study_names(storage)
    except StorageInternalError as error:
        raise _unreachable(url, error) from error
    if name in names:
        raise ConfigError(f"storage {shown(url)}: holds a study {name} already; give another --study NAME")


def remember(study: optuna.Study, trial: optuna.trial.FrozenTrial, number: int) -> None:
    """Adds a finished trial, which becomes the one called `number`; a server that restarts meanwhile is waited for.

    Raises:
        StorageLost: it does not come back.
    """
    deadline = time.monotonic() + RESTART_WITHIN_S
    waiting = False
    while True:
        try:
            # What was written may have been committed although the answer was lost.
            if not waiting or len(study.get_trials(deepcopy=False)) == number:
                with _interruption_told():
                    study.add_trial(trial)
            return
        except StorageInternalError as error:
            if not waiting:
                logger.warning("the storage does not answer; it is waited for up to %.0f s", RESTART_WITHIN_S)
            waiting = True
            if time.monotonic() > deadline:
                raise StorageLost(
                    f"the storage has not answered for {RESTART_WITHIN_S:.0f} s ({_one_line(error)}); what was "
                    "evaluated is in the study's folder, and `nas resume` goes on once the storage is back"
                ) from error
            time.sleep(ASK_AGAIN_AFTER_S)


@contextmanager
def _interruption_told() -> Iterator[None]:
    """Has Ctrl-C mean Ctrl-C: Optuna's lock, interrupted while it is let go, says that its file is missing instead."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__context__
        raise


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The storage at `url`, or the journal in a study's folder.

    Raises:
        ConfigError: it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return journal_storage(folder)
    try:
        return url_storage(url)
    except Exception as error:
        # Optuna, SQLAlchemy and every database driver have errors of their own; all of them mean this.
        raise _unreachable(url, error) from error


def _unreachable(url: str | None, error: Exception) -> ConfigError:
    # Optuna says "see the cause" where the database says why.
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    if url is None:
        return ConfigError(f"storage journal: cannot be opened ({_one_line(cause)})")
    missing = "psycopg" in str(error) and isinstance(error, ImportError)
    mend = "pip install 'edge-nas[postgres]'" if missing else f"mend that, or give a URL such as {EXAMPLE_URL}"
    return ConfigError(f"storage {shown(url)}: cannot be opened ({_one_line(cause)}); {mend}")


def _one_line(error: BaseException) -> str:
    """What an error says, without SQLAlchemy's name of its class before it and its link behind it."""
    text = re.sub(r"^\(\S+\) |\(Background on this error at: \S+\)", "", " ".join(str(error).split()))
    return text.strip()[:300]


def shown(url: str) -> str:
    """A storage's URL as it may be seen by others: without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def journal_storage(folder: Path) -> BaseStorage:
    """The journal of a study, mended: no lock of a dead writer, no half line at its end, no line that is no entry.

    A journal with such a line is set aside and begun anew; the search that opens it fills it from the results.
    """
    path = (folder / JOURNAL).resolve()  # with a relative path the backend's lock can wait for ever
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if path.exists():
        cut_torn_tail(path)
        damage = damaged_line(path)
        if damage is not None:
            aside = set_aside(path)
            logger.warning(
                "%s:%s; the journal is written anew from the results, and the damaged one is kept as %s",
                path,
                damage,
                aside.name,
            )
    return JournalStorage(JournalFileBackend(str(path)))


def set_aside(path: Path) -> Path:
    """Gives a file another name, beside those that were set aside before, and says which."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.replace(aside)


def cut_torn_tail(path: Path) -> None:
    """Removes what follows the last line break: a line that a dying writer did not finish."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)


def damaged_line(path: Path) -> str | None:
    """The first line of a journal that is no entry of Optuna's, as `NUMBER: why`; None where all are."""
    trial = JournalTrial()
    why = trial.damage_in(path.read_bytes().splitlines())
    return None if why is None else f"{trial.taken + 1}: {why}"


class JournalTrial(BaseJournalBackend):
    """Lines of a journal on trial: `taken` of them are entries that this Optuna understands where they stand."""

    def __init__(self) -> None:
        self.taken = 0
        self._lines: Sequence[bytes] = ()
        self._storage = JournalStorage(self)

    def damage_in(self, lines: Sequence[bytes]) -> str | None:
        """Why the next of these further lines is none, None where all are; ask no more once there is one."""
        self._lines = lines
        try:
            self._storage.get_all_studies()
        except Exception as error:
            # What stands in a damaged line is a mistake of any kind to Optuna.
            return f"not an entry of an Optuna journal ({_one_line(error) or type(error).__name__})"
        return None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The lines as entries; one counts as taken once the reader wants the next."""
        for line in self._lines:
            yield json.loads(line)
            self.taken += 1
        self._lines = ()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Never called: who tries only reads."""
        raise AssertionError("a trial writes nothing")


def url_storage(url: str) -> BaseStorage:
    """An Optuna storage by its URL; SQLite waits for other readers, a server's connections are tried before use."""
    arguments: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        arguments = {"connect_args": {"timeout": 60}}
    elif url.startswith("postgresql"):
        arguments["connect_args"] = {"connect_timeout": CONNECT_WITHIN_S}
    storage = RDBStorage(url, engine_kwargs=arguments)
    # Nobody closes an Optuna storage, and a server counts the connections that are left open.
    weakref.finalize(storage, storage.engine.dispose)
    return storage
