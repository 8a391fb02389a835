"""Eight bits: what the methods change in a model, and that corrected biases bring the mean outputs back."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hardware.graph import GraphBuilder, with_weights
from hardware.onnx_int8 import Int8Method, quantize
from hardware.onnx_model import to_onnx
from hardware.ops import Activation, Conv, Flatten, GlobalPool
from hardware.runners.onnxruntime import run


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """Convolutions with one channel a hundred times the others, as the sum of branches can have."""
    builder = GraphBuilder((3, 8, 8))
    x = builder.add("first", Conv(16, (3, 3), padding=(1, 1)), builder.input)
    x = builder.add("gate", Activation("relu"), x)
    x = builder.add("depthwise", Conv(16, (3, 3), padding=(1, 1), groups=16), x)
    x = builder.add("gate2", Activation("hardswish"), x)
    x = builder.add("mean", GlobalPool(), x)
    x = builder.add("last", Conv(5, (1, 1)), x)
    builder.add("flat", Flatten(), x)
    graph = builder.build()
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in graph.weight_shapes().items()}
    weights["depthwise.weight"][3] *= 100
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(to_onnx(with_weights(graph, weights), metadata={"mean": "[0.5]"}), path)
    return path


def initializers(path):
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def quantized(float_file, path, images, **method):
    assert quantize(float_file, path, images, Int8Method(**method)) == path
    return path


def test_corrected_biases_bring_the_mean_outputs_back(float_file, images, tmp_path):
    wanted = run(float_file, images)
    offsets = {}
    for corrects in (False, True):
        for scales in ("tensor", "channel"):
            name = f"{scales}-{corrects}.onnx"
            path = quantized(float_file, tmp_path / name, images, scales=scales, corrects_biases=corrects)
            offsets[scales, corrects] = np.abs((run(path, images) - wanted).mean(0)).max()
    # The result itself is rounded to 256 values, which no bias mends.
    rounding = (wanted.max() - wanted.min()) / 255 / 2
    assert offsets["channel", True] <= rounding
    assert offsets["tensor", True] <= rounding < offsets["tensor", False], (offsets, rounding)


def test_correction_changes_biases_and_nothing_else(float_file, images, tmp_path):
    plain = initializers(quantized(float_file, tmp_path / "plain.onnx", images, corrects_biases=False))
    corrected = initializers(quantized(float_file, tmp_path / "corrected.onnx", images))
    changed = {name for name in plain if not np.array_equal(plain[name], corrected[name])}
    assert {name.partition(".")[0] for name in changed} <= {"first", "depthwise", "last"}
    assert changed, "something was to be corrected"
    assert all(name.endswith(".bias_quantized") for name in changed)
    assert {entry.key for entry in onnx.load(tmp_path / "corrected.onnx").metadata_props} == {"mean"}


def test_a_scale_for_each_channel_keeps_the_weak_channels_of_a_tensor_with_an_outlier(float_file, images, tmp_path):
    wanted = initializers(float_file)["depthwise.weight"]
    errors = {}
    for scales in ("tensor", "channel"):
        kept = initializers(quantized(float_file, tmp_path / f"{scales}.onnx", images, scales=scales))
        scale = kept["depthwise.weight_scale"].reshape(-1, 1, 1, 1)
        back = kept["depthwise.weight_quantized"].astype(np.float32) * scale
        errors[scales] = np.abs(np.delete(back - wanted, 3, 0)).max()
    # Half a step of the outlier's scale against half a step of their own.
    assert errors["tensor"] > 20 * errors["channel"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            Int8Method(),
            "int8 weights per channel, uint8 activations, ranges from minimum and maximum, biases corrected",
        ),
        (
            Int8Method("tensor", "percentile", False),
            "per tensor, uint8 activations, ranges from all but the rarest values",
        ),
    ],
)
def test_a_method_says_what_it_does(method, words):
    assert str(method).endswith(words)
