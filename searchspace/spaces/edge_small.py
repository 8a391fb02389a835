"""`edge-small`: RDP modules and inverted residuals for images of 32 to 96 pixels; `rdp`: the same of RDP modules alone.

Widths are RDPNet's {64, 128, 256} times {0.25, 0.5, 0.75, 1, 1.25, 1.5} (seed 004, Table 2) with narrower ones below
for budgets of a few milliseconds; 1280 is RDPNet's last stage at every multiplier.
"""

from collections.abc import Iterator
from dataclasses import replace

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.part import Answer, Part, Question, one_of
from searchspace.registry import BlockSpec
from searchspace.space import Entrance, Space, StagePart, Task, largest_useful_kernel, narrowed


def _stage(widths: tuple[int, ...], depths: tuple[int, ...], strides: tuple[int, ...] = (2,)) -> StagePart:
    width, depth = Question("width", widths), Question("depth", depths, only_adds=True)
    stride = Question("stride", strides)

    def first_stride(answer: Answer, in_shape: Shape) -> int:
        # A map of 2x2 is not made smaller: a 3x3 kernel would see nothing but padding around a single value.
        return answer(stride) if min(in_shape[1:]) > 2 else 1

    def rdp(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield Rdp(answer(width), first_stride(answer, in_shape))
        yield from (Rdp(answer(width)),) * (answer(depth) - 1)

    kernel, expand = Question("kernel", (3, 5, 7)), Question("expand", (3, 4, 6))
    squeeze_excite = Question("squeeze_excite", (False, True), only_adds=True)

    def inverted(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        def block(stride: int, size: int) -> InvertedResidual:
            useful = min(answer(kernel), largest_useful_kernel(size))
            return InvertedResidual(answer(width), stride, useful, answer(expand), answer(squeeze_excite))

        size, first = min(in_shape[1:]), first_stride(answer, in_shape)
        yield block(first, size)
        yield from (block(1, -(-size // first)),) * (answer(depth) - 1)

    return one_of(
        "family",
        {
            "rdp": Part((width, depth, stride), rdp),
            "ir": Part((width, depth, stride, kernel, expand, squeeze_excite), inverted),
        },
    )


_RESOLUTION = Question("resolution", (32, 48, 64, 96))
_STEM_WIDTH = Question("stem.width", (8, 16, 24, 32, 48, 64))
_STEM_STRIDE = Question("stem.stride", (1, 2))
_HEAD_WIDTH = Question("head.width", (0, 128, 256, 512))


def _entrance(answer: Answer, task: Task) -> Entrance:
    resolution = answer(_RESOLUTION)
    return Entrance((task.channels, resolution, resolution), Rep(answer(_STEM_WIDTH), answer(_STEM_STRIDE)))


def _head(answer: Answer, task: Task) -> Classifier:
    return Classifier(task.classes, answer(_HEAD_WIDTH))


EDGE_SMALL = Space(
    "edge-small",
    Part((_RESOLUTION, _STEM_WIDTH, _STEM_STRIDE), _entrance),
    Part((_HEAD_WIDTH,), _head),
    (
        _stage((8, 16, 24, 32, 48, 64, 80, 96), (1, 2, 3), strides=(1, 2)),
        _stage((16, 24, 32, 64, 96, 128, 160, 192), (1, 2, 3, 4, 5)),
        _stage((24, 32, 48, 64, 128, 192, 256, 320, 384), (2, 3, 4, 6, 8, 10, 14)),
        _stage((48, 64, 96, 128, 192, 256, 512, 1280), (1, 2, 3, 4)),
    ),
)

RDP = replace(narrowed(EDGE_SMALL, {"stage*.family": ("rdp",)}), name="rdp")
