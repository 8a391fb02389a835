"""The layers of ncnn's benchmark networks as models of their own, to be counted.

`targets/armv7/layers.csv` keeps shapes, kernel, stride and groups of each layer. What it does not keep is taken as it
must have been (a padding that the shapes ask for) or as makes little difference (how a concatenation divides its
channels).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

from hardware.armv7.counting import Subject
from hardware.ncnn_layers import Layer
from hardware.ops import Shape

# What these execute depends on what the network has found, so that a layer alone says nothing. Counted once inside
# their networks, 20211208.
ONLY_INSIDE_NETWORKS = frozenset({"DetectionOutput", "YoloDetectionOutput", "Yolov3DetectionOutput"})

_MAGIC = 7767517
_ACTIVATIONS = {"relu": "9=1", "leaky_relu": "9=2 -23310=1,0.1", "sigmoid": "9=4"}


def layer_subject(layer: Layer, expected: float) -> Subject:
    """The layer with what it reads brought into ncnn's packed layout first, as the layer before leaves it.

    Raises:
        KeyError: its kind is one of `ONLY_INSIDE_NETWORKS`.
    """
    inputs, line = _LINES[layer.kind](layer)
    lines, ready = [], []
    for index, shape in enumerate(inputs):
        sizes = " ".join(f"{key}={size}" for key, size in zip(_SIZE_KEYS[len(shape)], shape, strict=True))
        lines.append(f"Input in{index} 0 1 in{index} {sizes}")
        if _reads_unpacked(layer):
            ready.append(f"in{index}")
            continue
        lines.append(f"ReLU ready{index} 1 1 in{index} ready{index}")
        ready.append(f"ready{index}")
    kind, outputs, parameters = line
    names = ["out0", *(f"out{index}" for index in range(1, outputs))]
    lines.append(" ".join([kind, "layer", str(len(ready)), str(outputs), *ready, *names, parameters]))
    text = "\n".join([str(_MAGIC), f"{len(lines)} {len(lines) - 1 + outputs}", *lines]) + "\n"
    asked = () if _reads_unpacked(layer) else tuple(ready)
    name = " ".join(map(str, _identity(layer)))
    return Subject(name, text, tuple((f"in{i}", shape) for i, shape in enumerate(inputs)), asked, "out0", expected)


def _reads_unpacked(layer: Layer) -> bool:
    """Whether the layer before leaves one value after the other: an inner product of a map, a vector cut into rows."""
    return layer.kind == "fc_unpacked" or (layer.kind == "flatten" and prod(layer.in_shape) == layer.in_shape[0])


def _identity(layer: Layer) -> tuple[object, ...]:
    shapes = ["x".join(map(str, shape)) for shape in (layer.in_shape, layer.out_shape, layer.kernel)]
    return (layer.kind, *shapes, layer.read, layer.stride, layer.groups, layer.activation or "-")


# Keys of the sizes of an Input, for shapes with the channels first.
_SIZE_KEYS = {1: (0,), 2: (1, 0), 3: (2, 1, 0)}

# What a layer reads; ncnn's name for it, how many values it makes and its parameters.
_Line = tuple[list[Shape], tuple[str, int, str]]


def _one(kind: str, parameters: str = "") -> Callable[[Layer], _Line]:
    return lambda layer: ([layer.in_shape], (kind, 1, parameters))


def _padding(layer: Layer, axis: int) -> int:
    """On either side, where the shapes ask for any."""
    kernel = layer.kernel[axis - 1]
    missing = (layer.out_shape[axis] - 1) * layer.stride + layer.dilation * (kernel - 1) + 1 - layer.in_shape[axis]
    return max(0, -(-missing // 2))


def _conv(layer: Layer) -> _Line:
    in_channels, out_channels = layer.in_shape[0], layer.out_shape[0]
    weights = in_channels * out_channels * prod(layer.kernel) // layer.groups
    parameters = (
        f"0={out_channels} 1={layer.kernel[1]} 11={layer.kernel[0]} 3={layer.stride} 2={layer.dilation} "
        f"4={_padding(layer, 2)} 14={_padding(layer, 1)} 5=1 6={weights}"
    )
    if layer.groups > 1:
        parameters += f" 7={layer.groups}"
    if layer.activation:
        parameters += " " + _ACTIVATIONS[layer.activation]
    return [layer.in_shape], ("ConvolutionDepthWise" if layer.groups > 1 else "Convolution", 1, parameters)


def _deconv(layer: Layer) -> _Line:
    channels = layer.out_shape[0]
    weights = layer.in_shape[0] * channels * prod(layer.kernel) // layer.groups
    cut = (layer.in_shape[1] - 1) * layer.stride + layer.kernel[0] - layer.out_shape[1]
    parameters = f"0={channels} 1={layer.kernel[0]} 3={layer.stride} 4={cut // 2} 5=1 6={weights} 7={layer.groups}"
    return [layer.in_shape], ("DeconvolutionDepthWise", 1, parameters)


def _fc(layer: Layer) -> _Line:
    outputs = prod(layer.out_shape)
    parameters = f"0={outputs} 1=1 2={layer.read * outputs}"
    if layer.activation:
        parameters += " " + _ACTIVATIONS[layer.activation]
    shape = (layer.read,) if layer.kind == "fc" else layer.in_shape
    return [shape], ("InnerProduct", 1, parameters)


def _pool(layer: Layer) -> _Line:
    average = int(layer.kind == "average_pool")
    rows, columns = _padding(layer, 1), _padding(layer, 2)
    padded = layer.in_shape[1] + 2 * rows
    fits = (padded - layer.kernel[0]) // layer.stride + 1 == layer.out_shape[1]
    # A window that sticks out at the end only is what ncnn calls full.
    mode, rows, columns = (1, rows, columns) if fits else (0, 0, 0)
    parameters = f"0={average} 1={layer.kernel[1]} 11={layer.kernel[0]} 2={layer.stride} 3={columns} 13={rows} 5={mode}"
    return [layer.in_shape], ("Pooling", 1, parameters)


def _binary(operation: int) -> Callable[[Layer], _Line]:
    def line(layer: Layer) -> _Line:
        size, rest = prod(layer.in_shape), layer.read - prod(layer.in_shape)
        other = layer.in_shape if rest == size else (layer.in_shape[0], 1, 1)
        return [layer.in_shape, other], ("BinaryOp", 1, f"0={operation}")

    return line


def _concat(layer: Layer) -> _Line:
    for axis, length in enumerate(layer.out_shape):
        first = layer.in_shape[axis]
        rest = tuple(size for index, size in enumerate(layer.out_shape) if index != axis)
        if rest == tuple(size for index, size in enumerate(layer.in_shape) if index != axis) and first < length:
            second = (*layer.in_shape[:axis], length - first, *layer.in_shape[axis + 1 :])
            vector = prod(layer.out_shape) == length == layer.out_shape[0]
            shapes = [layer.in_shape, second]
            return [shape[:1] for shape in shapes] if vector else shapes, ("Concat", 1, f"0={axis}")
    return [layer.in_shape], ("Concat", 1, "0=0")


def _crop(layer: Layer) -> _Line:
    return [layer.in_shape], ("Crop", 1, f"-23309=1,0 -23310=1,{layer.out_shape[0]} -23311=1,0")


def _slice(layer: Layer) -> _Line:
    return [layer.in_shape], ("Slice", 2, "-23300=2,-233,-233")


def _pad(layer: Layer) -> _Line:
    front = layer.out_shape[0] - layer.in_shape[0]
    bottom, right = (layer.out_shape[axis] - layer.in_shape[axis] for axis in (1, 2))
    parameters = f"0={bottom // 2} 1={bottom - bottom // 2} 2={right // 2} 3={right - right // 2} 7=0 8={front}"
    return [layer.in_shape], ("Padding", 1, parameters)


def _permute(layer: Layer) -> _Line:
    channels, height, width = layer.in_shape
    # ncnn's orders by what they make of (channels, height, width), innermost axis first there.
    orders: Mapping[Shape, int] = {
        (height, width, channels): 3,
        (width, channels, height): 4,
        (channels, width, height): 1,
    }
    return [layer.in_shape], ("Permute", 1, f"0={orders.get(layer.out_shape, 3)}")


def _prior_box(layer: Layer) -> _Line:
    image = (3, 300, 300)
    priors = layer.out_shape[2] // (4 * layer.in_shape[1] * layer.in_shape[2])
    ratios = {3: "-23302=1,2.0", 4: "-23301=1,60.0 -23302=1,2.0", 6: "-23301=1,60.0 -23302=2,2.0,3.0"}.get(priors, "")
    parameters = f"-23300=1,30.0 {ratios} 3=0.1 4=0.1 5=0.2 6=0.2 7=1 8=0 9=-233 10=-233 11=-233.0 12=-233.0 13=0.5"
    return [layer.in_shape, image], ("PriorBox", 1, parameters)


def _softmax(layer: Layer) -> _Line:
    if prod(layer.in_shape) == layer.in_shape[0]:
        return [layer.in_shape[:1]], ("Softmax", 1, "0=0 1=1")
    if layer.in_shape[1] == 1:
        return [(layer.in_shape[0], layer.in_shape[2])], ("Softmax", 1, "0=1 1=1")
    return [layer.in_shape], ("Softmax", 1, "0=2 1=1")


def _free(layer: Layer) -> _Line:
    # Most of them give a value a second name; how large it is makes no difference.
    return [(8, 4, 4)], ("Split", 2, "")


def _flatten(layer: Layer) -> _Line:
    if prod(layer.in_shape) > layer.in_shape[0]:
        return [layer.in_shape], ("Flatten", 1, "")
    # What is flat already is cut into rows.
    sizes = " ".join(f"{key}={size}" for key, size in zip(_SIZE_KEYS[3], layer.out_shape, strict=True))
    return [layer.in_shape[:1]], ("Reshape", 1, sizes)


def _vector_if_flat(line: Callable[[Layer], _Line]) -> Callable[[Layer], _Line]:
    """For layers that work on what a global pool or an inner product leaves, a vector to ncnn."""
    return lambda layer: (
        line(replace(layer, in_shape=layer.in_shape[:1])) if layer.in_shape[1:] == (1, 1) else line(layer)
    )


_LINES: Mapping[str, Callable[[Layer], _Line]] = {
    "conv": _conv,
    "fc": _fc,
    "fc_unpacked": _fc,
    "max_pool": _pool,
    "average_pool": _pool,
    "global_pool": _one("Pooling", "0=1 4=1"),
    "Reduction": _one("Reduction", "0=3 1=0 -23303=2,1,2 4=1 5=1"),
    "add": _binary(0),
    "mul": _binary(2),
    "relu": _vector_if_flat(_one("ReLU")),
    "silu": _vector_if_flat(_one("Swish")),
    "sigmoid": _vector_if_flat(_one("Sigmoid")),
    "hardswish": _vector_if_flat(_one("HardSwish", "0=0.1666667 1=0.5")),
    "hardsigmoid": _vector_if_flat(_one("HardSigmoid", "0=0.1666667 1=0.5")),
    "flatten": _flatten,
    "free": _free,
    "BatchNorm": lambda layer: ([layer.in_shape], ("BatchNorm", 1, f"0={layer.in_shape[0]}")),
    "LRN": _one("LRN", "0=0 1=5 2=0.0001 3=0.75"),
    "Interp": _one("Interp", "0=1 1=2.0 2=2.0"),
    "ShuffleChannel": _one("ShuffleChannel", "0=2"),
    "Concat": _concat,
    "Crop": _crop,
    "Slice": _slice,
    "Padding": _pad,
    "Permute": _permute,
    "PriorBox": _prior_box,
    "Softmax": _softmax,
    "DeconvolutionDepthWise": _deconv,
}
