"""A study's settings with every name in them resolved: the target, the space, the data and the costs."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from evaluators.datasets import Dataset, open_dataset
from evaluators.scores import SCORES, Score
from evaluators.static import StaticCosts
from hardware.strict_yaml import ConfigError, nearest
from hardware.targets import Target
from nas.settings import StudyFile, StudySettings
from nas.study_table import study_target
from searchspace.choosers import Genes, replay
from searchspace.space import Space, Task, member, narrowed
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class DataKey:
    """Which data, split by which seed: what another process needs to open the same."""

    name: str
    seed: int
    limit: int | None


# What another process read and this one was given.
_given: dict[DataKey, Dataset] = {}


def dataset(key: DataKey) -> Dataset:
    """The data, read once per process, or not at all where they were given."""
    return _given.get(key) or _read(key)


@lru_cache(maxsize=2)
def _read(key: DataKey) -> Dataset:
    return open_dataset(key.name, seed=key.seed, limit=key.limit)


def give_dataset(key: DataKey, data: Dataset) -> None:
    """Has `dataset` answer with these data in this process, which need not have their files."""
    _given[key] = data


@dataclass(frozen=True, eq=False)
class Problem:
    """What a search works on.

    `leading` is the name of the score; `proxies` are asked at the first look for it.
    """

    settings: StudySettings
    target: Target
    space: Space
    task: Task
    data: DataKey
    score: Score
    leading: str
    proxies: tuple[str, ...]
    costs: StaticCosts


def resolve(settings: StudySettings, folder: Path | None = None) -> Problem:
    """The problem that the settings describe; folder is that of a study which has a latency table of its own.

    Raises:
        ConfigError, DataError, ValueError: a name is unknown or the data are damaged.
    """
    if settings.score not in SCORES:
        raise ConfigError(f"score: unknown score {settings.score!r}; {nearest(settings.score, list(SCORES))}")
    target = study_target(settings, folder)
    data = DataKey(settings.data, settings.seed, settings.data_limit)
    opened = dataset(data)
    task = Task(opened.channels, opened.num_classes)
    return Problem(
        settings,
        target,
        space_of(settings),
        task,
        data,
        SCORES[settings.score],
        settings.score,
        (),
        StaticCosts(target),
    )


def space_of(settings: StudySettings) -> Space:
    """The space of a study, narrowed to the genes that it allows.

    Raises:
        SpecError: there is no such space, or a gene is not one of its.
    """
    allowed = {name: values if isinstance(values, list) else [values] for name, values in settings.genes.items()}
    return narrowed(space_named(settings.space), allowed)


def candidate(record: StudyFile, genes: Genes) -> ArchSpec:
    """The network that a trial's genes describe, without the data being opened where the study knows what they ask.

    Raises:
        SpecError, UnknownGene: the space is another one by now.
        DataError: an older study's data are gone.
    """
    if record.channels is not None and record.classes is not None:
        task = Task(record.channels, record.classes)
    else:
        opened = dataset(DataKey(record.data, record.seed, record.data_limit))
        task = Task(opened.channels, opened.num_classes)
    return member(space_of(record), replay(genes), task)
