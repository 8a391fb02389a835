"""Pictures as SVG: what a study found against what that costs, how its search got on, and the shape of a network.

Each is drawn twice, for a wide page and for a narrow one, and the style sheet shows the one that fits; text that is
scaled down with its picture could not be read on a phone. Shapes tell tiers apart where colours might not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nas.label_places import Box, around, label_places
from nas.web.markup import Markup, element, joined
from nas.web.studies import Live, Point

WIDE, NARROW = (720, 340), (360, 300)
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 22, 44
# The size of a mark, and a figure of the text: its width and height.
MARK, DIGIT, HIGH = 6, 7.5, 10


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that can be followed to its trial."""

    number: int
    x: float
    y: float
    tier: str
    label: str


@dataclass(frozen=True)
class Plot:
    """A pair of axes: which values lie where."""

    size: tuple[int, int]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (self.size[0] - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.size[1] - BOTTOM - (value - low) / (high - low) * (self.size[1] - BOTTOM - TOP)

    def holds(self, x: float, y: float) -> bool:
        return self.x_range[0] <= x <= self.x_range[1] and self.y_range[0] <= y <= self.y_range[1]


def search_chart(live: Live, link: Callable[[int], str]) -> Markup:
    """Every candidate's score against its expected latency; at least one has to be on the front."""
    assert live.overview.record is not None
    budget_ms, title = live.overview.record.budget_ms, live.overview.record.leading
    points = [each for each in live.points if each.score is not None]
    on_front = set(live.front)
    marks = [
        Mark(each.number, each.latency_ms, each.score or 0.0, each.tier, _candidate_label(each, title))
        for each in points
        if each.number in on_front
    ]
    seen = [each for each in points if each.number not in on_front]
    scores = _without_outliers([each.score or 0.0 for each in points if each.feasible])
    x_range = (0.0, max(budget_ms, *(each.latency_ms for each in points if each.feasible)) * 1.08)

    def draw(size: tuple[int, int]) -> list[Markup]:
        plot = Plot(size, x_range, _padded(scores))
        shown = [each for each in seen if plot.holds(each.latency_ms, each.score or 0.0)]
        return [
            *_axes(plot, "expected latency, ms", title),
            _budget_line(plot, budget_ms),
            *_dots(plot, [each for each in shown if not each.feasible], "infeasible"),
            *_dots(plot, [each for each in shown if each.feasible], "seen"),
            *(_linked(plot, each, link(each.number), "member") for each in marks),
        ]

    label = f"{title} against expected latency: {len(points)} candidates, {len(marks)} of them on the front"
    return _figure(draw, label)


def trained_chart(live: Live, link: Callable[[int], str]) -> Markup:
    """Accuracy against latency of what was trained."""
    assert live.overview.record is not None
    budget_ms = live.overview.record.budget_ms
    marks = [
        Mark(
            each.number,
            each.latency_ms,
            100 * each.accuracy,
            each.tier,
            f"trial {each.number}: {100 * each.accuracy:.1f} % at {each.latency_ms:.3g} ms, {each.tier}",
        )
        for each in live.trained
    ]
    behind = {each.number for each in live.trained if each.on_front is False}
    x_range = (0.0, max(budget_ms, *(mark.x for mark in marks)) * 1.08)
    values = _padded([mark.y for mark in marks])

    def draw(size: tuple[int, int]) -> list[Markup]:
        plot = Plot(size, x_range, values)
        ordered = sorted(marks, key=lambda mark: (mark.number not in behind, mark.x))
        return [
            *_axes(plot, "latency, ms", "validation accuracy, %"),
            _budget_line(plot, budget_ms),
            *(
                _linked(plot, each, link(each.number), "other" if each.number in behind else "member")
                for each in ordered
            ),
            *_names(plot, ordered),
        ]

    return _figure(draw, f"validation accuracy against latency of {len(marks)} trained networks")


def hypervolume_chart(values: Sequence[float]) -> Markup:
    """How much of the box is covered after each scored candidate, of which there are at least two."""

    def draw(size: tuple[int, int]) -> list[Markup]:
        plot = Plot(size, (1.0, float(len(values))), _padded(values))
        # A staircase; only its corners are drawn, so that a thousand trials take no longer than a hundred.
        path, before = f"M{plot.x(1):.1f} {plot.y(values[0]):.1f}", values[0]
        for index, value in enumerate(values[1:], start=2):
            if value != before:
                path += f"H{plot.x(index):.1f}V{plot.y(value):.1f}"
                before = value
        path += f"H{plot.x(len(values)):.1f}"
        return [*_axes(plot, "scored candidates", "hypervolume"), element("path", d=path, class_="line")]

    return _figure(draw, f"hypervolume over {len(values)} scored candidates, now {values[-1]:.3f}", heights=(220, 220))


@dataclass(frozen=True, slots=True)
class Slab:
    """A block of a network in its picture."""

    stage: int
    label: str
    pixels: int
    channels: int


def network_chart(slabs: Sequence[Slab], stages: Sequence[str]) -> Markup:
    """A network from the image on: height is how large the maps are, width how many channels."""
    widths = [4 + 1.6 * math.log2(1 + slab.channels) for slab in slabs]
    largest = max(slab.pixels for slab in slabs)

    def draw(size: tuple[int, int]) -> list[Markup]:
        width, height = size
        gap = 2.0 if len(slabs) < 60 else 0.5
        between = 8.0
        room = width - 8 - gap * len(slabs) - between * len(stages)
        scale = min(3.0, room / sum(widths))
        at, before, parts = 4.0, slabs[0].stage, []
        for slab, wide in zip(slabs, widths, strict=True):
            at += between if slab.stage != before else 0.0
            before = slab.stage
            tall = 14 + 150 * math.sqrt(slab.pixels / largest)
            parts.append(
                element(
                    "rect",
                    element("title", slab.label),
                    x=f"{at:.1f}",
                    y=f"{(height - tall) / 2:.1f}",
                    width=f"{wide * scale:.1f}",
                    height=f"{tall:.1f}",
                    class_=f"slab stage{slab.stage % 6}",
                )
            )
            at += wide * scale + gap
        return parts

    return _figure(draw, f"the network, {len(slabs)} blocks: {'; '.join(stages)}", heights=(190, 190))


def _figure(
    draw: Callable[[tuple[int, int]], list[Markup]], label: str, heights: tuple[int, int] | None = None
) -> Markup:
    wide, narrow = heights or (WIDE[1], NARROW[1])
    pictures = [
        element(
            "svg",
            *draw((size[0], height)),
            viewBox=f"0 0 {size[0]} {height}",
            role="group",
            aria_label=label,
            class_=name,
        )
        for size, height, name in ((WIDE, wide, "chart for-wide"), (NARROW, narrow, "chart for-narrow"))
    ]
    return joined(*pictures)


def _axes(plot: Plot, x_title: str, y_title: str) -> list[Markup]:
    width, height = plot.size
    base = height - BOTTOM
    parts = [element("path", d=f"M{LEFT} {TOP}V{base}H{width - RIGHT}", class_="axis")]
    for value in ticks(*plot.x_range, 6 if width > 500 else 4):
        parts.append(element("text", f"{value:g}", x=f"{plot.x(value):.1f}", y=base + 16, text_anchor="middle"))
    for value in ticks(*plot.y_range, 5):
        y = plot.y(value)
        parts.append(element("path", d=f"M{LEFT} {y:.1f}H{width - RIGHT}", class_="grid"))
        parts.append(element("text", f"{value:g}", x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    parts.append(element("text", x_title, x=(LEFT + width - RIGHT) / 2, y=height - 8, text_anchor="middle"))
    parts.append(element("text", y_title, x=4, y=13))
    return parts


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between the two, about so many."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _budget_line(plot: Plot, budget_ms: float) -> Markup:
    x = plot.x(budget_ms)
    return joined(
        element("path", d=f"M{x:.1f} {TOP}V{plot.size[1] - BOTTOM}", class_="budget"),
        element(
            "text", f"budget {budget_ms:g} ms", x=f"{x - 4:.1f}", y=TOP - 8, text_anchor="end", class_="budget-text"
        ),
    )


def _names(plot: Plot, marks: Sequence[Mark]) -> list[Markup]:
    """The trials' numbers, each beside its mark and on no other."""
    at = [(plot.x(mark.x), plot.y(mark.y)) for mark in marks]
    taken = [around(point, MARK) for point in at]
    sizes = [(DIGIT * len(str(mark.number)), HIGH) for mark in marks]
    room = Box(LEFT, TOP - 6, plot.size[0] - 2, plot.size[1] - BOTTOM)
    places = label_places(at, sizes, taken, [], room)
    return [
        element("text", mark.number, x=f"{box.left:.1f}", y=f"{box.bottom:.1f}", aria_hidden="true")
        for mark, box in zip(marks, places, strict=True)
    ]


def _dots(plot: Plot, points: Iterable[Point], kind: str) -> list[Markup]:
    """One path per tier, however many points there are."""
    paths: dict[str, list[str]] = {}
    for each in points:
        paths.setdefault(each.tier, []).append(
            outline(each.tier, plot.x(each.latency_ms), plot.y(each.score or 0.0), 3)
        )
    return [element("path", d="".join(parts), class_=kind) for parts in paths.values()]


def _linked(plot: Plot, mark: Mark, link: str, kind: str) -> Markup:
    shape = element(
        "path", element("title", mark.label), d=outline(mark.tier, plot.x(mark.x), plot.y(mark.y), MARK), class_=kind
    )
    return element("a", shape, href=link, aria_label=mark.label)


def outline(tier: str, x: float, y: float, size: float) -> str:
    """The path of a mark: a circle if measured, a diamond if calibrated, a triangle if extrapolated."""
    if tier == "measured":
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    reach = 1.25 * size
    if tier == "calibrated":
        return f"M{x:.1f} {y - reach:.1f}l{reach} {reach}l{-reach} {reach}l{-reach} {-reach}z"
    return f"M{x:.1f} {y - reach:.1f}l{reach} {2 * size:.1f}h{-2 * reach}z"


def legend(tiers: Iterable[str]) -> Markup:
    """What the marks mean, for the tiers that occur."""
    meanings = {
        "measured": "measured on the device",
        "calibrated": "calibrated to published measurements",
        "extrapolated": "extrapolated beyond what was published",
    }
    entries = []
    for tier, meaning in meanings.items():
        if tier in set(tiers):
            shape = element("path", d=outline(tier, 8, 8, 5), class_="member")
            key = element("svg", shape, viewBox="0 0 16 16", class_="key", aria_hidden="true")
            entries.append(element("li", key, meaning))
    return element("ul", *entries, class_="legend")


def _candidate_label(point: Point, title: str) -> str:
    return f"trial {point.number}: {title} {point.score:.4g} at {point.latency_ms:.3g} ms, {point.tier}"


def _without_outliers(values: Sequence[float]) -> list[float]:
    """The values without those far below the rest, which would press the rest into a line."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return [value for value in ordered if value >= low - 3 * (high - low)]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.02
    return low - room, high + room
