"""The latency table of a study: measured tables grow, and a study goes on with the one that it began with."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hardware.profiled_table import ProfiledModel
from hardware.strict_yaml import ConfigError
from hardware.targets import Target, load_target

TABLE = "table.csv"


class Recorded(Protocol):
    """Which table a study asks for: a target, its threads, its runtime, and the space whose certificate holds."""

    @property
    def target(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def runtime(self) -> str | None: ...
    @property
    def space(self) -> str: ...


def study_target(recorded: Recorded, folder: Path | None) -> Target:
    """The target with the table in the study's folder, or with today's where there is none.

    Raises:
        ConfigError: the target is not known, or its table is damaged.
    """
    table = folder / TABLE if folder is not None and (folder / TABLE).exists() else None
    try:
        target = load_target(recorded.target, threads=recorded.threads, runtime=recorded.runtime, table=table)
    except ConfigError as error:
        if table is None:
            raise
        raise ConfigError(
            f"{error}; this is the study's own table: go on under today's with `nas resume {table.parent.name} "
            "--accept-changed-table`"
        ) from error
    model = target.latency_model
    if not isinstance(model, ProfiledModel):
        return target
    return replace(target, latency_model=ProfiledModel(model.profiled, recorded.space))
