"""What a space is: networks as answers to questions, asked in a fixed order, stage by stage.

A space is a row of parts: how an image enters, the head, the stages. Each stage sees only the shape that enters it, so
that costs can be minimised block by block and not by trial and error.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.choosers import Choose, Gene
from searchspace.network import block_graph
from searchspace.part import In, Out, Part, ask
from searchspace.registry import BlockSpec
from searchspace.spec import ArchSpec, SpecError, Stage


@dataclass(frozen=True, slots=True)
class Task:
    """What the data ask of a network."""

    channels: int
    classes: int


@dataclass(frozen=True, slots=True)
class Entrance:
    """The image and what it meets first."""

    input_shape: tuple[int, int, int]
    stem: BlockSpec


# Blocks one after the other, each as soon as the answers that it needs were read.
StagePart = Part[Shape, Iterable[BlockSpec]]

# Train genes cost nothing on a device; most spaces leave them to the finalists.
NO_TRAIN_GENES: Part[ArchSpec, ArchSpec] = Part((), lambda answer, spec: spec)


@dataclass(frozen=True)
class Space:
    """A set of networks: entrance, head and stages in the order of asking; each stage from the shape that enters it.

    Every question is asked whatever the answers: samplers cross genes over by name, and a gene that is sometimes
    missing would be drawn at random instead.
    """

    name: str
    entrance: Part[Task, Entrance]
    head: Part[Task, BlockSpec]
    stages: tuple[StagePart, ...]
    train: Part[ArchSpec, ArchSpec] = NO_TRAIN_GENES

    def parts(self) -> Iterator[tuple[str, Part[Any, Any]]]:
        """Each part with the prefix of its genes' names, in the order of asking."""
        yield "", self.entrance
        yield "", self.head
        for index, stage in enumerate(self.stages):
            yield stage_prefix(index), stage
        yield "", self.train


def stage_prefix(index: int) -> str:
    """What stands before the names of a stage's genes: `stage1.` for the first, whose index is 0."""
    return f"stage{index + 1}."


def member(space: Space, choose: Choose, task: Task) -> ArchSpec:
    """The network that the answers of `choose` describe; several answers can describe the same one."""
    entrance = space.entrance.build(ask(space.entrance, choose), task)
    head = space.head.build(ask(space.head, choose), task)
    shape = block_graph(entrance.input_shape, entrance.stem).output_shape
    stages: list[Stage] = []
    for index, part in enumerate(space.stages):
        stage = tuple(part.build(ask(part, choose, stage_prefix(index)), shape))
        stages.append(stage)
        shape = stage_output(shape, stage)
    return space.train.build(ask(space.train, choose), assembled(entrance, stages, head))


def assembled(entrance: Entrance, stages: Iterable[Stage], head: BlockSpec) -> ArchSpec:
    """The network of these parts; a stage without blocks leaves no trace, so that equal networks are equal specs."""
    return ArchSpec(entrance.input_shape, entrance.stem, tuple(stage for stage in stages if stage), head)


def gene_options(space: Space) -> dict[str, tuple[Gene, ...]]:
    """Every gene of a space with its options, in the order of asking."""
    return {prefix + name: options for prefix, part in space.parts() for name, options in part.options.items()}


def narrowed(space: Space, allowed: Mapping[str, Sequence[Gene]]) -> Space:
    """The space with some genes held to fewer options, or to one.

    A key names a gene, or several by `*` and `?` as in `stage*.kernel`; what it allows must be among the options of
    each.

    Raises:
        SpecError: a key names no gene, or allows nothing that is offered.
    """
    options = gene_options(space)
    kept = dict(options)
    for pattern, values in allowed.items():
        names = fnmatch.filter(options, pattern)
        if not names:
            raise SpecError(f"genes.{pattern}: space {space.name} has no such gene; {nearest(pattern, list(options))}")
        for name in names:
            wrong = [value for value in values if not any(_same(value, option) for option in options[name])]
            kept[name] = tuple(option for option in kept[name] if any(_same(value, option) for value in values))
            if wrong or not kept[name]:
                offered = ", ".join(map(str, options[name]))
                raise SpecError(
                    f"genes.{pattern}: {name} is one of {offered}; got {', '.join(map(str, wrong or values))}"
                )

    def narrow(part: Part[In, Out], prefix: str = "") -> Part[In, Out]:
        questions = tuple(replace(each, options=kept[prefix + each.name]) for each in part.questions)
        return replace(part, questions=questions)

    return replace(
        space,
        entrance=narrow(space.entrance),
        head=narrow(space.head),
        stages=tuple(narrow(stage, stage_prefix(index)) for index, stage in enumerate(space.stages)),
        train=narrow(space.train),
    )


def _same(value: Gene, option: Gene) -> bool:
    # True == 1 in Python, and a gene that is on or off is not a number.
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def stage_output(shape: Shape, stage: Stage) -> Shape:
    """The shape that leaves a stage."""
    for block in stage:
        shape = block_graph(shape, block).output_shape
    return shape


def largest_useful_kernel(size: int) -> int:
    """The largest odd kernel whose outer cells still see something other than padding on a map of `size`.

    Source: rule k <= 2 size - 1.
    """
    return 2 * size - 1


def largest_useful_dilation(size: int, kernel: int) -> int:
    """The largest dilation with which the outer cells of a kernel still see a map of `size`; at least 1.

    Source: as `largest_useful_kernel`, for the extent a (k - 1) + 1 of a dilated kernel.
    """
    return max(1, (largest_useful_kernel(size) - 1) // (kernel - 1))
