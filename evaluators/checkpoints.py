"""Trainings as bytes and on disk: whole or not there, and read without running what they contain."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from evaluators.training import OtherTraining, Training


def to_bytes(training: Training[Any]) -> bytes:
    """A training as it stands, to go on with elsewhere."""
    buffer = io.BytesIO()
    torch.save(training.state_dict(), buffer)
    return buffer.getvalue()


def from_bytes(training: Training[Any], state: bytes) -> None:
    """Takes a training up where it was put down.

    Raises:
        OtherTraining: the bytes are damaged, or of another training.
    """
    try:
        found: Any = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OtherTraining(f"not a checkpoint ({reason})") from error
    training.load_state_dict(found)


def write_checkpoint(state: bytes, path: Path) -> None:
    """Keeps a training in a file; until it is on the disk as a whole, the one before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(state)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_checkpoint(training: Training[Any], path: Path) -> None:
    """Keeps a training in a file, as `write_checkpoint`."""
    write_checkpoint(to_bytes(training), path)


def load_checkpoint(training: Training[Any], path: Path) -> None:
    """Takes a training up from its file.

    Raises:
        OtherTraining: the file is damaged, or of another training; it names the file.
    """
    try:
        from_bytes(training, path.read_bytes())
    except OtherTraining as error:
        raise OtherTraining(f"{path}: {error}; remove it to train from the beginning") from error
