"""PBConv (Position Boost Convolution) layouts: which small kernels are trained beside a K x K kernel, and where.

A `Layout` is the phenotype: the set of rectangles. The genotype is a sequence of kernel types (height, width), which
`place` turns into a layout, one rectangle per step. Specs hold layouts; `find_sequence` recovers a genotype to mutate.
A convolution without PBConv has no layout.

Source: Hao, Chen and Ding, "Exploiting Position Information in Convolutional Kernels for Structural
Re-parameterization", sections 4.2 (full coverage) and 4.3 (the generator and its three rules).
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeAlias

KernelType: TypeAlias = tuple[int, int]  # (height, width)

MAX_TYPES = 3  # the paper draws t from {1, 2, 3}, section 4.3

_NUMBER = "(?:0|[1-9][0-9]*)"
_RECTANGLE = rf"{_NUMBER}(?:\.{_NUMBER}){{3}}"
_LAYOUT = re.compile(rf"K({_NUMBER}):({_RECTANGLE}(?:-{_RECTANGLE})*)")


@dataclass(frozen=True, slots=True, order=True)
class Rectangle:
    """The area of one small kernel inside a K x K kernel; row and column of its top-left corner count from zero."""

    row: int
    column: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.row}.{self.column}.{self.height}.{self.width}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The small kernels of one K x K convolution, in canonical form: equal layouts are equal values.

    Every layout of the generator is one, but not the reverse: any set of rectangles with full coverage is accepted.

    Raises:
        ValueError: kernel is below 2, or the rectangles are not sorted and distinct, leave the kernel, equal the whole
            kernel, or leave a position uncovered.
    Source: section 4.2, "full coverage".
    """

    kernel: int
    rectangles: tuple[Rectangle, ...]

    def __post_init__(self) -> None:
        _check_kernel(self.kernel)
        for rectangle in self.rectangles:
            _check_rectangle(rectangle, self.kernel)
        for first, second in pairwise(self.rectangles):
            if first == second:
                raise ValueError(f"rectangles must be distinct, got {first} twice; remove one")
            if first > second:
                raise ValueError(
                    f"rectangles must be sorted by (row, column, height, width), got {first} before {second}; sort them"
                )
        uncovered = _all_cells(self.kernel)
        for rectangle in self.rectangles:
            uncovered &= ~_cells(rectangle, self.kernel)
        if uncovered:
            raise ValueError(
                f"rectangles must cover every position of the {_size(self.kernel)} kernel, "
                f"{_positions(uncovered, self.kernel)} is left; add a rectangle there"
            )

    def __str__(self) -> str:
        return f"K{self.kernel}:" + "-".join(map(str, self.rectangles))


def parse_layout(text: str) -> Layout:
    """The layout whose `str` is exactly this text: K, then row.column.height.width of each rectangle.

    >>> parse_layout("K2:0.0.1.2-1.0.1.2").rectangles[1]
    Rectangle(row=1, column=0, height=1, width=2)

    Raises:
        ValueError: the text has another form, or what it says is not a `Layout`.
    """
    match = _LAYOUT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a layout must read K<kernel>:<row>.<column>.<height>.<width>-..., got {text!r}; "
            "write it like K3:0.0.3.2-0.1.3.2, plain decimal numbers without spaces"
        )
    kernel, rectangles = match.groups()
    return Layout(int(kernel), tuple(Rectangle(*map(int, part.split("."))) for part in rectangles.split("-")))


def layout_mask(layout: Layout) -> int:
    """The layout as a compact number, never 0: bit i, from the lowest, stands for `all_rectangles(kernel)[i]`.

    35 bits for a 3 x 3 kernel, 224 for 5 x 5, 783 for 7 x 7. The kernel itself is not part of it.
    """
    chosen = set(layout.rectangles)
    return sum(1 << bit for bit, rectangle in enumerate(all_rectangles(layout.kernel)) if rectangle in chosen)


def layout_from_mask(kernel: int, mask: int) -> Layout:
    """The layout of a `layout_mask`.

    Raises:
        ValueError: kernel is below 2, the mask has a bit beyond the last rectangle, or its rectangles are not a
            `Layout`. So does mask 0, which stands for no PBConv: there is no layout to return, test for it first.
    """
    rectangles = all_rectangles(kernel)
    if mask == 0:
        raise ValueError("mask must name at least one rectangle, got 0, which stands for no PBConv; test for 0 first")
    if not 0 < mask < 1 << len(rectangles):
        raise ValueError(
            f"mask of a {_size(kernel)} kernel must be from 1 to 2**{len(rectangles)} - 1, got {mask}; "
            "check that it was made for this kernel"
        )
    return Layout(kernel, tuple(sorted(rectangle for bit, rectangle in enumerate(rectangles) if mask >> bit & 1)))


