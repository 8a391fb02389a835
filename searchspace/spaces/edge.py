"""`edge`: stages of five families for images of 160 to 256 pixels, after four kinds of stem.

What a stage is decides how it makes the maps smaller: LFAE begins with a norm and a 2x2 convolution, RKP with a DBC,
ParC frames with a strided inverted residual; RDP modules and inverted residuals carry the stride themselves.

Stage 1 stays at half the size of the image, and the others are at a quarter, an eighth and so on. A patch stem makes
the step to a quarter itself: stage 1 is empty then and stage 2 keeps the size.

Widths are {64, 128, 256, 512} times {0.25, 0.375, 0.5, 0.625, 0.75, 1, 1.25, 1.5} and 1280, those of RDPNet (seed 004,
Table 2) and what lies between them; 88, 100, 168 and 304 are MixMobileNet's (seed 003, Table 1) and the last 160 is
ParC-Net's (seed 002, Table 2). RDPNet at every width, the three MixMobileNets and at 256 pixels ParC-Net-S and -XS are
members. PPENet is not: it ends in a DBC without a block behind it, and is in `rkp`. MobileNetV2 is not: it has two
stages at a sixteenth of the size.
"""

from collections.abc import Callable, Iterator

from hardware.ops import Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.rk import Rkp
from searchspace.part import Answer, Part, Question, one_of
from searchspace.registry import BlockSpec
from searchspace.space import (
    Entrance,
    Space,
    StagePart,
    Task,
    largest_useful_dilation,
    largest_useful_kernel,
)
from searchspace.spaces.frame_genes import FRAME_QUESTIONS, frame

# The images have up to 256 pixels and no fewer than 160, so maps at half their size are larger than this, and maps at a
# quarter are not.
_LARGEST_QUARTER = 64

# What the families of a stage share, and how a stage's stride follows from the shape that enters it.
WidthAndDepth = tuple[Question[int], Question[int]]
Stride = Callable[[Shape], int]


def _stride(in_shape: Shape) -> int:
    """The stride of stage 2, which is at a quarter of the image's size whatever the stem was."""
    return 2 if min(in_shape[1:]) > _LARGEST_QUARTER else 1


def _halves(in_shape: Shape) -> int:
    return 2


def _rdp(shared: WidthAndDepth, stride: Stride) -> StagePart:
    width, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield Rdp(answer(width), stride(in_shape))
        yield from (Rdp(answer(width)),) * (answer(depth) - 1)

    return Part(shared, build)


_IR_KERNEL = Question("ir.kernel", (3, 5, 7))
_IR_EXPAND = Question("ir.expand", (3, 4, 6))
_IR_SQUEEZE_EXCITE = Question("ir.squeeze_excite", (False, True), only_adds=True)
_IR_ACTIVATION = Question("ir.activation", ("relu6", "silu"))  # of MobileNetV2, and of the stages before ParC frames


def _inverted(shared: WidthAndDepth, stride: Stride) -> StagePart:
    width, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        def block(stride: int) -> InvertedResidual:
            return InvertedResidual(
                answer(width),
                stride,
                answer(_IR_KERNEL),
                answer(_IR_EXPAND),
                answer(_IR_SQUEEZE_EXCITE),
                answer(_IR_ACTIVATION),
            )

        yield block(stride(in_shape))
        yield from (block(1),) * (answer(depth) - 1)

    return Part((*shared, _IR_KERNEL, _IR_EXPAND, _IR_SQUEEZE_EXCITE, _IR_ACTIVATION), build)


_RKP_KERNEL = Question("rkp.kernel", (3, 5, 7, 9))
_RKP_DILATION = Question("rkp.dilation", (1, 2))
_RKP_EXPAND = Question("rkp.expand", (1, 2, 3, 4))
_RKP_POINTWISE = Question("rkp.pointwise", (False, True), only_adds=True)
_RKP_PPE = Question("rkp.ppe", (False, True), only_adds=True)


def _rkp(shared: WidthAndDepth, stride: Stride) -> StagePart:
    """A DBC and RKP blocks that are all alike."""
    width, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield Dbc(answer(width), stride(in_shape))
        size = min(in_shape[1:]) // stride(in_shape)
        kernel = min(answer(_RKP_KERNEL), largest_useful_kernel(size))
        dilation = min(answer(_RKP_DILATION), largest_useful_dilation(size, kernel))
        block = Rkp(kernel, dilation, answer(_RKP_EXPAND), answer(_RKP_POINTWISE), answer(_RKP_PPE))
        yield block
        yield from (block,) * (answer(depth) - 1)

    return Part((*shared, _RKP_KERNEL, _RKP_DILATION, _RKP_EXPAND, _RKP_POINTWISE, _RKP_PPE), build)


_MMB_KERNEL = Question("mmb.kernel", (3, 5, 7, 9))
_MMB_DIVISIONS = Question("mmb.divisions", (2, 4, 8))
_MMB_EXPAND = Question("mmb.expand", (2, 2.5, 3, 3.5, 4))
_MMB_SQUEEZE_EXCITE = Question("mmb.squeeze_excite", (False, True), only_adds=True)
_MMB_ATTENTION = Question("mmb.attention", (False, True), only_adds=True)
_LOCAL_QUESTIONS = (_MMB_KERNEL, _MMB_DIVISIONS, _MMB_EXPAND, _MMB_SQUEEZE_EXCITE)


def _local(answer: Answer, size: int) -> Lfae:
    kernel = min(answer(_MMB_KERNEL), largest_useful_kernel(size))
    return Lfae(kernel, answer(_MMB_DIVISIONS), answer(_MMB_EXPAND), answer(_MMB_SQUEEZE_EXCITE))


