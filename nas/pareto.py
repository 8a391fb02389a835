"""Which of several points nobody beats, and which few of them show the whole trade-off."""

from bisect import bisect_right
from collections.abc import Sequence

# (to be maximised, to be minimised), such as (score, latency_ms)
Point = tuple[float, float]


def dominates(first: Point, second: Point) -> bool:
    """Whether `first` is at least as good in both and better in one."""
    return first != second and first[0] >= second[0] and first[1] <= second[1]


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, by rising latency; of equal points the first."""
    kept: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda index: (points[index][1], -points[index][0], index)):
        if points[index][0] > best:
            kept.append(index)
            best = points[index][0]
    return kept


def fronts(points: Sequence[Point]) -> list[list[int]]:
    """All indices, first the front, then the front of what is left, and so on; each by rising latency."""
    layers: list[list[int]] = []
    # Of each layer the negated score of its last member, which is its best: they rise from layer to layer.
    last: list[float] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][1], -points[index][0], index)):
        # All placed so far are at least as fast, so it belongs to the first layer without a score as high as its own.
        place = bisect_right(last, -points[index][0])
        if place == len(layers):
            layers.append([])
        layers[place].append(index)
        last[place : place + 1] = [-points[index][0]]
    return layers


def spread_choice(points: Sequence[Point], count: int) -> list[int]:
    """`count` indices from the best fronts, each front thinned evenly along its latencies with both ends kept."""
    chosen: list[int] = []
    for layer in fronts(points):
        room = count - len(chosen)
        if room <= 0:
            break
        if len(layer) <= room:
            chosen += layer
        elif room == 1:
            chosen.append(layer[-1])
        else:
            chosen += [layer[round(step * (len(layer) - 1) / (room - 1))] for step in range(room)]
    return chosen


def ranking(points: Sequence[Point], count: int) -> list[int]:
    """The best `count` indices by rank, and within a rank by crowding: the loneliest first.

    Source: Deb et al., NSGA-II, 2002.
    """
    best: list[int] = []
    for layer in fronts(points):
        if len(best) >= count:
            break
        lonely = crowding([points[index] for index in layer])
        order = sorted(range(len(layer)), key=lambda place: (-lonely[place], place))
        best += [layer[place] for place in order]
    return best[:count]


def crowding(points: Sequence[Point]) -> list[float]:
    """Of each point of a front, sorted by latency, how far its neighbours lie apart; the ends are the loneliest."""
    if len(points) < 3:
        return [float("inf")] * len(points)
    spans = [max(points[-1][axis], points[0][axis]) - min(points[-1][axis], points[0][axis]) for axis in (0, 1)]
    inner = [
        sum(abs(after[axis] - before[axis]) / spans[axis] for axis in (0, 1) if spans[axis])
        for before, after in zip(points, points[2:], strict=False)
    ]
    return [float("inf"), *inner, float("inf")]
