"""`rkp`: PPENet (seed 000) with depthwise RK.

Widths are around those of PPENet-L: 32, 48, 72, 96, 156, 196 (Table 2). With depthwise RK it is a member.
"""

from collections.abc import Iterator

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.rk import Rkp
from searchspace.part import Answer, Part, Question
from searchspace.registry import BlockSpec
from searchspace.space import (
    Entrance,
    Space,
    StagePart,
    Task,
    largest_useful_dilation,
    largest_useful_kernel,
)

_HAS_RKP = Question("rkp", (False, True), only_adds=True)
_KERNEL = Question("kernel", (3, 5, 7, 9))
_DILATION = Question("dilation", (1, 2))
_EXPAND = Question("expand", (1, 2, 3, 4))
_POINTWISE = Question("pointwise", (False, True), only_adds=True)
_PPE = Question("ppe", (False, True), only_adds=True)
_STRIDE = Question("stride", (1, 2))


def _stage(widths: tuple[int, ...]) -> StagePart:
    """An RKP block at the width that enters, or none, then a DBC.

    One block to a stage, as in PPENet, where each has its own kernel. A stage of stride 1 does what a second block
    would.
    """
    width = Question("width", widths)

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        size = min(in_shape[1:])
        if answer(_HAS_RKP):
            useful = min(answer(_KERNEL), largest_useful_kernel(size))
            dilation = min(answer(_DILATION), largest_useful_dilation(size, useful))
            yield Rkp(useful, dilation, answer(_EXPAND), answer(_POINTWISE), answer(_PPE))
        # A map of 2x2 is not made smaller, as in `edge-small`.
        yield Dbc(answer(width), answer(_STRIDE) if size > 2 else 1)

    return Part((_HAS_RKP, _KERNEL, _DILATION, _EXPAND, _POINTWISE, _PPE, width, _STRIDE), build)


_RESOLUTION = Question("resolution", (32, 48, 64, 96, 224))
_STEM_WIDTH = Question("stem.width", (8, 16, 24, 32, 48, 64))
_STEM_STRIDE = Question("stem.stride", (1, 2))
_HEAD_WIDTH = Question("head.width", (0, 128, 256, 512))


def _entrance(answer: Answer, task: Task) -> Entrance:
    resolution = answer(_RESOLUTION)
    return Entrance((task.channels, resolution, resolution), Dbc(answer(_STEM_WIDTH), answer(_STEM_STRIDE)))


RKP = Space(
    "rkp",
    Part((_RESOLUTION, _STEM_WIDTH, _STEM_STRIDE), _entrance),
    Part((_HEAD_WIDTH,), lambda answer, task: Classifier(task.classes, answer(_HEAD_WIDTH))),
    (
        _stage((16, 24, 32, 48, 64)),
        _stage((24, 32, 48, 72, 96)),
        _stage((32, 48, 64, 96, 128)),
        _stage((48, 64, 96, 128, 156)),
        _stage((64, 96, 128, 196, 256)),
    ),
)
