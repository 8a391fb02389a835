"""`parc`: ParC-Net (seed 002), from a plain stem over inverted residuals to three stages of a step and a frame.

At 256 pixels ParC-Net-S and -XS are members (section 3.2, Table 2, and the authors' code). Its widths hold those of the
third network in the code, H, which has nine blocks in a frame and therefore is not.
"""

from collections.abc import Iterator

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.inverted import InvertedResidual
from searchspace.part import Answer, Part, Question
from searchspace.registry import BlockSpec
from searchspace.space import Entrance, Space, StagePart, Task
from searchspace.spaces.frame_genes import FRAME_QUESTIONS, frame

_ACTIVATION = "silu"

_KERNEL = Question("kernel", (3, 5))
_EXPAND = Question("expand", (2, 4, 6))


def _inverted(answer: Answer, width: int, stride: int) -> InvertedResidual:
    return InvertedResidual(width, stride, answer(_KERNEL), answer(_EXPAND), activation=_ACTIVATION)


def _local_stage(widths: tuple[int, ...], depths: tuple[int, ...], stride: int) -> StagePart:
    width, depth = Question("width", widths), Question("depth", depths, only_adds=True)

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield _inverted(answer, answer(width), stride)
        yield from (_inverted(answer, answer(width), 1),) * (answer(depth) - 1)

    return Part((width, depth, _KERNEL, _EXPAND), build)


def _framed_stage(widths: tuple[int, ...], base: int) -> StagePart:
    """`base` is the size of its maps in an image of 256 pixels."""
    width = Question("width", widths)

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield _inverted(answer, answer(width), 2)
        yield frame(answer, answer(width), min(in_shape[1:]) // 2, base)

    return Part((width, _KERNEL, _EXPAND, *FRAME_QUESTIONS), build)


# The stem and the four steps divide the size by 32.
_RESOLUTION = Question("resolution", (160, 192, 224, 256))
_STEM_WIDTH = Question("stem.width", (8, 16, 24, 32, 48))
_STEM_KERNEL = Question("stem.kernel", (3, 5))
_HEAD_WIDTH = Question("head.width", (0, 320, 640, 960))


def _entrance(answer: Answer, task: Task) -> Entrance:
    resolution = answer(_RESOLUTION)
    stem = PlainConv(answer(_STEM_WIDTH), 2, answer(_STEM_KERNEL), _ACTIVATION)
    return Entrance((task.channels, resolution, resolution), stem)


def _head(answer: Answer, task: Task) -> Classifier:
    width = answer(_HEAD_WIDTH)
    return Classifier(task.classes, width, _ACTIVATION) if width else Classifier(task.classes)


PARC = Space(
    "parc",
    Part((_RESOLUTION, _STEM_WIDTH, _STEM_KERNEL), _entrance),
    Part((_HEAD_WIDTH,), _head),
    (
        _local_stage((16, 24, 32, 48, 64, 96), (1, 2), stride=1),
        _local_stage((24, 32, 48, 64, 96, 144), (1, 2, 3, 4), stride=2),
        _framed_stage((48, 64, 80, 96, 128, 160, 216), base=32),
        _framed_stage((64, 96, 128, 160, 192, 288), base=16),
        _framed_stage((96, 128, 160, 192, 256, 432), base=8),
    ),
)
