"""What the papers print about the published networks, read from references/figures: one file per paper.

A row is what one table says about one network. It tells which form of the network the table counts, with how many
classes and for images of which size, since papers mix them; the convention that its FLOPs follow was found out by
counting.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from hardware.strict_yaml import ConfigError, load_yaml

FOLDER = Path(__file__).parent / "figures"

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
_UNITS = {"k": 3, "M": 6, "G": 9}
_PRINTED = re.compile(r"(\d+(?:\.\d+)?) ([kMG])")


@dataclass(frozen=True, slots=True)
class Printed:
    """A quantity with exactly the digits that a paper prints, such as `2.60 M`; step is what its last digit counts."""

    text: str
    value: Decimal
    step: Decimal

    @property
    def unit(self) -> str:
        return self.text[-1]

    def is_rounded_from(self, count: int) -> bool:
        """Whether `count`, rounded to as many digits, is printed the same."""
        return abs(count - self.value) <= self.step / 2

    def deviation_percent(self, count: int) -> float:
        """By how much `count` is above what is printed."""
        return float(100 * (count / self.value - 1))


def printed(text: Any) -> Printed:
    """The quantity that a text such as `2.60 M` says.

    Raises:
        ValueError: it is no number above zero, a space and k, M or G.
    """
    match = _PRINTED.fullmatch(text) if isinstance(text, str) else None
    number = Decimal(match[1]) if match else Decimal(0)
    if match is None or number == 0:
        raise ValueError(f"must be a number above 0 as printed, a space and k, M or G, such as 2.60 M, got {text!r}")
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(10) ** _UNITS[match[2]]
    return Printed(match[0], number * unit, Decimal(10) ** exponent * unit)


Quantity = Annotated[Printed, PlainValidator(printed)]


class Accuracy(BaseModel):
    """Top-1 in percent on a data set, trained with an operator of the paper where `trained_with` names one."""

    model_config = _STRICT

    data: str
    top1: Annotated[float, Field(gt=0, le=100)]
    trained_with: str | None = None


class Figures(BaseModel):
    """What one table prints about one network; None stands for what it does not.

    form, classes and resolution say what the table counts. build says where our network comes from: the paper's words
    (`described`), a choice made after seeing these figures (`fitted`), or the words where they cannot give the figures
    (`unexplained`). why is needed unless the network is built as described and something is printed to compare it with.
    headline marks the row that stands for the network in a list.
    """

    model_config = _STRICT

    table: str
    params: Quantity | None = None
    flops: Quantity | None = None
    convention: Literal["macs", "2 macs", "ptflops", "profiler"] | None = None
    form: Literal["train", "deploy"]
    classes: Annotated[int, Field(ge=1)]
    resolution: Annotated[int, Field(ge=1)]
    accuracy: tuple[Accuracy, ...] = ()
    build: Literal["described", "fitted", "unexplained"] = "described"
    why: str | None = None
    headline: bool = False

    @property
    def has_sizes(self) -> bool:
        return self.params is not None or self.flops is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.flops is None) != (self.convention is None):
            raise ValueError("flops and their convention come together; give both or leave both out")
        if self.convention == "ptflops" and self.form != "deploy":
            raise ValueError("ptflops is counted on what is deployed; set form to deploy")
        if self.why is None and (self.build != "described" or not self.has_sizes):
            raise ValueError("a row that is fitted, unexplained or without sizes says why; add `why`")
        return self


class Paper(BaseModel):
    """One file: the paper, how it counts, and its rows by the name of the reference."""

    model_config = _STRICT

    paper: str
    counting: str
    networks: dict[str, tuple[Figures, ...]]


@lru_cache(maxsize=1)
def papers() -> tuple[Paper, ...]:
    """Every paper's figures, in the order of their file names.

    Raises:
        ConfigError: a file breaks the form, or a network has not exactly one headline row.
    """
    found = tuple(load_yaml(path, Paper) for path in sorted(FOLDER.glob("*.yaml")))
    check_headlines(found)
    return found


def check_headlines(found: tuple[Paper, ...]) -> None:
    """Checks that one row stands for each network.

    Raises:
        ConfigError: none or several do.
    """
    for name in sorted({name for paper in found for name in paper.networks}):
        count = sum(row.headline for paper in found for row in paper.networks.get(name, ()))
        if count != 1:
            raise ConfigError(f"{FOLDER}: {name}: exactly one row is its headline, got {count}; mark one with headline")
