"""The named spaces: which networks a search may propose.

A space is written once, as functions of `choose`. Its frame (input, stem, head) and its stages are separate functions,
each seeing only the shape that enters it, so that costs can be minimised stage by stage and not by trial and error.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.choosers import Choose, prefixed
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
    return ArchSpec(frame.input_shape, frame.stem, tuple(stages), frame.head)


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
        first, size = (stride, min(in_shape[1:])) if min(in_shape[1:]) > 1 else (1, 1)
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

SPACES = {space.name: space for space in (EDGE_SMALL, MIX)}
DEFAULT_SPACE = EDGE_SMALL.name


def space_named(name: str) -> Space:
    """The space called `name`.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    if name not in SPACES:
        raise SpecError(f"space: unknown space {name!r}; {nearest(name, list(SPACES))}")
    return SPACES[name]
