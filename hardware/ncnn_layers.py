"""What ncnn runs on a 32-bit ARM core: which of its code paths a layer takes, and how much work that path does.

`work` is the only place that knows the code paths. The formula for instructions is fitted by it on everything that was
counted, and answers for what was not, so that both mean the same by a family. The rules describe ncnn without fp16 and
with packed layout:

- Four channels are packed together where the channels are a multiple of 4. A convolution that is not packed on the
  way in (`conv1x1_odd`, `stem`) or out (`conv1x1_odd_out`) has its own, slower code.
- A 3x3 convolution of stride 1 on packed input is a Winograd convolution on tiles of 4x4 outputs where both sides of
  the padded input are in 1-10, 15-18, 21 or 22, else (and for unpacked output) on tiles of 6x6. What it multiplies
  are the padded tiles, so that a 7x7 map costs as much as an 8x8 map.
- Every other convolution is a matrix product over columns of 8, then 4, then 1 output positions; the weights are
  read once per column, which is why small maps cost more per multiply-add.
- A depthwise convolution has fast code for 3x3 and 5x5 with stride 1 and 2, and slow code for everything else.
- A convolution in groups is run as one convolution per group.
- A 1x1 convolution of a vector (what a global pool leaves) is an inner product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod

from hardware.kernels import Kernel, steps
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
)

PACK = 4

# What a family's cost is linear in. Each is what the code path does, tiles and columns rounded up: multiply-adds,
# elements written, elements read, weights read, output channels, output rows (channels x height), elements that a
# fused activation passes over, calls (one per group).
AMOUNTS = (
    *("macs", "written", "read", "weights", "channels", "rows"),
    *("relu", "leaky_relu", "sigmoid", "hardswish", "calls"),
)

# Activations that run inside a convolution; a clip (relu6) is the same pass as a relu.
FUSED_ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu",
    "leaky_relu": "leaky_relu",
    "sigmoid": "sigmoid",
    "hardswish": "hardswish",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as ncnn runs it.

    kind is 'conv', 'fc' (an inner product), 'fc_unpacked' (one of a map that is not packed), 'max_pool',
    'average_pool', 'global_pool', 'add', 'mul', 'flatten', 'free' (only names a value), an activation, ncnn's own name
    for another layer that the benchmark networks have, or the label of an operation that they do not have. Shapes are
    (channels, height, width), or what has no channels as it is; read counts the elements of all inputs. activation is
    what runs inside the layer, '' for none.
    """

    kind: str
    in_shape: Shape
    out_shape: Shape
    read: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    activation: str = ""


# Instructions per amount, in the order of `AMOUNTS`, for every family that has data.
Formula = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Work:
    """The code path that a layer takes, and its `AMOUNTS`.

    A family may have parts behind slashes, such as `convkxk/3x3s2/packed`: what has no data of its own goes by the
    families above it.
    """

    family: str
    amounts: tuple[float, ...]


# Families of one group gain alike from more threads.
THREAD_GROUPS = ("multiplying", "winograd", "elementwise")
_MULTIPLYING = ("conv", "stem", "depthwise", "fc", "matmul", "Deconvolution")


def thread_group(family: str) -> str:
    """Which of `THREAD_GROUPS` the family is in."""
    if family.startswith("winograd"):
        return "winograd"
    return "multiplying" if family.startswith(_MULTIPLYING) else "elementwise"


def work(layer: Layer) -> Work:
    """The family of `layer` and the amounts that its cost is linear in."""
    return _WORK.get(layer.kind, _elementwise_work)(layer)


def families_above(family: str) -> Iterator[str]:
    """The family itself, and what it is part of, the narrowest first."""
    while family:
        yield family
        family = family.rpartition("/")[0]


def is_known(family: str, formula: Formula) -> bool:
    """Whether the formula has data for the family, or for one that it is part of."""
    return any(each in formula for each in families_above(family))


def instructions(work: Work, formula: Formula) -> float:
    """About how many instructions the work takes; `formula` must know its family."""
    coefficients = next(formula[each] for each in families_above(work.family) if each in formula)
    return sum(coefficient * amount for coefficient, amount in zip(coefficients, work.amounts, strict=True))


def moved_bytes(layer: Layer) -> int:
    """What is read and written, in fp32: activations, and weights that are used once; a new name moves nothing."""
    if layer.kind == "free":
        return 0
    weights = layer.read * prod(layer.out_shape) if layer.kind.startswith("fc") else 0
    return 4 * (layer.read + prod(layer.out_shape) + weights)


def _amounts(**amounts: float) -> tuple[float, ...]:
    return tuple(float(amounts.get(name, 0)) for name in AMOUNTS)


def _conv_work(layer: Layer) -> Work:
    if 1 < layer.groups == layer.in_shape[0] == layer.out_shape[0]:
        return _depthwise_work(layer)
    if layer.groups == 1:
        return _dense_conv_work(layer)
    in_channels, out_channels = layer.in_shape[0] // layer.groups, layer.out_shape[0] // layer.groups
    one = _dense_conv_work(
        replace(
            layer,
            in_shape=(in_channels, *layer.in_shape[1:]),
            out_shape=(out_channels, *layer.out_shape[1:]),
            groups=1,
        )
    )
    return Work(one.family, tuple(layer.groups * amount for amount in one.amounts))


