"""What a deploy graph costs, exactly and from its shapes alone: multiply-adds, parameters, memory, receptive field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

from hardware.graph import DeployGraph, Node
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
    Shape,
    Slice,
    Softmax,
    weight_shapes,
)

BYTES_PER_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """The static cost of a graph at batch 1 in fp32.

    macs counts the multiply-adds of convolutions and matrix products only. activation_bytes is everything that is
    written; peak_activation_bytes the largest sum of values alive at once when the operations run in their order and
    activations work in place. A runtime's own work buffers come on top of both.
    """

    macs: int
    params: int
    activation_bytes: int
    peak_activation_bytes: int

    @property
    def peak_memory_bytes(self) -> int:
        """Weights and the largest sum of values alive at once."""
        return self.params * BYTES_PER_FLOAT + self.peak_activation_bytes


def _no_macs(op: object, in_shapes: tuple[Shape, ...], out_shape: Shape) -> int:
    return 0


def _conv_macs(op: Conv, in_shapes: tuple[Shape, ...], out_shape: Shape) -> int:
    return prod(out_shape) * (in_shapes[0][0] // op.groups) * prod(op.kernel)


def _conv_transpose_macs(op: ConvTranspose, in_shapes: tuple[Shape, ...], out_shape: Shape) -> int:
    return prod(out_shape) * in_shapes[0][0]


def _matmul_macs(op: MatMul, in_shapes: tuple[Shape, ...], out_shape: Shape) -> int:
    return prod(out_shape) * in_shapes[0][-1]


MACS: Mapping[type, Callable[..., int]] = {
    Input: _no_macs,
    Conv: _conv_macs,
    Pool: _no_macs,
    GlobalPool: _no_macs,
    Activation: _no_macs,
    Add: _no_macs,
    Mul: _no_macs,
    Flatten: _no_macs,
    Concat: _no_macs,
    Slice: _no_macs,
    AddConstant: _no_macs,
    MulConstant: _no_macs,
    ChannelNorm: _no_macs,
    ConvTranspose: _conv_transpose_macs,
    Reshape: _no_macs,
    L2Normalize: _no_macs,
    MatMul: _matmul_macs,
    Softmax: _no_macs,
}

Window = tuple[tuple[int, int], Fraction | int]

# How far an operation looks: (kernel extent, stride) along (height, width); a stride below 1 enlarges the map. None: it
# looks nowhere but at its element, or everywhere at once as a global mean and attention do, which is left out of the
# receptive field. A circular convolution is a convolution over a map that was put behind itself, with a kernel as long
# as the map: its extent reaches over the whole axis, as it should.
WINDOW: Mapping[type, Callable[..., Window | None]] = {
    Input: lambda op: None,
    Conv: lambda op: ((op.dilation * (op.kernel[0] - 1) + 1, op.dilation * (op.kernel[1] - 1) + 1), op.stride),
    Pool: lambda op: (op.kernel, op.stride),
    GlobalPool: lambda op: None,
    Activation: lambda op: None,
    Add: lambda op: None,
    Mul: lambda op: None,
    Flatten: lambda op: None,
    Concat: lambda op: None,
    Slice: lambda op: None,
    AddConstant: lambda op: None,
    MulConstant: lambda op: None,
    ChannelNorm: lambda op: None,
    ConvTranspose: lambda op: ((1, 1), Fraction(1, op.size)),
    Reshape: lambda op: None,
    L2Normalize: lambda op: None,
    MatMul: lambda op: None,
    Softmax: lambda op: None,
}


def node_macs(graph: DeployGraph, node: Node) -> int:
    """Multiply-adds of one operation."""
    return MACS[type(node.op)](node.op, graph.input_shapes(node), node.shape)


def cost(graph: DeployGraph) -> Cost:
    """The static cost of `graph`."""
    return Cost(
        macs=sum(node_macs(graph, node) for node in graph.nodes),
        params=sum(
            prod(shape) for node in graph.nodes for shape in weight_shapes(node.op, graph.input_shapes(node)).values()
        ),
        activation_bytes=BYTES_PER_FLOAT * sum(prod(node.shape) for node in graph.nodes[1:]),
        peak_activation_bytes=BYTES_PER_FLOAT * _peak_activation_elements(graph),
    )


def _peak_activation_elements(graph: DeployGraph) -> int:
    last_use = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
    alive: dict[int, int] = {}
    peak = 0
    for index, node in enumerate(graph.nodes):
        in_place = isinstance(node.op, (Activation, Flatten, Reshape)) and last_use[node.inputs[0]] == index
        if in_place:
            alive[index] = alive.pop(node.inputs[0])
        else:
            alive[index] = prod(node.shape)
        peak = max(peak, sum(alive.values()))
        for source in set(node.inputs):
            if last_use[source] == index:
                alive.pop(source, None)
    return peak


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """How many input pixels one output value sees along (height, width), and their distance between neighbours.

    jump is a whole number unless a map is larger than the image.
    """

    height: int
    width: int
    jump: Fraction


def receptive_field(graph: DeployGraph) -> ReceptiveField:
    """The true receptive field of the last feature map: r grows by (k - 1) d j per layer, j by the stride.

    Not cut at the image's border. Where paths join, the larger one counts; global pooling and attention are left
    out, since they see every pixel wherever they stand.
    """
    extents: list[tuple[Fraction, Fraction, Fraction]] = []
    for node in graph.nodes:
        if not node.inputs:
            extents.append((Fraction(1), Fraction(1), Fraction(1)))
            continue
        entering = [extents[source] for source in node.inputs]
        height, width, jump = (max(lengths) for lengths in zip(*entering, strict=True))
        window = WINDOW[type(node.op)](node.op)
        if window is not None:
            (tall, wide), stride = window
            height, width, jump = height + (tall - 1) * jump, width + (wide - 1) * jump, jump * stride
        extents.append((height, width, jump))
    height, width, jump = extents[-1]
    return ReceptiveField(ceil(height), ceil(width), jump)
