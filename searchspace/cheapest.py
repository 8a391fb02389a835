"""The cheapest member of a space, exactly, without trying its members one by one.

When a price is a sum over blocks that never shrinks as blocks are added, and a block's price follows from the shape
that enters it, then the space is a road map: shapes are towns, blocks are roads. The cheapest member is the shortest
road, found by uniform-cost search (Dijkstra, 1959), which opens only what is cheaper than the answer.

Within a stage the roads branch at its questions. An answer that has made the first blocks dear is not followed to the
questions behind them, a question that nothing reads has no branches at all, and one whose options only add to each
other has a single one.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hardware.ops import Shape
from searchspace.choosers import G, Gene
from searchspace.network import block_graph
from searchspace.part import Question, outcomes
from searchspace.registry import BlockSpec
from searchspace.space import Entrance, Space, StagePart, Task, assembled, gene_options, stage_prefix
from searchspace.spec import ArchSpec, Stage

# What a block costs after a shape; never negative, and never less for operations that are added to it.
BlockPrice = Callable[[Shape, BlockSpec], float]


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The cheapest member, genes that describe it except for its train genes, and its price."""

    spec: ArchSpec
    genes: dict[str, Gene]
    price: float


@dataclass(frozen=True, slots=True)
class _Town:
    """A shape between two stages, or behind the last, and how it was reached."""

    shape: Shape
    spent: float
    entrance: Entrance
    stages: tuple[Stage, ...]
    genes: dict[str, Gene]


@dataclass(frozen=True, slots=True)
class _OnTheWay:
    """A stage behind a town as far as it follows from some of its answers."""

    town: _Town
    answers: dict[str, Gene]


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A whole member."""

    town: _Town
    head: BlockSpec
    genes: dict[str, Gene]


@dataclass(frozen=True, slots=True)
class _Walk:
    """Blocks, the shape behind them and what is spent by then; `open_question` is None where they are a whole stage."""

    blocks: tuple[BlockSpec, ...]
    shape: Shape
    spent: float
    open_question: str | None


def cheapest_member(space: Space, task: Task, price: BlockPrice) -> Cheapest:
    """The member with the lowest sum of block prices; none is cheaper, so it tells whether a budget can be met."""
    order = itertools.count()
    # (spent, tie breaker, where)
    queue: list[tuple[float, int, _OnTheWay | _Arrived]] = []

    def enter(town: _Town) -> None:
        heapq.heappush(queue, (town.spent, next(order), _OnTheWay(town, {})))

    for genes, entrance in outcomes(space.entrance, task):
        shape = block_graph(entrance.input_shape, entrance.stem).output_shape
        enter(_Town(shape, price(entrance.input_shape, entrance.stem), entrance, (), genes))
    heads = list(outcomes(space.head, task))
    options = [stage.cheapest_options for stage in space.stages]
    entered: set[tuple[int, Shape]] = set()
    while queue:
        spent, _, here = heapq.heappop(queue)
        if isinstance(here, _Arrived):
            return _cheapest(space, here, spent)
        town, depth = here.town, len(here.town.stages)
        if not here.answers:
            # What follows depends on the shape alone, and whoever came here first came cheapest.
            if (depth, town.shape) in entered:
                continue
            entered.add((depth, town.shape))
        if depth == len(space.stages):
            for genes, head in heads:
                total = spent + price(town.shape, head)
                heapq.heappush(queue, (total, next(order), _Arrived(town, head, genes)))
            continue
        walk = _walk(space.stages[depth], options[depth], here, price)
        if walk.open_question is None:
            genes = {stage_prefix(depth) + name: answer for name, answer in here.answers.items()}
            stages = (*town.stages, walk.blocks)
            enter(_Town(walk.shape, walk.spent, town.entrance, stages, town.genes | genes))
            continue
        for option in options[depth][walk.open_question]:
            further = _OnTheWay(town, {**here.answers, walk.open_question: option})
            heapq.heappush(queue, (walk.spent, next(order), further))
    raise AssertionError("a space has at least one member")


def _walk(stage: StagePart, options: dict[str, tuple[Gene, ...]], here: _OnTheWay, price: BlockPrice) -> _Walk:
    """The blocks of a stage up to the first question with several options that is not answered yet."""
    answers: dict[str, Any] = here.answers
    shape, spent = here.town.shape, here.town.spent
    blocks: list[BlockSpec] = []

    def answer(question: Question[G]) -> G:
        found: Any
        if question.name in answers:
            found = answers[question.name]
        elif len(options[question.name]) == 1:
            (found,) = options[question.name]
        else:
            raise _Unanswered(question.name)
        return found  # type: ignore[no-any-return]

    try:
        for block in stage.build(answer, shape):
            spent += price(shape, block)
            shape = block_graph(shape, block).output_shape
            blocks.append(block)
    except _Unanswered as halt:
        return _Walk(tuple(blocks), shape, spent, halt.name)
    return _Walk(tuple(blocks), shape, spent, None)


class _Unanswered(Exception):
    """A stage reads what was not answered yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _cheapest(space: Space, arrived: _Arrived, spent: float) -> Cheapest:
    town = arrived.town
    spec = assembled(town.entrance, town.stages, arrived.head)
    read = town.genes | arrived.genes
    # What was not read has a single option or no say; a record of genes answers it all the same.
    genes = {name: read.get(name, options[0]) for name, options in gene_options(space).items()}
    return Cheapest(spec, {name: gene for name, gene in genes.items() if name not in space.train.options}, spent)
