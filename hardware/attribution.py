"""Which kernel of a network the time belongs to that a runtime's own clock gives to its operators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hardware.cost import BYTES_PER_FLOAT
from hardware.graph import DeployGraph
from hardware.kernels import FusionRule, fuse, fused_chains, moved_elements, reuse_class, weight_elements
from hardware.onnx_model import OUTPUT_NAME
from hardware.ops import GlobalPool, label
from hardware.table_fit import KernelTrace

# How the last node is called in ONNX files, and in those of ncnn.
OUTPUT_NAMES = (OUTPUT_NAME, "out0")


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """An operator as a runtime ran it, in the order of running."""

    name: str
    time_ms: float


# More of the time than this in operators of unknown names means that the names are not those of the network.
MOST_UNKNOWN = 0.5


class UnknownOperator(ValueError):
    """The runtime's operators do not go by the names of the network's nodes."""


def attributed(
    graph: DeployGraph, rules: Sequence[FusionRule], operators: Sequence[OperatorTime]
) -> tuple[KernelTrace, ...]:
    """The kernels of the network with their times, in running order.

    Runtimes name an operator after the node whose result it makes, with something of their own behind it. What they put
    in between, a change of layout as a rule, goes by other names and is counted to the kernel that follows, for whose
    sake it is there; but before a pool over all pixels, which reads either layout, to the gate that reads the same map.

    Raises:
        UnknownOperator: most of the time is in operators of other names, or there are none.
    """
    chains = fused_chains(graph, rules)
    place = {graph.nodes[node].name: index for index, chain in enumerate(chains) for node in chain}
    place |= dict.fromkeys(OUTPUT_NAMES, place[graph.nodes[-1].name])
    times, launches = [0.0] * len(chains), [0] * len(chains)
    waiting_ms, waiting, inserted_ms = 0.0, 0, 0.0
    for operator in operators:
        index = _kernel_of(operator.name, place)
        if index is None:
            index = _next_of_kind(operator.name, graph, chains, launches)
        if index is None:
            waiting_ms, waiting = waiting_ms + operator.time_ms, waiting + 1
            inserted_ms += operator.time_ms
            continue
        times[index] += operator.time_ms
        launches[index] += 1
        wanting = _gate_beside(graph, chains, index)
        times[wanting], launches[wanting] = times[wanting] + waiting_ms, launches[wanting] + waiting
        waiting_ms, waiting = 0.0, 0
    times[-1], launches[-1] = times[-1] + waiting_ms, launches[-1] + waiting
    if not operators or inserted_ms > MOST_UNKNOWN * sum(times):
        listed = ", ".join(operator.name for operator in operators[:3]) or "none"
        raise UnknownOperator(f"operators must be named after the nodes of the network, got {listed} ...")
    return tuple(
        KernelTrace(
            kernel.key,
            time_ms,
            count,
            BYTES_PER_FLOAT * weight_elements(kernel),
            BYTES_PER_FLOAT * moved_elements(kernel),
            reuse_class(kernel),
        )
        for kernel, time_ms, count in zip(fuse(graph, rules), times, launches, strict=True)
    )


def _gate_beside(graph: DeployGraph, chains: Sequence[tuple[int, ...]], index: int) -> int:
    """The kernel that reads the same map as the pool at `index`; that place itself if it is no pool or reads alone."""
    first = graph.nodes[chains[index][0]]
    if not isinstance(first.op, GlobalPool):
        return index
    readers = (
        place
        for place, chain in enumerate(chains)
        if place != index and any(first.inputs[0] in graph.nodes[node].inputs for node in chain)
    )
    return next(readers, index)


def _kernel_of(name: str, place: Mapping[str, int]) -> int | None:
    while name not in place:
        name, separator, _ = name.rpartition("_")
        if not separator:
            return None
    return place[name]


def _next_of_kind(
    name: str, graph: DeployGraph, chains: Sequence[tuple[int, ...]], launches: Sequence[int]
) -> int | None:
    """The next kernel without a time yet whose operation the name begins with.

    Runtimes call after its kind what they put together themselves, such as `Gelu_token_3`.
    """
    kind = name.partition("_")[0].lower()
    return next(
        (
            index
            for index, chain in enumerate(chains)
            if not launches[index] and label(graph.nodes[chain[0]].op).replace("_", "") == kind
        ),
        None,
    )
