"""The operations that a device runs, as data, and what their shapes follow from.

A deploy graph is a flat list of these. Everything that is known of an operation lives in tables keyed by its class
(here output and weight shapes; MACs in `cost`, keys in `kernels`, ONNX in `onnx_model`, torch in
`searchspace.deploy_module`), so a new operation is one dataclass and one row in each table;
`tests/contracts/test_op_tables.py` holds the tables together.

Shapes leave the batch out: a feature map is (channels, height, width), logits are (classes,).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]

ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu")


@dataclass(frozen=True, slots=True)
class Input:
    """The image that enters the graph."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with bias and zero padding; depthwise when groups equals the input's channels.

    kernel and padding are (height, width); stride and dilation are the same along both axes.
    """

    out_channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Pool:
    """Average or maximum over windows; an average counts the padding as zeros."""

    kind: str
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.kind not in ("average", "max"):
            raise ValueError(f"a pool is 'average' or 'max', got {self.kind!r}")


@dataclass(frozen=True, slots=True)
class GlobalPool:
    """The mean of each channel: (c, h, w) to (c, 1, 1)."""


@dataclass(frozen=True, slots=True)
class Activation:
    """One of `ACTIVATIONS`, element by element."""

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.kind!r}; known: {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, slots=True)
class Add:
    """The sum of two tensors of equal shape."""


@dataclass(frozen=True, slots=True)
class Mul:
    """The product of a map (c, h, w) and a gate (c, 1, 1) that is spread over it, or of two equal shapes."""


@dataclass(frozen=True, slots=True)
class Flatten:
    """(c, h, w) to (c * h * w,)."""


@dataclass(frozen=True, slots=True)
class Concat:
    """Two or more tensors one behind the other along an axis, 0 for the channels; all other lengths are equal."""

    axis: int


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a tensor from `start` up to, not including, `stop` along an axis, 0 for the channels."""

    axis: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a slice runs from 0 or more to a later stop, got {self.start} to {self.stop}")


@dataclass(frozen=True, slots=True)
class AddConstant:
    """The sum of a tensor and a learnt one, which is spread along the axes where its length is 1.

    `shape` says where it varies: (c, h, 1) along the height, (c, 1, w) along the width, (c, h, w) everywhere.
    """

    shape: Shape


@dataclass(frozen=True, slots=True)
class MulConstant:
    """The product of a tensor and a learnt one, which is spread along the axes where its length is 1."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class ChannelNorm:
    """Layer norm over the channels at each position of (c, h, w), then a learnt scale and shift for each channel.

    affine False leaves scale and shift out: a convolution without padding that alone reads the result takes them over.
    Where others read it too, or a padded convolution does, they have to stay.
    """

    epsilon: float = 1e-6
    affine: bool = True


@dataclass(frozen=True, slots=True)
class ConvTranspose:
    """A dense transposed convolution without overlap: each pixel becomes a patch of size x size; with bias."""

    out_channels: int
    size: int = 2


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same values, in the same order, in another shape."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class L2Normalize:
    """Each channel of (c, h, w) divided by its Euclidean length over all positions, sqrt(sum of squares + epsilon)."""

    epsilon: float = 1e-6


@dataclass(frozen=True, slots=True)
class MatMul:
    """The matrix products of two stacks, (..., m, k) and (..., k, n), or (..., n, k) where the second is transposed."""

    transpose_second: bool = False


@dataclass(frozen=True, slots=True)
class Softmax:
    """Exponentials along the last axis, divided by their sum."""


Op = (
    Input
    | Conv
    | Pool
    | GlobalPool
    | Activation
    | Add
    | Mul
    | Flatten
    | Concat
    | Slice
    | AddConstant
    | MulConstant
    | ChannelNorm
    | ConvTranspose
    | Reshape
    | L2Normalize
    | MatMul
    | Softmax
)


def conv_length(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many windows fit along one axis.

    Raises:
        ValueError: not even one does.
    """
    length = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if length < 1:
        raise ValueError(
            f"a kernel of {kernel} with dilation {dilation} needs an input of at least "
            f"{dilation * (kernel - 1) + 1 - 2 * padding} along each axis, got {size}; "
            "use a larger input or fewer strides"
        )
    return length