def _mmb_without_attention(shared: WidthAndDepth) -> StagePart:
    """Local encoders at a quarter of the size, at the stem's width where the stem has made the step."""
    width, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        if _stride(in_shape) == 2:
            yield NormDown(answer(width))
        local = _local(answer, min(in_shape[1:]) // _stride(in_shape))
        yield local
        yield from (local,) * (answer(depth) - 1)

    return Part((*shared, *_LOCAL_QUESTIONS), build)


def _mmb(shared: WidthAndDepth) -> StagePart:
    """A step, local encoders and at most one global one."""
    width, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield NormDown(answer(width))
        local = _local(answer, min(in_shape[1:]) // 2)
        yield local
        yield from (local,) * (answer(depth) - 1)
        yield from (Gfae(expand=answer(_MMB_EXPAND)),) * answer(_MMB_ATTENTION)

    return Part((*shared, *_LOCAL_QUESTIONS, _MMB_ATTENTION), build)


def _parc(shared: WidthAndDepth, base: int) -> StagePart:
    """An inverted residual and one frame, whose blocks are counted by a gene of their own."""
    width, _ = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        yield InvertedResidual(answer(width), 2, expand=4, activation="silu")
        yield frame(answer, answer(width), min(in_shape[1:]) // 2, base)

    return Part((width, *FRAME_QUESTIONS), build)


def _stage_at_half(widths: tuple[int, ...]) -> StagePart:
    # Without blocks the stem's width stays, so that this depth does more than add.
    shared = (Question("width", widths), Question("depth", (0, 1, 2)))
    families = one_of("family", {"rdp": _rdp(shared, lambda shape: 1), "ir": _inverted(shared, lambda shape: 1)})
    _, depth = shared

    def build(answer: Answer, in_shape: Shape) -> Iterator[BlockSpec]:
        if _stride(in_shape) == 2 and answer(depth) > 0:
            yield from families.build(answer, in_shape)

    return Part(families.questions, build)


def _stage_at_quarter(widths: tuple[int, ...], depths: tuple[int, ...]) -> StagePart:
    shared = (Question("width", widths), Question("depth", depths, only_adds=True))
    return one_of(
        "family",
        {
            "rdp": _rdp(shared, _stride),
            "ir": _inverted(shared, _stride),
            "rkp": _rkp(shared, _stride),
            "mmb": _mmb_without_attention(shared),
        },
    )


def _stage(widths: tuple[int, ...], depths: tuple[int, ...], base: int) -> StagePart:
    """From an eighth of the size on; `base` is the size of its maps in an image of 256 pixels."""
    shared = (Question("width", widths), Question("depth", depths, only_adds=True))
    return one_of(
        "family",
        {
            "rdp": _rdp(shared, _halves),
            "ir": _inverted(shared, _halves),
            "rkp": _rkp(shared, _halves),
            "mmb": _mmb(shared),
            "parc": _parc(shared, base),
        },
    )


_RESOLUTION = Question("resolution", (160, 192, 224, 256))
_STEM_WIDTH = Question("stem.width", (16, 24, 32, 40, 48, 64))
_STEM_KERNEL = Question("stem.kernel", (3, 5))


def _stem(block: Callable[[int], BlockSpec]) -> Part[Task, BlockSpec]:
    return Part((_STEM_WIDTH,), lambda answer, task: block(answer(_STEM_WIDTH)))


def _conv_stem(answer: Answer, task: Task) -> BlockSpec:
    return PlainConv(answer(_STEM_WIDTH), 2, answer(_STEM_KERNEL), "silu")


_STEM = one_of(
    "stem.family",
    {
        "rep": _stem(lambda width: Rep(width, 2)),
        "conv": Part((_STEM_WIDTH, _STEM_KERNEL), _conv_stem),
        "patch": _stem(Patch),
        "dbc": _stem(Dbc),
    },
)


def _entrance(answer: Answer, task: Task) -> Entrance:
    resolution = answer(_RESOLUTION)
    return Entrance((task.channels, resolution, resolution), _STEM.build(answer, task))


_HEAD_WIDTH = Question("head.width", (0, 128, 256, 512, 640, 1280))
_HEAD_ACTIVATION = Question("head.activation", ("relu", "silu"))
_HEAD_NORM = Question("head.norm", (False, True), only_adds=True)


def _head(answer: Answer, task: Task) -> Classifier:
    width = answer(_HEAD_WIDTH)
    if not width:
        return Classifier(task.classes, norm=answer(_HEAD_NORM))
    return Classifier(task.classes, width, answer(_HEAD_ACTIVATION), answer(_HEAD_NORM))


EDGE = Space(
    "edge",
    Part((_RESOLUTION, *_STEM.questions), _entrance),
    Part((_HEAD_WIDTH, _HEAD_ACTIVATION, _HEAD_NORM), _head),
    (
        _stage_at_half((16, 24, 32, 48)),
        _stage_at_quarter((16, 24, 32, 40, 48, 64, 80, 96), (1, 2, 3)),
        _stage((32, 48, 64, 80, 96, 128, 160, 192), (1, 2, 3, 4, 5), base=32),
        _stage((64, 88, 96, 100, 128, 160, 192, 256, 320, 384), (2, 3, 4, 5, 6, 8, 10, 14), base=16),
        _stage((128, 160, 168, 192, 256, 304, 320, 384, 512, 640, 768, 1280), (1, 2, 3, 4), base=8),
    ),
)
