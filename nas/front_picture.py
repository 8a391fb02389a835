"""The front as a picture: drawn once as lines, marks and words, then written as SVG for pages or as pixels."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.label_places import XY, Box, around, label_places

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 76, 22, 40, 52
# Half the room of a mark; a figure of the text, which stands on its line; how far from its point a name needs no line.
MARK, DIGIT, HIGH, NEAR = 6, 8.2, 11, 18

# Okabe and Ito's, which stay apart for colour-blind eyes and in grey; the marks differ in shape as well.
COLOURS = {"ink": "#1b1f24", "faint": "#d5dae0", "front": "#d55e00", "other": "#0072b2", "paper": "#ffffff"}


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line, or one of dashes; `role` is its colour."""

    start: tuple[float, float]
    end: tuple[float, float]
    role: str
    width: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A filled diamond for a member of the front, a ring for another; `words` are told to those who point at it."""

    at: tuple[float, float]
    is_front: bool
    words: str


@dataclass(frozen=True, slots=True)
class Words:
    """A text whose `anchor` (start, middle or end) lies at a point."""

    at: tuple[float, float]
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn, in order, and what it is in words."""

    about: str
    parts: tuple[Line | Mark | Words, ...]


def front_picture(finalists: Sequence[Mapping[str, Any]], on_front: set[int], budget_ms: float) -> Picture:
    """The finalists: latency to the right, accuracy upwards, the interval of each latency as a line."""
    longest = _round_up(max([budget_ms, *(each["latency_ms"]["high"] for each in finalists)]) * 1.04)
    values = [each["accuracy"]["value"] for each in finalists] or [0.0, 1.0]
    step = _step((max(values) - min(values)) * 1.2 or 0.1)
    low = max(0.0, math.floor((min(values) - step / 4) / step) * step)
    high = min(1.0, math.ceil((max(values) + step / 4) / step) * step)

    def point(latency: float, accuracy: float) -> tuple[float, float]:
        across = LEFT + latency / longest * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts: list[Line | Mark | Words] = []
    for latency in _ticks(0, longest, _step(longest)):
        parts.append(Words((point(latency, low)[0], HEIGHT - BOTTOM + 18), f"{latency:g}"))
    for value in _ticks(low, high, step):
        x, y = point(0, value)
        parts += [Line((x, y), (WIDTH - RIGHT, y), "faint"), Words((x - 7, y + 4), f"{100 * value:.6g} %", "end")]
    parts += [
        Line(point(0, low), point(longest, low), "ink"),
        Line(point(budget_ms, low), point(budget_ms, high), "ink", 1.2, is_dashed=True),
        Words((min(point(budget_ms, high)[0], WIDTH - RIGHT), TOP - 6), f"budget {budget_ms:g} ms", "end"),
        Words(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10), "latency, ms"),
        Words((4, 14), "validation accuracy", "start"),
    ]
    ordered = sorted(finalists, key=lambda each: float(each["latency_ms"]["value"]))
    members = [each for each in ordered if each["trial"] in on_front]
    places = {each["trial"]: point(each["latency_ms"]["value"], each["accuracy"]["value"]) for each in ordered}
    for first, second in itertools.pairwise(members):
        corner = (places[second["trial"]][0], places[first["trial"]][1])
        parts += [Line(places[first["trial"]], corner, "front"), Line(corner, places[second["trial"]], "front")]
    for each in ordered:
        latency, value = each["latency_ms"], each["accuracy"]["value"]
        role = "front" if each["trial"] in on_front else "other"
        parts.append(Line(point(latency["low"], value), point(latency["high"], value), role, 1.5))
    for each in ordered:
        latency, value = each["latency_ms"], each["accuracy"]["value"]
        told = f"trial {each['trial']}: {value:.3f} at {latency['value']:.2f} ms"
        parts.append(Mark(places[each["trial"]], each["trial"] in on_front, told))
    parts += _names(parts, [(str(trial), place) for trial, place in places.items() if trial in on_front])
    return Picture("Accuracy of the finalists against their latency", tuple(parts))


def _names(parts: Sequence[Line | Mark | Words], named: Sequence[tuple[str, XY]]) -> list[Line | Words]:
    """The names of points beside all that is drawn already, with a line to its point for each that had to go far."""
    taken = [around(part.at, MARK) for part in parts if isinstance(part, Mark)]
    taken += [_around_words(part) for part in parts if isinstance(part, Words)]
    lines = [
        Box(
            min(part.start[0], part.end[0]) - 1,
            min(part.start[1], part.end[1]) - 1,
            max(part.start[0], part.end[0]) + 1,
            max(part.start[1], part.end[1]) + 1,
        )
        for part in parts
        if isinstance(part, Line) and part.role != "faint"
    ]
    room = Box(LEFT, 2, WIDTH - 2, HEIGHT - BOTTOM)
    sizes = [(DIGIT * len(text), HIGH) for text, _ in named]
    drawn: list[Line | Words] = []
    found = label_places([at for _, at in named], sizes, taken, lines, room)
    for (text, at), box in zip(named, found, strict=True):
        end = box.nearest(at)
        if math.dist(at, end) > NEAR:
            drawn.append(Line(at, end, "ink", 0.7))
        drawn.append(Words((box.left, box.bottom), text, "start"))
    return drawn


