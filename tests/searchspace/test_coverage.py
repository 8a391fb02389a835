import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest

from searchspace.coverage import (
    KernelType,
    Layout,
    Rectangle,
    all_rectangles,
    enumerate_layouts,
    find_sequence,
    generate_layout,
    generate_sequence,
    kernel_types,
    layout_from_mask,
    layout_mask,
    mutate_layout,
    mutate_sequence,
    parse_layout,
    place,
)

FIGURE_5 = ((3, 1), (1, 3), (3, 1), (3, 1))
TWO_COLUMNS = (Rectangle(0, 0, 3, 2), Rectangle(0, 1, 3, 2))
# Each rectangle could be drawn, but the first 1 x 1 goes to the centre and later ones to what is uncovered.
UNPLACEABLE = Layout(3, (Rectangle(0, 0, 1, 1), *TWO_COLUMNS))
KERNELS = range(2, 8)


def coverage_map(layout: Layout) -> np.ndarray:
    counts = np.zeros((layout.kernel, layout.kernel), dtype=int)
    for area in layout.rectangles:
        assert area.row >= 0
        assert area.column >= 0
        window = counts[area.row : area.row + area.height, area.column : area.column + area.width]
        assert window.shape == (area.height, area.width) != counts.shape
        window += 1
    return counts


def types_of(layout: Layout) -> set[KernelType]:
    return {(rectangle.height, rectangle.width) for rectangle in layout.rectangles}


