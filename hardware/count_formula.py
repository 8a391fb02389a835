"""A closed formula for the instructions of what was not counted, fitted on what was.

For each family of layers, that is for each code path of the runtime, instructions are a sum of amounts of work with
coefficients that are not negative and no intercept but a cost per call. Errors are relative throughout, so that small
layers count as much as large ones. How far the formula can be trusted is found by leaving counts out.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hardware.kernels import Kernel
from hardware.least_squares import nonnegative_least_squares
from hardware.ncnn_layers import AMOUNTS, Formula, Work, families_above, instructions, is_known, layers_of, work
from hardware.strict_yaml import ConfigError

Array = npt.NDArray[np.float64]

FOLDS = 5
_COLUMNS = ("family", "counted", "mean_error_percent", "p90_error_percent", *AMOUNTS)


@dataclass(frozen=True, slots=True)
class FamilyError:
    """How the formula did on layers of a family that it was fitted without; NaN where there are too few to tell."""

    counted: int
    mean_percent: float
    p90_percent: float


def counted_works(kernels: Iterable[tuple[Kernel, float]]) -> tuple[list[Work], Array]:
    """The works of kernels that are a single layer to the runtime, with their counts."""
    pairs = [(layers_of(kernel), count) for kernel, count in kernels]
    single = [(work(layers[0]), count) for layers, count in pairs if len(layers) == 1]
    return [each for each, _ in single], np.array([count for _, count in single])


def fit_formula(works: Sequence[Work], counts: Array) -> dict[str, tuple[float, ...]]:
    """Instructions per amount for each family, with the smallest relative error on the counts.

    A family that is part of another has coefficients of its own where enough of it was counted.
    """
    return {
        family: _fit(np.array([works[index].amounts for index in members]), counts[members])
        for family, members in _families(works).items()
        if len(members) >= 2 * FOLDS or "/" not in family
    }


def check_formula(works: Sequence[Work], counts: Array) -> dict[str, FamilyError]:
    """The errors on every fifth layer of a family, in the order of their counts, fitted on the other four."""
    found = {}
    for family, members in _families(works).items():
        if len(members) < 2 * FOLDS:
            found[family] = FamilyError(len(members), float("nan"), float("nan"))
            continue
        amounts = np.array([works[index].amounts for index in members])
        own = counts[members]
        order = np.argsort(own, kind="stable")
        errors = []
        for fold in range(FOLDS):
            held_out, rest = order[fold::FOLDS], np.delete(order, np.s_[fold::FOLDS])
            coefficients = np.array(_fit(amounts[rest], own[rest]))
            errors.append(np.abs(amounts[held_out] @ coefficients / own[held_out] - 1))
        every = 100 * np.concatenate(errors)
        found[family] = FamilyError(len(members), float(every.mean()), float(np.quantile(every, 0.9)))
    return found


def _families(works: Sequence[Work]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for index, each in enumerate(works):
        for family in families_above(each.family):
            rows.setdefault(family, []).append(index)
    return rows


def _fit(amounts: Array, counts: Array) -> tuple[float, ...]:
    relative = amounts / counts[:, None]
    used = _distinct_columns(relative)
    coefficients = np.zeros(len(AMOUNTS))
    coefficients[used] = nonnegative_least_squares(relative[:, used], np.ones(len(counts)))
    return tuple(float(f"{value:.5g}") for value in coefficients)


def _distinct_columns(matrix: Array) -> list[int]:
    """Indices of the columns that are not zero and no multiple of an earlier one, which no fit could tell apart."""
    kept: list[int] = []
    for index, column in enumerate(matrix.T):
        length = np.linalg.norm(column)
        others = matrix[:, kept]
        if length > 0 and np.all(column @ others < (1 - 1e-12) * length * np.linalg.norm(others, axis=0)):
            kept.append(index)
    return kept


def expected_instructions(kernel: Kernel, formula: Formula) -> float:
    """About how many instructions a kernel takes, without its layers of families that nobody has counted yet."""
    works = map(work, layers_of(kernel))
    return sum(instructions(each, formula) for each in works if is_known(each.family, formula))


def formula_text(formula: Formula, errors: Mapping[str, FamilyError]) -> str:
    """The formula with its errors as a table, one family a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for family in sorted(formula):
        error = errors[family]
        found = ["" if np.isnan(each) else f"{each:.1f}" for each in (error.mean_percent, error.p90_percent)]
        writer.writerow([family, error.counted, *found, *(_number(value) for value in formula[family])])
    return out.getvalue()


def _number(value: float) -> str:
    return np.format_float_positional(value, trim="-") if value else ""


def read_formula(text: str) -> dict[str, tuple[float, ...]]:
    """The formula of a table that `formula_text` wrote.

    Raises:
        ConfigError: it is no such table.
    """
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != _COLUMNS:
        raise ConfigError(f"formula: the columns must be {', '.join(_COLUMNS)}, got {', '.join(rows.fieldnames or ())}")
    return {row["family"]: tuple(float(row[name] or 0) for name in AMOUNTS) for row in rows}
