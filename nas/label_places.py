"""Where the names of points stand on a picture: near their point, and on as little else as can be.

Names are placed one after the other, each at the best of a ring of places around its point, or of wider rings where
points crowd. That is not the best of all arrangements, but it is the same one every time, and front after front has
shown no name on another.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

XY = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, the y axis pointing down."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """The area that lies in both."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)

    def nearest(self, point: XY) -> XY:
        """The point of the rectangle that is nearest to another."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.top), self.bottom)


def around(point: XY, reach: float) -> Box:
    """The square that reaches so far from a point to every side."""
    return Box(point[0] - reach, point[1] - reach, point[0] + reach, point[1] + reach)


# Above to the right first, as where nothing crowds.
WAYS = ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0), (0, -1), (-1, 0), (0, 1))
DISTANCES = (6.0, 14.0, 24.0, 36.0, 50.0)

# What is paid for standing on a line and for the way to the point; a name on a name or on a mark cannot be read.
ON_LINES, PER_DISTANCE = 2.0, 4.0


def label_places(
    points: Sequence[XY], sizes: Sequence[XY], taken: Sequence[Box], lines: Sequence[Box], room: Box
) -> list[Box]:
    """The place of each point's name, of which `sizes` says how wide and high it is, inside `room`.

    On what is `taken` no name should stand, and on `lines` rather not.
    """
    words = list(taken)
    found = []
    for point, size in zip(points, sizes, strict=True):
        tried = [
            (distance, _place(point, size, way, distance, room)) for distance, way in itertools.product(DISTANCES, WAYS)
        ]
        prices = [
            (
                sum(place.shared(other) for other in words),
                ON_LINES * sum(place.shared(other) for other in lines) + PER_DISTANCE * distance,
            )
            for distance, place in tried
        ]
        best = tried[prices.index(min(prices))][1]
        words.append(best)
        found.append(best)
    return found


def _place(point: XY, size: XY, way: tuple[int, int], distance: float, room: Box) -> Box:
    """The name at that distance on that way from its point, or as far on it as the room goes."""
    # Straight to a side it is further, as the tips of marks are.
    reach = distance * (1.0 if all(way) else 1.5)
    left = point[0] + reach * way[0] - size[0] * (1 - way[0]) / 2
    top = point[1] + reach * way[1] - size[1] * (1 - way[1]) / 2
    left = min(max(left, room.left), room.right - size[0])
    top = min(max(top, room.top), room.bottom - size[1])
    return Box(left, top, left + size[0], top + size[1])
