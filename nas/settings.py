"""Everything that a study was asked to do: one model for the command line, the study file and a resumed run."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)

from hardware.strict_yaml import ConfigError, load_yaml
from nas.files import write_atomically
from nas.quantities import duration_s, latency_ms
from nas.rungs import rungs_for

STUDY_FILE = "study.yaml"

# How many candidates may be out at once. Part of what a study is: another number would give other proposals.
WINDOW = 8


def _with_unit(read: Callable[[str], float]) -> BeforeValidator:
    """Keeps a quantity as people write it, once it is known to be one."""

    def check(text: object) -> object:
        read(str(text))
        return text

    return BeforeValidator(check)


LatencyText = Annotated[str, _with_unit(latency_ms)]
DurationText = Annotated[str, _with_unit(duration_s)]
Gene = str | int | float | bool
# One value fixes a gene, several restrict it.
GeneValues = Gene | list[Gene]
# With fewer trained members the interval of a correlation is as wide as the scale.
LEAST_TRUSTED = 12
Positive = Annotated[int, Field(ge=1)]


class StudySettings(BaseModel):
    """What to search for, on what, and how long; every field can stand in a study file and on the command line.

    `trials` counts evaluated candidates, not proposals that the budget rejects. `start` is what is proposed before the
    sampler proposes: the fastest member of the space, and with `published` also the published networks that keep the
    budget. `trust` members are trained for `trust_epochs` before the search to see which score should lead it: None for
    where `time` allows it, 0 for never. `contenders` begin to be trained, None for twice as many as there are
    finalists, and the best of them become finalists; `training_time` is what that may take, and where it is short fewer
    are trained. `layouts` is how many PBConv layouts each tries before it trains (seed 001 uses 10), `layout_scope`
    what shares one, and `layout_score` whether the largest dispersion wins or its largest increase. `data_limit` is the
    largest number of training images. `genes` narrows the space: a gene, or several by a pattern such as
    `stage*.kernel`, held to one value or to a list.
    `window` is how many candidates may be out at once, so more workers than that have nothing to do; the sampler knows
    as many results less when it proposes. `cpus_per_trial` are the cores of an evaluation, whose whole number is also
    its threads; `gpus_per_trial` is what Ray sets aside for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("trust")
    @classmethod
    def _enough_to_say_anything(cls, members: int | None) -> int | None:
        if members is not None and 0 < members < LEAST_TRUSTED:
            raise ValueError(f"at least {LEAST_TRUSTED} members, or 0 for no trust report, got {members}")
        return members

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    target: str
    budget: LatencyText
    data: str = "digits"
    data_limit: Positive | None = None
    space: str = "edge-small"
    genes: dict[str, GeneValues] = {}
    sampler: Literal["nsga2", "nsga3", "tpe", "random", "evolution", "surrogate"] = "surrogate"
    start: Literal["published", "fastest"] = "published"
    score: str = "loss"
    trials: Positive = 40
    time: DurationText | None = None
    trust: Annotated[int, Field(ge=0)] | None = None
    trust_epochs: Positive = 4
    evaluation_time: DurationText = "10m"
    iterations: Positive = 20
    finalists: Positive = 4
    layouts: Annotated[int, Field(ge=0)] = 0
    layout_scope: Literal["network", "stage", "layer"] = "network"
    layout_score: Literal["dispersion", "gain"] = "dispersion"
    contenders: Positive | None = None
    epochs: Positive = 12
    training_time: DurationText | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    window: Positive = WINDOW
    threads: Positive = 1
    runtime: str | None = None
    storage: str | None = None
    workers: Positive = 2
    backend: Literal["local", "ray", "inline"] = "local"
    ray_address: str | None = None
    cpus_per_trial: Annotated[float, Field(gt=0, le=1024)] = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0, le=1024)] = 0.0

    @field_validator("gpus_per_trial")
    @classmethod
    def _given_by_ray(cls, share: float, others: ValidationInfo) -> float:
        if share and others.data.get("backend") != "ray":
            raise ValueError(f"only Ray shares out GPUs, got {share:g}; give --backend ray")
        return share

    @property
    def budget_ms(self) -> float:
        return latency_ms(self.budget)

    @property
    def time_s(self) -> float | None:
        """How long the search may take, None without a limit."""
        return None if self.time is None else duration_s(self.time)

    @property
    def training_time_s(self) -> float | None:
        """How long contenders and finalists may be trained, None without a limit."""
        return None if self.training_time is None else duration_s(self.training_time)

    @property
    def first_places(self) -> int:
        """How many candidates begin to be trained."""
        contenders = 2 * self.finalists if self.contenders is None else self.contenders
        return rungs_for(max(contenders, self.finalists), self.finalists, self.epochs)[0].places

    @property
    def evaluation_time_s(self) -> float:
        """How long the first look at a candidate may take."""
        return duration_s(self.evaluation_time)


