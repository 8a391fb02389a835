"""How many instructions ncnn executes for models, one after the other under QEMU."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hardware.armv7.ground import SOURCES, Ground
from hardware.kernels import Kernel
from hardware.ncnn_model import KernelModel, kernel_model
from hardware.ops import Shape

# A first run takes one or two thousand instructions more than later ones, for memory that is then there. Of so many it
# is less than half a percent.
WARM_BELOW_INSTRUCTIONS = 5e5


# What it takes to stop behind a model and ask for its value, which a network does once and not behind every kernel.
# Found by counting small networks whole, beside the sum of their kernels: studies/instruction_counts.
ASKING_INSTRUCTIONS = 1100


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to count, by a name of its own.

    `ready` are computed beforehand, and then `output` is counted. expected is about how many instructions that is:
    small ones run twice, and the second run counts.
    """

    name: str
    param: str
    inputs: tuple[tuple[str, Shape], ...]
    ready: tuple[str, ...]
    output: str
    expected: float


@dataclass(frozen=True, slots=True)
class Count:
    """What was executed: instructions, and lanes of floating-point NEON multiply-adds among them."""

    instructions: int
    multiply_add_lanes: int


@dataclass(frozen=True, slots=True)
class NotCounted:
    """The runtime cannot run a subject."""

    why: str


def kernel_subject(kernel: Kernel, expected: float) -> Subject:
    """A kernel of our graphs, named by its key.

    Raises:
        ValueError: ncnn cannot hold a value of it.
    """
    return model_subject(kernel.key, kernel_model(kernel), expected)


def model_subject(name: str, model: KernelModel, expected: float) -> Subject:
    return Subject(name, model.param, model.inputs, model.ready, model.output, expected)


def count(ground: Ground, subjects: Sequence[Subject]) -> Iterator[tuple[str, Count | NotCounted]]:
    """What each subject takes, in their order, as soon as it is known."""
    begin = 0
    while begin < len(subjects):
        for found in _count_until_crash(ground, subjects[begin:]):
            yield subjects[begin].name, found
            begin += 1


def _count_until_crash(ground: Ground, subjects: Sequence[Subject]) -> Iterator[Count | NotCounted]:
    """The counts in order; the last one says so where the emulated process died in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked, marks, complaints = folder / "subjects.jsonl", folder / "marks", folder / "complaints"
        asked.write_text("".join(map(_line, subjects)), encoding="utf-8")
        marks.touch()
        command = ground.command([str(SOURCES / "guest.py"), str(asked)], marks)
        with (
            complaints.open("wb") as stderr,
            marks.open(encoding="ascii") as made,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=ground.environment()) as process,
        ):
            assert process.stdout is not None
            done = 0
            try:
                for line in process.stdout:
                    count_of_marks, why = json.loads(line)
                    yield _result(made, count_of_marks, why)
                    done += 1
            finally:
                if process.poll() is None and done < len(subjects):
                    process.terminate()
            code = process.wait()
        if done < len(subjects):
            said = complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            yield NotCounted(f"the emulated process ends with code {code} ({said[-1][:200] if said else 'silently'})")


def _line(subject: Subject) -> str:
    asked = {
        "param": subject.param,
        # ncnn names the innermost axis first.
        "inputs": [[name, list(reversed(shape))] for name, shape in subject.inputs],
        "ready": subject.ready,
        "output": subject.output,
        "rounds": 2 if subject.expected < WARM_BELOW_INSTRUCTIONS else 1,
    }
    return json.dumps(asked) + "\n"


def _result(made: IO[str], count_of_marks: int, why: str) -> Count | NotCounted:
    counts = [tuple(map(int, made.readline().split())) for _ in range(count_of_marks)]
    if why:
        return NotCounted(why)
    # The value was there when it was asked for once more, so that this is what handing it over takes.
    (computed, lanes), (handed_over, _) = counts[-2:]
    return Count(max(1, computed - handed_over - ASKING_INSTRUCTIONS), lanes)
