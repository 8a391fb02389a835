"""The operations that a device runs, as data, and what their shapes follow from.

A deploy graph is a flat list of these. Everything that is known of an operation lives in tables keyed by its class
(here output and weight shapes; MACs in `cost`, ONNX in `onnx_model`, torch in `searchspace.deploy_module`), so a new
operation is one dataclass and one row in each table; `tests/contracts/test_op_tables.py` holds the tables together.

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


Op = Input | Conv | Pool | GlobalPool | Activation | Add | Mul | Flatten


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
}

# How many tensors go in.
ARITY: Mapping[type, int] = {Input: 0, Conv: 1, Pool: 1, GlobalPool: 1, Activation: 1, Add: 2, Mul: 2, Flatten: 1}


def _no_weights(op: Op, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {}


def _conv_weights(op: Conv, shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    return {"weight": (op.out_channels, shapes[0][0] // op.groups, *op.kernel), "bias": (op.out_channels,)}


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
}


def output_shape(op: Op, input_shapes: tuple[Shape, ...]) -> Shape:
    """The shape that `op` makes of its inputs.

    Raises:
        ValueError: the op takes another number of inputs, or they do not fit it.
    """
    if len(input_shapes) != ARITY[type(op)]:
        raise ValueError(f"{type(op).__name__} takes {ARITY[type(op)]} inputs, got {len(input_shapes)}")
    return OUTPUT_SHAPE[type(op)](op, input_shapes)


def weight_shapes(op: Op, input_shapes: tuple[Shape, ...]) -> dict[str, Shape]:
    """The learnt tensors of `op`, by their names within it; empty for most."""
    return WEIGHT_SHAPES[type(op)](op, input_shapes)


def label(op: Op) -> str:
    """The word for `op` in fusion rules and kernel keys: an activation goes by its kind, a pool by kind and 'pool'."""
    return LABEL[type(op)](op)
