"""What a space is: networks as answers to questions, asked in a fixed order, stage by stage.

A space is written once, as functions of `choose`. Its frame (input, stem, head) and its stages are separate functions,
each seeing only the shape that enters it, so that costs can be minimised stage by stage and not by trial and error.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.choosers import Choose, G, Gene, prefixed
from searchspace.network import block_graph
from searchspace.registry import BlockSpec
from searchspace.spec import ArchSpec, SpecError, Stage


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the stages."""

    input_shape: tuple[int, int, int]
    stem: BlockSpec
    head: BlockSpec


@dataclass(frozen=True, slots=True)
class Task:
    """What the data ask of a network."""

    channels: int
    classes: int


@dataclass(frozen=True)
class Space:
    """A set of networks: the frame first, then each stage from the shape that enters it.

    Every function asks for all of its genes in a fixed order, whatever the answers: samplers cross genes over by name,
    and a gene that is sometimes missing would be drawn at random instead.
    """

    name: str
    frame: Callable[[Choose, Task], Frame]
    stages: tuple[Callable[[Choose, Shape], Stage], ...]
    # Train genes, which cost nothing on a device; most spaces leave them to the finalists.
    train: Callable[[Choose, ArchSpec], ArchSpec] = lambda choose, spec: spec

    def stage(self, index: int, choose: Choose, in_shape: Shape) -> Stage:
        """Stage `index` after a shape, its genes named `stage1.width` and so on."""
        return self.stages[index](prefixed(choose, f"stage{index + 1}."), in_shape)


def member(space: Space, choose: Choose, task: Task) -> ArchSpec:
    """The network that the answers of `choose` describe; several answers can describe the same one."""
    frame = space.frame(choose, task)
    shape = block_graph(frame.input_shape, frame.stem).output_shape
    stages = []
    for index in range(len(space.stages)):
        stage = space.stage(index, choose, shape)
        stages.append(stage)
        shape = stage_output(shape, stage)
    return space.train(choose, ArchSpec(frame.input_shape, frame.stem, tuple(stages), frame.head))


def gene_options(space: Space, task: Task) -> dict[str, tuple[Gene, ...]]:
    """Every gene of a space with its options, in the order of asking."""
    asked: dict[str, tuple[Gene, ...]] = {}

    def choose(name: str, options: Sequence[G]) -> G:
        asked[name] = tuple(options)
        return options[0]

    member(space, choose, task)
    return asked


def narrowed(space: Space, allowed: Mapping[str, Sequence[Gene]], task: Task) -> Space:
    """The space with some genes held to fewer options, or to one.

    A key names a gene, or several by `*` and `?` as in `stage*.kernel`; what it allows must be among the options of
    each.

    Raises:
        SpecError: a key names no gene, or allows nothing that is offered.
    """
    options = gene_options(space, task)
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

    def narrow(choose: Choose) -> Choose:
        def choose_allowed(name: str, options: Sequence[G]) -> G:
            return choose(name, tuple(option for option in options if option in kept[name]))

        return choose_allowed

    def narrow_stage(index: int) -> Callable[[Choose, Shape], Stage]:
        prefix = f"stage{index + 1}."

        def stage(choose: Choose, in_shape: Shape) -> Stage:
            # `choose` puts the prefix in front itself; here it is needed to look the gene up.
            def choose_allowed(name: str, options: Sequence[G]) -> G:
                return choose(name, tuple(option for option in options if option in kept[prefix + name]))

            return space.stages[index](choose_allowed, in_shape)

        return stage

    return Space(
        space.name,
        lambda choose, task: space.frame(narrow(choose), task),
        tuple(map(narrow_stage, range(len(space.stages)))),
        lambda choose, spec: space.train(narrow(choose), spec),
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
