"""The named spaces: which networks a search may propose."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.rk import Rkp
from searchspace.choosers import Choose
from searchspace.coverage import MAX_TYPES, cut_sequence, kernel_types, place
from searchspace.registry import BlockSpec, family_of
from searchspace.space import (
    Frame,
    Space,
    Task,
    largest_useful_dilation,
    largest_useful_kernel,
    narrowed,
)
from searchspace.spec import ArchSpec, SpecError, Stage


@dataclass(frozen=True, slots=True)
class _StageRange:
    """What one stage of `edge-small` may be."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...] = (2,)

    def __call__(self, choose: Choose, in_shape: Shape) -> Stage:
        family = choose("family", ("rdp", "ir"))
        width = choose("width", self.widths)
        depth = choose("depth", self.depths)
        stride = choose("stride", self.strides)
        kernel = choose("kernel", (3, 5, 7))
        expand = choose("expand", (3, 4, 6))
        squeeze_excite = choose("squeeze_excite", (False, True))
        # A map of 2x2 is not made smaller: a 3x3 kernel would see nothing but padding around a single value.
        size = min(in_shape[1:])
        first = stride if size > 2 else 1
        if family == "rdp":
            return (Rdp(width, first), *(Rdp(width),) * (depth - 1))

        def inverted(stride: int, size: int) -> InvertedResidual:
            useful = min(kernel, largest_useful_kernel(size))
            return InvertedResidual(width, stride, useful, expand, squeeze_excite)

        return (inverted(first, size), *(inverted(1, -(-size // first)),) * (depth - 1))


def _edge_small_frame(choose: Choose, task: Task) -> Frame:
    resolution = choose("resolution", (32, 48, 64, 96))
    stem_width = choose("stem.width", (8, 16, 24, 32, 48, 64))
    stem_stride = choose("stem.stride", (1, 2))
    head_width = choose("head.width", (0, 128, 256, 512))
    return Frame(
        (task.channels, resolution, resolution),
        Rep(stem_width, stem_stride),
        Classifier(task.classes, head_width),
    )


# Widths are RDPNet's {64, 128, 256} times {0.25, 0.5, 0.75, 1, 1.25, 1.5} (seed 004, Table 2) with narrower ones below
# for budgets of a few milliseconds; 1280 is RDPNet's last stage at every multiplier.
EDGE_SMALL = Space(
    "edge-small",
    _edge_small_frame,
    (
        _StageRange((8, 16, 24, 32, 48, 64, 80, 96), (1, 2, 3), strides=(1, 2)),
        _StageRange((16, 24, 32, 64, 96, 128, 160, 192), (1, 2, 3, 4, 5)),
        _StageRange((24, 32, 48, 64, 128, 192, 256, 320, 384), (2, 3, 4, 6, 8, 10, 14)),
        _StageRange((48, 64, 96, 128, 192, 256, 512, 1280), (1, 2, 3, 4)),
    ),
)


@dataclass(frozen=True, slots=True)
class _MixRange:
    """What one stage of `mix` may be; no widths for the first, which keeps the stem's width and has no attention."""

    depths: tuple[int, ...]
    widths: tuple[int, ...] = ()

    def __call__(self, choose: Choose, in_shape: Shape) -> Stage:
        depth = choose("depth", self.depths)
        kernel = choose("kernel", (3, 5, 7, 9))
        divisions = choose("divisions", (2, 4, 8))
        expand = choose("expand", (2, 2.5, 3, 3.5, 4))
        squeeze_excite = choose("squeeze_excite", (False, True))
        size = min(in_shape[1:]) // 2 if self.widths else min(in_shape[1:])
        local = (Lfae(min(kernel, largest_useful_kernel(size)), divisions, expand, squeeze_excite),) * depth
        if not self.widths:
            return local
        width = choose("width", self.widths)
        attention = choose("attention", (False, True))
        return (NormDown(width), *local, *(Gfae(expand=expand),) * attention)


def _mix_frame(choose: Choose, task: Task) -> Frame:
    # The stem and the three steps divide the size by 32, and smaller maps than 2x2 have little but padding around them.
    resolution = choose("resolution", (64, 96, 128, 160, 192, 224, 256))
    stem_width = choose("stem.width", (16, 24, 32, 48, 64))
    return Frame((task.channels, resolution, resolution), Patch(stem_width), Classifier(task.classes, norm=True))


# MixMobileNet (seed 003): the kernels of section 3.2, free in each stage as the expansions of Table 8 are, attention at
# most once in a stage and not in the first (Table 9). Widths and depths hold those of its three variants (Table 1).
MIX = Space(
    "mix",
    _mix_frame,
    (
        _MixRange((1, 2, 3)),
        _MixRange((1, 2, 3), (24, 32, 48, 64, 96, 128)),
        _MixRange((1, 2, 3, 4, 5, 6, 8), (48, 64, 88, 100, 128, 160, 192)),
        _MixRange((1, 2, 3, 4), (64, 96, 128, 168, 192, 256, 304)),
    ),
)


def _published_rdpnet(choose: Choose, task: Task) -> Frame:
    return Frame((task.channels, 32, 32), Rep(16), Classifier(task.classes))


def _fixed(*stage: BlockSpec) -> Callable[[Choose, Shape], Stage]:
    return lambda choose, in_shape: stage


def _one_layout(choose: Choose, spec: ArchSpec) -> ArchSpec:
    """A layout by the paper's genotype: up to three types of small kernels, and which of them comes next."""
    types = [choose(f"layout.type{index + 1}", _TYPE_NAMES) for index in range(MAX_TYPES)]
    order = [choose(f"layout.step{index + 1}", tuple(range(MAX_TYPES))) for index in range(9)]
    steps = [_TYPES[types[index]] for index in order]
    layout = place(cut_sequence(steps, 3), 3)

    def carry(block: BlockSpec) -> BlockSpec:
        sizes = family_of(block).layout_kernels(block)
        return replace(block, **{name: layout for name, size in sizes.items() if size == 3})

    return spec.map_blocks(carry)


_TYPES = {f"{height}x{width}": (height, width) for height, width in kernel_types(3)}
_TYPE_NAMES = tuple(_TYPES)

# RDPNet-0.25x (seed 004, Table 2) with nothing left to choose but the PBConv layout of its 3x3 convolutions.
PBCONV_LAYOUTS = Space(
    "pbconv-layouts",
    _published_rdpnet,
    (
        _fixed(Rdp(16)),
        _fixed(Rdp(32, 2), *(Rdp(32),) * 3),
        _fixed(Rdp(64, 2), *(Rdp(64),) * 13),
        _fixed(Rdp(1280, 2)),
    ),
    _one_layout,
)


def _only_rdp() -> Space:
    return replace(narrowed(EDGE_SMALL, {"stage*.family": ("rdp",)}, Task(3, 10)), name="rdp")


@dataclass(frozen=True, slots=True)
class _RkpStageRange:
    """What one stage of `rkp` may be: an RKP block at the width that enters, or none, then a DBC.

    One block to a stage, as in PPENet: each block has its kernel and dilation, and with a second one the cheapest
    member would take a minute to find. A stage of stride 1 does what a second block would.
    """

    widths: tuple[int, ...]

    def __call__(self, choose: Choose, in_shape: Shape) -> Stage:
        has_rkp = choose("rkp", (False, True))
        kernel = choose("kernel", (3, 5, 7, 9))
        dilation = choose("dilation", (1, 2))
        expand = choose("expand", (1, 2, 3, 4))
        pointwise = choose("pointwise", (False, True))
        ppe = choose("ppe", (False, True))
        width = choose("width", self.widths)
        stride = choose("stride", (1, 2))
        size = min(in_shape[1:])
        # A map of 2x2 is not made smaller, as in `edge-small`.
        transition = Dbc(width, stride if size > 2 else 1)
        if not has_rkp:
            return (transition,)
        useful = min(kernel, largest_useful_kernel(size))
        return (Rkp(useful, min(dilation, largest_useful_dilation(size, useful)), expand, pointwise, ppe), transition)


def _rkp_frame(choose: Choose, task: Task) -> Frame:
    resolution = choose("resolution", (32, 48, 64, 96, 224))
    stem_width = choose("stem.width", (8, 16, 24, 32, 48, 64))
    stem_stride = choose("stem.stride", (1, 2))
    head_width = choose("head.width", (0, 128, 256, 512))
    return Frame(
        (task.channels, resolution, resolution),
        Dbc(stem_width, stem_stride),
        Classifier(task.classes, head_width),
    )


# Widths are around those of PPENet-L: 32, 48, 72, 96, 156, 196 (seed 000, Table 2). With depthwise RK it is a member.
RKP = Space(
    "rkp",
    _rkp_frame,
    (
        _RkpStageRange((16, 24, 32, 48, 64)),
        _RkpStageRange((24, 32, 48, 72, 96)),
        _RkpStageRange((32, 48, 64, 96, 128)),
        _RkpStageRange((48, 64, 96, 128, 156)),
        _RkpStageRange((64, 96, 128, 196, 256)),
    ),
)

SPACES = {space.name: space for space in (EDGE_SMALL, _only_rdp(), RKP, MIX, PBCONV_LAYOUTS)}
DEFAULT_SPACE = EDGE_SMALL.name


def space_named(name: str) -> Space:
    """The space called `name`.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    if name not in SPACES:
        raise SpecError(f"space: unknown space {name!r}; {nearest(name, list(SPACES))}")
    return SPACES[name]