@cache
def kernel_types(kernel: int) -> tuple[KernelType, ...]:
    """The K^2 - 1 sizes (height, width) of a small kernel, sorted; all but K x K itself.

    Raises:
        ValueError: kernel is below 2.
    Source: section 4.3.
    """
    _check_kernel(kernel)
    sizes = range(1, kernel + 1)
    return tuple((height, width) for height in sizes for width in sizes if (height, width) != (kernel, kernel))


@cache
def all_rectangles(kernel: int) -> tuple[Rectangle, ...]:
    """Every rectangle a layout may hold, ordered by height, width, row, column.

    `layout_mask` numbers its bits by this order, which must therefore never change.

    Raises:
        ValueError: kernel is below 2.
    """
    return tuple(
        Rectangle(row, column, height, width)
        for height, width in kernel_types(kernel)
        for row in range(kernel - height + 1)
        for column in range(kernel - width + 1)
    )


def place(sequence: Sequence[KernelType], kernel: int) -> Layout:
    """The one layout that arises when small kernels of these types are added in this order.

    Each is put where it 1) covers the most uncovered positions, then 2) holds the most of the centre, then 3) comes
    first from left to right and from top to bottom.

    >>> str(place([(3, 1), (1, 3), (3, 1), (3, 1)], kernel=3))
    'K3:0.0.3.1-0.1.3.1-0.2.3.1-1.0.1.3'

    Raises:
        ValueError: kernel is below 2, a type is not one of its `kernel_types`, or the sequence stops before every
            position is covered, or goes on afterwards.
    Source: section 4.3, rules 1 to 3; the example is Fig. 5. The paper does not say what the centre of an even kernel
        is: here the middle 2 x 2. We read rule 3 as the order of text: row by row.
    """
    types = kernel_types(kernel)
    uncovered = _all_cells(kernel)
    rectangles: list[Rectangle] = []
    for kernel_type in sequence:
        if kernel_type not in types:
            raise ValueError(
                f"a small kernel of a {_size(kernel)} kernel must have a (height, width) from {types[0]} to "
                f"{types[-1]}, got {kernel_type}; kernel_types({kernel}) lists them"
            )
        if not uncovered:
            raise ValueError(
                f"a sequence must stop when the {_size(kernel)} kernel is covered, got {len(sequence)} steps where "
                f"{len(rectangles)} suffice; keep the first {len(rectangles)}"
            )
        placement = _best_placement(kernel_type, kernel, uncovered)
        uncovered &= ~placement.cells
        rectangles.append(placement.rectangle)
    if uncovered:
        raise ValueError(
            f"a sequence must cover the whole {_size(kernel)} kernel, "
            f"{_positions(uncovered, kernel)} is left after {len(rectangles)} steps; add steps"
        )
    return Layout(kernel, tuple(sorted(rectangles)))


def cut_sequence(steps: Sequence[KernelType], kernel: int) -> tuple[KernelType, ...]:
    """The steps up to the one that completes the coverage: a sequence for `place` whatever the steps are.

    Every step covers at least one position, so K^2 of them always suffice; fewer may not.

    Raises:
        ValueError: the steps end before the kernel is covered.
    """
    uncovered = _all_cells(kernel)
    for count, step in enumerate(steps, start=1):
        uncovered &= ~_best_placement(step, kernel, uncovered).cells
        if not uncovered:
            return tuple(steps[:count])
    raise ValueError(f"{kernel * kernel} steps always cover a {_size(kernel)} kernel, got {len(steps)} that do not")


