"""ONNX models as MNN reads them, through its own converter in a process of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from hardware.isolated import Failed, run_isolated
from hardware.runners import mnn

# The largest of the published networks takes one second.
CONVERT_TIMEOUT_S = 60.0


def write_mnn(models: Sequence[tuple[onnx.ModelProto, Path]]) -> Iterator[Path | Failed]:
    """Converts each model into its .mnn file, one after the other as the results are asked for.

    Starting the converter takes 0.2 s once, then a kernel takes about a millisecond, a network up to a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
        for file, (model, _) in zip(files, models, strict=True):
            onnx.save(model, file)
        targets = [path for _, path in models]
        answers = run_isolated(mnn.convert, list(zip(files, targets, strict=True)), timeout_s=CONVERT_TIMEOUT_S)
        for path, answer in zip(targets, answers, strict=True):
            yield answer if isinstance(answer, Failed) else path
