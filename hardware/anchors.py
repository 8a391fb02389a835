"""A calibrated target on a board of the user's own: a handful of networks measured there, and the one factor they give.

Boards of one kind differ by clock, governor, memory and cooling far more than by what they do best, so that one factor
is most of the difference. What it leaves is found by leaving each network out in turn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardware.strict_yaml import ConfigError

_STRICT = ConfigDict(extra="forbid", frozen=True)

# With fewer, the error that a factor leaves cannot be told.
FEWEST = 3

_Ms = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Anchor(BaseModel):
    """A network as it was measured on the board, and as the calibrated target predicts it."""

    model_config = _STRICT

    measured_ms: _Ms
    predicted_ms: _Ms


class AnchorFile(BaseModel):
    """What was measured on a board, of which target it is one, and with which of its tables it was compared."""

    model_config = _STRICT

    base: str
    base_sha256: str
    threads: Annotated[int, Field(ge=1)]
    runtime_version: str
    device: str
    cpu: str
    date: str
    networks: dict[str, Anchor]

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if len(self.networks) < FEWEST:
            raise ValueError(f"at least {FEWEST} networks must be measured, got {len(self.networks)}; measure again")
        return self


class Rescaled(BaseModel):
    """The factor between the board and the target, and measured over predicted with each network left out in turn."""

    model_config = _STRICT

    factor: _Ms
    ratios: dict[str, float]

    @property
    def mape_percent(self) -> float:
        """Mean absolute error of the predictions."""
        return float(np.mean([100 * abs(1 / ratio - 1) for ratio in self.ratios.values()]))


def rescale(anchors: Mapping[str, Anchor]) -> Rescaled:
    """The factor with the smallest relative error, and how networks that had no say in it are predicted.

    Raises:
        ConfigError: there are too few networks.
    """
    if len(anchors) < FEWEST:
        raise ConfigError(f"anchors: at least {FEWEST} networks must be measured, got {len(anchors)}")
    left_out = {
        name: each.measured_ms / (each.predicted_ms * _factor([other for key, other in anchors.items() if key != name]))
        for name, each in anchors.items()
    }
    return Rescaled(factor=_factor(list(anchors.values())), ratios=left_out)


def _factor(anchors: list[Anchor]) -> float:
    # argmin over f of the sum of (f predicted / measured - 1) ** 2.
    shares = np.array([each.predicted_ms / each.measured_ms for each in anchors])
    return float(shares.sum() / (shares**2).sum())


def anchors_path(board: Path, threads: int) -> Path:
    """Where a board's folder keeps what was measured at so many threads."""
    return board / f"anchors-{threads}t.yaml"
