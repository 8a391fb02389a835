"""The seam between the driver, which asks and tells, and whatever evaluates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.evaluator import Failure


@dataclass(frozen=True, slots=True)
class Job:
    """A function that can be pickled and what it is called with; `label` names it in messages.

    `limit_s` is how long it may take, None for as long as it likes. One that takes longer has failed; in the driver's
    own process nobody is there to stop it.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    limit_s: float | None = None


def too_long(limit_s: float) -> Failure:
    """What becomes of a job that was stopped; remembered, since it would hang again."""
    return Failure(f"took longer than the {limit_s:g} s that an evaluation may take")


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of the job that `submit` called `handle`, or why there is none."""

    handle: int
    result: Any | Failure


class Executor(Protocol):
    """Runs jobs in any order. The driver alone calls it, from one thread."""

    def submit(self, job: Job) -> int:
        """Takes a job and returns the handle under which its end is reported."""

    def wait(self) -> Finished:
        """The next job that has ended; blocks until one has. Call it only while jobs are out."""

    def close(self) -> None:
        """Gives up what is still running and frees everything."""
