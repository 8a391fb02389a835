"""Whose time it is that a runtime's clock gives to an operator: by hand, and in the runtimes themselves."""

import statistics
import time

import pytest

from hardware import board
from hardware.attribution import OperatorTime, UnknownOperator, attributed
from hardware.graph import DeployGraph, GraphBuilder
from hardware.job_folder import SUFFIXES
from hardware.ops import Activation, Add, Conv, GlobalPool, Mul
from hardware.profiling import ENDS
from hardware.runtimes import RUNTIMES
from hardware.targets import described_target

RULES = (("conv", "relu"), ("conv", "sigmoid"), ("conv", "add"))


def gated() -> DeployGraph:
    """Kernels: stem conv+relu, depthwise, pool, gate conv+sigmoid, product, last conv+add."""
    graph = GraphBuilder((3, 8, 8))
    stem = graph.add("relu", Activation("relu"), graph.add("stem", Conv(8, (3, 3), padding=(1, 1)), graph.input))
    depth = graph.add("b0_dw", Conv(8, (3, 3), padding=(1, 1), groups=8), stem)
    pool = graph.add("pool", GlobalPool(), depth)
    gate = graph.add("sigmoid", Activation("sigmoid"), graph.add("gate", Conv(8, (1, 1)), pool))
    product = graph.add("product", Mul(), depth, gate)
    graph.add("sum", Add(), graph.add("project", Conv(8, (1, 1)), product), stem)
    return graph.build()


def traced(*operators: tuple[str, float]) -> list[tuple[str, float, int]]:
    found = attributed(gated(), RULES, [OperatorTime(*each) for each in operators])
    return [(each.key.partition("(")[0] + each.key.rpartition(")")[2], each.traced_ms, each.launches) for each in found]


def test_operators_by_hand() -> None:
    found = traced(
        ("reorder_in", 0.5),  # for the stem's sake
        ("stem_nchwc", 4.0),
        ("b0_dw", 2.0),
        ("reorder_out", 0.25),  # a pool reads either layout: it is the product that needs another
        ("pool", 0.125),
        ("gate_fused_2", 1.0),
        ("reorder_back", 0.0625),
        ("product", 0.75),
        ("output", 3.0),  # what the last node is called in the file
        ("reorder_last", 0.03125),  # behind everything, and so the last one's
    )
    assert found == [
        ("conv+relu", 4.5, 2),
        ("conv", 2.0, 1),
        ("global_pool", 0.125, 1),
        ("conv+sigmoid", 1.0, 1),
        ("mul", 1.0625, 3),
        ("conv+add", 3.03125, 2),
    ]


def test_any_node_of_a_kernel_may_give_its_name_and_several_may() -> None:
    by_first = traced(("stem", 1.0), ("b0_dw", 1.0), ("pool", 1.0), ("gate", 1.0), ("product", 1.0), ("project", 1.0))
    by_last = traced(("relu", 1.0), ("b0_dw", 1.0), ("pool", 1.0), ("sigmoid", 1.0), ("product", 1.0), ("out0", 1.0))
    assert by_first == by_last
    assert [each[1:] for each in by_first] == [(1.0, 1)] * 6
    assert traced(("stem", 1.0), ("out0", 9.0))[-1][1:] == (9.0, 1)
    apart = traced(("stem", 1.0), ("relu", 0.5), ("b0_dw", 1.0), ("output", 1.0))
    assert apart[0][1:] == (1.5, 2)
    assert apart[2][1:] == (0.0, 0), "what the runtime did not run took nothing"


def test_a_name_within_a_name_is_not_taken_for_it() -> None:
    # "b0_dw" begins with "b0", and "b0_dw_1" is more than "b0_dw".
    found = traced(("b0", 1.0), ("b0_dw_1", 1.0), ("stem", 1.0))
    assert found[0][1:] == (1.0, 1)
    assert found[1][1:] == (2.0, 2), "b0 is nobody's, and stands before the kernel that b0_dw_1 belongs to"


def test_what_a_runtime_puts_together_itself_goes_to_the_next_kernel_of_that_kind() -> None:
    graph = GraphBuilder((4, 8, 8))
    first = graph.add("a", Activation("gelu"), graph.input)
    conv = graph.add("conv", Conv(4, (1, 1)), first)
    graph.add("b", Activation("gelu"), conv)
    operators = [OperatorTime("Gelu_token_0", 1.0), OperatorTime("conv", 2.0), OperatorTime("Gelu_token_7", 4.0)]
    assert [each.traced_ms for each in attributed(graph.build(), (), operators)] == [1.0, 2.0, 4.0]