def generate_sequence(kernel: int, rng: random.Random, max_branches: int | None = None) -> tuple[KernelType, ...]:
    """A random sequence for `place`, of 1, 2 or 3 types with equal probability.

    max_branches None sets no limit (there are at most K^2 branches). With a limit, sequences above it are drawn again
    from the start, so that fewer types become likelier.

    Raises:
        ValueError: kernel or max_branches is below 2.
    Source: section 4.3. The paper is silent on two points. Each step draws its type uniformly from the chosen ones.
        When the kernel is covered before each of them was used, as many types are chosen afresh: the number of types
        then stays equally distributed.
    """
    if max_branches is not None and max_branches < 2:
        raise ValueError(
            f"max_branches must be at least 2 (one small kernel covers no whole kernel), got {max_branches}; "
            "raise it, or use no PBConv"
        )
    while True:
        sequence = _draw_sequence(kernel, rng)
        if max_branches is None or len(sequence) <= max_branches:
            return sequence


def generate_layout(kernel: int, rng: random.Random, max_branches: int | None = None) -> Layout:
    """A random candidate: the layout of a `generate_sequence`, with the same arguments and errors.

    Far from uniform over `enumerate_layouts`: four corners of 2 x 2 are one candidate in 24 for a 3 x 3 kernel.
    """
    return place(generate_sequence(kernel, rng, max_branches), kernel)


def find_sequence(layout: Layout) -> tuple[KernelType, ...]:
    """The first sequence, in sorted order, that `place` turns into this layout.

    Raises:
        ValueError: the three rules place no sequence like this.
    """
    types = sorted({(rectangle.height, rectangle.width) for rectangle in layout.rectangles}, reverse=True)
    start: tuple[KernelType, ...] = ()
    todo = [(start, layout_mask(layout), _all_cells(layout.kernel))]
    seen = set()
    while todo:
        sequence, remaining, uncovered = todo.pop()
        if not remaining:
            return sequence
        if not uncovered or remaining in seen:
            continue
        seen.add(remaining)
        for kernel_type in types:
            placement = _best_placement(kernel_type, layout.kernel, uncovered)
            if placement.bit & remaining:
                todo.append(((*sequence, kernel_type), remaining & ~placement.bit, uncovered & ~placement.cells))
    raise ValueError(
        f"a layout must follow from the coverage, centre and alternative rules to have a sequence, got {layout}; "
        "take one from generate_layout or enumerate_layouts"
    )


def mutate_sequence(
    sequence: Sequence[KernelType], kernel: int, rng: random.Random, max_branches: int | None = None
) -> tuple[KernelType, ...]:
    """A sequence with one step changed, whose layout differs and is one that the generator can draw.

    The changed sequence is cut where it covers the kernel, or goes on with its own types until it does.
    Where no single change keeps to three types and to max_branches (None: no limit), a newly generated sequence.

    Raises:
        ValueError: as `place` and `generate_sequence`.
    Source: ours; the paper draws candidates independently.
    """
    original = place(sequence, kernel)
    changes = [(step, new) for step, old in enumerate(sequence) for new in kernel_types(kernel) if new != old]
    rng.shuffle(changes)
    for step, new in changes:
        changed = (*sequence[:step], new, *sequence[step + 1 :])
        mutant = _complete(changed, changed, kernel, rng)
        # The layout differs without a look: it holds one rectangle per step, and some type now has more or fewer.
        if len(set(mutant)) <= MAX_TYPES and (max_branches is None or len(mutant) <= max_branches):
            return mutant
    while True:
        mutant = generate_sequence(kernel, rng, max_branches)
        if place(mutant, kernel) != original:
            return mutant


def mutate_layout(layout: Layout, rng: random.Random, max_branches: int | None = None) -> Layout:
    """Another layout that the generator can draw, one `mutate_sequence` away.

    Raises:
        ValueError: as `find_sequence` and `generate_sequence`.
    """
    return place(mutate_sequence(find_sequence(layout), layout.kernel, rng, max_branches), layout.kernel)


def enumerate_layouts(kernel: int, max_types: int = MAX_TYPES) -> Iterator[Layout]:
    """Every layout of at most max_types types that the three rules can place, each once, in a fixed order.

    With three types that is what `generate_layout` can draw: 22 layouts for a 2 x 2 kernel, 5483 for 3 x 3 (under a
    second), 523,771 for 4 x 4. A 5 x 5 kernel already has 378,116 with two types; sample there.

    Raises:
        ValueError: at the first step, when kernel is below 2 or max_types below 1.
    """
    if max_types < 1:
        raise ValueError(f"max_types must be at least 1, got {max_types}; the paper's generator uses {MAX_TYPES}")
    types = kernel_types(kernel)
    nothing_used: frozenset[KernelType] = frozenset()
    todo = [(0, _all_cells(kernel), nothing_used)]
    seen = {0}
    while todo:
        mask, uncovered, used = todo.pop()
        if not uncovered:
            yield layout_from_mask(kernel, mask)
            continue
        for kernel_type in types if len(used) < max_types else sorted(used):
            placement = _best_placement(kernel_type, kernel, uncovered)
            grown = mask | placement.bit
            # What is uncovered and which types are used follow from the mask, so one visit per mask is enough.
            if grown not in seen:
                seen.add(grown)
                todo.append((grown, uncovered & ~placement.cells, used | {kernel_type}))


