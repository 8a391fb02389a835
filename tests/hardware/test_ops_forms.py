"""Each operation in onnxruntime and in torch against numpy by hand, on odd sizes."""

from math import prod

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.graph import GraphBuilder, with_weights
from hardware.onnx_model import to_onnx
from hardware.ops import (
    AddConstant,
    ChannelNorm,
    Concat,
    ConvTranspose,
    L2Normalize,
    MatMul,
    MulConstant,
    Reshape,
    Slice,
    Softmax,
)
from searchspace.deploy_module import DeployModule


def channel_norm(x, weights):
    result = np.empty_like(x)
    for image, row, column in np.ndindex(x.shape[0], *x.shape[2:]):
        pixel = x[image, :, row, column]
        normed = (pixel - pixel.mean()) / np.sqrt(((pixel - pixel.mean()) ** 2).mean() + 1e-6)
        result[image, :, row, column] = normed * weights.get("scale", 1) + weights.get("shift", 0)
    return result


def l2_normalize(x, weights):
    return x / np.sqrt(np.array([[[[np.sum(part**2)]] for part in image] for image in x]) + 1e-6)


def conv_transpose(x, weights):
    batch, _, height, width = x.shape
    _, channels, size, _ = weights["weight"].shape
    result = np.empty((batch, channels, height * size, width * size))
    for row, column in np.ndindex(height * size, width * size):
        taps = weights["weight"][:, :, row % size, column % size]
        result[:, :, row, column] = x[:, :, row // size, column // size] @ taps + weights["bias"]
    return result


def softmax(x, weights):
    powers = np.exp(x)
    return powers / powers.sum(-1, keepdims=True)


# The operation, the shapes that enter, and what numpy makes of (inputs, weights).
CASES = [
    (Concat(0), [(3, 5, 7), (2, 5, 7), (1, 5, 7)], lambda x, y, z, weights: np.concatenate([x, y, z], 1)),
    (Concat(1), [(3, 5, 7), (3, 4, 7)], lambda x, y, weights: np.concatenate([x, y], 2)),
    (Concat(2), [(3, 5, 7), (3, 5, 1)], lambda x, y, weights: np.concatenate([x, y], 3)),
    (Slice(0, 2, 5), [(7, 3, 5)], lambda x, weights: x[:, 2:5]),
    (Slice(1, 0, 4), [(3, 5, 7)], lambda x, weights: x[:, :, :4]),
    (Slice(2, 6, 7), [(3, 5, 7)], lambda x, weights: x[..., 6:]),
    (AddConstant((3, 5, 1)), [(3, 5, 7)], lambda x, weights: x + weights["constant"]),
    (AddConstant((3, 1, 7)), [(3, 5, 7)], lambda x, weights: x + weights["constant"]),
    (AddConstant((3, 5, 7)), [(3, 5, 7)], lambda x, weights: x + weights["constant"]),
    (MulConstant((3, 1, 1)), [(3, 5, 5)], lambda x, weights: x * weights["constant"]),
    (ChannelNorm(), [(7, 3, 5)], channel_norm),
    (ChannelNorm(affine=False), [(7, 3, 5)], channel_norm),
    (L2Normalize(), [(3, 5, 7)], l2_normalize),
    (ConvTranspose(5), [(3, 1, 7)], conv_transpose),
    (ConvTranspose(2, size=3), [(3, 5, 2)], conv_transpose),
    (Reshape((3, 5, 14)), [(6, 5, 7)], lambda x, weights: x.reshape(2, 3, 5, 14)),
    (Reshape((6, 35)), [(6, 5, 7)], lambda x, weights: x.reshape(2, 6, 35)),
    (MatMul(), [(3, 5, 7), (3, 7, 2)], lambda x, y, weights: np.einsum("bsik,bskj->bsij", x, y)),
    (MatMul(transpose_second=True), [(3, 5, 7), (3, 2, 7)], lambda x, y, weights: np.einsum("bsik,bsjk->bsij", x, y)),
    (Softmax(), [(3, 5, 7)], softmax),
]
PARAMETERS = [pytest.param(*case, id=f"{case[0]}") for case in CASES]


def graph_of(op, shapes):
    """The operation alone; its operands are parts of one flat input, since a graph has no more than that."""
    graph = GraphBuilder((sum(map(prod, shapes)),))
    operands, start = [], 0
    for index, shape in enumerate(shapes):
        part = graph.add(f"part{index}", Slice(0, start, start + prod(shape)), graph.input)
        operands.append(graph.add(f"operand{index}", Reshape(shape), part))
        start += prod(shape)
    graph.add("op", op, *operands)
    return graph.build()


def drawn(shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


def model_and_inputs(op, shapes):
    graph = graph_of(op, shapes)
    weights = {name: drawn(shape, 10 + index) for index, (name, shape) in enumerate(graph.weight_shapes().items())}
    inputs = [drawn((2, *shape), index) for index, shape in enumerate(shapes)]
    flat = np.concatenate([x.reshape(2, -1) for x in inputs], 1)
    return with_weights(graph, weights), inputs, flat


def expected(by_hand, model, inputs):
    return by_hand(*inputs, {name.removeprefix("op."): value for name, value in model.weights.items()})


@pytest.mark.parametrize(("op", "shapes", "by_hand"), PARAMETERS)
def test_onnxruntime_computes_what_numpy_does(op, shapes, by_hand):
    model, inputs, flat = model_and_inputs(op, shapes)
    session = onnxruntime.InferenceSession(to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": flat.astype(np.float32)})
    np.testing.assert_allclose(result, expected(by_hand, model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "shapes", "by_hand"), PARAMETERS)
def test_torch_computes_what_numpy_does(op, shapes, by_hand):
    model, inputs, flat = model_and_inputs(op, shapes)
    result = DeployModule(model)(torch.from_numpy(flat)).numpy()
    np.testing.assert_allclose(result, expected(by_hand, model, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "shapes", "by_hand"), PARAMETERS)
def test_shape_and_macs_are_those_of_torch(op, shapes, by_hand):
    model, _, flat = model_and_inputs(op, shapes)
    with FlopCounterMode(display=False) as counter:
        result = DeployModule(model)(torch.from_numpy(flat))
    assert tuple(result.shape) == (2, *model.graph.output_shape)
    assert counter.get_total_flops() == 2 * 2 * cost(model.graph).macs


def test_channel_norm_is_torchs_layer_norm():
    model, (x,), flat = model_and_inputs(ChannelNorm(epsilon=1e-3), [(7, 3, 5)])
    norm = torch.nn.LayerNorm(7, eps=1e-3, dtype=torch.float64)
    norm.weight.data[:] = torch.from_numpy(model.weights["op.scale"].copy())
    norm.bias.data[:] = torch.from_numpy(model.weights["op.shift"].copy())
    with torch.no_grad():
        layer_normed = norm(torch.from_numpy(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    np.testing.assert_allclose(DeployModule(model)(torch.from_numpy(flat)), layer_normed, atol=1e-12)


def test_l2_normalize_of_zeros_is_zeros():
    model, _, flat = model_and_inputs(L2Normalize(), [(3, 5, 7)])
    session = onnxruntime.InferenceSession(to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": np.zeros_like(flat, dtype=np.float32)})
    assert not result.any()


def test_cross_covariance_attention_runs_as_torch_writes_it():
    channels, height, width, heads = 6, 3, 5, 2
    graph = GraphBuilder((3 * channels, height, width))
    parts = [
        graph.add(name, Slice(0, index * channels, (index + 1) * channels), graph.input)
        for index, name in enumerate(("query", "key", "value"))
    ]
    parts[:2] = [graph.add(f"unit{index}", L2Normalize(), part) for index, part in enumerate(parts[:2])]
    query, key, value = (
        graph.add(f"heads{index}", Reshape((heads, channels // heads, height * width)), part)
        for index, part in enumerate(parts)
    )
    scores = graph.add("scores", MatMul(transpose_second=True), query, key)
    scores = graph.add("temperature", MulConstant((heads, 1, 1)), scores)
    mixed = graph.add("mixed", MatMul(), graph.add("softmax", Softmax(), scores), value)
    graph.add("map", Reshape((channels, height, width)), mixed)
    temperature = drawn((heads, 1, 1), 1)
    model = with_weights(graph.build(), {"temperature.constant": temperature})

    x = drawn((2, 3 * channels, height, width), 2)
    tokens = torch.from_numpy(x).reshape(2, 3, heads, channels // heads, height * width).unbind(1)
    unit = torch.nn.functional.normalize
    weights = (unit(tokens[0], dim=-1) @ unit(tokens[1], dim=-1).mT * torch.from_numpy(temperature)).softmax(-1)
    plain = (weights @ tokens[2]).reshape(2, channels, height, width).numpy()

    session = onnxruntime.InferenceSession(to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": x.astype(np.float32)})
    np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-5)
    # Two products for each head: d x n by n x d, and d x d by d x n, with d = 3 and n = 15.
    assert cost(model.graph).macs == 2 * (3 * 15 * 3 + 3 * 3 * 15)
