"""The journals of all studies in a folder as one storage that can only be read.

Optuna's own journal file creates what is missing and locks when it writes; this one opens files for reading and nothing
else. It numbers studies and trials anew, since each journal counts from zero, and names each study after its folder.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from nas.storage import JOURNAL, JournalTrial

Entry = dict[str, Any]

# What Optuna numbers its entries with; the two that create something are the ones that decide the numbering.
CREATE_STUDY, CREATE_TRIAL = 0, 4

# optuna-dashboard looks for constraints where Optuna 4 kept them.
NEW_CONSTRAINT, OLD_CONSTRAINTS = "constraints:", "constraints"


class ReadOnlyStorage(Exception):
    """Something tried to write where people only look."""


@dataclass
class TailReader:
    """The whole lines of a file that grows, each handed out once; a line without its end is not there yet."""

    path: Path
    _offset: int = 0
    _inode: int | None = None

    @property
    def replaced(self) -> bool:
        """Whether what was handed out is no longer what the file begins with: another file, or a shorter one."""
        if self._inode is None:
            return False
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return True
        return status.st_ino != self._inode or status.st_size < self._offset

    def lines(self) -> list[bytes]:
        """What was added since the last time; nothing where there is no file."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._inode = self._inode or self.path.stat().st_ino
        self._offset += len(whole) + len(end)
        return whole.splitlines()


@dataclass
class _Journal:
    name: str
    tail: TailReader
    names: list[str] = field(default_factory=list)
    studies: dict[int, int] = field(default_factory=dict)
    trials: dict[int, int] = field(default_factory=dict)
    tried: JournalTrial = field(default_factory=JournalTrial)
    # Why nothing more of it is read, None while all is well.
    damage: str | None = None


class Journals(BaseJournalBackend):
    """Every journal one folder below `root`; damage to one of them ends the reading of that one alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._journals: dict[str, _Journal] = {}
        self._entries: list[Entry] = []
        # How many entries were taken over by the reader, and let go here.
        self._passed_on = 0
        self._studies = 0
        self._trials = 0

    @property
    def replaced(self) -> bool:
        """Whether a journal is another one than it was, so that reading has to begin anew."""
        return any(journal.tail.replaced for journal in self._journals.values())

    @property
    def damage(self) -> Mapping[str, str]:
        """What is wrong with which study."""
        return {name: each.damage for name, each in self._journals.items() if each.damage is not None}

    def read_logs(self, log_number_from: int) -> list[Entry]:
        """Everything that the reader has not had; it asks in the order of the entries."""
        self._look()
        del self._entries[: log_number_from - self._passed_on]
        self._passed_on = log_number_from
        return list(self._entries)

    def append_logs(self, logs: list[Entry]) -> None:
        """Refuses.

        Raises:
            ReadOnlyStorage: always; only the driver of a study writes its journal.
        """
        raise ReadOnlyStorage("studies are only read here; their drivers alone write them")

    def _look(self) -> None:
        for path in sorted(self._root.glob(f"*/{JOURNAL}")):
            if path.parent.name not in self._journals and path.resolve().is_relative_to(self._root.resolve()):
                self._journals[path.parent.name] = _Journal(path.parent.name, TailReader(path))
        for journal in self._journals.values():
            if journal.damage is None:
                self._entries += self._new_entries(journal)

    def _new_entries(self, journal: _Journal) -> Iterator[Entry]:
        lines, before = journal.tail.lines(), journal.tried.taken
        damage = journal.tried.damage_in(lines)
        for number, line in enumerate(lines[: journal.tried.taken - before], start=before + 1):
            try:
                entry = self._renumbered(journal, json.loads(line))
            except KeyError as error:
                journal.damage = f"{journal.tail.path}:{number}: of a study or trial that is not there ({error})"
                return
            if entry is not None:
                yield entry
        if damage is not None:
            journal.damage = f"{journal.tail.path}:{journal.tried.taken + 1}: {damage}"

    def _renumbered(self, journal: _Journal, entry: Entry) -> Entry | None:
        """The entry as it stands in the whole; None for a study that is created again, which every resuming does."""
        if entry["op_code"] == CREATE_STUDY:
            if entry["study_name"] in journal.names:
                return None
            name = journal.name if not journal.names else f"{journal.name}/{entry['study_name']}"
            journal.studies[len(journal.names)] = self._studies
            journal.names.append(entry["study_name"])
            self._studies += 1
            return entry | {"study_name": name}
        changed = dict(entry)
        if "study_id" in entry:
            changed["study_id"] = journal.studies[entry["study_id"]]
        if "trial_id" in entry:
            changed["trial_id"] = journal.trials[entry["trial_id"]]
        if entry["op_code"] == CREATE_TRIAL:
            journal.trials[len(journal.trials)] = self._trials
            self._trials += 1
            attributes = entry.get("system_attrs", {})
            constraints = [value for name, value in attributes.items() if name.startswith(NEW_CONSTRAINT)]
            changed["system_attrs"] = attributes | {OLD_CONSTRAINTS: constraints}
        return changed
