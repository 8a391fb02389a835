"""Quantities with their unit, as people type them: `5ms`, `0.005s`, `10m`."""

import math
import re
import unicodedata

_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?))\s*([a-zμ]*)", re.IGNORECASE
)

LATENCY_UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "μs": 1e-3}
DURATION_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class QuantityError(ValueError):
    """A text that is no quantity of the kind that is wanted."""


def latency_ms(text: str) -> float:
    """A latency such as `5ms`, `0.005s` or `5000us`, in milliseconds.

    Raises:
        QuantityError: the unit is missing or unknown, or the number is not a positive one.
    """
    return _quantity(text, LATENCY_UNITS, "a latency needs a unit and is above zero, such as 5ms, 0.005s or 5000us")


def duration_s(text: str) -> float:
    """A duration such as `90s`, `10m` or `2h`, in seconds.

    Raises:
        QuantityError: the unit is missing or unknown, or the number is not a positive one.
    """
    return _quantity(text, DURATION_UNITS, "a duration needs a unit and is above zero, such as 90s, 10m or 2h")


def _quantity(text: str, units: dict[str, float], rule: str) -> float:
    # The micro sign and the Greek letter look alike; this makes them one.
    match = _QUANTITY.fullmatch(unicodedata.normalize("NFKC", text.strip()))
    if match is None or match[2].lower() not in units:
        raise QuantityError(f"{rule}; got {text!r}")
    value = float(match[1]) * units[match[2].lower()]
    if not (math.isfinite(value) and value > 0):
        raise QuantityError(f"{rule}; got {text!r}")
    # 9us is 0.009 ms and not 0.009000000000000001.
    return float(f"{value:.12g}")
