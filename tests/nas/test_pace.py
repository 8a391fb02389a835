"""What is said of a search on its way: rate, best so far, time left, on a terminal and in a log."""

import io
import sys

import pytest

from nas.console import BarObserver, PlainObserver, QuietObserver, observer
from nas.pace import Pace, duration, rate
from nas.study import Progress


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def at(done, total=40, **known):
    rest = {"rejected": 0, "duplicates": 0, "failed": 0, "looked_at": done, "best": None, "until_s": None}
    return Progress(done=done, total=total, **rest | known)


def heard(clock, moments, **known):
    """What is said last, when so many trials were done at these seconds."""
    own = Pace(clock)
    for done, moment in moments:
        clock.now_s = 100.0 + moment
        words = own.heard(at(done, **known))
    return words


def test_nothing_is_said_of_what_is_not_known(clock):
    assert heard(clock, [(1, 0)]) == ""


def test_the_rate_and_the_time_left_follow_from_the_last_trials(clock):
    # Four trials in eight seconds are thirty a minute; the other 35 take 70 s.
    assert heard(clock, [(1, 0), (2, 2), (3, 4), (4, 8)]) == "22.5 a minute, 2 min left"
    assert heard(clock, [(1, 0), (2, 2), (3, 4), (4, 6), (5, 8)]) == "30 a minute, 70 s left"


def test_a_search_that_slowed_down_has_the_rate_of_its_last_thirty(clock):
    fast = [(done, 0.1 * done) for done in range(1, 50)]
    slow = [(50 + done, 5 + 6.0 * done) for done in range(31)]
    assert heard(clock, fast + slow, total=100).startswith("10 a minute, ")


def test_trials_of_earlier_runs_are_no_rate_of_this_one(clock):
    own = Pace(clock)
    for done in range(1, 31):
        clock.now_s += 0.001
        assert own.heard(at(done, looked_at=0)) == ""
    clock.now_s += 3
    assert own.heard(at(31, looked_at=1)) == "20 a minute, 27 s left"
    clock.now_s += 3
    assert own.heard(at(32, looked_at=2)) == "20 a minute, 24 s left"
    # One in between was known: it took no time and is no rate.
    assert own.heard(at(33, looked_at=2)) == "20 a minute, 21 s left"


@pytest.mark.parametrize(("number", "text"), [(0.25, "0.25"), (22.54, "22.5"), (12_345.6, "12,346")])
def test_a_rate_is_short(number, text):
    assert rate(number) == text


def test_the_best_is_said_with_what_it_takes(clock):
    assert heard(clock, [(1, 0)], best=(-0.51234, 1.2345)) == "best -0.5123 at 1.23 ms"


@pytest.mark.parametrize(("limit_s", "left"), [(10.0, "10 s"), (7200.0, "70 s")])
def test_the_time_left_is_the_shorter_of_trials_and_time(clock, limit_s, left):
    moments = [(1, 0), (2, 2), (3, 4), (4, 6), (5, 8)]
    assert heard(clock, moments, until_s=108 + limit_s) == f"30 a minute, {left} left"


def test_a_search_that_is_done_has_no_time_left(clock):
    assert heard(clock, [(39, 0), (40, 2)], until_s=500.0) == "30 a minute"


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_a_time_to_wait_is_short(seconds, text):
    assert duration(seconds) == text


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    with PlainObserver(clock) as watching:
        for done in range(1, 41):
            clock.now_s += 3
            watching.searching(at(done, rejected=2, failed=done // 20, best=(0.5, 2.0)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "search: 1 of 40 candidates, best 0.5 at 2 ms, 2 over budget"
    assert lines[-1] == "search: 40 of 40 candidates, 20 a minute, best 0.5 at 2 ms, 2 over budget, 2 failed"
    # A trial every three seconds, a line every fifteen.
    assert lines[1] == "search: 6 of 40 candidates, 20 a minute, best 0.5 at 2 ms, 2 min left, 2 over budget"
    assert len(lines) == 1 + 7 + 1


class Terminal(io.StringIO):
    """Standard error as a terminal of so many columns."""

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [80, 119, 120])
def test_a_bar_says_the_same_on_one_line_of_a_terminal(clock, monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    watching = BarObserver(clock)
    with watching:
        for done in range(1, 6):
            clock.now_s += 2
            watching.searching(at(done, rejected=7, best=(-0.5, 2.0)))
    shown = terminal.getvalue()
    for words in ("5/40", "30 a minute", "best -0.5 at 2 ms", "70 s left"):
        assert words in shown


def test_a_terminal_has_bars_and_a_file_has_lines(monkeypatch):
    assert type(observer(quiet=False)) is PlainObserver
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(observer(quiet=False)) is BarObserver


def test_quiet_is_quiet_on_a_terminal_too(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(observer(quiet=True)) is QuietObserver
