"""What a device runs: a flat list of operations, and the same list with its weights."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from hardware.ops import Input, Op, Shape, output_shape, weight_shapes

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: where its inputs come from (indices of earlier nodes) and the shape it makes."""

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class DeployGraph:
    """Operations in an order in which they can run; the first is the only input, the last the only output."""

    nodes: tuple[Node, ...]

    @property
    def input_shape(self) -> Shape:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        return self.nodes[-1].shape

    def input_shapes(self, node: Node) -> tuple[Shape, ...]:
        """The shapes that enter `node`."""
        return tuple(self.nodes[index].shape for index in node.inputs)

    def weight_shapes(self) -> dict[str, Shape]:
        """Every learnt tensor, as 'node name.tensor name'."""
        return {
            f"{node.name}.{tensor}": shape
            for node in self.nodes
            for tensor, shape in weight_shapes(node.op, self.input_shapes(node)).items()
        }

    def fingerprint(self) -> str:
        """16 hex digits that are equal for two graphs exactly when they run the same operations on the same shapes."""
        text = ";".join(f"{node.op!r}{node.inputs}" for node in self.nodes)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class DeployModel:
    """A graph together with the weights that it needs, made by `with_weights`."""

    graph: DeployGraph
    weights: Mapping[str, FloatArray]


def with_weights(graph: DeployGraph, weights: Mapping[str, FloatArray]) -> DeployModel:
    """The graph with its weights, after checking that they are exactly the ones it needs.

    Raises:
        ValueError: a weight is missing, is not needed, or has another shape.
    """
    needed = graph.weight_shapes()
    missing, spare = sorted(needed.keys() - weights.keys()), sorted(weights.keys() - needed.keys())
    if missing or spare:
        raise ValueError(
            f"a graph takes exactly its own weights; missing: {missing or 'none'}, not needed: {spare or 'none'}"
        )
    for name, shape in needed.items():
        if weights[name].shape != shape:
            raise ValueError(f"weight {name} must have shape {shape}, got {weights[name].shape}")
    return DeployModel(graph, MappingProxyType(dict(weights)))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value inside a graph that is being built."""

    index: int
    shape: Shape


class GraphBuilder:
    """Collects nodes; what `add` returns is an input for the next ones."""

    def __init__(self, input_shape: Shape) -> None:
        self._nodes = [Node("input", Input(input_shape), (), input_shape)]
        self._names = {"input"}
        self._scope = ""

    @property
    def input(self) -> Tensor:
        return Tensor(0, self._nodes[0].shape)

    def add(self, name: str, op: Op, *inputs: Tensor) -> Tensor:
        """Appends `op` under the current scope and returns what it makes.

        Raises:
            ValueError: the inputs do not fit the operation, or the name is taken.
        """
        full_name = self._scope + name
        if full_name in self._names:
            raise ValueError(f"node names are unique within a graph, {full_name!r} is taken")
        shape = output_shape(op, tuple(tensor.shape for tensor in inputs))
        self._names.add(full_name)
        self._nodes.append(Node(full_name, op, tuple(tensor.index for tensor in inputs), shape))
        return Tensor(len(self._nodes) - 1, shape)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Puts `name.` before the name of every node that is added inside."""
        outer, self._scope = self._scope, f"{self._scope}{name}."
        try:
            yield
        finally:
            self._scope = outer

    def build(self) -> DeployGraph:
        """The graph so far.

        Raises:
            ValueError: a value is made and never used, so that the graph would have two outputs.
        """
        used = {index for node in self._nodes for index in node.inputs}
        unused = [node.name for index, node in enumerate(self._nodes[:-1]) if index not in used]
        if unused:
            raise ValueError(f"every value but the last must be used, these are not: {', '.join(unused)}")
        return DeployGraph(tuple(self._nodes))
