"""Deploy graphs as ncnn reads them: a text of layers (.param) and their weights behind each other (.bin).

Written directly, without an exporter and its optimizer between: that is exact, needs nothing but numpy and takes
milliseconds. It does what ncnn's own optimizer would do: an activation behind a convolution runs inside it, and a 1x1
convolution of a vector is an inner product. Inputs are called in0, in1 and so on, the output out0, as pnnx names them.

What a global pool leaves is a vector of ncnn, not a map of 1x1, and stays one for as long as the operations can take
it; where one cannot, a reshape makes a map of it.

Source: https://github.com/Tencent/ncnn/wiki/operators and the layers' own load_param and load_model.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from hardware.graph import DeployGraph, DeployModel, FloatArray
from hardware.kernels import FusionRule, Kernel, steps
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
    Op,
    Pool,
    Reshape,
    Shape,
    Slice,
    Softmax,
    label,
    weight_shapes,
)

MAGIC = 7767517
OUTPUT_NAME = "out0"

Parameter = int | float | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """A value and the shape in which ncnn holds it: (c,) for what a global pool leaves, else as in the graph."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Layer:
    """One line of a .param, and what it reads of the .bin.

    flagged weights have four bytes before them that say how they are stored, zeros for fp32; plain ones follow those.
    """

    kind: str
    inputs: tuple[Blob, ...]
    outputs: tuple[Blob, ...]
    params: Mapping[int, Parameter]
    flagged: tuple[FloatArray, ...] = ()
    plain: tuple[FloatArray, ...] = ()


@dataclass(frozen=True, slots=True)
class NcnnModel:
    """The text of a .param and the bytes of the .bin that belongs to it."""

    param: str
    weights: bytes

    def save(self, param_path: Path) -> None:
        """Writes both, the weights beside the .param under the same name with .bin."""
        param_path.write_text(self.param, encoding="ascii")
        param_path.with_suffix(".bin").write_bytes(self.weights)


# (operation, what enters, name and shape of what leaves, learnt tensors by name) to the layers that compute it.
Emitter = Callable[[Op, Sequence[Blob], Blob, Mapping[str, FloatArray]], list[Layer]]

# What ncnn runs inside a convolution, as activation_type and its parameters, by the layer that it would be otherwise.
ACTIVATIONS_INSIDE: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "ReLU": (1, ()),
    "Clip": (3, (0.0, 6.0)),
    "Sigmoid": (4, ()),
    "HardSwish": (6, (1 / 6, 0.5)),
}
TAKES_ACTIVATION = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct", "Deconvolution"})

# The same in the words of the operations, as `kernels.fuse` takes it.
FUSION_RULES: tuple[FusionRule, ...] = tuple(
    (convolution, activation)
    for convolution in ("conv", "conv_transpose")
    for activation in ("relu", "relu6", "sigmoid", "hardswish")
)


def _one(kind: str, inputs: Sequence[Blob], output: Blob, params: Mapping[int, Parameter] | None = None) -> list[Layer]:
    return [Layer(kind, tuple(inputs), (output,), params or {})]


def _extents(shape: Shape, keys: tuple[int, int, int, int]) -> dict[int, Parameter]:
    """The lengths of `shape` under the keys for width, height, channels and depth."""
    width, height, channels, depth = keys
    places = {1: (width,), 2: (height, width), 3: (channels, height, width), 4: (channels, depth, height, width)}
    if len(shape) not in places:
        raise ValueError(f"ncnn holds values of 1 to 4 axes, got {shape}; reshape to fewer")
    return dict(zip(places[len(shape)], shape, strict=True))


def _reshape_layer(source: Blob, output: Blob) -> Layer:
    return Layer("Reshape", (source,), (output,), _extents(output.shape, (0, 1, 2, 11)))


def _conv(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, Conv)
    weight, bias = weights["weight"], weights["bias"]
    if len(inputs[0].shape) == 1:
        params: dict[int, Parameter] = {0: op.out_channels, 1: 1, 2: weight.size}
        vector = Blob(output.name, (op.out_channels,))
        return [Layer("InnerProduct", tuple(inputs), (vector,), params, (weight,), (bias,))]
    params = {
        0: op.out_channels,
        1: op.kernel[1],
        11: op.kernel[0],
        2: op.dilation,
        3: op.stride,
        4: op.padding[1],
        14: op.padding[0],
        5: 1,
        6: weight.size,
    }
    if op.groups > 1:
        params[7] = op.groups
    kind = "ConvolutionDepthWise" if op.groups > 1 else "Convolution"
    return [Layer(kind, tuple(inputs), (output,), params, (weight,), (bias,))]


