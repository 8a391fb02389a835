"""ONNX models in eight bits: static quantization after training, with ranges that real images have been seen to take.

Weights get a scale for each output channel and activations one for each value, as pairs of QuantizeLinear and
DequantizeLinear, which every runtime of interest reads. Then the bias of each convolution is moved by what eight bits
changed its mean output. Re-parameterized networks are known to lose accuracy here: the sum of their branches has
outliers that a scale has to cover, so what comes out is tried before it counts; studies/int8 has figures.
Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, appendix D, for
the correction by observed outputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardware.graph import FloatArray
from hardware.isolated import Failed, run_isolated
from hardware.onnx_model import INPUT_NAME
from hardware.runners.onnxruntime import open_session

# Correcting biases takes a pass over the images for each convolution: seconds at 32 pixels, many minutes where images
# are large and networks deep.
TIMEOUT_S = 1800.0
BATCH = 32


@dataclass(frozen=True, slots=True)
class Int8Method:
    """How a model is brought to eight bits.

    `scales` are one for each output channel of a weight, or one for the whole tensor; `ranges` of activations reach
    from the least value seen to the largest, or leave out the rarest of them.
    """

    scales: Literal["channel", "tensor"] = "channel"
    ranges: Literal["all", "percentile"] = "all"
    corrects_biases: bool = True

    def __str__(self) -> str:
        corrected = ", biases corrected" if self.corrects_biases else ""
        ranges = "minimum and maximum" if self.ranges == "all" else "all but the rarest values"
        return f"static, QDQ, int8 weights per {self.scales}, uint8 activations, ranges from {ranges}{corrected}"


class _Images:
    """Calibration images one batch after the other, as the quantizer asks for them."""

    def __init__(self, images: FloatArray, batch: int) -> None:
        self._parts: Iterator[FloatArray] = iter(
            [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
        )

    def get_next(self) -> dict[str, FloatArray] | None:
        part = next(self._parts, None)
        return None if part is None else {INPUT_NAME: np.ascontiguousarray(part, np.float32)}


def quantize(float_file: Path, int8_file: Path, images: FloatArray, method: Int8Method = Int8Method()) -> Path | Failed:
    """Writes the model in eight bits, with ranges from `images` and the same metadata; says where, or why not.

    Runs in a process of its own.
    """
    (answer,) = run_isolated(_quantize, [(float_file, int8_file, images, method)], timeout_s=TIMEOUT_S)
    result: Path | Failed = answer
    return result


def _quantize(float_file: Path, int8_file: Path, images: FloatArray, method: Int8Method) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(float_file)
    fixed_batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    batch = fixed_batch or min(BATCH, len(images))
    quantize_static(
        float_file,
        int8_file,
        _Images(images, batch),
        quant_format=QuantFormat.QDQ,
        per_channel=method.scales == "channel",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax if method.ranges == "all" else CalibrationMethod.Percentile,
    )
    result = onnx.load(int8_file)
    if method.corrects_biases:
        correct_biases(model, result, images[: len(images) - len(images) % batch], batch)
    # It adds an entry of its own.
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    onnx.save(result, int8_file)
    return int8_file


def correct_biases(model: onnx.ModelProto, int8: onnx.ModelProto, images: FloatArray, batch: int) -> None:
    """Changes the biases of `int8` so that each channel of each convolution has the mean that it has in `model`.

    From the first convolution to the last, since each sees what those before it have left; the images are run once for
    each.
    """
    biases = _quantized_biases(int8)
    before = {node.name: node.output[0] for node in model.graph.node}
    wanted = _channel_means(model, [before[each.conv] for each in biases], images, batch)
    initializers = {each.name: each for each in int8.graph.initializer}
    for each in biases:
        found = _channel_means(int8, [each.computed], images, batch)[each.computed]
        steps = (wanted[before[each.conv]] - found) / numpy_helper.to_array(initializers[each.scale])
        values = numpy_helper.to_array(initializers[each.bias]).astype(np.int64) + np.rint(steps).astype(np.int64)
        limits = np.iinfo(np.int32)
        changed = np.clip(values, limits.min, limits.max).astype(np.int32)
        initializers[each.bias].CopyFrom(numpy_helper.from_array(changed, each.bias))


@dataclass(frozen=True, slots=True)
class _Bias:
    """A convolution by its name, what it computes, its bias in eight bits and that bias's scale.

    What it computes has the name of what its activation computed where the quantizer took that into the range.
    """

    conv: str
    computed: str
    bias: str
    scale: str


def _quantized_biases(int8: onnx.ModelProto) -> list[_Bias]:
    """Those of the convolutions in running order."""
    made_by = {node.output[0]: node for node in int8.graph.node}
    found = []
    for node in int8.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3:
            entering = made_by.get(node.input[2])
            if entering is not None and entering.op_type == "DequantizeLinear":
                found.append(_Bias(node.name, node.output[0], entering.input[0], entering.input[1]))
    return found


def _channel_means(
    model: onnx.ModelProto, names: list[str], images: FloatArray, batch: int
) -> Mapping[str, FloatArray]:
    """The mean of each channel (channels,) of maps (n, channels, height, width) within the model, over all images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        mean = f"{name} mean"
        watched.graph.node.append(helper.make_node("ReduceMean", [name], [mean], axes=[0, 2, 3], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
    session = open_session(watched)
    parts = [
        session.run(None, {INPUT_NAME: np.ascontiguousarray(images[start : start + batch], np.float32)})
        for start in range(0, len(images), batch)
    ]
    return {name: np.mean([part[index] for part in parts], axis=0) for index, name in enumerate(names)}
