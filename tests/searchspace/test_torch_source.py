"""The plain torch file: it is run as it is written and compared with the network's own forms."""

import ast
import json

import numpy as np
import pytest
import torch

from hardware.graph import GraphBuilder, with_weights
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
    L2Normalize,
    MatMul,
    Mul,
    MulConstant,
    Pool,
    Reshape,
    Slice,
    Softmax,
)
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network, deploy, deploy_graph
from searchspace.references import reference
from searchspace.spec import ArchSpec
from searchspace.torch_source import torch_source


def built(model, title="A network."):
    """The module that the text makes, with its weights in double precision."""
    source = torch_source(model, title)
    names = {"__name__": "network", "__file__": "network.py"}
    exec(compile(source.text, "network.py", "exec"), names)
    weights = {name: torch.from_numpy(np.array(value, np.float64)) for name, value in source.weights.items()}
    return names["Network"](json.loads(source.steps), weights).eval()


def drawn(graph):
    rng = np.random.default_rng(0)
    return with_weights(graph, {name: rng.standard_normal(shape) for name, shape in graph.weight_shapes().items()})


def everything():
    """Each operation at least once, on odd sizes, with values that live long and others that are read twice."""
    graph = GraphBuilder((3, 9, 7))
    x = graph.add("a.conv", Conv(4, (3, 1), 2, (1, 0), 1), graph.input)
    kept = graph.add("act", Activation("silu"), x)
    y = graph.add("b.conv", Conv(8, (3, 3), 1, (2, 2), 2, 2), kept)
    y = graph.add("gate", Activation("sigmoid"), y)
    z = graph.add("pool", Pool("average", (3, 3), 1, (1, 1)), y)
    z = graph.add("peak", Pool("max", (2, 1), 1), z)
    z = graph.add("up", ConvTranspose(4, 2), z)
    z = graph.add("norm", ChannelNorm(1e-3), z)
    z = graph.add("bare", ChannelNorm(affine=False), z)
    z = graph.add("cut", Slice(1, 1, 6), z)
    z = graph.add("cut2", Slice(2, 0, 4), z)
    z = graph.add("add", Add(), z, kept)
    z = graph.add("plus", AddConstant((4, 5, 1)), z)
    z = graph.add("times", MulConstant((4, 1, 4)), z)
    z = graph.add("gap", GlobalPool(), z)
    z = graph.add("gated", Mul(), kept, z)
    both = graph.add("both", Concat(0), z, kept)
    unit = graph.add("unit", L2Normalize(), both)
    rows = graph.add("rows", Reshape((8, 20)), unit)
    attention = graph.add("match", MatMul(transpose_second=True), rows, rows)
    attention = graph.add("soft", Softmax(), attention)
    mixed = graph.add("mix", MatMul(), attention, rows)
    flat = graph.add("map", Reshape((8, 5, 4)), mixed)
    # Names that a module has already.
    last = graph.add("forward", Conv(6, (5, 4)), flat)
    graph.add("logits", Flatten(), last)
    return graph.build()


def by_torch(model, x):
    """What torch makes of `everything`, written out by hand."""
    f = torch.nn.functional
    w = {name: torch.from_numpy(np.array(value)) for name, value in model.weights.items()}
    kept = f.silu(f.conv2d(x, w["a.conv.weight"], w["a.conv.bias"], 2, (1, 0)))
    y = torch.sigmoid(f.conv2d(kept, w["b.conv.weight"], w["b.conv.bias"], padding=2, dilation=2, groups=2))
    z = f.max_pool2d(f.avg_pool2d(y, 3, 1, 1), (2, 1), 1)
    z = f.conv_transpose2d(z, w["up.weight"], w["up.bias"], 2)
    mean, var = z.mean(1, keepdim=True), z.var(1, correction=0, keepdim=True)
    z = (z - mean) / (var + 1e-3).sqrt() * w["norm.scale"].view(1, -1, 1, 1) + w["norm.shift"].view(1, -1, 1, 1)
    z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    z = (z[:, :, 1:6, :4] + kept + w["plus.constant"]) * w["times.constant"]
    both = torch.cat([kept * z.mean((2, 3), keepdim=True), kept], 1)
    rows = (both / (both.square().sum((2, 3), keepdim=True) + 1e-6).sqrt()).reshape(-1, 8, 20)
    mixed = torch.softmax(rows @ rows.transpose(1, 2), -1) @ rows
    return f.conv2d(mixed.reshape(-1, 8, 5, 4), w["forward.weight"], w["forward.bias"]).flatten(1)


def test_the_file_computes_what_torch_does_by_hand():
    model = drawn(everything())
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(built(model)(x), by_torch(model, x), rtol=1e-9, atol=1e-9)


SMALL = ArchSpec(
    (1, 16, 16), Rep(8, 2), ((Rdp(16, 2),), (InvertedResidual(16, 1, 5, 2, True, "hardswish"),)), Classifier(10)
)


@pytest.mark.parametrize("spec", [SMALL, reference("mixmobilenet_xxs")], ids=["small", "mixmobilenet_xxs"])
def test_the_file_computes_what_the_trained_network_does(spec):
    network = build_network(spec, 3).double().eval()
    x = torch.randn(1, *spec.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(built(deploy(network))(x), network(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rdpnet_x1_5_cifar", "mixmobilenet_s", "parcnet_s"])
def test_the_file_stays_short_however_deep_the_network_is(name):
    graph = deploy_graph(reference(name))
    text = torch_source(drawn(graph), "Trial 3.").text
    assert text.startswith('"""Trial 3.')
    tree = ast.parse(text)
    imported = {
        each.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for each in node.names
    }
    assert imported == {"json", "torch", "torch.nn.functional", "safetensors.torch", "pathlib"}
    docstring = len(ast.get_docstring(tree).splitlines())
    code = [line for line in text.splitlines()[docstring:] if line.strip()]
    assert len(code) <= 41
    assert max(map(len, text.splitlines())) <= 120


def test_the_weights_can_be_trained_on_and_saved():
    model = drawn(deploy_graph(SMALL))
    network = built(model)
    assert {name.replace("/", ".") for name in network.state_dict()} == set(model.weights)
    network(torch.zeros(2, 1, 16, 16, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