# What a study file or a command line may give of the settings: any of them, the rest comes from elsewhere.
StudyDraft: type[BaseModel] = create_model(
    "StudyDraft",
    __config__=ConfigDict(extra="forbid", frozen=True),
    **{  # type: ignore[call-overload]
        name: (hint | None, None)
        for name, hint in get_type_hints(StudySettings, include_extras=True).items()
        if name in StudySettings.model_fields
    },
)

# What may differ between two runs of one study without changing what it finds.
RUN_SETTINGS = frozenset(
    {
        "trials",
        "time",
        "training_time",
        "evaluation_time",
        "workers",
        "backend",
        "ray_address",
        "cpus_per_trial",
        "gpus_per_trial",
    }
)


class StudyFile(StudySettings):
    """A study as it is kept: its settings and what they were resolved to when it began.

    `accepted_tables` and `earlier_budgets` are those that the study had before, where the user went on under another.
    `channels` and `classes` are those of the images; None where a study began before they were kept. `led_by` is what a
    trust report put in the place of the score, None where there was none.
    """

    created: str
    target_sha256: str
    data_fingerprint: str
    versions: dict[str, str]
    accepted_tables: list[str] = []
    earlier_budgets: list[str] = []
    channels: int | None = None
    classes: int | None = None
    led_by: str | None = None

    @property
    def leading(self) -> str:
        """The name of the score that leads the search."""
        return self.led_by or self.score

    @property
    def durable_name(self) -> str:
        """What the study is called in its storage: trials under another table or budget are another study there."""
        changes = len(self.accepted_tables) + len(self.earlier_budgets)
        return f"{self.study}@{changes + 1}" if changes else self.study

    @property
    def owner(self) -> str:
        """What tells this study from others of the same name, made by someone else or at another time."""
        identity = (self.study, self.created, self.target, self.data_fingerprint, self.seed)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def settings(self) -> StudySettings:
        """The settings alone."""
        return StudySettings(**{name: getattr(self, name) for name in StudySettings.model_fields})


def checked_settings(values: Mapping[str, Any]) -> StudySettings:
    """The settings, or what is wrong with them in one line.

    Raises:
        ConfigError: a value breaks its rule.
    """
    try:
        return StudySettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = ".".join(map(str, first["loc"])).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        got = "" if "got" in message else f", got {first['input']!r}"
        raise ConfigError(f"{flag}: {message}{got}") from error


def extended_settings(record: StudyFile, more_trials: int | None, changed: Mapping[str, Any]) -> StudySettings:
    """The settings that a study goes on with: those it has, so many more trials, and what is changed besides.

    Limits on time are of one run. None is no trial more.

    Raises:
        ConfigError: a value breaks its rule.
    """
    values = record.settings().model_dump() | {"time": None, "training_time": None} | dict(changed)
    if more_trials is not None:
        if more_trials < 1:
            raise ConfigError(f"trials: at least 1 more, got {more_trials}")
        values["trials"] = record.trials + more_trials
    return checked_settings(values)


def read_study_file(folder: Path) -> StudyFile:
    """The record of the study in a folder.

    Raises:
        ConfigError: there is none, or it is damaged; the message names file and line.
    """
    try:
        return load_yaml(folder / STUDY_FILE, StudyFile)
    except ConfigError as error:
        if not (folder / STUDY_FILE).exists():
            raise
        raise ConfigError(
            f"{error}; a study that another version of nas began goes on with that version, or is begun anew here"
        ) from error


def write_study_file(folder: Path, study: StudyFile) -> None:
    """Keeps the record of a study; a reader never sees half of it."""
    write_atomically(folder / STUDY_FILE, yaml.safe_dump(study.model_dump(), sort_keys=False, allow_unicode=True))


def other_versions(record: StudyFile) -> list[str]:
    """What has another version today than when a study began, a few words for each."""
    now = versions()
    return [
        f"{name} {now.get(name, 'gone')} ({before} then)"
        for name, before in record.versions.items()
        if now.get(name) != before
    ]


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    packages = ("edge-nas", "torch", "optuna", "onnx", "onnxruntime", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
