"""From operations to kernels: what a runtime launches, and what a latency is therefore measured for.

Runtimes fuse: a convolution with the activation behind it is one kernel, and two of those never cost what three
operations cost one by one. Which neighbours fuse is data of the target, not code.
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hardware.graph import DeployGraph
from hardware.ops import (
    ARITY,
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
    output_shape,
    weight_shapes,
)

# Labels of operations that run as one kernel, first to last, such as ("conv", "relu").
FusionRule = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A chain of operations that a runtime runs as one.

    Each operation takes the result of the one before it as its first input, the first one `in_shapes[0]`. What else
    they need (the other side of an addition) follows in `in_shapes` in the order of use.
    """

    ops: tuple[Op, ...]
    in_shapes: tuple[Shape, ...]
    out_shape: Shape

    @property
    def key(self) -> str:
        """The text under which a table keeps the latency, such as `conv(16x32x32>32 k3x3 s2 p1x1 g1)+relu`."""
        shapes = ",".join(map(_extent, self.in_shapes))
        details = [DETAIL[type(op)](op) for op in self.ops]
        return f"{label(self.ops[0])}({shapes}{details[0]})" + "".join(
            f"+{label(op)}{detail}" for op, detail in zip(self.ops[1:], details[1:], strict=True)
        )


# Convolutions are classed by how often they use each weight, up to so many times or more: dense ones, then grouped
# ones; the last class is of what has no weights.
REUSE_EDGES = (1, 4, 9, 16, 36, 64, 150)
DENSE_CLASSES = len(REUSE_EDGES) + 1
REUSE_CLASSES = 2 * DENSE_CLASSES + 1


def reuse_class(kernel: Kernel) -> int:
    """How often the kernel uses each of its weights, which is what decides whether it waits for them.

    A convolution uses a weight once at each position of its result; the others have few weights, if any. A depthwise
    one computes less in the same time and so needs fewer of them at once: it waits, but not as long.
    """
    first, (_, _, shape) = kernel.ops[0], next(steps(kernel))
    if not isinstance(first, Conv):
        return REUSE_CLASSES - 1
    reuse = bisect_left(REUSE_EDGES, prod(shape[1:]))
    return reuse if first.groups == 1 else DENSE_CLASSES + reuse


def steps(kernel: Kernel) -> Iterator[tuple[Op, tuple[Shape, ...], Shape]]:
    """Each operation with the shapes that enter it, the running value first, and the shape that leaves it."""
    shape, sides = kernel.in_shapes[0], list(kernel.in_shapes[1:])
    for op in kernel.ops:
        # An operation alone takes whatever enters; in a chain each takes as many as it needs.
        others = len(sides) if len(kernel.ops) == 1 else ARITY[type(op)] - 1
        taken, sides = sides[:others], sides[others:]
        entering = (shape, *taken)
        shape = output_shape(op, entering)
        yield op, entering, shape


def weight_elements(kernel: Kernel) -> int:
    """How many learnt numbers it reads."""
    return sum(prod(shape) for op, entering, _ in steps(kernel) for shape in weight_shapes(op, entering).values())


def moved_elements(kernel: Kernel) -> int:
    """How many values it reads and writes, weights apart."""
    return sum(map(prod, kernel.in_shapes)) + prod(kernel.out_shape)


def _extent(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _conv_detail(op: Conv) -> str:
    dilation = f" d{op.dilation}" if op.dilation != 1 else ""
    return f">{op.out_channels} k{_extent(op.kernel)} s{op.stride} p{_extent(op.padding)}{dilation} g{op.groups}"


def _no_detail(op: Op) -> str:
    return ""


# What a kernel key says of an operation beside its label and the shapes that enter: all that its latency depends on.
DETAIL: Mapping[type, Callable[..., str]] = {
    Input: _no_detail,
    Conv: _conv_detail,
    Pool: lambda op: f" k{_extent(op.kernel)} s{op.stride} p{_extent(op.padding)}",
    GlobalPool: _no_detail,
    Activation: _no_detail,
    Add: _no_detail,
    Mul: _no_detail,
    Flatten: _no_detail,
    Concat: lambda op: f" a{op.axis}",
    Slice: lambda op: f" a{op.axis} {op.start}:{op.stop}",
    AddConstant: lambda op: f" c{_extent(op.shape)}",
    MulConstant: lambda op: f" c{_extent(op.shape)}",
    ChannelNorm: lambda op: "" if op.affine else " plain",
    ConvTranspose: lambda op: f">{op.out_channels} k{op.size}x{op.size}",
    Reshape: lambda op: f">{_extent(op.shape)}",
    L2Normalize: _no_detail,
    MatMul: lambda op: " t" if op.transpose_second else "",
    Softmax: _no_detail,
}


def fuse(graph: DeployGraph, rules: Sequence[FusionRule]) -> tuple[Kernel, ...]:
    """The kernels of `graph` in running order, as `fused_chains` puts its nodes together."""
    return tuple(_kernel(graph, chain) for chain in fused_chains(graph, rules))


def fused_chains(graph: DeployGraph, rules: Sequence[FusionRule]) -> tuple[tuple[int, ...], ...]:
    """The nodes of each kernel, in running order, the longest matching rule first.

    Two operations fuse only when nothing else reads the value between them. The chain is entered by the first input
    of each operation or, for the commutative ones, by either.
    """
    consumers: list[list[int]] = [[] for _ in graph.nodes]
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            consumers[source].append(index)
    ordered_rules = sorted(rules, key=len, reverse=True)
    done = [isinstance(node.op, Input) for node in graph.nodes]
    chains = []
    for index in range(len(graph.nodes)):
        if done[index]:
            continue
        chain = _longest_chain(graph, index, consumers, ordered_rules)
        for member in chain:
            done[member] = True
        chains.append(chain)
    return tuple(chains)


def _longest_chain(
    graph: DeployGraph, start: int, consumers: list[list[int]], rules: Sequence[FusionRule]
) -> tuple[int, ...]:
    for rule in rules:
        if label(graph.nodes[start].op) != rule[0]:
            continue
        chain = [start]
        for wanted in rule[1:]:
            following = consumers[chain[-1]]
            # A value read twice by one node (x + x) has two entries here and stays as it is.
            if len(following) != 1 or label(graph.nodes[following[0]].op) != wanted:
                break
            next_node = graph.nodes[following[0]]
            if next_node.inputs[0] != chain[-1] and not isinstance(next_node.op, Add):
                break
            # What joins from the side must exist before the kernel runs.
            if any(source > start and source != chain[-1] for source in next_node.inputs):
                break
            chain.append(following[0])
        if len(chain) == len(rule):
            return tuple(chain)
    return (start,)


def _kernel(graph: DeployGraph, chain: tuple[int, ...]) -> Kernel:
    in_shapes = list(graph.input_shapes(graph.nodes[chain[0]]))
    for previous, index in itertools.pairwise(chain):
        in_shapes += [graph.nodes[source].shape for source in graph.nodes[index].inputs if source != previous]
    return Kernel(tuple(graph.nodes[index].op for index in chain), tuple(in_shapes), graph.nodes[chain[-1]].shape)
