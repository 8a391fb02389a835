"""What every runtime promises of every operation, block family and small published network: torch's numbers.

Torch computes in double precision what the graph says. All models of a runtime are converted and run in one process.
"""

from math import prod
from typing import get_args

import numpy as np
import pytest
import torch

from hardware import board
from hardware.graph import DeployGraph, DeployModel, FloatArray, GraphBuilder, with_weights
from hardware.isolated import Failed
from hardware.ops import (
    ACTIVATIONS,
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
from hardware.parity import PARITY_BOUND
from hardware.profiling import ENDS
from hardware.runtimes import RUNTIMES
from searchspace.deploy_module import DeployModule
from searchspace.network import block_graph, deploy_graph
from searchspace.references import reference, reference_names
from searchspace.registry import families
from tests.converted import check_models

# Odd sizes, and channels that runtimes pack by 4, 8 or 16.
ODD, PACKED = (7, 5, 9), (16, 6, 6)
MAPS = (ODD, PACKED, (3, 1, 4), (12, 17, 16))

OPS = [
    *[(Conv(out, (1, 1)), [shape]) for shape in MAPS for out in (5, 16)],
    *[(Conv(out, (3, 3), stride, (1, 1)), [shape]) for shape in MAPS for out in (5, 32) for stride in (1, 2)],
    *[(Conv(shape[0], (5, 3), 1, (2, 1), groups=shape[0]), [shape]) for shape in MAPS],
    *[(Conv(shape[0], (3, 3), 2, (1, 1), groups=shape[0]), [shape]) for shape in (ODD, PACKED)],
    (Conv(8, (7, 7), 4, (3, 3)), [(3, 33, 30)]),
    (Conv(16, (3, 3), 1, (2, 2), dilation=2), [PACKED]),
    (Conv(16, (3, 3), 1, (2, 2), dilation=2, groups=16), [PACKED]),
    (Conv(24, (3, 3), 1, (1, 1), groups=4), [PACKED]),
    (Conv(6, (3, 1), 2, (1, 0), groups=3), [(9, 5, 5)]),
    (Conv(32, (1, 1)), [(16, 1, 1)]),
    *[(Pool(kind, (3, 3), 2, (1, 1)), [shape]) for kind in ("average", "max") for shape in MAPS],
    (Pool("average", (2, 3), 1), [ODD]),
    (Pool("max", (2, 2), 2), [ODD]),
    *[(GlobalPool(), [shape]) for shape in MAPS],
    *[(Activation(kind), [shape]) for kind in ACTIVATIONS for shape in MAPS],
    *[(op, [shape, shape]) for op in (Add(), Mul()) for shape in MAPS],
    *[(Mul(), [shape, (shape[0], 1, 1)]) for shape in (*MAPS, (5, 5, 5))],
    *[(Flatten(), [shape]) for shape in MAPS],
    (Concat(0), [(3, 5, 7), (2, 5, 7), (1, 5, 7)]),
    (Concat(0), [(16, 5, 7), (8, 5, 7), (4, 5, 7)]),
    (Concat(1), [(3, 5, 7), (3, 4, 7)]),
    (Concat(2), [(16, 5, 7), (16, 5, 1)]),
    (Slice(0, 2, 5), [ODD]),
    (Slice(0, 4, 16), [PACKED]),
    (Slice(0, 0, 8), [PACKED]),
    (Slice(1, 0, 4), [ODD]),
    (Slice(2, 5, 6), [PACKED]),
    *[
        (op(constant), [shape])
        for op in (AddConstant, MulConstant)
        for shape in (ODD, PACKED, (6, 6, 6))
        for c, h, w in [shape]
        for constant in ((c, h, 1), (c, 1, w), (c, 1, 1), (1, h, 1), (1, 1, w), (1, 1, 1), (1, h, w), shape)
    ],
    *[(ChannelNorm(affine=affine), [shape]) for affine in (True, False) for shape in MAPS],
    *[(ConvTranspose(out, size), [shape]) for out, size in ((5, 2), (16, 3)) for shape in MAPS],
    (Reshape((7, 9, 5)), [ODD]),
    (Reshape((4, 4, 36)), [PACKED]),
    (Reshape((16, 36)), [PACKED]),
    (Reshape((12, 6, 8)), [(16, 36)]),
    (Reshape((2, 8, 6, 6)), [PACKED]),
    *[(L2Normalize(), [shape]) for shape in MAPS],
    (MatMul(), [(3, 5, 7), (3, 7, 2)]),
    (MatMul(), [(4, 8, 16), (4, 16, 8)]),
    (MatMul(), [(5, 7), (7, 3)]),
    (MatMul(), [(2, 3, 5, 7), (2, 3, 7, 4)]),
    (MatMul(transpose_second=True), [(3, 5, 7), (3, 2, 7)]),
    (MatMul(transpose_second=True), [(4, 16, 16), (4, 8, 16)]),
    (Softmax(), [(3, 5, 7)]),
    (Softmax(), [(4, 16, 16)]),
    (Softmax(), [(5, 8)]),
    (Softmax(), [(2, 3, 5, 8)]),
    (Softmax(), [(10,)]),
]


def graph_of(op: Op, shapes: list[tuple[int, ...]]) -> DeployGraph:
    """The operation alone; where it takes several operands, they are parts of one flat input."""
    if len(shapes) == 1:
        graph = GraphBuilder(shapes[0])
        graph.add("op", op, graph.input)
        return graph.build()
    graph = GraphBuilder((sum(map(prod, shapes)),))
    operands, start = [], 0
    for index, shape in enumerate(shapes):
        part = graph.add(f"part{index}", Slice(0, start, start + prod(shape)), graph.input)
        operands.append(graph.add(f"operand{index}", Reshape(shape), part))
        start += prod(shape)
    graph.add("op", op, *operands)
    return graph.build()


CASES: dict[str, DeployGraph] = {
    **{f"{op} of {shapes}": graph_of(op, shapes) for op, shapes in OPS},
    **{
        f"{family.name}-{index}": block_graph(shape, spec)
        for family in families()
        for index, (shape, spec) in enumerate(family.examples)
    },
}


def model_and_images(graph: DeployGraph, images: int, bias: float = 1) -> tuple[DeployModel, FloatArray]:
    rng = np.random.default_rng(0)
    # As large as keeps the values of a deep network at their size.
    weights = {
        name: rng.normal(size=shape) * ((2 / prod(shape[1:])) ** 0.5 if len(shape) > 2 else bias)
        for name, shape in graph.weight_shapes().items()
    }
    return with_weights(graph, weights), rng.normal(size=(images, *graph.input_shape))


@pytest.fixture(scope="module")
def models():
    return [model_and_images(graph, 2) for graph in CASES.values()]


@pytest.fixture(scope="module")
def expected(models):
    return [DeployModule(model)(torch.from_numpy(images)).numpy() for model, images in models]


@pytest.fixture(scope="module")
def answers(models, expected):
    return {name: dict(zip(CASES, check_models(name, models, expected), strict=True)) for name in RUNTIMES}


def test_every_operation_has_cases():
    assert {type(op) for op, _ in OPS} | {Input} == set(get_args(Op))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_computes_what_torch_does(runtime, case, answers):
    answer = answers[runtime][case]
    assert not isinstance(answer, Failed), answer
    assert answer.max_rel <= PARITY_BOUND


@pytest.mark.parametrize("op", [ChannelNorm(), ChannelNorm(1e-5), L2Normalize(), L2Normalize(1e-3)], ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_epsilon_counts_where_values_are_small(runtime, op):
    model, images = model_and_images(graph_of(op, [PACKED]), 2)
    small = 3e-4 * images
    expected = DeployModule(model)(torch.from_numpy(small)).numpy()
    without = DeployModule(model)(torch.from_numpy(images)).numpy()
    assert np.abs(expected - without).max() > 0.1 * np.abs(without).max()
    (answer,) = check_models(runtime, [(model, small)], [expected])
    assert not isinstance(answer, Failed), answer
    assert answer.max_rel <= PARITY_BOUND


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "rdpnet_x1_0_cifar" else pytest.mark.slow) for name in reference_names()],
)
def test_published_networks_are_the_same_in_every_runtime(name):
    # With larger biases gates see values of several hundred, where rounding decides whether they open.
    model, images = model_and_images(deploy_graph(reference(name)), 1, bias=0.1)
    expected = DeployModule(model)(torch.from_numpy(images)).numpy()
    for runtime in RUNTIMES:
        (answer,) = check_models(runtime, [(model, images)], [expected])
        assert not isinstance(answer, Failed), answer
        assert answer.max_rel <= PARITY_BOUND, runtime


def run_timed(runtime, graph, path, threads):
    """One run, as a board runs it where it measures."""
    entering, leaving = ENDS[runtime]
    _, open_model = board.RUNTIMES[runtime]()
    job = {"inputs": [{"name": entering, "shape": [1, *graph.input_shape]}], "output": leaving}
    open_model(str(path), job, threads)()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_network_can_be_timed_without_its_weights(runtime, tmp_path):
    chosen = RUNTIMES[runtime]
    graphs = list(CASES.values())
    paths = [tmp_path / f"{index}{chosen.suffix}" for index in range(len(graphs))]
    assert list(chosen.write_timed(list(zip(graphs, paths, strict=True)))) == paths
    for graph, path in zip(graphs, paths, strict=True):
        run_timed(runtime, graph, path, threads=1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_whole_models_can_be_timed_on_more_than_one_thread(runtime, models, tmp_path):
    chosen = RUNTIMES[runtime]
    (path,) = chosen.write_models([(models[-1][0], tmp_path / f"model{chosen.suffix}")])
    assert path == tmp_path / f"model{chosen.suffix}"
    for threads in (1, 2):
        run_timed(runtime, models[-1][0].graph, path, threads=threads)
