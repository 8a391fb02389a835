"""Trainings on disk: whole or not there, and read without running what they contain."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from evaluators.training import OtherTraining, Training


def save_checkpoint(training: Training[Any], path: Path) -> None:
    """Keeps a training in a file; until it is on the disk as a whole, the one before stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(training.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(training: Training[Any], path: Path) -> None:
    """Takes a training up where it was put down.

    Raises:
        OtherTraining: the file is damaged, or of another training; it names the file.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OtherTraining(f"{path}: not a checkpoint ({reason}); remove it to train from the beginning") from error
    try:
        training.load_state_dict(state)
    except OtherTraining as error:
        raise OtherTraining(f"{path}: {error}; remove it to train from the beginning") from error
