"""The studies of an Optuna storage as far as the storage holds them: trials and settings, neither files nor log.

Who drives such a study, and where its folder is, only its own machine knows; what needs the folder is said to be there.
"""

import json
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from hardware.strict_yaml import ConfigError
from nas.settings import StudyFile
from nas.storage import OWNER, RECORD, shown
from nas.web.studies import Live, NoSuchStudy, Overview, database, live_of, point_of, stored_study

T = TypeVar("T")

ELSEWHERE = "elsewhere"

FOREIGN = "It was not begun by this program, or by an earlier version, so what was searched for is not known here."


@dataclass
class StoredStudies:
    """Every study of the storage at `url`, for any number of readers at a time."""

    url: str
    # What was last made of a study, and of how many trials in which states.
    _live: dict[str, tuple[object, Live]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The storage as it may be seen by others."""
        return shown(self.url)

    def names(self) -> list[str]:
        """All studies by name.

        Raises:
            ConfigError: the storage does not answer.
        """
        try:
            return sorted(optuna.get_all_study_names(database(self.url)))
        except Exception as error:
            raise self._unreadable(error) from error

    def name_of(self, number: int) -> str:
        """The study that Optuna gave the number.

        Raises:
            NoSuchStudy: there is none.
            ConfigError: the storage does not answer.
        """
        try:
            return database(self.url).get_study_name_from_id(number)
        except KeyError as error:
            raise NoSuchStudy(f"no study of number {number} in {self.where}") from error
        except Exception as error:
            raise self._unreadable(error) from error

    def number_of(self, record: StudyFile) -> int | None:
        """Optuna's number of a study, None where its trials are elsewhere.

        Raises:
            ConfigError: the storage does not answer.
        """
        if record.storage != self.url:
            return None
        try:
            return self._number(record.durable_name)
        except NoSuchStudy:
            return None

    def _number(self, name: str) -> int:
        return self._guarded(name, lambda study: database(self.url).get_study_id_from_name(study.study_name))

    def overviews(self, without_owners: Set[str]) -> dict[int, Overview]:
        """The studies by Optuna's number, but for those of these owners.

        Raises:
            ConfigError: the storage does not answer.
        """
        found = {}
        for name in self.names():
            owner = self._guarded(name, lambda study: study.user_attrs.get(OWNER))
            if owner not in without_owners:
                found[self._number(name)] = self.live(name).overview
        return found

    def trials(self, name: str) -> list[FrozenTrial]:
        """What was evaluated so far.

        Raises:
            NoSuchStudy: there is none of that name, or it was deleted.
            ConfigError: the storage does not answer.
        """
        return self._guarded(name, lambda study: study.get_trials(deepcopy=False))

    def record(self, name: str) -> StudyFile | None:
        """The settings that the study's driver left; None where it left none that can be read."""
        kept = self._guarded(name, lambda study: study.user_attrs.get(RECORD))
        try:
            return None if kept is None else StudyFile(**json.loads(kept))
        except (ValidationError, ValueError, TypeError):
            return None

    def _guarded(self, name: str, ask: Callable[[optuna.Study], T]) -> T:
        try:
            return ask(stored_study(self.url, name))
        except KeyError as error:
            stored_study.cache_clear()  # it may have been deleted since
            raise NoSuchStudy(f"no study {name[:100]!r} in {self.where}") from error
        except ConfigError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ConfigError:
        # Optuna, SQLAlchemy and every database driver have errors of their own; all of them mean this.
        return ConfigError(f"storage {self.where}: cannot be read ({' '.join(str(error).split())[:300]})")

    def live(self, name: str) -> Live:
        """Everything that the storage holds of a study.

        Raises:
            NoSuchStudy: there is none of that name.
            ConfigError: the storage does not answer.
        """
        trials, record = self.trials(name), self.record(name)
        version = (record, len(trials), sum(trial.state.is_finished() for trial in trials))
        known = self._live.get(name)
        if known is None or known[0] != version:
            if record is None:
                done = sum(trial.state.is_finished() for trial in trials)
                overview = Overview(name, None, ELSEWHERE, done, 0, "-", None, None, FOREIGN)
                found = Live(overview, (), (), (), (), ())
            else:
                found = live_of(name, ELSEWHERE, record, [point_of(trial) for trial in trials], (), (), None)
            known = self._live[name] = (version, found)
        return known[1]
