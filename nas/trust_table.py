"""The trust report for people: a row for each proxy, and what the figures rest on."""

from collections.abc import Mapping, Sequence
from typing import Any

from nas.trust import MIX

TRUST_TITLES = ("proxy", "Spearman", "95 %", "Kendall", "better half", "over macs", "over params")


def trust_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The proxies as a table under `TRUST_TITLES`, the best first."""
    proxies = sorted(report["proxies"].items(), key=lambda each: -(each[1]["all"]["spearman"] or -2.0))
    rows = []
    for name, found in proxies:
        whole, better, over = found["all"], found["better_half"], found["over"]
        called = f"{name} ({' + '.join(report['mix']['proxies'])})" if name == MIX else name
        rows.append(
            [
                called,
                _number(whole["spearman"]),
                _interval(whole["spearman_low"], whole["spearman_high"]),
                _number(whole["kendall"]),
                f"{_number(better['spearman'])} {_interval(better['spearman_low'], better['spearman_high'])}",
                *(_gain(over.get(baseline)) for baseline in ("macs", "params")),
            ]
        )
    return rows


def _gain(gain: Mapping[str, float | None] | None) -> str:
    if gain is None:
        return "-"
    return f"{_number(gain['value'])} {_interval(gain['low'], gain['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"


def what_it_rests_on(report: Mapping[str, Any]) -> str:
    """How the members were trained and what that took, in a sentence or two."""
    trained: Sequence[Mapping[str, Any]] = report["trained"]
    proxy_s, training_s = (sum(each[name] for each in trained) for name in ("proxy_seconds", "seconds"))
    silent = f" Not every member has a value of {', '.join(report['incomplete'])}." if report["incomplete"] else ""
    failed = f" {len(report['failures'])} more could not be trained." if report["failures"] else ""
    return (
        f"{report['members']} members, each trained for {report['epochs']} epochs from one seed and judged on "
        f"{report['images']} validation images; better half: the {-(-report['members'] // 2)} of highest accuracy. "
        f"Intervals are 95 %, from drawing the members anew. The mix is judged by leave-one-out. All proxies together "
        f"took {proxy_s:.0f} s, the trainings {training_s:.0f} s, over all workers.{silent}{failed}"
    )
