"""Writing files so that a reader, or a full disk, never meets half of one."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` in the place of the file; until it is on the disk as a whole, the old file stays."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
