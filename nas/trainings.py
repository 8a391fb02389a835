"""What a study knows of its trainings: what each came to after how many epochs, and where it stands.

Findings are in the results, trainings under way in files of their own beside them, and finished models in folders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.checkpoints import write_checkpoint
from evaluators.evaluator import Failure
from nas.contenders import Climbed, climbed_from
from nas.finalists import Carried, file_hashes, unpack
from nas.results import Key, ResultStore
from nas.settings import StudySettings
from nas.study import Evaluated

CHECKPOINTS = "checkpoints"


class Trainings:
    """The trainings of one study, in its folder; `stands` are those that were begun, by trial."""

    def __init__(self, settings: StudySettings, folder: Path, results: ResultStore) -> None:
        self._settings = settings
        self._folder = folder
        self._results = results
        # What failed for a reason that is not the network's is not remembered, so that it is tried again on resume.
        self._broken: dict[Key, Failure] = {}
        self.stands: dict[int, Climbed] = {}

    def found(self, candidate: Evaluated, epochs: int) -> Mapping[str, Any] | Failure | None:
        """What a candidate came to after so many epochs."""
        key = self._key(candidate, epochs)
        return self._broken.get(key) or self._results.get(key)

    def take_up(self, candidate: Evaluated, epochs: int) -> bool:
        """Whether it has all that such a training leaves; where it has not, it stands as far as another run came."""
        known = self._results.get(self._key(candidate, epochs))
        if isinstance(known, Failure):
            return True
        if known is not None and epochs < self._settings.epochs:
            self._stand(candidate, known)
            return True
        if known is not None and self._is_whole(candidate, known):
            return True
        state = self._state_path(candidate).exists()
        below = (self._results.get(self._key(candidate, epoch)) for epoch in range(epochs - 1, 0, -1))
        last = next((found for found in below if isinstance(found, Mapping)), None)
        stands = self.stands.get(candidate.number)
        if state and last is not None and (stands is None or stands.epochs < last["epochs"]):
            self._stand(candidate, last)
        return False

    def keep(self, candidate: Evaluated, climbed: Climbed) -> None:
        """Puts down how far a candidate has come: first the training itself, then that it is there."""
        assert climbed.state is not None
        write_checkpoint(climbed.state, self._state_path(candidate))
        self.stands[candidate.number] = climbed
        self._results.add(self._key(candidate, climbed.epochs), climbed.as_finding())

    def finish(self, candidate: Evaluated, found: Mapping[str, Any] | Carried) -> None:
        """Keeps what came of a finalist, with its files where they were sent along."""
        values = unpack(found, self.model_folder(candidate)) if isinstance(found, Carried) else found
        self._results.add(self._key(candidate, self._settings.epochs), values)
        self._state_path(candidate).unlink(missing_ok=True)

    def fail(self, candidate: Evaluated, epochs: int, failure: Failure) -> None:
        """Keeps why it did not come so far, for this run or for good."""
        key = self._key(candidate, epochs)
        if failure.lasting:
            self._results.add(key, failure, candidate.spec)
        else:
            self._broken[key] = failure

    def model_folder(self, candidate: Evaluated) -> Path:
        """Where its files belong once it is a finalist."""
        return self._folder.resolve() / "models" / str(candidate.number)

    def _stand(self, candidate: Evaluated, found: Mapping[str, Any]) -> None:
        path = self._state_path(candidate)
        state = path.read_bytes() if path.exists() else None
        self.stands[candidate.number] = climbed_from(dict(found), state)

    def _is_whole(self, candidate: Evaluated, trained: Mapping[str, Any]) -> bool:
        models = self.model_folder(candidate)
        return models.is_dir() and file_hashes(models) == trained["files"]

    def _state_path(self, candidate: Evaluated) -> Path:
        return self._folder / CHECKPOINTS / f"{candidate.number}.pt"

    def _key(self, candidate: Evaluated, epochs: int) -> Key:
        return Key(candidate.arch_id, fidelity(self._settings, epochs))


def fidelity(settings: StudySettings, epochs: int) -> str:
    """How much was spent on a candidate: results of other epochs, ways or layouts are other results."""
    way = "" if epochs == settings.epochs else f"-of-{settings.epochs}"
    published = (settings.layout_scope, settings.layout_score) == ("network", "dispersion")
    how = "" if published else f"-per-{settings.layout_scope}-by-{settings.layout_score}"
    return f"trained-{epochs}{way}-epochs-{settings.layouts}-layouts{how}"


def is_whole_training(fidelity: str) -> bool:
    """Whether results under that fidelity are of a candidate that was trained to the end."""
    return fidelity.startswith("trained-") and "-of-" not in fidelity
