"""Whether a runtime computes what the network does: the gate that a model passes before it counts as deployable there.

Runtimes and their converters compute wrong results without a word, crash or hang, so each model is tried on numbers, in
a process of its own. What the operations of deploy graphs become is right in every runtime of `runtimes.RUNTIMES`;
`tests/contracts/test_runtimes.py` holds them to it. What is known to go wrong, and how the operations avoid it:

- attention normalised by length: MNN is 6e-2 off and pnnx makes ncnn compute something else. L2Normalize is exported as
  a mean of squares and is ncnn's own layer;
- circular padding: MNN cannot load it and pnnx makes ncnn compute something else. Circular convolutions are slices, a
  concatenation and a convolution without padding;
- a global mean written as a reduction: ncnn is 2e-1 off after pnnx. GlobalPool is a pool;
- group norm and instance norm: MNN is 6e0 off. There is no such operation;
- 3x3 convolutions in MNN's largest Winograd tiles: 3e-4 off. The runner asks for smaller ones;
- values of more than four axes: ncnn has none, `ncnn_model` refuses them.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardware.graph import DeployModel, FloatArray
from hardware.isolated import Failed, run_isolated
from hardware.runtimes import RUNTIMES

# The largest difference of outputs, relative to the largest output, at which two fp32 forms count as the same network.
PARITY_BOUND = 1e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference between two outputs, absolute and relative to the largest value of the first."""

    max_abs: float
    max_rel: float

    @property
    def is_same(self) -> bool:
        return self.max_rel <= PARITY_BOUND


def difference(first: FloatArray, second: FloatArray) -> Parity:
    """How far two results are apart; NaN in either, and another shape, count as infinitely far."""
    if first.shape != second.shape:
        return Parity(float("inf"), float("inf"))
    largest = float(np.abs(first - second).max())
    if not np.isfinite(largest):
        return Parity(float("inf"), float("inf"))
    return Parity(largest, largest / max(float(np.abs(first).max()), 1e-12))


def run_files(
    runtime: str, files: Sequence[tuple[Path, FloatArray]], *, timeout_s: float = 120
) -> list[FloatArray | Failed]:
    """What the runtime makes of each model file and its images, or why nothing; one that crashes stops no other."""
    return list(run_isolated(RUNTIMES[runtime].run, files, timeout_s=timeout_s))


def check_models(
    runtime: str,
    models: Sequence[tuple[DeployModel, FloatArray]],
    expected: Sequence[FloatArray],
    *,
    timeout_s: float = 120,
) -> list[Parity | Failed]:
    """How far each model's outputs for its images are from those expected, once it is converted, loaded and run.

    timeout_s is for one model. Conversion has a limit of its own.
    """
    chosen = RUNTIMES[runtime]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}{chosen.suffix}" for index in range(len(models))]
        written = list(chosen.write_models([(model, path) for (model, _), path in zip(models, paths, strict=True)]))
        ready = [index for index, answer in enumerate(written) if isinstance(answer, Path)]
        outputs = run_files(runtime, [(paths[index], models[index][1]) for index in ready], timeout_s=timeout_s)
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
