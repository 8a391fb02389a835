"""A deploy graph for people who have torch and nothing of ours: a file of some thirty lines, a list of steps, weights.

The file knows the operations that the network has, the list says in which order they are done on what, so that the file
stays short however deep the network is.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

SOURCE, STEPS, WEIGHTS = "network.py", "network.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class Call:
    """An operation by its name in the file, what torch calls it, and what it is told beside tensors."""

    name: str
    function: str
    how: Mapping[str, Any]


def _conv(op: Conv) -> Call:
    how = {"stride": op.stride, "padding": list(op.padding), "dilation": op.dilation, "groups": op.groups}
    return Call("conv", "F.conv2d", how)


def _pool(op: Pool) -> Call:
    how = {"kernel_size": list(op.kernel), "stride": op.stride, "padding": list(op.padding)}
    kind = "avg" if op.kind == "average" else "max"
    return Call(f"{op.kind}_pool", f"F.{kind}_pool2d", how)


def _matmul(op: MatMul) -> Call:
    if op.transpose_second:
        return Call("matmul_transposed", "lambda x, y: x @ y.mT", {})
    return Call("matmul", "torch.matmul", {})


_NORM = "lambda x, *own, eps: F.layer_norm(x.movedim(1, -1), x.shape[1:2], *own, eps=eps).movedim(-1, 1)"
_LENGTH = "lambda x, eps: x * torch.rsqrt(x.square().sum((2, 3), keepdim=True) + eps)"

CALLS: Mapping[type, Callable[[Any], Call]] = {
    Input: lambda op: Call("image", "", {}),
    Conv: _conv,
    Pool: _pool,
    GlobalPool: lambda op: Call("mean", "lambda x: x.mean((2, 3), keepdim=True)", {}),
    Activation: lambda op: Call(op.kind, f"{'torch' if op.kind == 'sigmoid' else 'F'}.{op.kind}", {}),
    Add: lambda op: Call("add", "torch.add", {}),
    Mul: lambda op: Call("multiply", "torch.mul", {}),
    Flatten: lambda op: Call("flatten", "lambda x: x.flatten(1)", {}),
    Concat: lambda op: Call("concat", "lambda *x, axis: torch.cat(x, axis)", {"axis": op.axis + 1}),
    Slice: lambda op: Call(
        "slice", "torch.narrow", {"dim": op.axis + 1, "start": op.start, "length": op.stop - op.start}
    ),
    AddConstant: lambda op: Call("add", "torch.add", {}),
    MulConstant: lambda op: Call("multiply", "torch.mul", {}),
    ChannelNorm: lambda op: Call("channel_norm", _NORM, {"eps": op.epsilon}),
    ConvTranspose: lambda op: Call("conv_transpose", "F.conv_transpose2d", {"stride": op.size}),
    Reshape: lambda op: Call("reshape", "lambda x, shape: x.reshape(-1, *shape)", {"shape": list(op.shape)}),
    L2Normalize: lambda op: Call("l2_normalize", _LENGTH, {"eps": op.epsilon}),
    MatMul: _matmul,
    Softmax: lambda op: Call("softmax", "lambda x: x.softmax(-1)", {}),
}


@dataclass(frozen=True, slots=True)
class TorchSource:
    """The text of a module that runs steps, the steps of a network as JSON, and its weights by name."""

    text: str
    steps: str
    weights: Mapping[str, FloatArray]


def torch_source(model: DeployModel, title: str) -> TorchSource:
    """A file with a class `Network` and a function `load`, which reads the other two beside the file.

    `title` is the first line of the file's docstring. Weights are called as in the graph, with '/' in the place of '.'.
    """
    graph = model.graph
    weights = {_weight_name(name): value for name, value in model.weights.items()}
    tensors: dict[str, list[str]] = {}
    for name in model.weights:
        tensors.setdefault(name.rpartition(".")[0], []).append(_weight_name(name))
    steps = [_step(graph, node, tensors.get(node.name, [])) for node in graph.nodes[1:]]
    functions = {call.name: call.function for call in map(_call, (node.op for node in graph.nodes[1:]))}
    text = _FILE.format(
        title=title,
        operations="\n".join(f'    "{name}": {functions[name]},' for name in sorted(functions)),
        shapes=f"Images (n, {_listed(graph.input_shape)}) to (n, {_listed(graph.output_shape)}).",
    )
    listed = ",\n".join(map(json.dumps, steps))
    return TorchSource(text, f"[\n{listed}\n]\n", weights)


def _call(op: Op) -> Call:
    return CALLS[type(op)](op)


def _step(graph: DeployGraph, node: Node, tensors: list[str]) -> dict[str, Any]:
    call = _call(node.op)
    reads = [graph.nodes[index].name if index else "image" for index in node.inputs]
    return {"name": node.name, "operation": call.name, "reads": reads, "weights": tensors, "how": dict(call.how)}


def _weight_name(name: str) -> str:
    # A module takes no dots.
    return name.replace(".", "/")


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))


_FILE = '''"""{title}

Plain PyTorch: the network as it is deployed, every branch folded. network.json has its steps in running order and
model.safetensors its weights.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

OPERATIONS = {{
{operations}
}}


class Network(torch.nn.Module):
    """{shapes}"""

    def __init__(self, steps, weights):
        super().__init__()
        self.steps = steps
        for name, value in weights.items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, image):
        values = {{"image": image}}
        for step in self.steps:
            read = [values[name] for name in step["reads"]] + [self.get_parameter(name) for name in step["weights"]]
            values[step["name"]] = OPERATIONS[step["operation"]](*read, **step["how"])
        return values[self.steps[-1]["name"]]


def load(folder=Path(__file__).parent):
    steps = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    return Network(steps, load_file(folder / "model.safetensors")).eval()
'''
