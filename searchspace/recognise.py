"""Genes from a network: whether a space has it as a member, and by which answers.

Stages are followed block by block, as in `searchspace.cheapest`: an answer that has made one block other than the
network's is not followed to the questions behind it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.choosers import G, Gene
from searchspace.network import block_graph
from searchspace.part import Question, outcomes
from searchspace.registry import BlockSpec
from searchspace.space import Space, StagePart, Task, gene_options, stage_output, stage_prefix
from searchspace.spec import ArchSpec, Stage, deploy_block, deploy_form


def genes_of(space: Space, spec: ArchSpec, task: Task) -> dict[str, Gene] | None:
    """Genes that describe what the network deploys to; None where it is no member."""
    wanted = deploy_form(spec)
    for genes, head in outcomes(space.head, task):
        if deploy_block(head) != wanted.head:
            continue
        for own, entrance in outcomes(space.entrance, task):
            if (entrance.input_shape, deploy_block(entrance.stem)) != (wanted.input_shape, wanted.stem):
                continue
            shape = block_graph(entrance.input_shape, entrance.stem).output_shape
            for rest in _stages(space, 0, wanted.stages, shape):
                read = genes | own | rest
                # What was not read has no say.
                return {name: read.get(name, options[0]) for name, options in gene_options(space).items()}
    return None


def for_task(spec: ArchSpec, task: Task) -> ArchSpec:
    """The network for images and classes other than it was published with; its resolution stays."""
    head = replace(spec.head, classes=task.classes) if isinstance(spec.head, Classifier) else spec.head
    return replace(spec, input_shape=(task.channels, *spec.input_shape[1:]), head=head)


def _stages(space: Space, depth: int, wanted: tuple[Stage, ...], shape: Shape) -> Iterator[dict[str, Gene]]:
    if depth == len(space.stages):
        if not wanted:
            yield {}
        return
    for count in (1, 0):  # a stage without blocks leaves no trace
        stage = wanted[0] if count and wanted else ()
        if count and not wanted:
            continue
        for answers in _answers(space.stages[depth], stage, shape, {}):
            genes: dict[str, Gene] = {stage_prefix(depth) + name: answer for name, answer in answers.items()}
            for rest in _stages(space, depth + 1, wanted[count:], stage_output(shape, stage)):
                yield genes | rest


class _Unanswered(Exception):
    """A stage reads what was not answered yet."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


def _answers(part: StagePart, wanted: Stage, shape: Shape, given: dict[str, Any]) -> Iterator[dict[str, Gene]]:
    """Answers with which a part makes these blocks, the given ones among them."""

    def answer(question: Question[G]) -> G:
        if question.name not in given:
            raise _Unanswered(question.name)
        found: G = given[question.name]
        return found

    built: list[BlockSpec] = []
    try:
        for block in part.build(answer, shape):
            if len(built) == len(wanted) or deploy_block(block) != wanted[len(built)]:
                return
            built.append(block)
    except _Unanswered as halt:
        for option in part.options[halt.question]:
            yield from _answers(part, wanted, shape, {**given, halt.question: option})
        return
    except ValueError:
        return  # a block that no network can have is not the one that is looked for
    if len(built) == len(wanted):
        yield given