@cache
def best_area(covered: tuple[tuple[bool, ...], ...], height: int, width: int) -> Rectangle:
    """The paper's three rules, read naively: score every window of the map, the earlier one wins a tie."""
    grid = np.array(covered)
    kernel = len(grid)
    centre = np.zeros_like(grid)
    centre[(kernel - 1) // 2 : kernel // 2 + 1, (kernel - 1) // 2 : kernel // 2 + 1] = True
    best, best_score = None, (-1, -1)
    for row, column in product(range(kernel - height + 1), range(kernel - width + 1)):
        window = np.s_[row : row + height, column : column + width]
        score = (int((~grid[window]).sum()), int(centre[window].sum()))
        if score > best_score:
            best, best_score = Rectangle(row, column, height, width), score
    assert best is not None
    return best


def covered_by(rectangles: Sequence[Rectangle], kernel: int) -> tuple[tuple[bool, ...], ...]:
    grid = np.zeros((kernel, kernel), dtype=bool)
    for area in rectangles:
        grid[area.row : area.row + area.height, area.column : area.column + area.width] = True
    return tuple(map(tuple, grid.tolist()))


def layouts_by_brute_force(kernel: int, max_types: int) -> set[tuple[Rectangle, ...]]:
    """Follows every sequence of at most max_types types, in numpy, until the kernel is covered."""
    found, seen = set(), set()

    def extend(rectangles: frozenset[Rectangle]) -> None:
        if rectangles in seen:
            return
        seen.add(rectangles)
        covered = covered_by(tuple(rectangles), kernel)
        if np.all(covered):
            found.add(tuple(sorted(rectangles)))
            return
        used = {(area.height, area.width) for area in rectangles}
        for height, width in product(range(1, kernel + 1), repeat=2):
            if (height, width) != (kernel, kernel) and len(used | {(height, width)}) <= max_types:
                extend(rectangles | {best_area(covered, height, width)})

    extend(frozenset())
    return found


@pytest.fixture(scope="module")
def layouts_3x3() -> list[Layout]:
    return list(enumerate_layouts(3))


# Placement


def test_figure_5_gives_centre_column_centre_row_left_column_right_column() -> None:
    centre_column, centre_row = Rectangle(0, 1, 3, 1), Rectangle(1, 0, 1, 3)
    left_column, right_column = Rectangle(0, 0, 3, 1), Rectangle(0, 2, 3, 1)
    assert place(FIGURE_5, 3) == Layout(3, (left_column, centre_column, right_column, centre_row))


@pytest.mark.parametrize(
    ("sequence", "kernel", "text"),
    [
        # Coverage before centre: the 1 x 2 takes two new positions at the top, not one beside the centre.
        ([(1, 1), (1, 2), (2, 3), (1, 1)], 3, "K3:0.0.1.2-0.2.1.1-1.0.2.3-1.1.1.1"),
        # Left before right: 3 x 2 covers three new positions on either side of the centre column.
        ([(3, 1), (3, 2), (3, 1)], 3, "K3:0.0.3.2-0.1.3.1-0.2.3.1"),
        # Top right before bottom left: after two diagonal 2 x 2 both corners are equal.
        ([(2, 2), (2, 2), (2, 2), (1, 1)], 3, "K3:0.0.2.2-0.1.2.2-1.1.2.2-2.0.1.1"),
        # The centre of an even kernel is its middle 2 x 2.
        ([(2, 2), (1, 4), (4, 1), (1, 4), (4, 1)], 4, "K4:0.0.1.4-0.0.4.1-0.3.4.1-1.1.2.2-3.0.1.4"),
        # Central positions are counted: the 1 x 2 that holds two of them goes before the one further left with one.
        ([(1, 2), (4, 3), (4, 1)], 4, "K4:0.0.4.3-0.3.4.1-1.1.1.2"),
    ],
)
def test_rules_apply_in_order_of_priority(sequence: list[KernelType], kernel: int, text: str) -> None:
    assert str(place(sequence, kernel)) == text


@pytest.mark.parametrize("kernel", KERNELS)
def test_placement_agrees_with_scoring_every_window(kernel: int) -> None:
    rng = random.Random(kernel)
    for _ in range(40):
        sequence: list[KernelType] = []
        rectangles: list[Rectangle] = []
        while not np.all(covered_by(rectangles, kernel)):
            sequence.append(rng.choice(kernel_types(kernel)))
            rectangles.append(best_area(covered_by(rectangles, kernel), *sequence[-1]))
        assert place(sequence, kernel).rectangles == tuple(sorted(rectangles))


@pytest.mark.parametrize(
    ("sequence", "kernel", "message"),
    [
        (FIGURE_5[:3], 3, r"cover the whole 3 x 3 kernel, \(0, 2\), \(2, 2\) is left after 3 steps; add steps"),
        ([], 2, r"\(0, 0\), \(0, 1\), \(1, 0\), \(1, 1\) is left after 0 steps"),
        ((*FIGURE_5, (1, 1)), 3, "must stop when .* covered, got 5 steps where 4 suffice; keep the first 4"),
        ([(3, 3)], 3, r"must have .* from \(1, 1\) to \(3, 2\), got \(3, 3\); kernel_types\(3\) lists them"),
        ([(4, 1)], 3, r"got \(4, 1\)"),
        ([(0, 1)], 3, r"got \(0, 1\)"),
        ([(1, 1)], 1, "kernel must be at least 2 .*, got 1; leave such a convolution without PBConv"),
    ],
)
def test_sequence_that_does_not_end_at_full_coverage_is_an_error(
    sequence: list[KernelType], kernel: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(sequence, kernel)


# Layouts


@pytest.mark.parametrize(
    ("rectangles", "message"),
    [
        (TWO_COLUMNS[::-1], r"sorted by .*, got 0\.1\.3\.2 before 0\.0\.3\.2; sort them"),
        ((TWO_COLUMNS[0], *TWO_COLUMNS), r"distinct, got 0\.0\.3\.2 twice; remove one"),
        (TWO_COLUMNS[:1], r"cover every position .*, \(0, 2\), \(1, 2\), \(2, 2\) is left; add a rectangle there"),
        ((), r"cover every position"),
        ((Rectangle(0, 0, 3, 3),), r"smaller than the 3 x 3 kernel, got 0\.0\.3\.3; .* leave it out"),
        ((*TWO_COLUMNS, Rectangle(2, 0, 2, 1)), r"inside the 3 x 3 kernel, got 2\.0\.2\.1 .* move or shrink it"),
        ((*TWO_COLUMNS, Rectangle(2, 2, 1, 2)), r"inside .*, got 2\.2\.1\.2"),
        ((Rectangle(-1, 0, 2, 1), *TWO_COLUMNS), r"inside .*, got -1\.0\.2\.1"),
        ((Rectangle(0, -1, 1, 2), *TWO_COLUMNS), r"inside .*, got 0\.-1\.1\.2"),
        ((*TWO_COLUMNS, Rectangle(1, 1, 0, 1)), r"positive size .*, got 1\.1\.0\.1"),
        ((*TWO_COLUMNS, Rectangle(1, 1, 1, 0)), r"positive size .*, got 1\.1\.1\.0"),
        ((*TWO_COLUMNS, Rectangle(1, 1, -1, 1)), r"positive size .*, got 1\.1\.-1\.1"),
        ((*TWO_COLUMNS, Rectangle(1, 1, 1, -1)), r"positive size .*, got 1\.1\.1\.-1"),
    ],
)
def test_layout_names_the_rule_it_breaks(rectangles: tuple[Rectangle, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(3, rectangles)


@pytest.mark.parametrize("kernel", [1, 0, -3])
def test_kernel_without_smaller_kernels_is_an_error(kernel: int) -> None:
    for call in (
        lambda: Layout(kernel, ()),
        lambda: kernel_types(kernel),
        lambda: all_rectangles(kernel),
        lambda: layout_from_mask(kernel, 1),
        lambda: generate_layout(kernel, random.Random(0)),
        lambda: next(enumerate_layouts(kernel)),
    ):
        with pytest.raises(ValueError, match=f"at least 2 .*, got {kernel}"):
            call()


@pytest.mark.parametrize(("kernel", "count"), [(2, 8), (3, 35), (4, 99), (5, 224), (7, 783)])
def test_rectangles_are_all_windows_but_the_whole_in_mask_order(kernel: int, count: int) -> None:
    rectangles = all_rectangles(kernel)
    order = [(area.height, area.width, area.row, area.column) for area in rectangles]
    corners = list(product(range(kernel + 1), repeat=2))
    windows = {
        (bottom - top, right - left, top, left)
        for (top, bottom), (left, right) in product(corners, corners)
        if top < bottom and left < right and (bottom - top, right - left) != (kernel, kernel)
    }
    assert len(order) == count
    assert order == sorted(windows)
    assert kernel_types(kernel) == tuple(dict.fromkeys((height, width) for height, width, _, _ in order))
    assert len(kernel_types(kernel)) == kernel**2 - 1


def test_text_is_the_documented_one() -> None:
    assert str(place(FIGURE_5, 3)) == "K3:0.0.3.1-0.1.3.1-0.2.3.1-1.0.1.3"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K3",
        "K3:",
        "3:0.0.3.2-0.1.3.2",
        "k3:0.0.3.2-0.1.3.2",
        "K3:0.0.3.2-0.1.3.2-",
        "K3:0.0.3.2--0.1.3.2",
        "K3:0.0.3.2-0.1.3",
        "K3:0.0.3.2.0-0.1.3.2",
        "K3:0.0.3.2-0.1.3.2\n",
        " K3:0.0.3.2-0.1.3.2",
        "K3:0.0.3.2, 0.1.3.2",
        "K03:0.0.3.2-0.1.3.2",
        "K3:0.00.3.2-0.1.3.2",
        "K3:0.-0.3.2-0.1.3.2",
        "K3:0.0.3.2-0.1.3.٢",
    ],
)
def test_text_in_any_other_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"a layout must read K<kernel>.*, got .*; write it like"):
        parse_layout(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("K3:0.1.3.2-0.0.3.2", "sorted"),
        ("K3:0.0.3.2-0.0.3.2-0.1.3.2", "distinct"),
        ("K3:0.0.3.2", "cover every position"),
        ("K3:0.0.3.3", "smaller than"),
        ("K3:0.0.3.2-0.1.3.3", "inside"),
        ("K3:0.0.3.2-0.1.3.2-1.1.0.1", "positive size"),
        ("K1:0.0.1.1", "kernel must be at least 2"),
        ("K0:0.0.1.1", "kernel must be at least 2"),
    ],
)
def test_text_of_an_illegal_layout_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layout(text)


