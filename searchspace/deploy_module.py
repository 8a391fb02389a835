"""A deploy graph as a plain torch module: the folded network without any of the train-time machinery."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import DeployModel
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
    Slice,
    Softmax,
)

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
}


def _conv(op: Conv, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return functional.conv2d(
        inputs[0], weights["weight"], weights["bias"], op.stride, op.padding, op.dilation, op.groups
    )


def _pool(op: Pool, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    run = functional.avg_pool2d if op.kind == "average" else functional.max_pool2d
    return run(inputs[0], op.kernel, op.stride, op.padding)


def _channel_norm(op: ChannelNorm, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    last = inputs[0].movedim(1, -1)
    scale, shift = weights.get("scale"), weights.get("shift")
    return functional.layer_norm(last, last.shape[-1:], scale, shift, op.epsilon).movedim(-1, 1)


def _conv_transpose(op: ConvTranspose, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return functional.conv_transpose2d(inputs[0], weights["weight"], weights["bias"], op.size)


def _matmul(op: MatMul, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] @ (inputs[1].mT if op.transpose_second else inputs[1])


def _l2_normalize(op: L2Normalize, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    return inputs[0] * torch.rsqrt(inputs[0].square().sum((2, 3), keepdim=True) + op.epsilon)


# How torch computes each operation: (op, inputs with the batch first, weights by name) to the result.
TORCH_FORM: Mapping[type, Callable[..., Tensor]] = {
    Input: lambda op, inputs, weights: inputs[0],
    Conv: _conv,
    Pool: _pool,
    GlobalPool: lambda op, inputs, weights: inputs[0].mean((2, 3), keepdim=True),
    Activation: lambda op, inputs, weights: ACTIVATIONS[op.kind](inputs[0]),
    Add: lambda op, inputs, weights: inputs[0] + inputs[1],
    Mul: lambda op, inputs, weights: inputs[0] * inputs[1],
    Flatten: lambda op, inputs, weights: inputs[0].flatten(1),
    Concat: lambda op, inputs, weights: torch.cat(inputs, op.axis + 1),
    Slice: lambda op, inputs, weights: inputs[0].narrow(op.axis + 1, op.start, op.stop - op.start),
    AddConstant: lambda op, inputs, weights: inputs[0] + weights["constant"],
    MulConstant: lambda op, inputs, weights: inputs[0] * weights["constant"],
    ChannelNorm: _channel_norm,
    ConvTranspose: _conv_transpose,
    Reshape: lambda op, inputs, weights: inputs[0].reshape(-1, *op.shape),
    L2Normalize: _l2_normalize,
    MatMul: _matmul,
    Softmax: lambda op, inputs, weights: inputs[0].softmax(-1),
}


def run_op(op: Op, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """What torch computes for one operation."""
    return TORCH_FORM[type(op)](op, inputs, weights)


class DeployModule(nn.Module):
    """Runs a deploy model in torch; each folded weight is a buffer, named with '/' in the place of '.'."""

    def __init__(self, model: DeployModel) -> None:
        super().__init__()
        self.graph = model.graph
        self.tensor_names: dict[str, list[str]] = {node.name: [] for node in model.graph.nodes}
        for name, value in model.weights.items():
            node, _, tensor = name.rpartition(".")
            self.tensor_names[node].append(tensor)
            self.register_buffer(_buffer_name(node, tensor), torch.from_numpy(value.copy()))

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for node in self.graph.nodes:
            weights = {
                tensor: self.get_buffer(_buffer_name(node.name, tensor)) for tensor in self.tensor_names[node.name]
            }
            values.append(run_op(node.op, [values[index] for index in node.inputs] or [x], weights))
        return values[-1]


def _buffer_name(node: str, tensor: str) -> str:
    # torch keeps '.' in names for the path through modules
    return f"{node}.{tensor}".replace(".", "/")
