"""The shipped counts and the formula, made from what was counted; and a journal of counts that goes on after a stop."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hardware.armv7.benchmark_layers import ONLY_INSIDE_NETWORKS, layer_subject
from hardware.armv7.counting import Count, NotCounted, Subject, count
from hardware.armv7.ground import CPU, NCNN_VERSION, WHEEL, Ground
from hardware.calibration import COUNTED, COUNTED_THEN, layer_of, read_layers
from hardware.count_formula import check_formula, counted_works, fit_formula, formula_text
from hardware.kernel_keys import kernel_of
from hardware.ncnn_layers import work

EXECUTED = f"ncnn {NCNN_VERSION} armv7l"
HOW = f"{WHEEL}, QEMU user mode, -cpu {CPU}, one thread, fp32, weights of zero; `nas count`"

# Models that one emulated process runs; what was counted before a stop is never lost, whatever this is.
BATCH = 400


class Journal:
    """Counts as they come, a line each, found again after a stop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.counts: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                parts = line.split("\t")
                # A line that was torn off by a stop is counted again.
                if len(parts) == 3:
                    self._take(*parts)

    def add(self, name: str, found: Count | NotCounted) -> None:
        """Writes a result down at once."""
        parts = (
            (name, str(found.instructions), str(found.multiply_add_lanes))
            if isinstance(found, Count)
            else (name, "-", " ".join(found.why.split()))
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\t".join(parts) + "\n")
        self._take(*parts)

    def __contains__(self, name: str) -> bool:
        return name in self.counts or name in self.failures

    def _take(self, name: str, instructions: str, detail: str) -> None:
        if instructions == "-":
            self.failures[name] = detail
        else:
            self.counts[name] = int(instructions)


def count_missing(ground: Ground, subjects: Sequence[Subject], journal: Journal) -> Iterator[str]:
    """Counts what the journal does not have, the smallest first, and tells each name when it is done."""
    left = sorted((each for each in subjects if each.name not in journal), key=lambda each: (each.expected, each.name))
    for begin in range(0, len(left), BATCH):
        for name, found in count(ground, left[begin : begin + BATCH]):
            journal.add(name, found)
            yield name


def benchmark_subjects(layers_file: Path) -> list[Subject]:
    """The layers of the benchmark networks, each shape once, but for those that only run inside networks."""
    found: dict[str, Subject] = {}
    for row in read_layers(layers_file):
        layer = layer_of(row)
        if layer.kind not in ONLY_INSIDE_NETWORKS:
            subject = layer_subject(layer, float(row[COUNTED_THEN]))
            found.setdefault(subject.name, subject)
    return list(found.values())


def layers_text(layers_file: Path, counts: Mapping[str, int]) -> str:
    """The file of benchmark layers with these counts; what only runs inside networks keeps that of 20211208."""
    rows = read_layers(layers_file)
    for row in rows:
        layer = layer_of(row)
        inside = layer.kind in ONLY_INSIDE_NETWORKS
        row[COUNTED] = row[COUNTED_THEN] if inside else str(counts[layer_subject(layer, 0.0).name])
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def formula_table(by_kernel: Mapping[str, int], layers_file: Path) -> str:
    """The formula for what was not counted, from the counted kernels and the layers of the benchmark networks."""
    layers = {layer_of(row): float(row[COUNTED]) for row in read_layers(layers_file)}
    works, counts = counted_works((kernel_of(key), float(by_kernel[key])) for key in sorted(by_kernel))
    works += map(work, layers)
    every = np.concatenate([counts, list(layers.values())])
    return formula_text(fit_formula(works, every), check_formula(works, every))


def spread_sample(keys: Iterable[str], size: int) -> list[str]:
    """Some of the keys, always the same, from all kinds of kernels alike."""
    kinds: dict[str, list[str]] = {}
    for key in sorted(keys):
        kinds.setdefault(key.partition("(")[0], []).append(key)
    rounds = max(map(len, kinds.values()), default=0)
    order = (members[(7919 * turn) % len(members)] for turn in range(rounds) for _, members in sorted(kinds.items()))
    return list(dict.fromkeys(order))[:size]
