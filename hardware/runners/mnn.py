"""MNN on this machine's processor: its converter, and what a model computes.

The converter is called as the library it is. The command `mnnconvert` and `MNN.tools` install a package with pip and
report to a server of their authors when they are imported, which a tool that also works without a network must not do.

MNN prints through C, at import already. What it prints is kept from standard output and goes into the errors.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hardware.board import MNN_SMALLER_TILES
from hardware.graph import FloatArray
from hardware.strict_yaml import ConfigError


def convert(onnx_file: Path, mnn_file: Path) -> Path:
    """Writes an ONNX model of fixed shapes as MNN reads it, fp32, and says where.

    Raises:
        ConfigError: MNN cannot convert it.
    """
    arguments = ["-f", "ONNX", "--modelFile", str(onnx_file), "--MNNModel", str(mnn_file), "--bizCode", "edge-nas"]
    mnn_file.unlink(missing_ok=True)
    with _captured() as printed:
        import _tools

        succeeded = _tools.mnnconvert(["mnnconvert", *arguments])
    # It says of some models that it converted them and writes none.
    if not succeeded or not mnn_file.is_file():
        raise ConfigError(f"{onnx_file}: MNN cannot convert it ({' '.join(printed)})")
    return mnn_file


def run(mnn_file: Path, images: FloatArray) -> FloatArray:
    """What the model makes of (n, channels, height, width), one image after the other.

    Raises:
        ConfigError: MNN cannot load it or fails while it runs.
    """
    interpreter, session = _open(mnn_file)
    entering = interpreter.getSessionInput(session)
    results = []
    for image in np.ascontiguousarray(images, np.float32)[:, None]:
        entering.copyFrom(_tensor(image))
        _run_session(interpreter, session)
        leaving = interpreter.getSessionOutput(session)
        # Its own layout is not that of numpy.
        copied = _tensor(np.empty(leaving.getShape(), np.float32))
        leaving.copyToHostTensor(copied)
        results.append(np.array(copied.getNumpyData(), np.float32)[0])
    output: FloatArray = np.stack(results)
    return output


def _open(mnn_file: Path) -> tuple[Any, Any]:
    if not mnn_file.is_file():
        raise ConfigError(f"{mnn_file}: no such file")
    session = None
    with _captured() as printed:
        import MNN

        try:
            interpreter = MNN.Interpreter(str(mnn_file))
            interpreter.setSessionHint(*MNN_SMALLER_TILES)
            session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": 1})
        except Exception as error:
            # Its errors have no class of their own.
            printed.append(str(error))
    if session is None:
        raise ConfigError(f"{mnn_file}: MNN cannot load it ({' '.join(printed)})")
    return interpreter, session


def _run_session(interpreter: Any, session: Any) -> None:
    if status := interpreter.runSession(session):
        raise ConfigError(f"MNN fails while it runs the model (status {status})")


def _tensor(values: FloatArray) -> Any:
    import MNN

    return MNN.Tensor(values.shape, MNN.Halide_Type_Float, values, MNN.Tensor_DimensionType_Caffe)


@contextmanager
def _captured() -> Iterator[list[str]]:
    """Keeps what is printed meanwhile, below Python as well, from standard output; afterwards the list has its end."""
    ends: list[str] = []
    with tempfile.TemporaryFile() as printed:
        sys.stdout.flush()
        standard_output = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            yield ends
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(standard_output, 1)
            os.close(standard_output)
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - 300))
            ends.append(" ".join(printed.read().decode(errors="replace").split()))