def test_weights_are_counted_by_hand() -> None:
    graph = gated()
    names = [node.name for node in graph.nodes[1:]]
    found = attributed(graph, RULES, [OperatorTime(name, 1.0) for name in names])
    assert [each.weight_bytes for each in found] == [
        4 * (8 * 3 * 9 + 8),
        4 * (8 * 9 + 8),
        0,
        4 * (8 * 8 + 8),
        0,
        4 * (8 * 8 + 8),
    ]


def test_operators_of_another_network_are_refused_with_their_names() -> None:
    with pytest.raises(UnknownOperator, match=r"got /0/Conv, /1/Conv, /2/Conv \.\.\."):
        traced(("/0/Conv", 1.0), ("/1/Conv", 1.0), ("/2/Conv", 1.0), ("stem", 1.0))
    with pytest.raises(UnknownOperator, match="got none"):
        traced()


# The runtimes


def chain(heavy: int | None) -> DeployGraph:
    """Six 3x3 convolutions of 16 channels, and one of 160 before that of number `heavy`: 100 times the arithmetic."""
    graph = GraphBuilder((16, 20, 20))
    x = graph.input
    for index in range(6):
        if index == heavy:
            x = graph.add("wide", Conv(160, (1, 1)), x)
            x = graph.add("heavy", Conv(160, (3, 3), padding=(1, 1)), x)
            x = graph.add("narrow", Conv(16, (1, 1)), x)
        x = graph.add(f"conv{index}", Conv(16, (3, 3), padding=(1, 1)), x)
        x = graph.add(f"relu{index}", Activation("relu"), x)
    pool = graph.add("pool", GlobalPool(), x)
    gate = graph.add("gate_sigmoid", Activation("sigmoid"), graph.add("gate", Conv(16, (1, 1)), pool))
    graph.add("last", Conv(10, (1, 1)), graph.add("product", Mul(), x, gate))
    return graph.build()


@pytest.mark.parametrize("runtime", board.TRACERS)
@pytest.mark.parametrize("heavy", [None, 2])
def test_a_runtimes_own_clock_finds_every_kernel_and_the_heaviest(runtime, heavy, tmp_path) -> None:
    pytest.importorskip(board.MODULES[runtime])
    graph = chain(heavy)
    path = tmp_path / f"model{SUFFIXES[runtime]}"
    assert list(RUNTIMES[runtime].write_timed([(graph, path)])) == [path]
    entering, leaving = ENDS[runtime]
    job = {
        "inputs": [{"name": entering, "shape": [1, *graph.input_shape]}],
        "output": leaving,
        "trace": [node.name for node in graph.nodes[1:]],
    }
    operators = board.trace_summary(board.TRACERS[runtime](str(path), job, 1, 12))
    _, open_model = board.RUNTIMES[runtime]()
    run = open_model(str(path), job, 1)
    whole = []
    for _ in range(15):
        begin = time.perf_counter()
        run()
        whole.append(1e3 * (time.perf_counter() - begin))
    found = attributed(
        graph, described_target("host", runtime).fusion_rules, [OperatorTime(*each) for each in operators]
    )
    convolutions = [each for each in found if each.key.startswith("conv")]
    assert len(convolutions) == 8 + 3 * (heavy is not None)
    assert all(each.traced_ms > 0 and each.launches > 0 for each in convolutions)
    # Watching takes its time as well, and the machine may be busy.
    assert 0.5 < sum(each.traced_ms for each in found) / statistics.median(whole) < 3
    if heavy is not None:
        largest = max(found, key=lambda each: each.traced_ms)
        assert largest.key.startswith("conv(160x20x20>160 k3x3")
        others = sorted(each.traced_ms for each in found)
        assert largest.traced_ms > 4 * others[-2]


def test_a_clock_of_whole_microseconds_is_read_as_a_mean_of_the_faster_runs() -> None:
    # Of six runs the four fastest count; the slowest two were disturbed.
    assert board.trace_summary([["a", [0.003, 0.001, 9.0, 0.002, 0.002, 7.0]], ["b", [0.5]]]) == [
        ["a", pytest.approx(0.002)],
        ["b", 0.5],
    ]
