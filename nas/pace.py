"""How fast a search gets on, and how that is said: rate, best so far, time left."""

import time
from collections import deque
from collections.abc import Callable

from nas.study import Progress

# The rate of a search is that of its last so many trials.
RATE_OVER = 30


class Pace:
    """The rate of a search, as far as this run has had trials of its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the monotonic one, whose seconds a search's time is counted in."""
        self._clock = clock
        self._looked_at = 0
        self._moments: deque[float] = deque(maxlen=RATE_OVER + 1)

    def heard(self, progress: Progress) -> str:
        """What is to be said of a search that is so far, its counts aside."""
        if progress.looked_at == 0:
            # What is known from before is told as fast as it is read; its end is where this run begins.
            self._moments.clear()
        if progress.looked_at == 0 or progress.looked_at > self._looked_at:
            self._moments.append(self._clock())
        self._looked_at = progress.looked_at
        words = []
        left_s = None if progress.until_s is None else max(0.0, progress.until_s - self._clock())
        per_s = self._per_s()
        if per_s is not None:
            words.append(f"{rate(60 * per_s)} a minute")
            rest_s = (progress.total - progress.done) / per_s
            left_s = rest_s if left_s is None else min(left_s, rest_s)
        if progress.best is not None:
            words.append(f"best {progress.best[0]:.4g} at {progress.best[1]:.3g} ms")
        if left_s is not None and progress.done < progress.total:
            words.append(f"{duration(left_s)} left")
        return ", ".join(words)

    def _per_s(self) -> float | None:
        if len(self._moments) < 2 or self._moments[-1] == self._moments[0]:
            return None
        return (len(self._moments) - 1) / (self._moments[-1] - self._moments[0])


def rate(number: float) -> str:
    """So many of something, in three figures where that is short."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A time to wait, in two figures at most."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
