"""A deploy graph in torch; what each operation computes is tested in tests/hardware/test_ops_forms.py."""

import numpy as np
import torch

from hardware.graph import GraphBuilder, with_weights
from hardware.ops import Activation, Add, Concat, Conv
from searchspace.deploy_module import DeployModule


def diamond():
    """Two ways from the input that join twice, and a value that is read by three."""
    graph = GraphBuilder((2, 4, 3))
    with graph.scope("first"):
        a = graph.add("conv", Conv(2, (3, 3), padding=(1, 1)), graph.input)
    b = graph.add("b", Activation("relu"), a)
    c = graph.add("c", Add(), b, graph.input)
    d = graph.add("d", Concat(0), c, a, b)
    graph.add("out", Add(), d, d)
    return graph.build()


def model(dtype=np.float64):
    rng = np.random.default_rng(0)
    graph = diamond()
    return with_weights(
        graph, {name: rng.standard_normal(shape).astype(dtype) for name, shape in graph.weight_shapes().items()}
    )


def test_values_flow_along_the_graph_however_often_they_are_read():
    deployed = model()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    weight, bias = (torch.from_numpy(deployed.weights[f"first.conv.{name}"]) for name in ("weight", "bias"))
    a = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    expected = 2 * torch.cat([a.clamp(min=0) + x, a, a.clamp(min=0)], 1)
    torch.testing.assert_close(DeployModule(deployed)(x), expected)


def test_weights_are_copies_that_travel_with_the_module():
    deployed = model(np.float32)
    module = DeployModule(deployed)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert set(before) == {"first/conv/weight", "first/conv/bias"}
    for value in deployed.weights.values():
        value[...] = 0
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert {buffer.dtype for buffer in module.double().buffers()} == {torch.float64}
    assert not list(module.parameters())


def test_its_state_loads_into_another_of_the_same_graph():
    first, second = DeployModule(model()), DeployModule(model())
    for buffer in second.buffers():
        buffer.zero_()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    assert torch.equal(first(x), second(x))
