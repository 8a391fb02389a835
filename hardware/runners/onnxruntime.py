"""ONNX Runtime on this machine's processor: what a model computes, and what it asks for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hardware.board import onnxruntime_options
from hardware.graph import FloatArray
from hardware.strict_yaml import ConfigError


def open_session(model: onnx.ModelProto | Path) -> Any:
    """A session on one thread.

    Raises:
        ConfigError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, onnxruntime_options(threads=1), providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's errors share no class of their own; all of them mean that it cannot load the model.
        name = model if isinstance(model, Path) else "the model"
        raise ConfigError(f"{name}: ONNX Runtime cannot load it ({' '.join(str(error).split())[:300]})") from error


def run(model: onnx.ModelProto | Path, images: FloatArray) -> FloatArray:
    """What the model makes of (n, channels, height, width); one of a fixed batch takes that many images at a time."""
    session = open_session(model)
    (entering,) = session.get_inputs()
    batch = entering.shape[0] if isinstance(entering.shape[0], int) else len(images)
    parts = [np.ascontiguousarray(images[start : start + batch], np.float32) for start in range(0, len(images), batch)]
    output: FloatArray = np.concatenate([session.run(None, {entering.name: part})[0] for part in parts])
    return output


def inputs_and_output(model: Path) -> tuple[list[tuple[str, tuple[int, ...]]], str]:
    """The inputs of a model file with their shapes at batch 1, and its first output.

    Raises:
        ConfigError: ONNX Runtime cannot load the model, or a length other than the first is left open.
    """
    session = open_session(model)
    entries = []
    for entry in session.get_inputs():
        shape = tuple(1 if index == 0 else length for index, length in enumerate(entry.shape))
        if not all(isinstance(length, int) and length > 0 for length in shape):
            raise ConfigError(f"{model}: every length but the batch must be fixed, got {entry.name} {entry.shape}")
        entries.append((str(entry.name), shape))
    return entries, str(session.get_outputs()[0].name)