def _dense_conv_work(layer: Layer) -> Work:
    in_channels, out_channels = layer.in_shape[0], layer.out_shape[0]
    packed_in, packed_out = in_channels % PACK == 0, out_channels % PACK == 0
    if packed_in and layer.kernel == (3, 3) and layer.stride == layer.dilation == 1:
        return _winograd_work(layer)
    positions = layer.out_shape[1] * layer.out_shape[2]
    weights = in_channels * out_channels * prod(layer.kernel)
    if layer.kernel == (1, 1):
        family = "conv1x1_odd" if not packed_in else "conv1x1" if packed_out else "conv1x1_odd_out"
        read = prod(layer.in_shape)
    else:
        family = "convkxk" if packed_in else {(3, 3): "stem3", (7, 7): "stem7"}.get(layer.kernel, "stem")
        channels = "packed" if packed_in else str(in_channels) if in_channels in (1, 3) else "odd"
        family += f"/{layer.kernel[0]}x{layer.kernel[1]}s{layer.stride}/{channels}"
        read = in_channels * prod(layer.kernel) * positions
    return Work(
        family,
        _amounts(
            macs=weights * positions,
            written=out_channels * positions,
            read=read,
            weights=weights * _columns(positions),
            channels=out_channels,
            rows=out_channels * layer.out_shape[1],
            calls=1,
            **_activation(layer),
        ),
    )


def _winograd_work(layer: Layer) -> Work:
    in_channels, (out_channels, height, width) = layer.in_shape[0], layer.out_shape
    packed_out = out_channels % PACK == 0
    outputs = 4 if packed_out and _small_tiles(height + 2) and _small_tiles(width + 2) else 6
    tiles, area = ceil(height / outputs) * ceil(width / outputs), (outputs + 2) ** 2
    return Work(
        f"winograd{outputs}" if packed_out else "winograd6_odd_out",
        _amounts(
            macs=in_channels * out_channels * tiles * area,
            written=out_channels * tiles * area,
            read=in_channels * tiles * area,
            weights=in_channels * out_channels * area * _columns(tiles),
            channels=out_channels,
            rows=out_channels * height,
            calls=1,
            **_activation(layer),
        ),
    )


def _small_tiles(padded_size: int) -> bool:
    return padded_size <= 10 or 15 <= padded_size <= 18 or padded_size in (21, 22)


def _columns(positions: int) -> int:
    """How often the weights are read: once for 8 positions, then for 4, then for each."""
    return positions // 8 + positions % 8 // 4 + positions % 4


def _activation(layer: Layer) -> dict[str, float]:
    return {FUSED_ACTIVATIONS[layer.activation]: prod(layer.out_shape)} if layer.activation else {}


def _depthwise_work(layer: Layer) -> Work:
    channels = layer.out_shape[0]
    taps = prod(layer.kernel)
    family = "depthwise_slow"
    if layer.dilation == 1 and layer.stride in (1, 2):
        suffix = "s2" if layer.stride == 2 else ""
        if layer.kernel == (3, 3):
            family = f"depthwise3{suffix}" + ("_odd" if channels % PACK else "")
        elif layer.kernel == (5, 5) and channels % PACK == 0:
            family = f"depthwise5{suffix}"
    return Work(
        family,
        _amounts(
            macs=prod(layer.out_shape) * taps,
            written=prod(layer.out_shape),
            read=layer.read,
            weights=channels * taps,
            channels=channels,
            rows=channels * layer.out_shape[1],
            calls=1,
            **_activation(layer),
        ),
    )


def _matmul_work(layer: Layer) -> Work:
    inner = layer.in_shape[0] // layer.groups
    amounts = _amounts(
        macs=prod(layer.out_shape) * inner,
        written=prod(layer.out_shape),
        read=layer.read,
        rows=layer.out_shape[0],
        calls=layer.groups,
    )
    return Work(layer.kind, amounts)


def _fc_work(layer: Layer) -> Work:
    outputs = prod(layer.out_shape)
    amounts = _amounts(
        written=outputs,
        read=layer.read,
        weights=layer.read * outputs,
        channels=outputs,
        calls=1,
        **_activation(layer),
    )
    return Work(layer.kind, amounts)


def _pool_work(layer: Layer) -> Work:
    fast = layer.kind == "max_pool" and layer.stride == 2 and layer.kernel in ((2, 2), (3, 3))
    return Work(
        f"max_pool{layer.kernel[0]}" if fast else layer.kind,
        _amounts(
            macs=prod(layer.out_shape) * prod(layer.kernel),
            written=prod(layer.out_shape),
            read=layer.read,
            channels=layer.out_shape[0],
            rows=layer.out_shape[0] * layer.out_shape[1],
            calls=1,
        ),
    )


