"""Kernels from the keys that tables keep them under: `Kernel.key` the other way round."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from hardware.kernels import Kernel
from hardware.ops import (
    ACTIVATIONS,
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    Flatten,
    GlobalPool,
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
    output_shape,
)

_SIZES = r"[0-9]+(?:x[0-9]+)*"


def _sizes(text: str) -> Shape:
    return tuple(map(int, text.split("x")))


def _pair(text: str) -> tuple[int, int]:
    height, width = _sizes(text)
    return height, width


def _pool(kind: str) -> Callable[[re.Match[str]], Op]:
    return lambda found: Pool(kind, _pair(found["kernel"]), int(found["stride"]), _pair(found["padding"]))


def _conv(found: re.Match[str]) -> Op:
    return Conv(
        int(found["channels"]),
        _pair(found["kernel"]),
        int(found["stride"]),
        _pair(found["padding"]),
        int(found["dilation"] or 1),
        int(found["groups"]),
    )


def _activation(kind: str) -> tuple[str, Callable[[re.Match[str]], Op]]:
    return "", lambda found: Activation(kind)


_WINDOW = rf" k(?P<kernel>{_SIZES}) s(?P<stride>\d+) p(?P<padding>{_SIZES})"
_CONSTANT = rf" c(?P<shape>{_SIZES})"

# What follows the label, beside the shapes, and the operation that it describes; as `kernels.DETAIL` writes it.
_OPERATIONS: Mapping[str, tuple[str, Callable[[re.Match[str]], Op]]] = {
    "conv": (rf">(?P<channels>\d+){_WINDOW}(?: d(?P<dilation>\d+))? g(?P<groups>\d+)", _conv),
    "max_pool": (_WINDOW, _pool("max")),
    "average_pool": (_WINDOW, _pool("average")),
    "global_pool": ("", lambda found: GlobalPool()),
    "add": ("", lambda found: Add()),
    "mul": ("", lambda found: Mul()),
    "flatten": ("", lambda found: Flatten()),
    "concat": (r" a(?P<axis>\d+)", lambda found: Concat(int(found["axis"]))),
    "slice": (
        r" a(?P<axis>\d+) (?P<start>\d+):(?P<stop>\d+)",
        lambda found: Slice(int(found["axis"]), int(found["start"]), int(found["stop"])),
    ),
    "add_constant": (_CONSTANT, lambda found: AddConstant(_sizes(found["shape"]))),
    "mul_constant": (_CONSTANT, lambda found: MulConstant(_sizes(found["shape"]))),
    "channel_norm": ("(?P<plain> plain)?", lambda found: ChannelNorm(affine=found["plain"] is None)),
    "conv_transpose": (
        r">(?P<channels>\d+) k(?P<size>\d+)x\d+",
        lambda found: ConvTranspose(int(found["channels"]), int(found["size"])),
    ),
    "reshape": (rf">(?P<shape>{_SIZES})", lambda found: Reshape(_sizes(found["shape"]))),
    "l2_normalize": ("", lambda found: L2Normalize()),
    "matmul": ("(?P<transposed> t)?", lambda found: MatMul(found["transposed"] is not None)),
    "softmax": ("", lambda found: Softmax()),
    **{kind: _activation(kind) for kind in ACTIVATIONS},
}
_PATTERNS = {name: re.compile(detail) for name, (detail, _) in _OPERATIONS.items()}
_FIRST = re.compile(rf"(?P<label>\w+)\((?P<shapes>{_SIZES}(?:,{_SIZES})*)(?P<detail>[^)]*)\)")
_NEXT = re.compile(r"(?P<label>[a-z_]+[0-9]?)(?P<detail>.*)")


def kernel_of(key: str) -> Kernel:
    """The kernel whose key this is.

    Raises:
        ValueError: it is the key of none.
    """
    head, *rest = key.split("+")
    first = _FIRST.fullmatch(head)
    others = [_NEXT.fullmatch(text) for text in rest]
    if first is None or None in others:
        raise ValueError(f"a kernel's key must be like conv(8x4x4>16 k1x1 s1 p0x0 g1)+relu, got {key!r}")
    parts: list[Any] = [first, *others]
    ops = tuple(_operation(part["label"], part["detail"], key) for part in parts)
    in_shapes = tuple(map(_sizes, first["shapes"].split(",")))
    shape = output_shape(ops[0], in_shapes[: 1 if len(ops) > 1 else None])
    for op in ops[1:]:
        # What joins from the side has the shape of what it joins.
        shape = output_shape(op, (shape, shape) if isinstance(op, Add | Mul) else (shape,))
    return Kernel(ops, in_shapes, shape)


def _operation(name: str, detail: str, key: str) -> Op:
    found = _PATTERNS[name].fullmatch(detail) if name in _PATTERNS else None
    if found is None:
        raise ValueError(f"a kernel's key names an operation and its details, got {name}{detail} in {key!r}")
    return _OPERATIONS[name][1](found)
