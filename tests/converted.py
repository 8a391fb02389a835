"""What runtimes make of models: converted, run in a process of their own, and held against what is expected."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hardware.graph import DeployModel, FloatArray
from hardware.isolated import Failed, run_isolated
from hardware.parity import Parity, difference
from hardware.runtimes import RUNTIMES

TIMEOUT_S = 120


def run_files(runtime: str, files: Sequence[tuple[Path, FloatArray]]) -> list[FloatArray | Failed]:
    """What the runtime makes of each model file and its images, or why nothing; one that crashes stops no other."""
    return list(run_isolated(RUNTIMES[runtime].run, files, timeout_s=TIMEOUT_S))


def check_models(
    runtime: str, models: Sequence[tuple[DeployModel, FloatArray]], expected: Sequence[FloatArray]
) -> list[Parity | Failed]:
    """How far each model's outputs for its images are from those expected, once it is converted, loaded and run."""
    chosen = RUNTIMES[runtime]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}{chosen.suffix}" for index in range(len(models))]
        written = list(chosen.write_models([(model, path) for (model, _), path in zip(models, paths, strict=True)]))
        ready = [index for index, answer in enumerate(written) if isinstance(answer, Path)]
        outputs = run_files(runtime, [(paths[index], models[index][1]) for index in ready])
    computed = dict(zip(ready, outputs, strict=True))
    return [
        _judged(want, computed.get(index, answer))
        for index, (answer, want) in enumerate(zip(written, expected, strict=True))
    ]


def _judged(expected: FloatArray, computed: FloatArray | Path | Failed) -> Parity | Failed:
    if isinstance(computed, Failed):
        return computed
    assert isinstance(computed, np.ndarray)
    return difference(expected, computed)
