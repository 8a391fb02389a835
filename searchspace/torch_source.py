"""A deploy graph as the text of a plain torch module, for people who have torch and nothing of ours.

One line for each layer with weights and one for each step of `forward`; the names are those of the graph with '_' in
the place of '.'.
"""

import keyword
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hardware.graph import DeployGraph, DeployModel, FloatArray, Node
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
)

# Steps are nested while the line stays within this.
WIDEST_LINE = 100

# (operation, the expressions of its inputs, the attribute that holds its weights) to the expression of its result.
Expression = Callable[[Op, Sequence[str], str], str]


def _pair(lengths: tuple[int, int]) -> str:
    return str(lengths[0]) if lengths[0] == lengths[1] else str(lengths)


def _arguments(needed: Sequence[object], **optional: tuple[object, object]) -> str:
    """Arguments of a call; the optional ones, (value, default), only where they differ from their default."""
    given = [f"{name}={value}" for name, (value, default) in optional.items() if str(value) != str(default)]
    return ", ".join([*map(str, needed), *given])


def _pool(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, Pool)
    kind = "avg" if op.kind == "average" else "max"
    arguments = _arguments([inputs[0], _pair(op.kernel), op.stride], padding=(_pair(op.padding), 0))
    return f"F.{kind}_pool2d({arguments})"


def _activation(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, Activation)
    return f"{'torch' if op.kind == 'sigmoid' else 'F'}.{op.kind}({inputs[0]})"


def _concat(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, Concat)
    return f"torch.cat([{', '.join(inputs)}], {op.axis + 1})"


def _slice(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, Slice)
    return f"{inputs[0]}.narrow({op.axis + 1}, {op.start}, {op.stop - op.start})"


def _channel_norm(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, ChannelNorm)
    last = f"{inputs[0]}.movedim(1, -1)"
    if op.affine:
        return f"self.{own}({last}).movedim(-1, 1)"
    return f"F.layer_norm({last}, {inputs[0]}.shape[1:2], eps={op.epsilon}).movedim(-1, 1)"


def _l2_normalize(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, L2Normalize)
    return f"{inputs[0]} * torch.rsqrt({inputs[0]}.square().sum((2, 3), keepdim=True) + {op.epsilon})"


def _matmul(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, MatMul)
    return f"{inputs[0]} @ {inputs[1]}{'.mT' if op.transpose_second else ''}"


def _reshape(op: Op, inputs: Sequence[str], own: str) -> str:
    assert isinstance(op, Reshape)
    return f"{inputs[0]}.reshape(-1, {', '.join(map(str, op.shape))})"


EXPRESSIONS: Mapping[type, Expression] = {
    Input: lambda op, inputs, own: inputs[0],
    Conv: lambda op, inputs, own: f"self.{own}({inputs[0]})",
    Pool: _pool,
    GlobalPool: lambda op, inputs, own: f"{inputs[0]}.mean((2, 3), keepdim=True)",
    Activation: _activation,
    Add: lambda op, inputs, own: f"{inputs[0]} + {inputs[1]}",
    Mul: lambda op, inputs, own: f"{inputs[0]} * {inputs[1]}",
    Flatten: lambda op, inputs, own: f"{inputs[0]}.flatten(1)",
    Concat: _concat,
    Slice: _slice,
    AddConstant: lambda op, inputs, own: f"{inputs[0]} + self.{own}",
    MulConstant: lambda op, inputs, own: f"{inputs[0]} * self.{own}",
    ChannelNorm: _channel_norm,
    ConvTranspose: lambda op, inputs, own: f"self.{own}({inputs[0]})",
    Reshape: _reshape,
    L2Normalize: _l2_normalize,
    MatMul: _matmul,
    Softmax: lambda op, inputs, own: f"{inputs[0]}.softmax(-1)",
}

# What may stand around, or behind, the expression of its input.
NESTS = (Conv, ConvTranspose, Activation, GlobalPool, Flatten, Softmax, Pool)


def _conv_layer(op: Op, shape: Shape) -> str:
    assert isinstance(op, Conv)
    arguments = _arguments(
        [shape[0], op.out_channels, _pair(op.kernel)],
        stride=(op.stride, 1),
        padding=(_pair(op.padding), 0),
        dilation=(op.dilation, 1),
        groups=(op.groups, 1),
    )
    return f"nn.Conv2d({arguments})"


def _conv_transpose_layer(op: Op, shape: Shape) -> str:
    assert isinstance(op, ConvTranspose)
    return f"nn.ConvTranspose2d({shape[0]}, {op.out_channels}, {op.size}, stride={op.size})"


def _constant_layer(op: Op, shape: Shape) -> str:
    assert isinstance(op, AddConstant | MulConstant)
    return f"nn.Parameter(torch.empty({', '.join(map(str, op.shape))}))"