def test_text_and_mask_come_back_as_they_went(layouts_3x3: list[Layout]) -> None:
    generated = [generate_layout(kernel, random.Random(seed)) for kernel in KERNELS for seed in range(30)]
    for layout in [*layouts_3x3, *generated]:
        assert parse_layout(str(layout)) == layout
        assert layout_from_mask(layout.kernel, layout_mask(layout)) == layout
    assert len({str(layout) for layout in layouts_3x3}) == len({layout_mask(layout) for layout in layouts_3x3}) == 5483


def test_mask_bits_follow_the_rectangle_order() -> None:
    # Bits of a 2 x 2 kernel: 0 to 3 the positions, 4 and 5 the rows, 6 and 7 the columns.
    assert layout_mask(parse_layout("K2:0.0.1.2-1.0.1.2")) == 0b00110000
    assert layout_mask(parse_layout("K2:0.0.1.1-0.1.2.1-1.0.1.1")) == 0b10000101


def test_mask_is_a_layout_exactly_when_it_covers_the_kernel() -> None:
    for mask in range(1, 2**8):
        rectangles = [area for bit, area in enumerate(all_rectangles(2)) if mask & 1 << bit]
        if np.all(covered_by(rectangles, 2)):
            assert layout_from_mask(2, mask).rectangles == tuple(sorted(rectangles))
        else:
            with pytest.raises(ValueError, match="cover every position"):
                layout_from_mask(2, mask)


