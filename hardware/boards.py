"""Boards that others have measured: what is known of each, and what a calibration to their figures gave."""

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hardware.calibration import BAR_PERCENT, COLUMNS
from hardware.kernels import FusionRule
from hardware.strict_yaml import ConfigError, load_yaml

_STRICT = ConfigDict(extra="forbid", frozen=True)

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Board(BaseModel):
    """A board with published figures; version is the runtime's, commit where its source keeps them."""

    model_config = _STRICT

    name: str
    device: str
    cpu: str
    in_order: bool
    version: str
    date: str
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]


class BoardsFile(BaseModel):
    """targets/boards.yaml: what all boards share, and the boards."""

    model_config = _STRICT

    runtime: Literal["ncnn"]
    precision: Literal["fp32"]
    counts: str
    protocol: str
    fusion_rules: tuple[FusionRule, ...]
    source: str
    licence: str
    method: str
    boards: tuple[Board, ...]

    def board(self, name: str) -> Board:
        """The board of that name, which must be there."""
        return next(board for board in self.boards if board.name == name)


class CalibrationRow(BaseModel):
    """A row of targets/calibration.csv: costs in ms per million instructions and per megabyte, and errors.

    What each column means: `calibration.SUMMARY`.
    """

    model_config = _STRICT

    target: str
    threads: Annotated[int, Field(ge=1)]
    model: str
    multiplying_ms: _Positive
    winograd_ms: _Positive
    elementwise_ms: _NotNegative
    megabyte_ms: _NotNegative
    networks: Annotated[int, Field(ge=2)]
    mape_percent: _NotNegative
    median_percent: _NotNegative
    max_percent: _NotNegative
    within_10_percent: _NotNegative
    within_20_percent: _NotNegative
    spearman: Annotated[float, Field(ge=-1, le=1)]
    macs_only_percent: _NotNegative
    small_mape_percent: _NotNegative
    small_bias_percent: float
    low_ratio: _Positive
    high_ratio: _Positive
    outside_low_ratio: _Positive
    outside_high_ratio: _Positive
    fastest_ms: _Positive
    slowest_ms: _Positive

    @property
    def calibrates(self) -> bool:
        """Whether it may predict: its leave-one-network-out error is below the bar."""
        return self.mape_percent < BAR_PERCENT


def read_boards(folder: Path) -> BoardsFile:
    """The boards of `folder`/boards.yaml."""
    path = folder / "boards.yaml"
    return _boards(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _boards(path: Path, changed: int) -> BoardsFile:
    return load_yaml(path, BoardsFile)


def read_calibration(folder: Path) -> Mapping[str, Mapping[int, CalibrationRow]]:
    """The rows of `folder`/calibration.csv by board and number of threads.

    Raises:
        ConfigError: the file has other columns, or a row is wrong.
    """
    path = folder / "calibration.csv"
    found: dict[str, dict[int, CalibrationRow]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f"{path}: the columns must be {', '.join(COLUMNS)}; `nas calibrate --write` makes it anew"
            )
        for number, row in enumerate(rows, 2):
            try:
                each = CalibrationRow.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                raise ConfigError(
                    f"{path}:{number}: {first['loc'][0]}: {first['msg']}, got {first['input']!r}"
                ) from error
            found.setdefault(each.target, {})[each.threads] = each
    return found