def _copy_work(layer: Layer) -> Work:
    copied = _elementwise_work(layer)
    along = "channels" if layer.in_shape[1:] == layer.out_shape[1:] else "rows"
    packed = layer.in_shape[0] % PACK == 0 == layer.out_shape[0] % PACK
    return replace(copied, family=f"{layer.kind}/{along}/{'packed' if packed else 'odd'}")


def _elementwise_work(layer: Layer) -> Work:
    amounts = _amounts(
        written=prod(layer.out_shape),
        read=layer.read,
        channels=layer.out_shape[0],
        rows=prod(layer.out_shape[:2]),
        calls=1,
    )
    return Work(layer.kind, amounts)


_WORK: Mapping[str, Callable[[Layer], Work]] = {
    "conv": _conv_work,
    "conv_transpose": _conv_work,
    "matmul": _matmul_work,
    "matmul_transposed": _matmul_work,
    "fc": _fc_work,
    "fc_unpacked": _fc_work,
    "max_pool": _pool_work,
    "average_pool": _pool_work,
    "Concat": _copy_work,
    "Crop": _copy_work,
}


def layers_of(kernel: Kernel) -> tuple[Layer, ...]:
    """The layers that ncnn runs for `kernel`: one, unless its fusion rules or an operation join more than ncnn does."""
    layers: list[Layer] = []
    for op, in_shapes, out_shape in steps(kernel):
        if (
            layers
            and layers[-1].kind in ("conv", "fc")
            and not layers[-1].activation
            and label(op) in FUSED_ACTIVATIONS
        ):
            layers[-1] = replace(layers[-1], activation=label(op))
            continue
        layers += LAYERS[type(op)](op, in_shapes, out_shape)
    return tuple(layers)


def _no_layers(op: Op, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    return []


def _plain_layer(op: Op, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    return [_layer(label(op), in_shapes, out_shape)]


def _layer(kind: str, in_shapes: tuple[Shape, ...], out_shape: Shape) -> Layer:
    return Layer(kind, in_shapes[0], out_shape, sum(map(prod, in_shapes)))


def _conv_layer(op: Conv, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    shape = in_shapes[0]
    # What a global pool leaves is a vector to ncnn. A map that has shrunk to 1x1 by strides is not, and cannot be told
    # from it here; it takes about as many instructions, which at four threads run faster than is said here.
    is_vector = shape[1:] == (1, 1) and op.kernel == (1, 1) and op.groups == 1
    layer = Layer(
        "fc" if is_vector else "conv",
        shape,
        out_shape,
        prod(shape),
        kernel=op.kernel,
        stride=op.stride,
        dilation=op.dilation,
        groups=op.groups,
    )
    return [layer]


def _pool_layer(op: Pool, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    return [Layer(f"{op.kind}_pool", in_shapes[0], out_shape, prod(in_shapes[0]), kernel=op.kernel, stride=op.stride)]


def _flatten_layer(op: Flatten, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    is_vector = prod(in_shapes[0][1:]) == 1
    return [_layer("free" if is_vector else "flatten", in_shapes, out_shape)]


def _constant_layer(op: AddConstant | MulConstant, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    return [_layer(label(op), (*in_shapes, op.shape), out_shape)]


def _conv_transpose_layer(op: ConvTranspose, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    # Each position becomes a patch, as a 1x1 convolution to so many more channels would write it.
    _, height, width = in_shapes[0]
    return [_layer("conv_transpose", in_shapes, (op.out_channels * op.size**2, height, width))]


def _matmul_layer(op: MatMul, in_shapes: tuple[Shape, ...], out_shape: Shape) -> list[Layer]:
    # (m, k) by (k, n) has the multiply-adds of a 1x1 convolution of k channels to m at n positions, one for each of a
    # stack.
    (*_, rows, inner), columns, groups = in_shapes[0], out_shape[-1], prod(out_shape[:-2])
    product = replace(
        _layer("matmul_transposed" if op.transpose_second else "matmul", in_shapes, out_shape),
        in_shape=(groups * inner, 1, columns),
        out_shape=(groups * rows, 1, columns),
        groups=groups,
    )
    return [product]


# What ncnn runs for each operation, given the shapes that enter and leave it.
LAYERS: Mapping[type, Callable[..., list[Layer]]] = {
    Input: _no_layers,
    Conv: _conv_layer,
    Pool: _pool_layer,
    GlobalPool: _plain_layer,
    Activation: _plain_layer,
    Add: _plain_layer,
    Mul: _plain_layer,
    Flatten: _flatten_layer,
    Concat: lambda op, in_shapes, out_shape: [_layer("Concat", in_shapes, out_shape)],
    # The converters make a crop of it.
    Slice: lambda op, in_shapes, out_shape: [_layer("Crop", in_shapes, out_shape)],
    AddConstant: _constant_layer,
    MulConstant: _constant_layer,
    ChannelNorm: _plain_layer,
    ConvTranspose: _conv_transpose_layer,
    Reshape: _plain_layer,
    L2Normalize: _plain_layer,
    MatMul: _matmul_layer,
    Softmax: _plain_layer,
}