def _conv_transpose(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, ConvTranspose)
    # Ours are (in, out, k, k).
    weight = weights["weight"].swapaxes(0, 1)
    params: dict[int, Parameter] = {0: op.out_channels, 1: op.size, 3: op.size, 5: 1, 6: weight.size}
    return [Layer("Deconvolution", tuple(inputs), (output,), params, (weight,), (weights["bias"],))]


def _pool(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, Pool)
    params: dict[int, Parameter] = {
        0: int(op.kind == "average"),
        1: op.kernel[1],
        11: op.kernel[0],
        2: op.stride,
        3: op.padding[1],
        13: op.padding[0],
        5: 1,  # windows that stick out at the end are left away
        6: 1,  # padding counts
    }
    return _one("Pooling", inputs, output, params)


def _global_pool(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    return _one("Pooling", inputs, Blob(output.name, output.shape[:1]), {0: 1, 4: 1})


ACTIVATIONS: Mapping[str, tuple[str, Mapping[int, Parameter]]] = {
    "relu": ("ReLU", {}),
    "relu6": ("Clip", {0: 0.0, 1: 6.0}),
    "silu": ("Swish", {}),
    "hardswish": ("HardSwish", {0: 1 / 6, 1: 0.5}),
    "hardsigmoid": ("HardSigmoid", {0: 1 / 6, 1: 0.5}),
    "sigmoid": ("Sigmoid", {}),
    "gelu": ("GELU", {0: 0}),
}


def _activation(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, Activation)
    kind, params = ACTIVATIONS[op.kind]
    return _one(kind, inputs, Blob(output.name, inputs[0].shape), params)


def _binary(operation: int) -> Emitter:
    def emit(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
        # A vector is spread over a map along the channels, whichever of the two comes first.
        shape = max((blob.shape for blob in inputs), key=len)
        return _one("BinaryOp", inputs, Blob(output.name, shape), {0: operation})

    return emit


def _constant(per_channel: str, operation: int) -> Emitter:
    """A layer of its own where the constant varies along the first axis only, else a binary one with a stored value."""

    def emit(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
        assert isinstance(op, AddConstant | MulConstant)
        constant, result = weights["constant"], Blob(output.name, inputs[0].shape)
        if prod(op.shape[1:]) == 1 and op.shape[0] == inputs[0].shape[0]:
            params: dict[int, Parameter] = {0: constant.size}
            return [Layer(per_channel, tuple(inputs), (result,), params, plain=(constant,))]
        stored = Blob(f"{output.name}.constant", op.shape)
        return [
            Layer("MemoryData", (), (stored,), _extents(op.shape, (0, 1, 2, 11)), plain=(constant,)),
            Layer("BinaryOp", (*inputs, stored), (result,), {0: operation}),
        ]

    return emit


def _concat(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, Concat)
    return _one("Concat", inputs, output, {0: op.axis})


def _slice(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, Slice)
    return _one("Crop", inputs, output, {9: (op.start,), 10: (op.stop,), 11: (op.axis,)})


def _channel_norm(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    # ncnn norms along rows, so that the channels go there and back.
    assert isinstance(op, ChannelNorm)
    channels, height, width = output.shape
    last, normed = (Blob(f"{output.name}.{part}", (height, width, channels)) for part in ("last", "normed"))
    params: dict[int, Parameter] = {0: channels, 1: op.epsilon, 2: int(op.affine)}
    affine = (weights["scale"], weights["shift"]) if op.affine else ()
    return [
        *_one("Permute", inputs, last, {0: 3}),
        Layer("LayerNorm", (last,), (normed,), params, plain=affine),
        *_one("Permute", (normed,), output, {0: 4}),
    ]


def _l2_normalize(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    # Over all positions (0), with one scale for all channels (1, 3), which is 1; epsilon goes under the root (9).
    assert isinstance(op, L2Normalize)
    params: dict[int, Parameter] = {0: 1, 1: 1, 2: op.epsilon, 3: 1, 4: 0, 9: 0}
    return [Layer("Normalize", tuple(inputs), (output,), params, plain=(np.ones(1, np.float32),))]


def _matmul(op: Op, inputs: Sequence[Blob], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    assert isinstance(op, MatMul)
    return _one("MatMul", inputs, output, {0: int(op.transpose_second)})


EMITTERS: Mapping[type, Emitter] = {
    Input: lambda op, inputs, output, weights: _one("Input", (), output, _extents(output.shape, (0, 1, 2, 11))),
    Conv: _conv,
    Pool: _pool,
    GlobalPool: _global_pool,
    Activation: _activation,
    Add: _binary(0),
    Mul: _binary(2),
    Flatten: lambda op, inputs, output, weights: _one("Flatten", inputs, output),
    Concat: _concat,
    Slice: _slice,
    AddConstant: _constant("Bias", 0),
    MulConstant: _constant("Scale", 2),
    ChannelNorm: _channel_norm,
    ConvTranspose: _conv_transpose,
    Reshape: lambda op, inputs, output, weights: [_reshape_layer(inputs[0], output)],
    L2Normalize: _l2_normalize,
    MatMul: _matmul,
    Softmax: lambda op, inputs, output, weights: _one("Softmax", inputs, output, {0: len(output.shape) - 1, 1: 1}),
}


# Which operations compute on vectors what they would on maps of 1x1; the others get maps.
TAKES_VECTORS: Mapping[type, Callable[..., bool]] = {
    # Without padding its kernel is 1x1.
    Conv: lambda op: op.padding == (0, 0) and op.groups == 1,
    Activation: lambda op: True,
    Add: lambda op: True,
    Mul: lambda op: True,
    Flatten: lambda op: True,
}


def _takes_vectors(op: Op) -> bool:
    return type(op) in TAKES_VECTORS and TAKES_VECTORS[type(op)](op)


def _emit(op: Op, inputs: Sequence[tuple[Blob, Shape]], output: Blob, weights: Mapping[str, FloatArray]) -> list[Layer]:
    """The layers for one operation, after those that make maps of vectors where it needs maps.

    Each input comes with its shape in the graph.
    """
    layers, entering = [], [blob for blob, _ in inputs]
    if not _takes_vectors(op):
        for index, (blob, shape) in enumerate(inputs):
            if blob.shape != shape:
                entering[index] = Blob(f"{output.name}.map{index}", shape)
                layers.append(_reshape_layer(blob, entering[index]))
    return [*layers, *EMITTERS[type(op)](op, entering, output, weights)]


def to_ncnn(model: DeployModel) -> NcnnModel:
    """The model as ncnn reads it, fp32.

    Raises:
        ValueError: a value in it has more than four axes.
    """
    layers = _graph_layers(model.graph, model.weights)
    return NcnnModel(_text(layers), b"".join(map(_stored, layers)))


def graph_param(graph: DeployGraph) -> str:
    """The .param of a graph alone, which ncnn can time with weights of zeros (`DataReaderFromEmpty`, benchncnn).

    Raises:
        ValueError: a value in it has more than four axes.
    """
    return _text(_graph_layers(graph, {name: _zeros(shape) for name, shape in graph.weight_shapes().items()}))


def _zeros(shape: Shape) -> FloatArray:
    # Without memory of their own: only how many there are matters.
    return np.broadcast_to(np.float32(0), shape)


def _graph_layers(graph: DeployGraph, weights: Mapping[str, FloatArray]) -> list[Layer]:
    layers: list[Layer] = []
    values: list[Blob] = []
    for node in graph.nodes:
        inputs = [(values[source], graph.nodes[source].shape) for source in node.inputs]
        own = {tensor: weights[f"{node.name}.{tensor}"] for tensor in weight_shapes(node.op, graph.input_shapes(node))}
        name = "in0" if isinstance(node.op, Input) else node.name
        try:
            layers += _emit(node.op, inputs, Blob(name, node.shape), own)
        except ValueError as error:
            raise ValueError(f"{label(node.op)} {node.name!r}: {error}") from error
        values.append(layers[-1].outputs[0])
    if values[-1].shape != graph.output_shape:
        layers.append(_reshape_layer(values[-1], Blob(OUTPUT_NAME, graph.output_shape)))
    return _finished(layers)


def _finished(layers: list[Layer]) -> list[Layer]:
    return _with_splits(_with_output_name(_with_activations_inside(layers)))


def _readers(layers: Sequence[Layer]) -> Counter[str]:
    return Counter(blob.name for layer in layers for blob in layer.inputs)


def _with_activations_inside(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with each activation inside the convolution before it, where nothing else reads what is between."""
    readers = _readers(layers)
    result: list[Layer] = []
    writer: dict[str, int] = {}
    for layer in layers:
        before = writer.get(layer.inputs[0].name) if layer.kind in ACTIVATIONS_INSIDE else None
        if before is not None and _can_take_activation(result[before]) and readers[layer.inputs[0].name] == 1:
            kind, numbers = ACTIVATIONS_INSIDE[layer.kind]
            inside: dict[int, Parameter] = {9: kind, 10: numbers} if numbers else {9: kind}
            result[before] = replace(result[before], outputs=layer.outputs, params={**result[before].params, **inside})
            writer[layer.outputs[0].name] = before
            continue
        result.append(layer)
        writer.update((blob.name, len(result) - 1) for blob in layer.outputs)
    return result


def _can_take_activation(layer: Layer) -> bool:
    return layer.kind in TAKES_ACTIVATION and 9 not in layer.params


def _with_output_name(layers: list[Layer]) -> list[Layer]:
    last = layers[-1]
    return [*layers[:-1], replace(last, outputs=(replace(last.outputs[0], name=OUTPUT_NAME),))]


def _with_splits(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with a copy by name for each reader of a value: ncnn gives a value to one layer only."""
    readers = _readers(layers)
    copies: dict[str, list[Blob]] = {}
    result = []
    for layer in layers:
        inputs = tuple(copies[blob.name].pop(0) if blob.name in copies else blob for blob in layer.inputs)
        result.append(replace(layer, inputs=inputs))
        for blob in layer.outputs:
            if readers[blob.name] > 1:
                copies[blob.name] = [
                    replace(blob, name=f"{blob.name}.copy{index}") for index in range(readers[blob.name])
                ]
                result.append(Layer("Split", (blob,), tuple(copies[blob.name]), {}))
    return result


def _text(layers: Sequence[Layer]) -> str:
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(MAGIC), f"{len(layers)} {blobs}"]
    for layer in layers:
        names = [blob.name for blob in (*layer.inputs, *layer.outputs)]
        parameters = [_parameter(key, value) for key, value in sorted(layer.params.items())]
        counts = [str(len(layer.inputs)), str(len(layer.outputs))]
        lines.append(" ".join([layer.kind, layer.outputs[0].name, *counts, *names, *parameters]))
    return "\n".join(lines) + "\n"


def _parameter(key: int, value: Parameter) -> str:
    # Lists go under -23300 minus the key, behind their length; what has a point or an exponent is read as a float.
    if isinstance(value, tuple):
        return f"{-23300 - key}={','.join(map(str, (len(value), *value)))}"
    return f"{key}={value}"


def _stored(layer: Layer) -> bytes:
    flagged = (bytes(4) + _bytes(values) for values in layer.flagged)
    return b"".join([*flagged, *map(_bytes, layer.plain)])


def _bytes(values: FloatArray) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()


@dataclass(frozen=True, slots=True)
class KernelModel:
    """A kernel alone: the text of its .param, and the names of the values that enter it and of the one that leaves.

    The inputs come with their shapes as ncnn holds them. Between each and the kernel stands a ReLU, whose result
    `ready` names: it brings the value into the layout in which a layer before would have left it inside a network.
    """

    param: str
    inputs: tuple[tuple[str, Shape], ...]
    ready: tuple[str, ...]
    output: str


def kernel_model(kernel: Kernel) -> KernelModel:
    """A kernel as a model of its own; what enters it as one pixel is a vector, as a global pool leaves it.

    Raises:
        ValueError: a value in it has more than four axes.
    """
    layers: list[Layer] = []
    entering: list[tuple[Blob, Shape]] = []
    for index, shape in enumerate(kernel.in_shapes):
        held = shape[:1] if len(shape) == 3 and prod(shape[1:]) == 1 else shape
        source, ready = Blob(f"in{index}", held), Blob(f"ready{index}", held)
        layers += [*_one("Input", (), source, _extents(held, (0, 1, 2, 11))), *_one("ReLU", (source,), ready)]
        entering.append((ready, shape))
    before = len(layers)
    for op, op_shapes, out_shape in steps(kernel):
        inputs, entering = entering[: len(op_shapes)], entering[len(op_shapes) :]
        weights = {name: _zeros(shape) for name, shape in weight_shapes(op, op_shapes).items()}
        layers += _emit(op, inputs, Blob(f"value{len(layers)}", out_shape), weights)
        entering.insert(0, (layers[-1].outputs[0], out_shape))
    sources = [layer.outputs[0] for layer in layers[:before] if layer.kind == "Input"]
    return KernelModel(
        _text(_finished(layers)),
        tuple((blob.name, blob.shape) for blob in sources),
        tuple(f"ready{index}" for index in range(len(sources))),
        OUTPUT_NAME,
    )
