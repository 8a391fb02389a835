"""A deploy model as ONNX: one emitter per operation, so that nothing is left to a tracer's guess.

The file is plain: one input `image` (batch, channels, height, width), one output `logits` or what the graph makes,
fp32 weights inside, operator set 17, which every runtime of interest reads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardware.graph import DeployGraph, DeployModel, Node
from hardware.ops import (
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    Flatten,
    GlobalPool,
    Input,
    L2Normalize,
    MatMul,
    Mul,
    MulConstant,
    Pool,
    Reshape,
    Slice,
    Softmax,
)

OPSET = 17
# The newest onnx writes a later version of the container than older runtimes accept; 8 belongs to operator set 17.
IR_VERSION = 8
INPUT_NAME = "image"
OUTPUT_NAME = "output"

# (node, its input names, its output name) to the ONNX nodes that compute it.
Emitter = Callable[[Node, Sequence[str], str], list[onnx.NodeProto]]


def _one(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(op_type, list(inputs), [output], name=output, **attributes)]


def _conv(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    op = node.op
    assert isinstance(op, Conv)
    return _one(
        "Conv",
        [*inputs, f"{node.name}.weight", f"{node.name}.bias"],
        output,
        kernel_shape=op.kernel,
        strides=(op.stride, op.stride),
        pads=(*op.padding, *op.padding),
        dilations=(op.dilation, op.dilation),
        group=op.groups,
    )


def _pool(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    op = node.op
    assert isinstance(op, Pool)
    window = {"kernel_shape": op.kernel, "strides": (op.stride, op.stride), "pads": (*op.padding, *op.padding)}
    if op.kind == "average":
        return _one("AveragePool", inputs, output, count_include_pad=1, **window)
    return _one("MaxPool", inputs, output, **window)


def _relu6(inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    return _one("Clip", [*inputs, "zero", "six"], output)


def _silu(inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    gate = f"{output}_gate"
    return [*_one("Sigmoid", inputs, gate), *_one("Mul", [inputs[0], gate], output)]


def _gelu(inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    # x / 2 (1 + erf(x / sqrt 2)); Gelu itself exists from operator set 20 only. ONNX Runtime makes one operation of it
    # if it is written with a division, as torch writes it: 0.12 ms in the place of 0.21.
    scaled, error, shifted, half = (f"{output}_{part}" for part in ("scaled", "erf", "shifted", "half"))
    return [
        *_one("Div", [inputs[0], "root_two"], scaled),
        *_one("Erf", [scaled], error),
        *_one("Add", [error, "one"], shifted),
        *_one("Mul", [inputs[0], "half"], half),
        *_one("Mul", [half, shifted], output),
    ]


ACTIVATIONS: Mapping[str, Callable[[Sequence[str], str], list[onnx.NodeProto]]] = {
    "relu": lambda inputs, output: _one("Relu", inputs, output),
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": lambda inputs, output: _one("HardSwish", inputs, output),
    "hardsigmoid": lambda inputs, output: _one("HardSigmoid", inputs, output, alpha=1 / 6, beta=0.5),
    "sigmoid": lambda inputs, output: _one("Sigmoid", inputs, output),
    "gelu": _gelu,
}

CONSTANTS: Mapping[str, float] = {"zero": 0, "six": 6, "one": 1, "half": 0.5, "root_two": 2**0.5}


def _activation(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    assert isinstance(node.op, Activation)
    return ACTIVATIONS[node.op.kind](inputs, output)


def _constant(name: str, values: npt.ArrayLike, dtype: npt.DTypeLike) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(np.array(values, dtype)))


def _concat(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    assert isinstance(node.op, Concat)
    return _one("Concat", inputs, output, axis=node.op.axis + 1)


def _slice(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    op = node.op
    assert isinstance(op, Slice)
    bounds = {f"{output}_start": op.start, f"{output}_stop": op.stop, f"{output}_axis": op.axis + 1}
    return [
        *(_constant(name, [value], np.int64) for name, value in bounds.items()),
        *_one("Slice", [*inputs, *bounds], output),
    ]


def _channel_norm(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    # The operator norms the last axes, so the channels go there and back. Written out as means, differences and a root
    # it is as portable, but takes onnxruntime up to twice as long.
    op = node.op
    assert isinstance(op, ChannelNorm)
    last, normed = f"{output}_last", f"{output}_normed"
    weights, constants = [f"{node.name}.scale", f"{node.name}.shift"], []
    if not op.affine:
        # The operator may leave out the shift, not the scale.
        weights = [f"{output}_ones"]
        constants = [_constant(weights[0], np.ones(node.shape[0]), np.float32)]
    return [
        *constants,
        *_one("Transpose", inputs, last, perm=(0, 2, 3, 1)),
        *_one("LayerNormalization", [last, *weights], normed, axis=-1, epsilon=op.epsilon),
        *_one("Transpose", [normed], output, perm=(0, 3, 1, 2)),
    ]


def _conv_transpose(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    op = node.op
    assert isinstance(op, ConvTranspose)
    size = (op.size, op.size)
    weights = [f"{node.name}.weight", f"{node.name}.bias"]
    return _one("ConvTranspose", [*inputs, *weights], output, kernel_shape=size, strides=size)


def _reshape(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    assert isinstance(node.op, Reshape)
    shape = f"{output}_shape"
    return [_constant(shape, [-1, *node.op.shape], np.int64), *_one("Reshape", [*inputs, shape], output)]


def _l2_normalize(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    # By way of the global mean: pnnx takes the norm operators for a torch function that ncnn then computes wrong.
    op = node.op
    assert isinstance(op, L2Normalize)
    squares, mean, total, positive, length, count, epsilon = (
        f"{output}_{part}" for part in ("squares", "mean", "total", "positive", "length", "count", "epsilon")
    )
    return [
        _constant(count, node.shape[1] * node.shape[2], np.float32),
        _constant(epsilon, op.epsilon, np.float32),
        *_one("Mul", [inputs[0], inputs[0]], squares),
        *_one("GlobalAveragePool", [squares], mean),
        *_one("Mul", [mean, count], total),
        *_one("Add", [total, epsilon], positive),
        *_one("Sqrt", [positive], length),
        *_one("Div", [inputs[0], length], output),
    ]


def _matmul(node: Node, inputs: Sequence[str], output: str) -> list[onnx.NodeProto]:
    op = node.op
    assert isinstance(op, MatMul)
    if not op.transpose_second:
        return _one("MatMul", inputs, output)
    turned, axes = f"{output}_turned", len(node.shape)
    return [
        *_one("Transpose", [inputs[1]], turned, perm=(*range(axes - 1), axes, axes - 1)),
        *_one("MatMul", [inputs[0], turned], output),
    ]


EMITTERS: Mapping[type, Emitter] = {
    Input: lambda node, inputs, output: [],
    Conv: _conv,
    Pool: _pool,
    GlobalPool: lambda node, inputs, output: _one("GlobalAveragePool", inputs, output),
    Activation: _activation,
    Add: lambda node, inputs, output: _one("Add", inputs, output),
    Mul: lambda node, inputs, output: _one("Mul", inputs, output),
    Flatten: lambda node, inputs, output: _one("Flatten", inputs, output, axis=1),
    Concat: _concat,
    Slice: _slice,
    AddConstant: lambda node, inputs, output: _one("Add", [*inputs, f"{node.name}.constant"], output),
    MulConstant: lambda node, inputs, output: _one("Mul", [*inputs, f"{node.name}.constant"], output),
    ChannelNorm: _channel_norm,
    ConvTranspose: _conv_transpose,
    Reshape: _reshape,
    L2Normalize: _l2_normalize,
    MatMul: _matmul,
    Softmax: lambda node, inputs, output: _one("Softmax", inputs, output, axis=-1),
}


def to_onnx(
    model: DeployModel, *, metadata: Mapping[str, str] | None = None, batch: int | None = None
) -> onnx.ModelProto:
    """The model as ONNX, checked by onnx itself.

    batch None leaves the first axis free; a number fixes it, as the smallest devices want. `metadata` travels inside
    the file.
    """
    graph = model.graph
    names = [INPUT_NAME] + [node.name for node in graph.nodes[1:-1]] + [OUTPUT_NAME]
    nodes = [
        emitted
        for index, node in enumerate(graph.nodes)
        for emitted in EMITTERS[type(node.op)](node, [names[source] for source in node.inputs], names[index])
    ]
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name)
        for name, value in model.weights.items()
    ]
    first_axis: int | str = "batch" if batch is None else batch
    proto = _model(
        nodes,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [first_axis, *graph.input_shape])],
        helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [first_axis, *graph.output_shape]),
        weights,
    )
    helper.set_model_props(proto, dict(metadata or {}))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def weightless_onnx(graph: DeployGraph) -> onnx.ModelProto:
    """The graph as a model of a few kilobytes that runs as long as one with weights: the runtime fills them in.

    Every weight has a value of its own. ONNX Runtime keeps equal constants once, and a network whose blocks share their
    weights reads them from the cache: 0.9 ms in the place of 1.4 for one with 36 MB of weights.
    """
    names = [INPUT_NAME] + [node.name for node in graph.nodes[1:-1]] + [OUTPUT_NAME]
    filled: list[onnx.NodeProto] = []
    shapes: list[onnx.TensorProto] = []
    for index, (name, shape) in enumerate(graph.weight_shapes().items()):
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.01 * (1 + 1e-3 * index)])
        shapes.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"))
        filled += [helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value)]
    nodes = [
        emitted
        for index, node in enumerate(graph.nodes)
        for emitted in EMITTERS[type(node.op)](node, [names[source] for source in node.inputs], names[index])
    ]
    return _model(
        filled + nodes,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [1, *graph.input_shape])],
        helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [1, *graph.output_shape]),
        shapes,
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), name) for name, value in CONSTANTS.items() if name in used
    ]
    return helper.make_model(
        helper.make_graph(nodes, "network", inputs, [output], initializer=weights + constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edge-nas",
    )