def _conv_shape(op: Conv, shapes: tuple[Shape, ...]) -> Shape:
    channels, height, width = shapes[0]
    if channels % op.groups or op.out_channels % op.groups:
        raise ValueError(f"groups must divide the channels, got {channels} -> {op.out_channels} in {op.groups} groups")
    return (
        op.out_channels,
        conv_length(height, op.kernel[0], op.stride, op.padding[0], op.dilation),
        conv_length(width, op.kernel[1], op.stride, op.padding[1], op.dilation),
    )


def _pool_shape(op: Pool, shapes: tuple[Shape, ...]) -> Shape:
    channels, height, width = shapes[0]
    return (
        channels,
        conv_length(height, op.kernel[0], op.stride, op.padding[0], 1),
        conv_length(width, op.kernel[1], op.stride, op.padding[1], 1),
    )


def _add_shape(op: Add, shapes: tuple[Shape, ...]) -> Shape:
    if shapes[0] != shapes[1]:
        raise ValueError(f"only equal shapes can be added, got {shapes[0]} and {shapes[1]}")
    return shapes[0]


def _mul_shape(op: Mul, shapes: tuple[Shape, ...]) -> Shape:
    if shapes[1] not in (shapes[0], (shapes[0][0], 1, 1)):
        raise ValueError(f"a gate for {shapes[0]} has the same shape or {(shapes[0][0], 1, 1)}, got {shapes[1]}")
    return shapes[0]


def _axis_length(shape: Shape, axis: int) -> int:
    if not 0 <= axis < len(shape):
        raise ValueError(f"an axis of {shape} is from 0 to {len(shape) - 1}, got {axis}")
    return shape[axis]


def _concat_shape(op: Concat, shapes: tuple[Shape, ...]) -> Shape:
    length = sum(_axis_length(shape, op.axis) for shape in shapes)
    joined = {(*shape[: op.axis], length, *shape[op.axis + 1 :]) for shape in shapes}
    if len(joined) != 1:
        raise ValueError(f"only axis {op.axis} may differ between tensors that are joined along it, got {shapes}")
    return joined.pop()


def _slice_shape(op: Slice, shapes: tuple[Shape, ...]) -> Shape:
    length = _axis_length(shapes[0], op.axis)
    if op.stop > length:
        raise ValueError(f"a slice along axis {op.axis} of {shapes[0]} ends at {length} at the latest, got {op.stop}")
    return (*shapes[0][: op.axis], op.stop - op.start, *shapes[0][op.axis + 1 :])


def _constant_shape(op: AddConstant | MulConstant, shapes: tuple[Shape, ...]) -> Shape:
    spread = len(op.shape) == len(shapes[0]) and all(
        own in (1, length) for own, length in zip(op.shape, shapes[0], strict=True)
    )
    if not spread:
        raise ValueError(f"a constant for {shapes[0]} has that shape, or 1 in some of its places, got {op.shape}")
    return shapes[0]


def _conv_transpose_shape(op: ConvTranspose, shapes: tuple[Shape, ...]) -> Shape:
    _, height, width = shapes[0]
    return (op.out_channels, height * op.size, width * op.size)


def _reshape_shape(op: Reshape, shapes: tuple[Shape, ...]) -> Shape:
    if prod(op.shape) != prod(shapes[0]):
        raise ValueError(
            f"a reshape keeps the number of values, got {shapes[0]} with {prod(shapes[0])} "
            f"for {op.shape} with {prod(op.shape)}"
        )
    return op.shape


def _matmul_shape(op: MatMul, shapes: tuple[Shape, ...]) -> Shape:
    first, second = shapes
    rows, columns = (second[-1], second[-2]) if op.transpose_second else (second[-2], second[-1])
    if first[:-2] != second[:-2] or first[-1] != rows:
        how = "transposed " if op.transpose_second else ""
        raise ValueError(f"matrices of {first} do not fit {how}ones of {second}; stacks and inner lengths must agree")
    return (*first[:-1], columns)


# What comes out, given the shapes that go in.
OUTPUT_SHAPE: Mapping[type, Callable[..., Shape]] = {
    Input: lambda op, shapes: op.shape,
    Conv: _conv_shape,
    Pool: _pool_shape,
    GlobalPool: lambda op, shapes: (shapes[0][0], 1, 1),
    Activation: lambda op, shapes: shapes[0],
    Add: _add_shape,
    Mul: _mul_shape,
    Flatten: lambda op, shapes: (prod(shapes[0]),),
    Concat: _concat_shape,
    Slice: _slice_shape,
    AddConstant: _constant_shape,
    MulConstant: _constant_shape,
    ChannelNorm: lambda op, shapes: shapes[0],
    ConvTranspose: _conv_transpose_shape,
    Reshape: _reshape_shape,
    L2Normalize: lambda op, shapes: shapes[0],
    MatMul: _matmul_shape,
    Softmax: lambda op, shapes: shapes[0],
}