@pytest.mark.parametrize("mask", [-1, 2**35, 2**35 + 1])
def test_mask_beyond_the_last_rectangle_is_an_error(mask: int) -> None:
    with pytest.raises(ValueError, match=rf"from 1 to 2\*\*35 - 1, got {mask}; check that it was made for this"):
        layout_from_mask(3, mask)


def test_mask_of_no_pbconv_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 0, which stands for no PBConv; test for 0 first"):
        layout_from_mask(3, 0)


# Enumeration


@pytest.mark.parametrize(("kernel", "max_types"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)])
def test_enumeration_agrees_with_brute_force(kernel: int, max_types: int) -> None:
    layouts = [layout.rectangles for layout in enumerate_layouts(kernel, max_types)]
    assert len(layouts) == len(set(layouts))
    assert set(layouts) == layouts_by_brute_force(kernel, max_types)


def test_2x2_kernel_has_22_layouts() -> None:
    assert len(list(enumerate_layouts(2))) == 22


def test_3x3_kernel_has_5483_layouts(layouts_3x3: list[Layout]) -> None:
    assert len(layouts_3x3) == len(set(layouts_3x3)) == 5483
    assert Counter(len(types_of(layout)) for layout in layouts_3x3) == {1: 8, 2: 547, 3: 4928}
    branches = Counter(len(layout.rectangles) for layout in layouts_3x3)
    assert branches == {2: 4, 3: 106, 4: 590, 5: 1300, 6: 1652, 7: 1393, 8: 374, 9: 64}