def _draw_sequence(kernel: int, rng: random.Random) -> tuple[KernelType, ...]:
    types = kernel_types(kernel)
    type_count = rng.randint(1, min(MAX_TYPES, len(types)))
    while True:
        chosen = rng.sample(types, type_count)
        sequence = _complete((), chosen, kernel, rng)
        if len(set(sequence)) == type_count:
            return sequence


def _complete(
    sequence: Sequence[KernelType], pool: Sequence[KernelType], kernel: int, rng: random.Random
) -> tuple[KernelType, ...]:
    """The sequence cut where the kernel is covered, or continued with draws from the pool until it is."""
    distinct = tuple(dict.fromkeys(pool))
    uncovered = _all_cells(kernel)
    steps: list[KernelType] = []
    while uncovered:
        steps.append(sequence[len(steps)] if len(steps) < len(sequence) else rng.choice(distinct))
        uncovered &= ~_best_placement(steps[-1], kernel, uncovered).cells
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Placement:
    rectangle: Rectangle
    bit: int  # its place in a layout mask
    cells: int  # the positions it covers
    centre_count: int  # how many of them are central


def _best_placement(kernel_type: KernelType, kernel: int, uncovered: int) -> _Placement:
    # Rule 3 is the order of the placements: max keeps the first of equals.
    return max(
        _placements(kernel)[kernel_type],
        key=lambda placement: ((placement.cells & uncovered).bit_count(), placement.centre_count),
    )


@cache
def _placements(kernel: int) -> dict[KernelType, list[_Placement]]:
    """Where each type can lie, row by row."""
    middle = (kernel - 1) // 2
    thickness = 2 - kernel % 2
    centre = _cells(Rectangle(middle, middle, thickness, thickness), kernel)
    placements: dict[KernelType, list[_Placement]] = {kernel_type: [] for kernel_type in kernel_types(kernel)}
    for index, rectangle in enumerate(all_rectangles(kernel)):
        cells = _cells(rectangle, kernel)
        placement = _Placement(rectangle, 1 << index, cells, (cells & centre).bit_count())
        placements[rectangle.height, rectangle.width].append(placement)
    return placements


def _cells(rectangle: Rectangle, kernel: int) -> int:
    """The covered positions as bits: position (row, column) is bit row * K + column."""
    line = ((1 << rectangle.width) - 1) << rectangle.column
    return sum(line << row * kernel for row in range(rectangle.row, rectangle.row + rectangle.height))


def _all_cells(kernel: int) -> int:
    return (1 << kernel * kernel) - 1


def _positions(cells: int, kernel: int) -> str:
    return ", ".join(str(divmod(cell, kernel)) for cell in range(kernel * kernel) if cells >> cell & 1)


def _size(kernel: int) -> str:
    return f"{kernel} x {kernel}"


def _check_kernel(kernel: int) -> None:
    if kernel < 2:
        raise ValueError(
            f"kernel must be at least 2 to hold smaller kernels, got {kernel}; leave such a convolution without PBConv"
        )


def _check_rectangle(rectangle: Rectangle, kernel: int) -> None:
    is_inside = (
        0 <= rectangle.row < rectangle.row + rectangle.height <= kernel
        and 0 <= rectangle.column < rectangle.column + rectangle.width <= kernel
    )
    if not is_inside:
        raise ValueError(
            f"a rectangle must have a positive size and lie inside the {_size(kernel)} kernel, got {rectangle} "
            "(row.column.height.width); move or shrink it"
        )
    if rectangle.height == rectangle.width == kernel:
        raise ValueError(
            f"a rectangle must be smaller than the {_size(kernel)} kernel, got {rectangle}; "
            "the whole kernel is the convolution itself, leave it out"
        )