# How many tensors go in.
ARITY: Mapping[type, int] = {
    Input: 0,
    Conv: 1,
    Pool: 1,
    GlobalPool: 1,
    Activation: 1,
    Add: 2,
    Mul: 2,
    Flatten: 1,
    Concat: 2,
    Slice: 1,
    AddConstant: 1,
    MulConstant: 1,
    ChannelNorm: 1,
    ConvTranspose: 1,
    Reshape: 1,
    L2Normalize: 1,
    MatMul: 2,
    Softmax: 1,
}

# These take more than their arity as well.
VARIADIC = frozenset({Concat})


def _no_weights(op: Op, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {}


def _conv_weights(op: Conv, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {"weight": (op.out_channels, shapes[0][0] // op.groups, *op.kernel), "bias": (op.out_channels,)}


def _constant_weights(op: AddConstant | MulConstant, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {"constant": op.shape}


def _channel_norm_weights(op: ChannelNorm, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {"scale": shapes[0][:1], "shift": shapes[0][:1]} if op.affine else {}


def _conv_transpose_weights(op: ConvTranspose, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {"weight": (shapes[0][0], op.out_channels, op.size, op.size), "bias": (op.out_channels,)}


# Which learnt tensors an operation needs, by their names within it.
WEIGHT_SHAPES: Mapping[type, Callable[..., dict[str, Shape]]] = {
    Input: _no_weights,
    Conv: _conv_weights,
    Pool: _no_weights,
    GlobalPool: _no_weights,
    Activation: _no_weights,
    Add: _no_weights,
    Mul: _no_weights,
    Flatten: _no_weights,
    Concat: _no_weights,
    Slice: _no_weights,
    AddConstant: _constant_weights,
    MulConstant: _constant_weights,
    ChannelNorm: _channel_norm_weights,
    ConvTranspose: _conv_transpose_weights,
    Reshape: _no_weights,
    L2Normalize: _no_weights,
    MatMul: _no_weights,
    Softmax: _no_weights,
}

# The word for an operation in fusion rules and kernel keys.
LABEL: Mapping[type, Callable[..., str]] = {
    Input: lambda op: "input",
    Conv: lambda op: "conv",
    Pool: lambda op: f"{op.kind}_pool",
    GlobalPool: lambda op: "global_pool",
    Activation: lambda op: op.kind,
    Add: lambda op: "add",
    Mul: lambda op: "mul",
    Flatten: lambda op: "flatten",
    Concat: lambda op: "concat",
    Slice: lambda op: "slice",
    AddConstant: lambda op: "add_constant",
    MulConstant: lambda op: "mul_constant",
    ChannelNorm: lambda op: "channel_norm",
    ConvTranspose: lambda op: "conv_transpose",
    Reshape: lambda op: "reshape",
    L2Normalize: lambda op: "l2_normalize",
    MatMul: lambda op: "matmul",
    Softmax: lambda op: "softmax",
}


def output_shape(op: Op, input_shapes: tuple[Shape, ...]) -> Shape:
    """The shape that `op` makes of its inputs.

    Raises:
        ValueError: the op takes another number of inputs, or they do not fit it.
    """
    arity, more = ARITY[type(op)], type(op) in VARIADIC
    if len(input_shapes) < arity or (len(input_shapes) > arity and not more):
        raise ValueError(f"{type(op).__name__} takes {arity} {'or more ' * more}inputs, got {len(input_shapes)}")
    return OUTPUT_SHAPE[type(op)](op, input_shapes)


def weight_shapes(op: Op, input_shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    """The learnt tensors of `op`, by their names within it; empty for most."""
    return WEIGHT_SHAPES[type(op)](op, input_shapes)


def label(op: Op) -> str:
    """The word for `op` in fusion rules and kernel keys: an activation goes by its kind, a pool by kind and 'pool'."""
    return LABEL[type(op)](op)
