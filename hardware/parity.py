"""Whether two forms of a network compute the same: the gate that an exported model passes before it counts.

Runtimes and their converters compute wrong results without a word, so finalists and exported files are run on images
and compared with the trained network. What the operations of deploy graphs become is right in every runtime of
`runtimes.RUNTIMES`; `tests/contracts/test_runtimes.py` holds them to it. What is known to go wrong, and how the
operations avoid it:

- attention normalised by length: MNN is 6e-2 off and pnnx makes ncnn compute something else. L2Normalize is exported as
  a mean of squares and is ncnn's own layer;
- circular padding: MNN cannot load it and pnnx makes ncnn compute something else. Circular convolutions are slices, a
  concatenation and a convolution without padding;
- a global mean written as a reduction: ncnn is 2e-1 off after pnnx. GlobalPool is a pool;
- group norm and instance norm: MNN is 6e0 off. There is no such operation;
- 3x3 convolutions in MNN's largest Winograd tiles: 3e-4 off. The runner asks for smaller ones;
- values of more than four axes: ncnn has none, `ncnn_model` refuses them.
"""

from dataclasses import dataclass

import numpy as np

from hardware.graph import FloatArray

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
