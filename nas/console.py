"""What a person sees in the terminal: progress on stderr, tables on stdout."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from nas.pace import Pace
from nas.study import Progress as SearchProgress

# Where the output is no terminal a line is printed at most this often.
PLAIN_LINE_EVERY_S = 15.0

# Columns of a terminal that has room for a long bar and the time beside what is said.
WIDE = 120


class QuietObserver:
    """Says nothing."""

    def __enter__(self) -> "QuietObserver":
        return self

    def __exit__(self, *details: object) -> None: ...
    def note(self, text: str) -> None: ...
    def trusting(self, done: int, total: int) -> None: ...
    def searching(self, progress: SearchProgress) -> None: ...
    def training(self, done: int, total: int) -> None: ...
    def measuring(self, done: int, total: int, left_s: float) -> None: ...


class PlainObserver(QuietObserver):
    """A line on stderr now and then, for logs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = -PLAIN_LINE_EVERY_S
        self._pace = Pace(clock)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def searching(self, progress: SearchProgress) -> None:
        pace = self._pace.heard(progress)
        if self._is_time(progress.done == progress.total):
            words = [f"search: {progress.done} of {progress.total} candidates", pace, *_turned_down(progress)]
            self.note(", ".join(filter(None, words)))

    def trusting(self, done: int, total: int) -> None:
        self.note(f"trust: {done} of {total} members trained")

    def training(self, done: int, total: int) -> None:
        self.note(f"finalists: {done} of {total} trained")

    def measuring(self, done: int, total: int, left_s: float) -> None:
        if self._is_time(done == total):
            self.note(f"measuring: {done} of at most {total} models, {left_s:.0f} s left")

    def _is_time(self, is_last: bool) -> bool:
        now = self._clock()
        if not is_last and now - self._last < PLAIN_LINE_EVERY_S:
            return False
        self._last = now
        return True


class BarObserver:
    """Progress bars on stderr."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        console = Console(stderr=True)
        is_wide = console.width >= WIDE
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(30 if is_wide else 8),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            *([TimeElapsedColumn()] if is_wide else []),
            # Takes the room that is left, and is the one that is cut where that is too little.
            TextColumn("{task.fields[extra]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._pace = Pace(clock)

    def __enter__(self) -> "BarObserver":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def searching(self, progress: SearchProgress) -> None:
        extra = ", ".join(filter(None, [self._pace.heard(progress), *_turned_down(progress)]))
        self._show("searching", progress.done, progress.total, extra)

    def trusting(self, done: int, total: int) -> None:
        self._show("trusting ", done, total, "")

    def training(self, done: int, total: int) -> None:
        self._show("training ", done, total, "")

    def measuring(self, done: int, total: int, left_s: float) -> None:
        self._show("measuring", done, total, f"at most, {left_s:.0f} s left")

    def _show(self, name: str, done: int, total: int, extra: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, extra="")
        self._progress.update(self._tasks[name], completed=done, total=total, extra=extra)


def _turned_down(progress: SearchProgress) -> list[str]:
    words = [f"{progress.rejected} over budget"]
    return [*words, f"{progress.failed} failed"] if progress.failed else words


Observer = QuietObserver | BarObserver


class _Notes(logging.Handler):
    def __init__(self, watching: Observer) -> None:
        super().__init__(logging.WARNING)
        self._watching = watching

    def emit(self, record: logging.LogRecord) -> None:
        self._watching.note(record.getMessage())


@contextmanager
def warnings_to(watching: Observer) -> Iterator[None]:
    """Has an observer say what the library warns of, so that a bar is not cut through and quiet is quiet."""
    handler, log = _Notes(watching), logging.getLogger("nas")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def observer(quiet: bool) -> Observer:
    """Bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return QuietObserver()
    return BarObserver() if sys.stderr.isatty() else PlainObserver()


# As wide as tables need to be where stdout is no terminal.
UNBOUNDED_WIDTH = 200


def output_width() -> int:
    """The columns of the terminal, or as many as a table may need where stdout is none."""
    return Console().width if sys.stdout.isatty() else UNBOUNDED_WIDTH


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, wrap: str | None = None) -> None:
    """A table on stdout, as wide as it needs to be where stdout is no terminal.

    The column called `wrap` goes on in a second line where the terminal is too narrow; the others are cut off.
    """
    # Light enough for a terminal of 80 columns.
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        left = index == 0 or column == wrap
        table.add_column(column, justify="left" if left else "right", no_wrap=column != wrap)
    for row in rows:
        table.add_row(*row)
    Console(width=output_width()).print(table)


def print_text(text: str) -> None:
    """A paragraph on stdout, broken at words where the terminal ends."""
    Console(width=output_width()).print(text, highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())


# What the device was expected to take, and what the trained form takes there that nobody fused.
BESIDE_MEASURED = ("predicted", "unfused")


def _beside_measured(each: Mapping[str, Any]) -> tuple[str, ...]:
    unfused = each["unfused_latency_ms"]
    return f"{each['predicted_latency_ms']['value']:.3g}", "-" if unfused is None else f"{unfused:.3g}"


def print_front(document: Mapping[str, Any]) -> None:
    """The front as a table: accuracy, latency with its interval and tier, params, MACs."""
    measured = any(each["latency_ms"]["tier"] == "measured" for each in document["members"])
    print_table(
        f"{document['study']}: {document['target']} within {document['budget_ms']:g} ms on {document['data']}",
        ("trial", "val.", "test", "ms", "interval", "tier", *BESIDE_MEASURED * measured, "params", "MMACs", "kept"),
        (
            (
                str(each["trial"]),
                f"{each['accuracy']['value']:.3f}",
                f"{each['test_accuracy']['value']:.3f}",
                f"{each['latency_ms']['value']:.3g}",
                f"{each['latency_ms']['low']:.3g}-{each['latency_ms']['high']:.3g}",
                each["latency_ms"]["tier"],
                *_beside_measured(each) * measured,
                f"{each['params']:,}",
                f"{each['macs'] / 1e6:.2f}",
                {True: "yes", False: "NO", None: "unknown"}[each["certificate"]["kept"]],
            )
            for each in document["members"]
        ),
    )
