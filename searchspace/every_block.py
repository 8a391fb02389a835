"""Every block that a member of a space can have, each with the shape that enters it, without trying the members.

What a stage can be depends only on the shape that enters it, so that the shapes between the stages are few and each is
opened once: tens of thousands of blocks stand for more members than could ever be listed.
"""

from collections.abc import Iterable, Iterator

from hardware.ops import Shape
from searchspace.network import block_graph
from searchspace.part import outcomes
from searchspace.registry import BlockSpec
from searchspace.space import Space, Task


def every_block(space: Space, tasks: Iterable[Task]) -> Iterator[tuple[Shape, BlockSpec]]:
    """The blocks of all members for these tasks, each once for each shape that can enter it."""
    left: dict[tuple[Shape, BlockSpec], Shape] = {}

    def shape_behind(shape: Shape, block: BlockSpec) -> Shape:
        if (shape, block) not in left:
            left[shape, block] = block_graph(shape, block).output_shape
        return left[shape, block]

    tasks = tuple(tasks)
    shapes = {
        shape_behind(entrance.input_shape, entrance.stem)
        for task in tasks
        for _, entrance in outcomes(space.entrance, task)
    }
    for stage in space.stages:
        behind = set()
        for entering in shapes:
            for _, blocks in outcomes(stage, entering):
                shape = entering
                for block in blocks:
                    shape = shape_behind(shape, block)
                behind.add(shape)
        shapes = behind
    for entering in shapes:
        for task in tasks:
            for _, head in outcomes(space.head, task):
                shape_behind(entering, head)
    yield from left
