"""A study's settings with every name in them resolved: the target, the space, the data and the costs."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from evaluators.datasets import Dataset, open_dataset
from evaluators.scores import SCORES, Score
from evaluators.static import StaticCosts
from hardware.profiled_table import ProfiledModel
from hardware.strict_yaml import ConfigError, nearest
from hardware.targets import Target, load_target
from nas.settings import StudySettings
from searchspace.space import Space, Task, narrowed
from searchspace.spaces import space_named


@dataclass(frozen=True, slots=True)
class DataKey:
    """Which data, split by which seed: what another process needs to open the same."""

    name: str
    seed: int
    limit: int | None


@lru_cache(maxsize=2)
def dataset(key: DataKey) -> Dataset:
    """The data, read once per process."""
    return open_dataset(key.name, seed=key.seed, limit=key.limit)


@dataclass(frozen=True, eq=False)
class Problem:
    """What a search works on."""

    settings: StudySettings
    target: Target
    space: Space
    task: Task
    data: DataKey
    score: Score
    costs: StaticCosts


def resolve(settings: StudySettings, table: Path | None = None) -> Problem:
    """The problem that the settings describe; table is a measured one to use in place of the machine's own.

    Raises:
        ConfigError, DataError, ValueError: a name is unknown or the data are damaged.
    """
    if settings.score not in SCORES:
        raise ConfigError(f"score: unknown score {settings.score!r}; {nearest(settings.score, list(SCORES))}")
    target = load_target(settings.target, threads=settings.threads, runtime=settings.runtime, table=table)
    if isinstance(target.latency_model, ProfiledModel):
        target = replace(target, latency_model=ProfiledModel(target.latency_model.profiled, settings.space))
    data = DataKey(settings.data, settings.seed, settings.data_limit)
    opened = dataset(data)
    task = Task(opened.channels, opened.num_classes)
    allowed = {name: values if isinstance(values, list) else [values] for name, values in settings.genes.items()}
    space = narrowed(space_named(settings.space), allowed)
    return Problem(
        settings,
        target,
        space,
        task,
        data,
        SCORES[settings.score],
        StaticCosts(target),
    )
