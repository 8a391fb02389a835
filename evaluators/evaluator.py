"""What an evaluation gives back: numbers, or a failure with its reason; never None and never NaN."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluators.image_files import DataError


@dataclass(frozen=True, slots=True)
class Failure:
    """An evaluation that gave no number, and why, in one line.

    `lasting` where the candidate is at fault and would fail again; otherwise it is the machine, a missing file or a
    missing library, and the candidate has not been judged at all.
    """

    reason: str
    lasting: bool = True


Outcome = Mapping[str, float] | Failure


def checked(values: Mapping[str, float]) -> Outcome:
    """The values, or a failure that names those which are not finite.

    One NaN among scores can replace a whole Pareto front, so none gets in.
    """
    broken = sorted(name for name, value in values.items() if not math.isfinite(value))
    if broken:
        return Failure(f"not finite: {', '.join(f'{name} = {values[name]}' for name in broken)}")
    return values


def failure_from(error: BaseException) -> Failure:
    """The failure that an exception means, its message on one line."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return Failure(reason, lasting=not isinstance(error, OSError | ImportError | DataError))
