"""One network trained to the end in a folder of its own, which a training that was ended goes on from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from evaluators.checkpoints import write_checkpoint
from evaluators.evaluator import Failure
from hardware.strict_yaml import ConfigError, load_yaml
from nas.contenders import Climbed, TrainingPlan, climbed_from, contender_job
from nas.executors.executor import Executor, Job
from nas.files import write_atomically
from nas.finalists import FinalistPlan, file_hashes, finalist_job
from nas.results import Key, ResultStore
from searchspace.spec import ArchSpec, spec_id, write_spec

TRAINING_FILE, SPEC, CHECKPOINT, EPOCHS, MODEL = (
    "training.yaml",
    "spec.yaml",
    "checkpoint.pt",
    "epochs.jsonl",
    "model",
)
FINISHED = "finished"


class TrainingRecord(BaseModel):
    """What a training was asked to do, in training.yaml; the same again goes on with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec_id: str
    data: str
    data_limit: int | None
    data_fingerprint: str
    epochs: int
    seed: int
    recipe: dict[str, str | int | float | bool]


class TrainingFailed(RuntimeError):
    """A network that could not be trained, with the reason and the network."""

    def __init__(self, spec: ArchSpec, reason: str) -> None:
        super().__init__(f"{spec_id(spec)} cannot be trained: {reason}")
        self.spec = spec


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a training is put down: after so many epochs, or None for about so many seconds."""

    epochs: int | None
    seconds: float = 60.0

    def until(self, done: int, taken_s: float) -> int:
        """The epoch after which the next checkpoint is written; the first epoch shows how long one takes."""
        if self.epochs is not None:
            return (done // self.epochs + 1) * self.epochs
        return done + (max(1, int(self.seconds * done / taken_s)) if done and taken_s > 0 else 1)


def open_training(folder: Path, spec: ArchSpec, record: TrainingRecord) -> None:
    """Makes the folder of a training, or checks that the one there is of the same.

    Raises:
        ConfigError: it is another training's, or something else's.
    """
    path = folder / TRAINING_FILE
    if path.exists():
        before = load_yaml(path, TrainingRecord)
        names = [name for name in TrainingRecord.model_fields if getattr(before, name) != getattr(record, name)]
        if names:
            changes = ", ".join(f"{name} is {getattr(before, name)!r} there" for name in names)
            raise ConfigError(f"out: {folder} holds another training ({changes}); give another --out")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out: {folder} is not empty and holds no training; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(spec, folder / SPEC)
    write_atomically(path, yaml.safe_dump(record.model_dump(), sort_keys=False, allow_unicode=True))


def train_to_the_end(
    plan: TrainingPlan, folder: Path, pace: Pace, executor: Executor, on_epochs: Callable[[Climbed], None]
) -> dict[str, Any]:
    """What came of it, as of a finalist, with its model in the folder; `on_epochs` hears of each checkpoint.

    Raises:
        TrainingFailed: it broke, and would again.
    """
    store = ResultStore(folder / EPOCHS)
    name = spec_id(plan.spec)
    model = folder.resolve() / MODEL
    finished = store.get(Key(name, FINISHED))
    if isinstance(finished, Mapping) and model.is_dir() and file_hashes(model) == finished["files"]:
        return dict(finished)
    before = _where_it_stands(store, name, plan.epochs, folder / CHECKPOINT)
    while (done := 0 if before is None else before.epochs) < plan.epochs:
        until = min(plan.epochs, pace.until(done, 0.0 if before is None else before.seconds))
        found = _done(executor, Job(f"training to epoch {until}", contender_job, (plan, before, until)), plan.spec)
        assert isinstance(found, Climbed)
        assert found.state is not None
        write_checkpoint(found.state, folder / CHECKPOINT)
        store.add(Key(name, str(found.epochs)), found.as_finding())
        on_epochs(found)
        before = found
    result = _done(executor, Job("export", finalist_job, (FinalistPlan(0, plan, model), before)), plan.spec)
    assert isinstance(result, dict)
    store.add(Key(name, FINISHED), result)
    return result


def _where_it_stands(store: ResultStore, name: str, epochs: int, checkpoint: Path) -> Climbed | None:
    for epoch in range(epochs, 0, -1):
        found = store.get(Key(name, str(epoch)))
        if isinstance(found, Mapping) and checkpoint.exists():
            return climbed_from(dict(found), checkpoint.read_bytes())
    return None


def _done(executor: Executor, job: Job, spec: ArchSpec) -> Any:
    executor.submit(job)
    result = executor.wait().result
    if isinstance(result, Failure):
        raise TrainingFailed(spec, result.reason)
    return result
