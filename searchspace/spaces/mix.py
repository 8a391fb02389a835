"""`mix`: MixMobileNet (seed 003).

The kernels of section 3.2, free in each stage as the expansions of Table 8 are, attention at most once in a stage and
not in the first (Table 9). Widths and depths hold those of its three variants (Table 1).
"""

from collections.abc import Iterator

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.patch import NormDown, Patch
from searchspace.part import Answer, Part, Question
from searchspace.registry import BlockSpec
from searchspace.space import Entrance, Space, StagePart, Task, largest_useful_kernel

_KERNEL = Question("kernel", (3, 5, 7, 9))
_DIVISIONS = Question("divisions", (2, 4, 8))
_EXPAND = Question("expand", (2, 2.5, 3, 3.5, 4))
_SQUEEZE_EXCITE = Question("squeeze_excite", (False, True), only_adds=True)
_ATTENTION = Question("attention", (False, True), only_adds=True)
_LOCAL = (_KERNEL, _DIVISIONS, _EXPAND, _SQUEEZE_EXCITE)


def _local(answer: Answer, size: int) -> Lfae:
    useful = min(answer(_KERNEL), largest_useful_kernel(size))
    return Lfae(useful, answer(_DIVISIONS), answer(_EXPAND), answer(_SQUEEZE_EXCITE))


def _first_stage(depths: tuple[int, ...]) -> StagePart:
    """At the stem's width, and without attention."""
    depth = Question("depth", depths, only_adds=True)

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        local = _local(answer, min(in_shape[1:]))
        yield local
        yield from (local,) * (answer(depth) - 1)

    return Part((depth, *_LOCAL), build)


def _stage(depths: tuple[int, ...], widths: tuple[int, ...]) -> StagePart:
    depth, width = Question("depth", depths, only_adds=True), Question("width", widths)

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield NormDown(answer(width))
        local = _local(answer, min(in_shape[1:]) // 2)
        yield local
        yield from (local,) * (answer(depth) - 1)
        yield from (Gfae(expand=answer(_EXPAND)),) * answer(_ATTENTION)

    return Part((depth, *_LOCAL, width, _ATTENTION), build)


# The stem and the three steps divide the size by 32, and smaller maps than 2x2 have little but padding around them.
_RESOLUTION = Question("resolution", (64, 96, 128, 160, 192, 224, 256))
_STEM_WIDTH = Question("stem.width", (16, 24, 32, 48, 64))


def _entrance(answer: Answer, task: Task) -> Entrance:
    resolution = answer(_RESOLUTION)
    return Entrance((task.channels, resolution, resolution), Patch(answer(_STEM_WIDTH)))


MIX = Space(
    "mix",
    Part((_RESOLUTION, _STEM_WIDTH), _entrance),
    Part((), lambda answer, task: Classifier(task.classes, norm=True)),
    (
        _first_stage((1, 2, 3)),
        _stage((1, 2, 3), (24, 32, 48, 64, 96, 128)),
        _stage((1, 2, 3, 4, 5, 6, 8), (48, 64, 88, 100, 128, 160, 192)),
        _stage((1, 2, 3, 4), (64, 96, 128, 168, 192, 256, 304)),
    ),
)
