"""What is known of an architecture, by its id and how much was spent to know it.

One line of JSON per finding, appended and flushed, so that what was finished survives whatever ends the run. A last
line that was cut off is dropped at the next opening; a broken line elsewhere is an error, since it means damage.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.evaluator import Failure, Outcome
from hardware.strict_yaml import ConfigError
from searchspace.spec import ArchSpec, spec_to_dict


@dataclass(frozen=True, slots=True)
class Key:
    """Which architecture, and at which fidelity it was looked at (`early`, `trained`)."""

    arch_id: str
    fidelity: str


class ResultStore:
    """The findings of one study, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        """Opens the store and reads what it holds.

        Raises:
            ConfigError: a line other than the last is damaged; the message names it.
        """
        self._path = path
        self._known: dict[Key, Outcome | Mapping[str, Any]] = {}
        if path.exists():
            self._read()

    def get(self, key: Key) -> Outcome | Mapping[str, Any] | None:
        """What was found, or None."""
        return self._known.get(key)

    def count(self, fidelity: str) -> int:
        """How many architectures were looked at so."""
        return sum(key.fidelity == fidelity for key in self._known)

    def add(self, key: Key, found: Outcome | Mapping[str, Any], spec: ArchSpec | None = None) -> None:
        """Remembers a finding for good; a later one of the same takes its place.

        `spec` stands in the file beside a failure, so that who reads of it can make it happen again.
        """
        line: dict[str, Any] = {"arch": key.arch_id, "fidelity": key.fidelity}
        line |= {"failure": found.reason} if isinstance(found, Failure) else {"values": dict(found)}
        if isinstance(found, Failure) and spec is not None:
            line["spec"] = spec_to_dict(spec)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[key] = found

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            with self._path.open("rb+") as file:
                file.truncate(len(content) - len(torn))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line, parse_constant=_refuse)
                self._known[Key(entry["arch"], entry["fidelity"])] = _finding(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{self._path}:{number}: not a finding of this program ({error}); "
                    "remove the line to have the candidate evaluated again"
                ) from error


def _finding(entry: Mapping[str, Any]) -> Outcome | Mapping[str, Any]:
    if "failure" in entry:
        if not isinstance(entry["failure"], str):
            raise TypeError("a failure has its reason in words")
        return Failure(entry["failure"])
    values = entry["values"]
    if not isinstance(values, dict):
        raise TypeError("values are named")
    return values


def _refuse(constant: str) -> None:
    # Python reads NaN and Infinity in JSON, which are in no other program's.
    raise ValueError(f"{constant} is no result")
