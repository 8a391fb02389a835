"""ONNX models as MNN reads them, through its own converter in a process of its own."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from hardware.isolated import Failed, run_isolated
from hardware.runners import mnn

# The largest of the published networks takes one second.
CONVERT_TIMEOUT_S = 60.0


def write_mnn(models: Iterable[tuple[onnx.ModelProto, Path]]) -> Iterator[Path | Failed]:
    """Converts each model into its .mnn file, one after the other as the results are asked for.

    Starting the converter takes 0.2 s once, then a small network takes 5 ms, a large one up to a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield from run_isolated(mnn.convert, _saved(models, Path(folder) / "model.onnx"), timeout_s=CONVERT_TIMEOUT_S)


def _saved(models: Iterable[tuple[onnx.ModelProto, Path]], onnx_file: Path) -> Iterator[tuple[Path, Path]]:
    # One at a time: hundreds of networks fill memory and disk.
    for model, mnn_file in models:
        onnx.save(model, onnx_file)
        yield onnx_file, mnn_file
