"""The rungs of the ladder: how many candidates are trained for how long, and what that costs beforehand.

Successive halving: each rung trains more candidates than the one above it for a part of the epochs, and the best go on
from where they stand.
Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification, 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# A rung takes one epoch of this many of the rung above it, for this many times its candidates.
EPOCHS_FACTOR, PLACES_FACTOR = 4, 2


@dataclass(frozen=True, slots=True)
class Rung:
    """The best `places` candidates are trained until the end of `epochs`."""

    epochs: int
    places: int


@dataclass(frozen=True, slots=True)
class RungReport:
    """What a rung took: how many candidates went on it, the sum of their seconds, and the seconds expected for it."""

    epochs: int
    candidates: int
    seconds: float
    expected_s: float


def rungs_for(contenders: int, finalists: int, epochs: int) -> list[Rung]:
    """From the first short training of all contenders to the last rung, on which finalists have all their epochs.

    >>> rungs_for(8, 4, 12)
    [Rung(epochs=3, places=8), Rung(epochs=12, places=4)]
    >>> rungs_for(20, 4, 100)
    [Rung(epochs=1, places=20), Rung(epochs=6, places=16), Rung(epochs=25, places=8), Rung(epochs=100, places=4)]
    """
    ladder = [Rung(epochs, min(finalists, contenders))]
    while ladder[0].epochs > 1 and ladder[0].places < contenders:
        shorter = max(1, ladder[0].epochs // EPOCHS_FACTOR)
        ladder.insert(0, Rung(shorter, min(contenders, PLACES_FACTOR * ladder[0].places)))
    if len(ladder) > 1:
        # Where an epoch cannot be halved any more, whoever is left begins on the lowest rung.
        ladder[0] = Rung(ladder[0].epochs, contenders)
    return ladder


def price_s(ladder: Sequence[Rung], done: Sequence[int], epoch_s: Sequence[float], workers: int) -> float:
    """How long the ladder is expected to take: `done` are the epochs that each candidate has, `epoch_s` what one takes.

    Candidates are in the order in which they would go on; who will be best nobody knows, so of a rung above the first a
    place is taken to cost what it does on average.
    """
    total, stands = 0.0, list(done)
    for height, rung in enumerate(ladder):
        count = min(rung.places, len(stands))
        need = [max(0, rung.epochs - each) * price for each, price in zip(stands, epoch_s, strict=True)]
        total += sum(need[:count]) if height == 0 else count * sum(need) / len(need)
        stands = [max(each, rung.epochs) for each in stands]
    return total / workers


def narrowed(
    ladder: Sequence[Rung], done: Sequence[int], epoch_s: Sequence[float], workers: int, left_s: float
) -> list[Rung]:
    """The ladder with as many candidates as can be paid in the time that is left, and with one in any case."""
    widest = min(ladder[0].places, len(done))
    for count in range(widest, 1, -1):
        smaller = _with_places(ladder, count)
        if price_s(smaller, done, epoch_s, workers) <= left_s:
            return smaller
    return _with_places(ladder, 1)


def _with_places(ladder: Sequence[Rung], count: int) -> list[Rung]:
    widest = ladder[0].places
    return [Rung(rung.epochs, max(1, min(count, round(rung.places * count / widest)))) for rung in ladder]
