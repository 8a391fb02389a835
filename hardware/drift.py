"""Takes out of timings how fast the machine as a whole was meanwhile."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from hardware.job_results import JobTiming

# A machine whose networks follow the sentinel more than so strongly is not believed.
STEEPEST = 2.0


def slowness(timings: Mapping[str, JobTiming], repeats: Iterable[Sequence[str]]) -> dict[str, float]:
    """By how much slower than usual the machine was during each of the jobs, 1 where no sentinel tells.

    Each of repeats is several jobs that timed the same network at different times. They say how far networks follow
    the sentinel, which is one network and noisy itself: the slope of the logarithms, by least squares.
    """
    read = {job: timing.sentinel_ms for job, timing in timings.items() if timing.sentinel_ms is not None}
    if not read:
        return dict.fromkeys(timings, 1.0)
    usual_ms = statistics.median(read.values())
    slower = {job: math.log(sentinel_ms / usual_ms) for job, sentinel_ms in read.items()}
    product = square = 0.0
    for jobs in repeats:
        known = [job for job in jobs if job in slower]
        if len(known) < 2:
            continue
        logs = [math.log(timings[job].p10_ms) for job in known]
        readings = [slower[job] for job in known]
        log_mean, reading_mean = statistics.fmean(logs), statistics.fmean(readings)
        product += sum((x - reading_mean) * (y - log_mean) for x, y in zip(readings, logs, strict=True))
        square += sum((x - reading_mean) ** 2 for x in readings)
    slope = min(max(product / square, 0.0), STEEPEST) if square > 0 else 0.0
    return {job: math.exp(slope * slower.get(job, 0.0)) for job in timings}
