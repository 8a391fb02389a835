"""`nas count` and `nas calibrate`: where the tables of calibrated targets come from, made again."""

import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hardware.armv7.count_tables import (
    EXECUTED,
    HOW,
    Journal,
    benchmark_subjects,
    count_missing,
    formula_table,
    layers_text,
    spread_sample,
)
from hardware.armv7.counting import Count, Subject, count, kernel_subject
from hardware.armv7.ground import NCNN_VERSION, Ground, make_ground, ready_ground
from hardware.boards import read_boards
from hardware.calibration import Report, calibrated, calibration_text, read_benchmark, report_text, summary
from hardware.count_formula import expected_instructions, read_formula
from hardware.instruction_counts import counts_text, read_counts, write_counts
from hardware.kernel_keys import kernel_of
from hardware.kernels import Kernel, fuse
from hardware.ops import ACTIVATIONS, Activation, Flatten, Op, Pool, Softmax, output_shape
from hardware.published import read_published
from hardware.strict_yaml import ConfigError, nearest
from hardware.target_tables import targets_table, with_table
from hardware.targets import COUNTS_FILE, FORMULA_FILE, LAYERS_FILE, TARGETS_FOLDER, cache_folder, shipped_targets
from nas.exit_codes import BROKEN_CERTIFICATE, DONE
from nas.files import write_atomically
from nas.quantities import duration_s
from nas.view import View

# How far two counts of a kernel may lie apart: what the C library copies depends on where a value happens to lie.
TOLERANCE = 0.01
# Of small kernels a few hundred instructions of memory management are more than that.
TOLERANCE_INSTRUCTIONS = 2500

REFERENCES = "references"
OPERATIONS = "operations"

# In a checkout; an installed package has none.
README = Path(__file__).parents[1] / "README.md"

# A progress line no more often than this.
_TELL_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class CountWords:
    """What was asked for: spaces whose kernels to count, or the benchmark layers, or some shipped counts again."""

    spaces: tuple[str, ...]
    benchmark: bool
    check: int | None
    time: str
    fetch: bool
    write: bool


def count_instructions(words: CountWords, view: View) -> int:
    """Counts what is asked for, and says what came of it."""
    if words.check is not None and words.check < 1:
        raise ConfigError(f"check: at least 1 kernel, got {words.check}")
    limit_s = duration_s(words.time)
    folder = cache_folder() / f"armv7-{NCNN_VERSION}"
    ground = make_ground(folder) if words.fetch else ready_ground(folder)
    if words.check is not None:
        return _check(ground, words.check, view)
    journal = Journal(folder / "counts.tsv")
    deadline = time.monotonic() + limit_s
    found: dict[str, object] = {"executed": EXECUTED}
    for name, subjects in _wanted(words):
        left = _count_until(ground, subjects, journal, deadline, name, view)
        found[name] = {"kernels": len(subjects), "counted": len(subjects) - left, "left": left}
        if not view.json:
            print(f"{name}: {len(subjects) - left} of {len(subjects)} counted")
    for name, why in journal.failures.items():
        print(f"not counted: {name}: {why}", file=sys.stderr)
    if words.write:
        _write(words, journal)
    if view.json:
        print(json.dumps(found, indent=2))
    elif not words.write:
        print(f"kept in {folder}; `--write` adds them to the shipped counts")
    return DONE


def _wanted(words: CountWords) -> Iterator[tuple[str, list[Subject]]]:
    if words.benchmark:
        yield "benchmark layers", benchmark_subjects(LAYERS_FILE)
    formula = read_formula(FORMULA_FILE.read_text(encoding="utf-8"))
    known = read_counts(COUNTS_FILE, EXECUTED).by_kernel
    for name in words.spaces:
        kernels = {kernel.key: kernel for kernel in kernels_of(name)}
        new = (kernel for key, kernel in kernels.items() if key not in known)
        yield name, [kernel_subject(kernel, expected_instructions(kernel, formula)) for kernel in new]


def kernels_of(name: str) -> Iterable[Kernel]:
    """Every kernel that a member of a space can have, for grey and colour images and ten classes, as ncnn runs them.

    'references' stands for the published reference networks, 'operations' for what alone is no part of a space but may
    be one of a space of the user's own.
    """
    from nas.device_commands import network_graph
    from nas.tables import TASKS
    from searchspace.every_block import every_block
    from searchspace.network import block_graph
    from searchspace.references import reference, reference_names
    from searchspace.spaces import space_named

    if name == OPERATIONS:
        yield from operations_alone()
        return
    rules = read_boards(TARGETS_FOLDER).fusion_rules
    if name == REFERENCES:
        for each in reference_names():
            yield from fuse(network_graph(reference(each)), rules)
        return
    for shape, block in every_block(space_named(name), TASKS):
        yield from fuse(block_graph(shape, block), rules)


def operations_alone() -> Iterator[Kernel]:
    """Activations, pools and softmax on maps of several sizes."""
    for channels, size in itertools.product((8, 16, 32, 64, 96, 128), (4, 7, 8, 14, 16, 28, 32)):
        shape = (channels, size, size)
        ops: list[Op] = [Activation(kind) for kind in ACTIVATIONS]
        ops += [Pool(kind, (window, window), 2) for kind in ("max", "average") for window in (2, 3)]
        ops += [Softmax(), Flatten()]
        for op in ops:
            yield Kernel((op,), (shape,), output_shape(op, (shape,)))