def _norm_layer(op: Op, shape: Shape) -> str:
    assert isinstance(op, ChannelNorm)
    return f"nn.LayerNorm({shape[0]}, eps={op.epsilon})"


# What holds the weights of an operation that has some, given the shape that enters it.
LAYERS: Mapping[type, Callable[[Op, Shape], str]] = {
    Conv: _conv_layer,
    ConvTranspose: _conv_transpose_layer,
    AddConstant: _constant_layer,
    MulConstant: _constant_layer,
    ChannelNorm: _norm_layer,
}

# Where torch has another word for a learnt tensor; a constant is the attribute itself.
STATE_NAMES: Mapping[str, str] = {
    "weight": ".weight",
    "bias": ".bias",
    "scale": ".weight",
    "shift": ".bias",
    "constant": "",
}


@dataclass(frozen=True, slots=True)
class TorchSource:
    """The text of a module that builds the network, and its weights under the names that they have in its state."""

    text: str
    weights: Mapping[str, FloatArray]


def torch_source(model: DeployModel, title: str) -> TorchSource:
    """A file with a class `Network` and a function `load`, which reads model.safetensors beside the file.

    `title` is the first line of the file's docstring.
    """
    graph = model.graph
    attributes = _attributes(graph)
    weights = {}
    for name, value in model.weights.items():
        node, _, tensor = name.rpartition(".")
        weights[attributes[node] + STATE_NAMES[tensor]] = value
    layers = [
        f"        self.{attributes[node.name]} = {LAYERS[type(node.op)](node.op, graph.input_shapes(node)[0])}"
        for node in graph.nodes
        if node.name in attributes
    ]
    steps = [f"        {line}" for line in _steps(graph, attributes)]
    shapes = f"Images (n, {_listed(graph.input_shape)}) to (n, {_listed(graph.output_shape)})."
    text = _FILE.format(title=title, shapes=shapes, layers="\n".join(layers), steps="\n".join(steps))
    return TorchSource(text, weights)


_FILE = '''"""{title}

Plain PyTorch: the network as it is deployed, every branch folded. The weights lie beside this file.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Network(nn.Module):
    """{shapes}"""

    def __init__(self):
        super().__init__()
{layers}

    def forward(self, x):
{steps}


def load():
    network = Network()
    network.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return network.eval()


if __name__ == "__main__":
    print(load())
'''


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))


def _attributes(graph: DeployGraph) -> dict[str, str]:
    """A name for each node that has weights, by which the module knows it."""
    taken = set(dir(nn.Module))
    result = {}
    for node in graph.nodes:
        if type(node.op) in LAYERS and (not isinstance(node.op, ChannelNorm) or node.op.affine):
            name = re.sub(r"\W", "_", node.name)
            while name in taken or keyword.iskeyword(name) or name[0].isdigit():
                name = f"_{name}"
            taken.add(name)
            result[node.name] = name
    return result


@dataclass(slots=True)
class _Step:
    variable: str
    expression: str
    node: int


def _steps(graph: DeployGraph, attributes: Mapping[str, str]) -> list[str]:
    """The lines of `forward`; a variable is used again as soon as nobody reads what it holds."""
    last_reader = {source: index for index, node in enumerate(graph.nodes) for source in node.inputs}
    readers = Counter(source for node in graph.nodes for source in node.inputs)
    variables = {0: "x"}
    steps: list[_Step] = []
    for index, node in enumerate(graph.nodes[1:], start=1):
        own = attributes.get(node.name, "")
        if _nests(node, steps, readers):
            nested = EXPRESSIONS[type(node.op)](node.op, [_operand(steps[-1].expression)], own)
            if len(nested) <= WIDEST_LINE:
                steps[-1].expression, steps[-1].node = nested, index
                variables[index] = steps[-1].variable
                continue
        expression = EXPRESSIONS[type(node.op)](node.op, [variables[source] for source in node.inputs], own)
        held = {variables[earlier] for earlier, reader in last_reader.items() if earlier < index < reader}
        variables[index] = next(name for name in _variables(index) if name not in held)
        steps.append(_Step(variables[index], expression, index))
    if not steps:
        return ["return x"]
    return [*(f"{step.variable} = {step.expression}" for step in steps[:-1]), f"return {steps[-1].expression}"]


def _nests(node: Node, steps: Sequence[_Step], readers: Mapping[int, int]) -> bool:
    """Whether the step before this node makes its only input, for nobody else."""
    if not steps or not isinstance(node.op, NESTS) or node.inputs != (steps[-1].node,):
        return False
    return readers[steps[-1].node] == 1 and not isinstance(node.op, Conv | ConvTranspose)


def _operand(expression: str) -> str:
    # A method binds to the last operand only.
    return f"({expression})" if re.search(r" [+*@] ", expression) else expression


def _variables(index: int) -> list[str]:
    return ["x", "y", "z", *(f"z{number}" for number in range(2, index + 2))]
