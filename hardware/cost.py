"""What a deploy graph costs, exactly and from its shapes alone: multiply-adds, parameters, memory, receptive field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from hardware.graph import DeployGraph, Node
from hardware.ops import (
    Activation,
    Add,
    Conv,
    Flatten,
    GlobalPool,
    Input,
    Mul,
    Pool,
    Shape,
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


MACS: Mapping[type, Callable[..., int]] = {
    Input: _no_macs,
    Conv: _conv_macs,
    Pool: _no_macs,
    GlobalPool: _no_macs,
    Activation: _no_macs,
    Add: _no_macs,
    Mul: _no_macs,
    Flatten: _no_macs,
}

# How far an operation looks: (kernel extent, stride) along (height, width). None: it looks nowhere but at its element,
# or everywhere at once as a global mean does, which is left out of the receptive field.
WINDOW: Mapping[type, Callable[..., tuple[tuple[int, int], int] | None]] = {
    Input: lambda op: None,
    Conv: lambda op: ((op.dilation * (op.kernel[0] - 1) + 1, op.dilation * (op.kernel[1] - 1) + 1), op.stride),
    Pool: lambda op: (op.kernel, op.stride),
    GlobalPool: lambda op: None,
    Activation: lambda op: None,
    Add: lambda op: None,
    Mul: lambda op: None,
    Flatten: lambda op: None,
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
        in_place = isinstance(node.op, (Activation, Flatten)) and last_use[node.inputs[0]] == index
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
    """How many input pixels one output value sees along (height, width), and their distance between neighbours."""

    height: int
    width: int
    jump: int


def receptive_field(graph: DeployGraph) -> ReceptiveField:
    """The true receptive field of the last feature map: r grows by (k - 1) d j per layer, j by the stride.

    Not cut at the image's border. Where paths join, the larger one counts; global pooling is left out, since it sees
    every pixel wherever it stands.
    """
    fields: list[ReceptiveField] = []
    for node in graph.nodes:
        if not node.inputs:
            fields.append(ReceptiveField(1, 1, 1))
            continue
        entering = [fields[source] for source in node.inputs]
        height, width = max(field.height for field in entering), max(field.width for field in entering)
        jump = max(field.jump for field in entering)
        window = WINDOW[type(node.op)](node.op)
        if window is not None:
            (tall, wide), stride = window
            height, width, jump = height + (tall - 1) * jump, width + (wide - 1) * jump, jump * stride
        fields.append(ReceptiveField(height, width, jump))
    return fields[-1]
