"""The cheapest member of a space, exactly, without trying its members one by one.

When a price is a sum over blocks that never shrinks as blocks are added, and a block's price follows from the shape
that enters it, then the space is a road map: shapes are towns, stages are roads. The cheapest member is the shortest
road, found by uniform-cost search (Dijkstra, 1959), which opens only what is cheaper than the answer.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from hardware.ops import Shape
from searchspace.choosers import Gene, every_outcome
from searchspace.network import block_graph
from searchspace.registry import BlockSpec
from searchspace.space import Frame, Space, Task
from searchspace.spec import ArchSpec, Stage

# What a block costs after a shape; never negative.
BlockPrice = Callable[[Shape, BlockSpec], float]


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The cheapest member, genes that describe it, and its price."""

    spec: ArchSpec
    genes: dict[str, Gene]
    price: float


@dataclass(frozen=True, slots=True)
class _Road:
    """A frame and the stages chosen so far."""

    frame: Frame
    stages: tuple[Stage, ...]
    genes: dict[str, Gene]


@dataclass(frozen=True, slots=True)
class _Option:
    """A stage that some answers describe, what it costs after a shape, and the shape that it makes."""

    price: float
    stage: Stage
    genes: dict[str, Gene]
    out_shape: Shape


def cheapest_member(space: Space, task: Task, price: BlockPrice) -> Cheapest:
    """The member with the lowest sum of block prices; none is cheaper, so it tells whether a budget can be met."""
    options: dict[tuple[int, Shape], list[_Option]] = {}
    order = itertools.count()
    # (spent, tie breaker, shape that was reached, its depth, how): depth counts the stages behind, the head included
    queue: list[tuple[float, int, Shape, int, _Road]] = []
    for genes, frame in every_outcome(lambda choose: space.frame(choose, task)):
        shape = block_graph(frame.input_shape, frame.stem).output_shape
        spent = price(frame.input_shape, frame.stem)
        heapq.heappush(queue, (spent, next(order), shape, 0, _Road(frame, (), genes)))
    closed: set[tuple[int, Shape, BlockSpec]] = set()
    while queue:
        spent, _, shape, depth, road = heapq.heappop(queue)
        if depth > len(space.stages):
            spec = ArchSpec(road.frame.input_shape, road.frame.stem, road.stages, road.frame.head)
            return Cheapest(spec, road.genes, spent)
        # What follows depends on the shape that was reached and on the head that was chosen.
        if (depth, shape, road.frame.head) in closed:
            continue
        closed.add((depth, shape, road.frame.head))
        if depth == len(space.stages):
            heapq.heappush(queue, (spent + price(shape, road.frame.head), next(order), shape, depth + 1, road))
            continue
        if (depth, shape) not in options:
            options[depth, shape] = _cheapest_per_output(space, depth, shape, price)
        for option in options[depth, shape]:
            further = _Road(road.frame, (*road.stages, option.stage), {**road.genes, **option.genes})
            entry = (spent + option.price, next(order), option.out_shape, depth + 1, further)
            heapq.heappush(queue, entry)
    raise AssertionError("a space has at least one member")


def _cheapest_per_output(space: Space, depth: int, shape: Shape, price: BlockPrice) -> list[_Option]:
    # Of the stages that lead to one shape only the cheapest can lie on the shortest road.
    best: dict[Shape, _Option] = {}
    seen: set[Stage] = set()
    for genes, stage in every_outcome(lambda choose: space.stage(depth, choose, shape)):
        if stage in seen:
            continue
        seen.add(stage)
        total, out_shape = _priced(shape, stage, price)
        option = _Option(total, stage, genes, out_shape)
        if option.out_shape not in best or option.price < best[option.out_shape].price:
            best[option.out_shape] = option
    return list(best.values())


def _priced(shape: Shape, stage: Stage, price: BlockPrice) -> tuple[float, Shape]:
    total = 0.0
    for block in stage:
        total += price(shape, block)
        shape = block_graph(shape, block).output_shape
    return total, shape
