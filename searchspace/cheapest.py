"""The cheapest member of a space, exactly, without trying its members one by one.

When a price is a sum over blocks that never shrinks as blocks are added, and a block's price follows from the shape
that enters it, then the space is a road map: shapes are towns, stages are roads. The cheapest member is the shortest
road, found by uniform-cost search (Dijkstra, 1959), which opens only what is cheaper than the answer.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator

from hardware.ops import Shape
from searchspace.choosers import every_outcome
from searchspace.network import block_graph
from searchspace.registry import BlockSpec
from searchspace.spaces import Frame, Space, Task, stage_output
from searchspace.spec import ArchSpec, Stage

# What a block costs after a shape; never negative.
BlockPrice = Callable[[Shape, BlockSpec], float]


def cheapest_member(space: Space, task: Task, price: BlockPrice) -> tuple[ArchSpec, float]:
    """The member with the lowest sum of block prices, and that sum.

    No member is cheaper, which makes it a sound test of whether a space can meet a budget at all.
    """
    # Stages are compared by where they lead: one per shape of output, the cheapest, can lie on the shortest road.
    options: dict[tuple[int, Shape], list[tuple[float, Stage, Shape]]] = {}
    order = itertools.count()
    Entry = tuple[float, int, Shape, int, Frame, tuple[Stage, ...]]
    queue: list[Entry] = []
    for frame in dict.fromkeys(every_outcome(lambda choose: space.frame(choose, task))):
        shape = block_graph(frame.input_shape, frame.stem).output_shape
        heapq.heappush(queue, (price(frame.input_shape, frame.stem), next(order), shape, 0, frame, ()))
    closed: set[tuple[int, Shape, BlockSpec]] = set()
    while queue:
        spent, _, shape, depth, frame, stages = heapq.heappop(queue)
        if depth > len(space.stages):
            return ArchSpec(frame.input_shape, frame.stem, stages, frame.head), spent
        # Two frames that lead to the same shape differ in what follows only by their head.
        if (depth, shape, frame.head) in closed:
            continue
        closed.add((depth, shape, frame.head))
        if depth == len(space.stages):
            total = spent + price(shape, frame.head)
            heapq.heappush(queue, (total, next(order), shape, depth + 1, frame, stages))
            continue
        if (depth, shape) not in options:
            options[depth, shape] = _cheapest_per_output(space, depth, shape, price)
        for stage_price, stage, out_shape in options[depth, shape]:
            entry = (spent + stage_price, next(order), out_shape, depth + 1, frame, (*stages, stage))
            heapq.heappush(queue, entry)
    raise AssertionError("a space has at least one member")


def _cheapest_per_output(space: Space, depth: int, shape: Shape, price: BlockPrice) -> list[tuple[float, Stage, Shape]]:
    best: dict[Shape, tuple[float, Stage]] = {}
    for stage in dict.fromkeys(every_outcome(lambda choose: space.stages[depth](choose, shape))):
        total = sum(price(before, block) for before, block in _walk(shape, stage))
        out_shape = stage_output(shape, stage)
        if out_shape not in best or total < best[out_shape][0]:
            best[out_shape] = (total, stage)
    return [(total, stage, out_shape) for out_shape, (total, stage) in best.items()]


def _walk(shape: Shape, stage: Stage) -> Iterator[tuple[Shape, BlockSpec]]:
    for block in stage:
        yield shape, block
        shape = block_graph(shape, block).output_shape
