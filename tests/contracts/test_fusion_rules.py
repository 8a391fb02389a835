"""What the target file says that runtimes fuse is what they fuse."""

import MNN
import pytest

from hardware import ncnn_model
from hardware.graph import GraphBuilder
from hardware.kernels import fuse
from hardware.ops import (
    ACTIVATIONS,
    Activation,
    Add,
    AddConstant,
    ChannelNorm,
    Concat,
    Conv,
    ConvTranspose,
    GlobalPool,
    Mul,
    MulConstant,
    Pool,
)
from hardware.runtimes import RUNTIMES
from hardware.targets import load_target

OPS = [
    Conv(16, (3, 3), 1, (1, 1)),
    Conv(16, (3, 3), 1, (1, 1), groups=16),
    ConvTranspose(16),
    Add(),
    Mul(),
    AddConstant((16, 6, 1)),
    MulConstant((16, 1, 1)),
    Pool("max", (3, 3), 2, (1, 1)),
    Pool("average", (3, 3), 2, (1, 1)),
    GlobalPool(),
    ChannelNorm(),
    Concat(0),
]
TAKES_TWO = (Add, Mul, Concat)


def graph_of(*ops):
    """A chain of operations; a second operand comes from a pool of its own, which fuses with nothing."""
    graph = GraphBuilder((16, 6, 5))
    x = graph.input
    for index, op in enumerate(ops):
        # A pool that leaves as it was what the second operand has to be as large as.
        sides = [graph.add(f"side{index}", Pool("max", (1, 1), 1), x)] if isinstance(op, TAKES_TWO) else []
        x = graph.add(f"op{index}", op, x, *sides)
    return graph.build()


CHAINS = [(op, *more) for op in OPS for more in ((), (Add(),), *((Activation(kind),) for kind in ACTIVATIONS))]


@pytest.fixture(scope="module")
def operators_in_mnn(tmp_path_factory):
    """How many operators MNN runs for a chain, apart from changes of layout."""
    folder = tmp_path_factory.mktemp("mnn")
    files = [folder / f"{index}.mnn" for index in range(len(CHAINS))]
    graphs = [graph_of(*chain) for chain in CHAINS]
    written = RUNTIMES["mnn"].write_timed(list(zip(graphs, files, strict=True)))
    return {chain: operators(path) for chain, path in zip(CHAINS, written, strict=True)}


def operators(path):
    interpreter = MNN.Interpreter(str(path))
    session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": 1})
    kinds = []
    interpreter.runSessionWithCallBackInfo(
        session, lambda tensors, op: True, lambda tensors, op: kinds.append(op.getType()) or True
    )
    return len(kinds) - kinds.count("Raster")


def test_ncnn_fuses_what_is_written_into_one_layer():
    assert load_target("host", runtime="ncnn").fusion_rules == ncnn_model.FUSION_RULES


@pytest.mark.parametrize("op", OPS, ids=str)
def test_mnn_fuses_activations_where_its_rules_say_so(op, operators_in_mnn):
    rules = load_target("host", runtime="mnn").fusion_rules
    for kind in ACTIVATIONS:
        both = (op, Activation(kind))
        is_fused = len(fuse(graph_of(*both), rules)) == len(fuse(graph_of(op), rules))
        assert (operators_in_mnn[both] == operators_in_mnn[op,]) == is_fused, kind


@pytest.mark.parametrize("op", OPS, ids=str)
def test_mnn_adds_apart(op, operators_in_mnn):
    # One pool and one addition more.
    assert operators_in_mnn[op, Add()] == operators_in_mnn[op,] + 2
