"""A first look that costs milliseconds and leaves a trace, for workers of any kind to run."""

import hashlib
import os
import time
from pathlib import Path


def look(name: str, trace: Path, seconds: float) -> dict[str, float]:
    """Numbers that follow from the name alone; `trace` gets a line before and one after."""
    _note(trace, f"begun {name} {os.getpid()}")
    time.sleep(seconds)
    digest = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
    _note(trace, f"ended {name} {os.getpid()}")
    return {"dispersion": digest, "dispersion_start": digest / 2, "loss": 2 + digest, "seconds": seconds}


def _note(trace: Path, line: str) -> None:
    with trace.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")  # one write of a short line reaches the file whole
