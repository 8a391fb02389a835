"""Timings of a machine that is slow for a while come out as if it had not been."""

import pytest

from hardware.drift import STEEPEST, slowness
from hardware.job_results import Conditions, JobTiming

NOTHING = Conditions(clock_khz=None, temperature_c=None, load1=None)


def timing(p10_ms: float, sentinel_ms: float | None) -> JobTiming:
    return JobTiming(
        median_ms=1.1 * p10_ms,
        spread_ms=0.0,
        p10_ms=p10_ms,
        p90_ms=2 * p10_ms,
        runs=9,
        sentinel_ms=sentinel_ms,
        disturbed=False,
        before=NOTHING,
        after=NOTHING,
    )


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 1.0), (0.5, 0.5), (-1.0, 0.0), (3.0, STEEPEST)])
def test_networks_follow_the_sentinel_as_far_as_repeated_timings_show(slope: float, expected: float) -> None:
    # The sentinel takes 2 ms as a rule, 2.2 in the second round.
    readings = {"1": 2.0, "2": 2.2, "3": 2.0}
    timings = {
        f"c{number}-{name}": timing(own_ms * (sentinel_ms / 2.0) ** slope, sentinel_ms)
        for number, sentinel_ms in readings.items()
        for name, own_ms in (("a", 1.0), ("b", 7.0))
    }
    timings |= {"l-once": timing(5.0, 2.2), "l-unwatched": timing(5.0, None)}
    found = slowness(timings, [[f"c{number}-{name}" for number in readings] for name in "ab"])
    assert found["c1-a"] == found["c3-b"] == found["l-unwatched"] == 1.0
    for job in ("c2-a", "c2-b", "l-once"):
        assert found[job] == pytest.approx(1.1**expected)


def test_without_a_sentinel_or_repeats_nothing_is_corrected() -> None:
    assert slowness({"a": timing(1.0, None)}, [["a"]]) == {"a": 1.0}
    assert slowness({"a": timing(1.0, 2.0), "b": timing(3.0, 9.0)}, [["a"], ["b"]]) == {"a": 1.0, "b": 1.0}
