"""The named spaces: which networks a search may propose.

A space is written once, as functions of `choose`. Its frame (input, stem, head) and its stages are separate functions,
each seeing only the shape that enters it, so that costs can be minimised stage by stage and not by trial and error.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.choosers import Choose, G, Gene, prefixed
from searchspace.coverage import MAX_TYPES, cut_sequence, kernel_types, place
from searchspace.network import block_graph
from searchspace.registry import BlockSpec, family_of
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


SPACES = {space.name: space for space in (EDGE_SMALL, _only_rdp(), PBCONV_LAYOUTS)}
DEFAULT_SPACE = EDGE_SMALL.name


def space_named(name: str) -> Space:
    """The space called `name`.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    if name not in SPACES:
        raise SpecError(f"space: unknown space {name!r}; {nearest(name, list(SPACES))}")
    return SPACES[name]