def _around_words(words: Words) -> Box:
    width = DIGIT * len(words.text)
    left = words.at[0] - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[words.anchor]
    return Box(left, words.at[1] - HIGH, left + width, words.at[1])


def _step(length: float) -> float:
    """A round number that goes four to eight times into a length."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(power * part for part in (0.2, 0.25, 0.5, 1.0, 2.0) if length / (power * part) <= 6)


def _round_up(length: float) -> float:
    step = _step(length)
    return math.ceil(length / step) * step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [
        round(low + index * step, 9)
        for index in range(round((high - low) / step) + 1)
        if low + index * step <= high + 1e-9
    ]


def svg(picture: Picture, *, alone: bool) -> str:
    """The picture as SVG: for a file of its own, or as a part of a page whose style has the colours as variables."""
    colours = {role: (colour if alone else f"var(--{role})") for role, colour in COLOURS.items()}
    space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
    parts = [
        f'<svg{space} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(picture.about)}" '
        'font-family="system-ui, sans-serif" font-size="14">'
    ]
    if alone:
        parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{colours["paper"]}"/>')
    for part in picture.parts:
        if isinstance(part, Line):
            (x1, y1), (x2, y2) = part.start, part.end
            dashes = ' stroke-dasharray="6 4"' if part.is_dashed else ""
            parts.append(
                f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colours[part.role]}" '
                f'stroke-width="{part.width:g}"{dashes}/>'
            )
        elif isinstance(part, Words):
            x, y = part.at
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{part.anchor}" fill="{colours["ink"]}">'
                f"{html.escape(part.text)}</text>"
            )
        else:
            parts.append(_svg_mark(part, colours))
    return "\n".join([*parts, "</svg>"])


def _svg_mark(mark: Mark, colours: Mapping[str, str]) -> str:
    x, y = mark.at
    title = f"<title>{html.escape(mark.words)}</title>"
    if mark.is_front:
        shape = f"M{x - 7:.1f} {y:.1f}L{x:.1f} {y - 7:.1f}L{x + 7:.1f} {y:.1f}L{x:.1f} {y + 7:.1f}Z"
        return f'<path d="{shape}" fill="{colours["front"]}">{title}</path>'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colours["paper"]}" stroke="{colours["other"]}" '
        f'stroke-width="2">{title}</circle>'
    )


def save_png(picture: Picture, path: Path, scale: int = 3) -> None:
    """Writes the picture as pixels, `scale` for each unit of the drawing."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), COLOURS["paper"])
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14 * scale)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for part in picture.parts:
        if isinstance(part, Line):
            width = max(1, round(part.width * scale))
            for start, end in _dashes(part) if part.is_dashed else [(part.start, part.end)]:
                draw.line([_scaled(start, scale), _scaled(end, scale)], COLOURS[part.role], width)
        elif isinstance(part, Words):
            draw.text(_scaled(part.at, scale), part.text, COLOURS["ink"], font, anchors[part.anchor])
        elif part.is_front:
            x, y = part.at
            corners = [(x - 7, y), (x, y - 7), (x + 7, y), (x, y + 7)]
            draw.polygon([_scaled(corner, scale) for corner in corners], COLOURS["front"])
        else:
            x, y = part.at
            box = [_scaled((x - 5, y - 5), scale), _scaled((x + 5, y + 5), scale)]
            draw.ellipse(box, COLOURS["paper"], COLOURS["other"], 2 * scale)
    image.save(path, format="PNG")


def _scaled(point: tuple[float, float], scale: int) -> tuple[float, float]:
    return point[0] * scale, point[1] * scale


def _dashes(line: Line) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    (x1, y1), (x2, y2) = line.start, line.end
    length = math.hypot(x2 - x1, y2 - y1)
    ends = [(at, min(at + 6, length)) for at in range(0, math.ceil(length), 10)]
    return [
        (
            (x1 + (x2 - x1) * first / length, y1 + (y2 - y1) * first / length),
            (x1 + (x2 - x1) * last / length, y1 + (y2 - y1) * last / length),
        )
        for first, last in ends
    ]