def test_3x3_layouts_fall_into_2159_classes_under_the_8_symmetries(layouts_3x3: list[Layout]) -> None:
    def transposed(areas: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
        return tuple(sorted(Rectangle(area.column, area.row, area.width, area.height) for area in areas))

    def mirrored(areas: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
        flipped = (Rectangle(area.row, 3 - area.column - area.width, area.height, area.width) for area in areas)
        return tuple(sorted(flipped))

    def representative(areas: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
        images = [areas]
        for _ in range(4):
            images += [mirrored(images[-1])]
            images += [transposed(images[-1])]
        assert images[-1] == areas
        return min(images)

    assert len({representative(layout.rectangles) for layout in layouts_3x3}) == 2159


def test_3x3_layouts_have_599_coverage_maps(layouts_3x3: list[Layout]) -> None:
    assert len({coverage_map(layout).tobytes() for layout in layouts_3x3}) == 599


def test_larger_enumerations_have_the_known_sizes() -> None:
    assert sum(1 for _ in enumerate_layouts(4, max_types=2)) == 8824
    assert sum(1 for _ in enumerate_layouts(3, max_types=8)) == 20186


def test_enumeration_comes_in_a_fixed_order(layouts_3x3: list[Layout]) -> None:
    assert list(enumerate_layouts(3)) == layouts_3x3


def test_enumeration_of_no_types_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_types must be at least 1, got 0"):
        next(enumerate_layouts(3, max_types=0))


# Generation


@pytest.mark.parametrize("kernel", KERNELS)
def test_generated_layout_covers_the_kernel_with_one_to_three_types(kernel: int) -> None:
    for seed in range(200):
        layout = generate_layout(kernel, random.Random(seed))
        assert layout.kernel == kernel
        assert coverage_map(layout).min() >= 1
        assert 1 <= len(types_of(layout)) <= 3
        assert 2 <= len(layout.rectangles) <= kernel**2


@pytest.mark.parametrize("kernel", [2, 3])
def test_generator_draws_members_of_the_enumeration(kernel: int) -> None:
    members = set(enumerate_layouts(kernel))
    rng = random.Random(kernel)
    drawn = {generate_layout(kernel, rng) for _ in range(3000)}
    assert drawn <= members
    if kernel == 2:
        assert drawn == members


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_one_two_and_three_types_are_equally_likely(kernel: int) -> None:
    rng = random.Random(kernel)
    draws = 3000
    counts = Counter(len(types_of(generate_layout(kernel, rng))) for _ in range(draws))
    for types in (1, 2, 3):
        assert abs(counts[types] - draws / 3) < 4 * (draws * 2 / 9) ** 0.5


def test_single_types_are_equally_likely() -> None:
    rng = random.Random(0)
    draws = 6000
    counts = Counter(generate_layout(3, rng) for _ in range(draws))
    singles = list(enumerate_layouts(3, max_types=1))
    assert len(singles) == 8
    for layout in singles:
        assert abs(counts[layout] - draws / 24) < 4 * (draws / 24 * 23 / 24) ** 0.5


# The 3 x 3 mean is a weighted sum over all paths of the generator; the others were sampled by another program.
@pytest.mark.parametrize(("kernel", "mean_branches", "tolerance"), [(3, 4.480, 0.08), (5, 6.4, 0.2), (7, 7.9, 0.3)])
def test_mean_number_of_branches(kernel: int, mean_branches: float, tolerance: float) -> None:
    rng = random.Random(kernel)
    branches = [len(generate_sequence(kernel, rng)) for _ in range(6000)]
    assert abs(np.mean(branches) - mean_branches) < tolerance


def test_equal_seeds_generate_equal_layouts() -> None:
    first, second = ([generate_layout(5, random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 10


@pytest.mark.parametrize(("kernel", "max_branches"), [(2, 2), (2, 3), (3, 2), (3, 4), (4, 2), (5, 8), (7, 8)])
def test_generator_keeps_the_branch_limit(kernel: int, max_branches: int) -> None:
    rng = random.Random(max_branches)
    sizes = {len(generate_layout(kernel, rng, max_branches).rectangles) for _ in range(200)}
    assert max(sizes) == max_branches


@pytest.mark.parametrize("max_branches", [1, 0, -1])
def test_branch_limit_that_no_layout_keeps_is_an_error(max_branches: int) -> None:
    with pytest.raises(ValueError, match=rf"max_branches must be at least 2 .*, got {max_branches}; raise it"):
        generate_layout(3, random.Random(0), max_branches)


# Genotypes and mutation


def test_found_sequence_places_the_layout(layouts_3x3: list[Layout]) -> None:
    generated = [generate_layout(kernel, random.Random(seed)) for kernel in KERNELS for seed in range(50)]
    for layout in [*layouts_3x3, *generated]:
        assert place(find_sequence(layout), layout.kernel) == layout


def test_found_sequence_is_the_first_in_sorted_order() -> None:
    for layout in enumerate_layouts(2):
        sequences = []
        for sequence in product(kernel_types(2), repeat=len(layout.rectangles)):
            try:
                if place(sequence, 2) == layout:
                    sequences.append(sequence)
            except ValueError:
                continue
        assert find_sequence(layout) == min(sequences)


def test_layout_that_the_rules_cannot_place_has_no_sequence() -> None:
    for call in (lambda: find_sequence(UNPLACEABLE), lambda: mutate_layout(UNPLACEABLE, random.Random(0))):
        with pytest.raises(ValueError, match=r"got K3:0\.0\.1\.1-0\.0\.3\.2-0\.1\.3\.2; take one from generate_layout"):
            call()


@pytest.mark.parametrize("kernel", KERNELS)
def test_walk_of_mutations_stays_legal_and_always_moves(kernel: int) -> None:
    rng = random.Random(kernel)
    layout = generate_layout(kernel, rng)
    for _ in range(150):
        mutant = mutate_layout(layout, rng)
        assert mutant != layout
        assert mutant.kernel == kernel
        assert coverage_map(mutant).min() >= 1
        assert len(types_of(mutant)) <= 3
        layout = mutant


def test_mutants_are_members_of_the_enumeration(layouts_3x3: list[Layout]) -> None:
    members = set(layouts_3x3)
    rng = random.Random(0)
    for layout in layouts_3x3:
        assert mutate_layout(layout, rng) in members - {layout}


def test_mutations_reach_every_2x2_layout() -> None:
    rng = random.Random(0)
    layout = generate_layout(2, rng)
    reached = set()
    for _ in range(2000):
        layout = mutate_layout(layout, rng)
        reached.add(layout)
    assert reached == set(enumerate_layouts(2))


@pytest.mark.parametrize("kernel", range(3, 8))
def test_mutation_changes_one_step_and_adds_no_other_types(kernel: int) -> None:
    rng = random.Random(kernel)
    for _ in range(100):
        sequence = generate_sequence(kernel, rng)
        mutant = mutate_sequence(sequence, kernel, rng)
        changed = [step for step, (old, new) in enumerate(zip(sequence, mutant, strict=False)) if old != new]
        assert len(changed) == 1
        assert set(mutant) <= set(sequence) | {mutant[changed[0]]}


def test_mutation_brings_a_sequence_of_many_types_back_to_three() -> None:
    sequence = [(1, 1), (1, 2), (2, 1), (1, 1), (1, 2), (3, 1)]
    assert len(types_of(place(sequence, 3))) == 4
    for seed in range(50):
        assert len(set(mutate_sequence(sequence, 3, random.Random(seed)))) <= 3


def test_mutation_keeps_the_branch_limit_where_single_changes_cannot() -> None:
    rows, columns = parse_layout("K2:0.0.1.2-1.0.1.2"), parse_layout("K2:0.0.2.1-0.1.2.1")
    nine = place([(1, 1)] * 9, 3)
    pairs = {layout for layout in enumerate_layouts(3) if len(layout.rectangles) == 2}
    for seed in range(20):
        assert mutate_layout(rows, random.Random(seed), max_branches=2) == columns
        assert mutate_layout(nine, random.Random(seed), max_branches=2) in pairs


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_walk_of_mutations_keeps_the_branch_limit(kernel: int) -> None:
    rng = random.Random(kernel)
    layout = generate_layout(kernel, rng, max_branches=4)
    for _ in range(100):
        layout = mutate_layout(layout, rng, max_branches=4)
        assert len(layout.rectangles) <= 4


def test_mutation_refuses_what_it_cannot_start_from() -> None:
    with pytest.raises(ValueError, match="is left after 3 steps; add steps"):
        mutate_sequence(FIGURE_5[:3], 3, random.Random(0))
    with pytest.raises(ValueError, match="max_branches must be at least 2"):
        mutate_layout(place(FIGURE_5, 3), random.Random(0), max_branches=1)