def _count_until(
    ground: Ground, subjects: list[Subject], journal: Journal, deadline: float, name: str, view: View
) -> int:
    """Counts until the time is up; returns how many are left."""
    told = time.monotonic()
    left = sum(each.name not in journal for each in subjects)
    counting = count_missing(ground, subjects, journal)
    while left and time.monotonic() < deadline and next(counting, None) is not None:
        left -= 1
        if not view.quiet and time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            print(f"{name}: {left} left", file=sys.stderr, flush=True)
    counting.close()  # type: ignore[attr-defined]
    return left


def _write(words: CountWords, journal: Journal) -> None:
    if words.benchmark:
        missing = [each.name for each in benchmark_subjects(LAYERS_FILE) if each.name not in journal.counts]
        if missing:
            raise ConfigError(
                f"write: {len(missing)} benchmark layers are not counted yet; go on without --write first"
            )
        write_atomically(LAYERS_FILE, layers_text(LAYERS_FILE, journal.counts))
    kernels = {name: number for name, number in journal.counts.items() if "(" in name}
    by_kernel = {**read_counts(COUNTS_FILE, EXECUTED).by_kernel, **kernels}
    write_counts(COUNTS_FILE, counts_text(EXECUTED, HOW, by_kernel))
    print(f"{COUNTS_FILE}: {len(by_kernel)} kernels; `nas calibrate --write` fits the formula and the boards to them")


def _check(ground: Ground, size: int, view: View) -> int:
    """Counts some of what is shipped again."""
    shipped = read_counts(COUNTS_FILE, EXECUTED).by_kernel
    sample = spread_sample(shipped, size)
    subjects = [kernel_subject(kernel_of(key), float(shipped[key])) for key in sample]
    rows = []
    for key, found in count(ground, subjects):
        now = found.instructions if isinstance(found, Count) else None
        rows.append({"kernel": key, "shipped": shipped[key], "now": now, "same": is_same(shipped[key], now)})
    different = [row for row in rows if not row["same"]]
    if view.json:
        print(json.dumps({"executed": EXECUTED, "rows": rows}, indent=2))
    else:
        exact = sum(row["shipped"] == row["now"] for row in rows)
        print(
            f"{len(rows)} kernels counted again: {exact} to the digit, {len(rows) - exact - len(different)} within the "
            f"tolerance of {TOLERANCE:.0%} or {TOLERANCE_INSTRUCTIONS} instructions, {len(different)} different"
        )
    for row in different:
        print(f"different: {row['kernel']}: shipped {row['shipped']}, now {row['now']}", file=sys.stderr)
    return BROKEN_CERTIFICATE if different else DONE


def is_same(shipped: int, now: int | None) -> bool:
    """Whether a count was found again; None where it could not be counted."""
    return now is not None and abs(now - shipped) <= max(TOLERANCE * shipped, TOLERANCE_INSTRUCTIONS)


def calibrate(name: str | None, write: bool, view: View) -> int:
    """Derives every table from the published rows and the counts, and says how well each board is predicted."""
    boards = read_boards(TARGETS_FOLDER)
    if name is not None and name not in {board.name for board in boards.boards}:
        if name in shipped_targets():
            raise ConfigError(f"target: {name} is measured and not calibrated, so there is nothing to derive")
        hint = nearest(name, [board.name for board in boards.boards])
        raise ConfigError(f"target: {name!r} has no published figures, so there is nothing to derive; {hint}")
    derived = derive()
    same = {path.name: text == path.read_text(encoding="utf-8") for path, text in derived.texts.items()}
    if write:
        for path, text in derived.texts.items():
            write_atomically(path, text)
        if README.exists():
            readme = README.read_text(encoding="utf-8")
            write_atomically(README, with_table(readme, targets_table(TARGETS_FOLDER)))
    shown = [report for report in derived.reports if name in (None, report.target)]
    if view.json:
        rows = [asdict(report) | summary(report) for report in shown]
        print(json.dumps({"reports": rows, "as_derived": all(same.values())}, indent=2))
        return DONE
    for report in shown:
        print(report_text(report) + "\n" if name is not None else _line(report))
    for file, as_derived in same.items():
        print(f"{file}: " + ("as derived" if as_derived else "rewritten" if write else "differs; --write replaces it"))
    return DONE


@dataclass(frozen=True)
class Derived:
    """What follows from the published rows and the counts: reports, and the texts of the files made of them."""

    reports: tuple[Report, ...]
    texts: dict[Path, str]


def derive() -> Derived:
    """Every calibration, and the formula for what was not counted."""
    boards = read_boards(TARGETS_FOLDER)
    counts = read_counts(COUNTS_FILE, boards.counts)
    rows = read_published(TARGETS_FOLDER / "published.csv")
    in_order = {board.name: board.in_order for board in boards.boards}
    reports = calibrated(read_benchmark(LAYERS_FILE), rows, in_order)
    texts = {
        TARGETS_FOLDER / "calibration.csv": calibration_text(reports),
        FORMULA_FILE: formula_table(counts.by_kernel, LAYERS_FILE),
    }
    return Derived(tuple(reports), texts)


def _line(report: Report) -> str:
    worst = sorted(report.rows, key=lambda row: -abs(row.percent))[:3]
    return (
        f"{report.target:20} {report.threads:2} threads, {len(report.rows)} networks: {report.mape_percent:5.1f} % "
        f"(max {report.max_percent:.0f} %); worst: "
        + ", ".join(f"{row.network} {row.percent:+.0f} %" for row in worst)
        + ("" if report.calibrates else "; published totals only")
    )
