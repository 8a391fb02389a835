"""Quantities as people type them, right and wrong."""

import pytest

from nas.quantities import QuantityError, duration_s, latency_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5ms", 5.0),
        ("0.005s", 5.0),
        ("5000us", 5.0),
        ("5000µs", 5.0),
        ("5000μs", 5.0),  # the Greek letter, which looks the same and is another character
        ("5 ms", 5.0),
        ("  5ms\n", 5.0),
        ("5MS", 5.0),
        ("+5ms", 5.0),
        (".5ms", 0.5),
        ("5.ms", 5.0),
        ("5e0ms", 5.0),
        ("5E-3s", 5.0),
        ("0.1us", 0.0001),
        ("9us", 0.009),
        ("3.3s", 3300.0),
        ("1h", None),
        ("5m", None),  # minutes are no unit of a latency, and 5m for 5 ms would be off by 60,000
        ("5", None),
        ("5.0", None),
        ("", None),
        ("ms", None),
        ("5 m s", None),
        ("5msms", None),
        ("5ms ms", None),
        ("5,5ms", None),
        ("1_000us", None),
        ("0x5ms", None),
        ("5sec", None),
        ("--5ms", None),
        ("-5ms", None),
        ("0ms", None),
        ("-0ms", None),
        ("0.0s", None),
        ("nanms", None),
        ("NaN ms", None),
        ("infms", None),
        ("-infinity s", None),
        ("1e400ms", None),
        ("1e-400ms", None),
        ("true", None),
        ("None", None),
    ],
)
def test_latency(text, expected):
    if expected is None:
        with pytest.raises(QuantityError, match=r"such as 5ms, 0\.005s or 5000us; got "):
            latency_ms(text)
    else:
        assert latency_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1.5h", 5400.0),
        ("0.1m", 6.0),
        ("5ms", None),
        ("10min", None),
        ("10", None),
        ("0m", None),
        ("-1h", None),
        ("infh", None),
        ("1h30m", None),
    ],
)
def test_duration(text, expected):
    if expected is None:
        with pytest.raises(QuantityError, match="such as 90s, 10m or 2h; got "):
            duration_s(text)
    else:
        assert duration_s(text) == expected


@pytest.mark.parametrize("text", ["1e-13ms", "1e-13us", "1e-200s"])
def test_a_latency_above_zero_stays_above_zero(text):
    assert latency_ms(text) > 0


def test_the_refusal_shows_the_text_as_it_was_typed():
    with pytest.raises(QuantityError, match=r"got ' 5 parsecs '$"):
        latency_ms(" 5 parsecs ")
