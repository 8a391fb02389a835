"""Executed instructions by kernel: a file of counts, made by `nas count` and read by calibrated targets.

A gzipped text. Its first line says what was executed and how; each other line has a kernel's key, a tab, and how many
instructions the kernel takes.
"""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hardware.strict_yaml import ConfigError


@dataclass(frozen=True)
class InstructionCounts:
    """What was executed, such as `ncnn 1.0.20261020 armv7l`, how it was counted, and instructions by kernel key.

    sha256 is of the file's text.
    """

    executed: str
    how: str
    by_kernel: Mapping[str, int]
    sha256: str


def counts_text(executed: str, how: str, by_kernel: Mapping[str, int]) -> str:
    """The text of a file of counts, the same for the same counts."""
    lines = [f"{executed}\t{how}", *(f"{key}\t{by_kernel[key]}" for key in sorted(by_kernel))]
    return "\n".join(lines) + "\n"


def write_counts(path: Path, text: str) -> None:
    """Writes the file; equal texts make equal files."""
    path.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))


@lru_cache(maxsize=4)
def read_counts(path: Path, executed: str) -> InstructionCounts:
    """The file's counts; 30 000 of them take some 20 ms.

    Raises:
        ConfigError: it cannot be read, is no file of counts, or counts something else than `executed`.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        head, *lines = content.decode("ascii").splitlines()
        found, how = head.split("\t")
        by_kernel = {key: int(number) for key, number in (line.split("\t") for line in lines)}
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: a file of counts is needed ({error}); `nas count --write` makes it") from error
    if found != executed:
        raise ConfigError(
            f"{path}: counts must be of {executed}, which the target was calibrated with, got those of {found}; "
            "count again with `nas count --write` or calibrate anew with `nas calibrate --write`"
        )
    return InstructionCounts(found, how, by_kernel, hashlib.sha256(content).hexdigest())
