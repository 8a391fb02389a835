"""ONNX models in eight bits: static quantization after training, with ranges that real images have been seen to take.

Weights get a scale for each output channel and activations one for each value, as pairs of QuantizeLinear and
DequantizeLinear, which every runtime of interest reads. Re-parameterized networks are known to lose accuracy here: the
sum of their branches has outliers that a scale has to cover, so what comes out is tried before it counts.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from hardware.graph import FloatArray
from hardware.isolated import Failed, run_isolated
from hardware.onnx_model import INPUT_NAME

# A network of 1.2 MB takes 2 s with 256 images of 32 pixels; ranges of larger images take longer.
TIMEOUT_S = 600.0


class _Images:
    """Calibration images one batch after the other, as the quantizer asks for them."""

    def __init__(self, images: FloatArray, batch: int) -> None:
        self._parts: Iterator[FloatArray] = iter(
            [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
        )

    def get_next(self) -> dict[str, FloatArray] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT_NAME: np.ascontiguousarray(part, np.float32)}


def quantize(float_file: Path, int8_file: Path, images: FloatArray) -> Path | Failed:
    """Writes the model in eight bits, with ranges from `images` and the same metadata; says where, or why not.

    Runs in a process of its own.
    """
    (answer,) = run_isolated(_quantize, [(float_file, int8_file, images)], timeout_s=TIMEOUT_S)
    result: Path | Failed = answer
    return result


def _quantize(float_file: Path, int8_file: Path, images: FloatArray) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(float_file)
    fixed_batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    quantize_static(
        float_file,
        int8_file,
        _Images(images, fixed_batch or min(32, len(images))),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    result = onnx.load(int8_file)
    # It adds an entry of its own.
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    onnx.save(result, int8_file)
    return int8_file
