"""One page about a finished study that needs nothing beside itself: what was asked and found, what it is worth."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.files import write_atomically
from nas.study import SearchOutcome

REPORT = "report.html"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #6b7480; --line: #d5dae0; --mark: #0072b2;
  --front: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #15181c; --faint: #98a2ad; --line: #363d45; --mark: #56b4e9; --front: #e69f00; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 14rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.axis { stroke: var(--line); } .seen { fill: var(--faint); opacity: 0.45; } .member { fill: var(--front); }
.other { fill: none; stroke: var(--mark); stroke-width: 1.5; } .budget { stroke: var(--front); stroke-dasharray: 5 4; }
@media print { body { max-width: none; } }
"""


def write_report(
    folder: Path,
    document: Mapping[str, Any],
    search: SearchOutcome,
    finalists: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> Path:
    """Writes report.html into the study's folder."""
    on_front = {each["trial"] for each in document["members"]}
    progress = search.progress
    sections = [
        f"<h1>{_text(document['study'])}</h1>",
        f"<p>{_text(summary(document))}</p>",
        "<h2>Accuracy against latency</h2>",
        picture(finalists, on_front, document["budget_ms"]),
        "<h2>The front</h2>",
        _table(
            [
                "trial",
                "val. acc.",
                "test acc.",
                "latency",
                "expected",
                "tier",
                "params",
                "MACs",
                "found by",
                "differs by",
            ],
            [_front_row(each) for each in document["members"]],
        ),
        f"<p>{_text(how_accuracy_was_taken(document))}</p>",
        "<h2>What the latencies are worth</h2>",
        f"<p>{_text(worth(document))}</p>",
        "<h2>What it took</h2>",
        f"<p>{progress.done} candidates were looked at, {progress.rejected} proposals were turned down by their static "
        f"latency alone, {progress.duplicates} were repeats, {progress.failed} failed. "
        f"{_text(search.ended.capitalize())}.</p>",
        _table(["stage", "seconds"], [[name, f"{value:.1f}"] for name, value in seconds.items()]),
        "<h2>Versions</h2>",
        _table(["package", "version"], [[name, value] for name, value in document["versions"].items()]),
    ]
    body = "\n".join(sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(document['study'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    path = folder / REPORT
    write_atomically(path, page)
    return path


def summary(document: Mapping[str, Any]) -> str:
    """What was asked and how much was found, in a sentence."""
    count = len(document["members"])
    return (
        f"{count} network{'s' if count != 1 else ''} for {document['target']} within {document['budget_ms']:g} ms, "
        f"trained on {document['data']} with seed {document['seed']}, begun {document['created']}."
    )


def how_accuracy_was_taken(document: Mapping[str, Any]) -> str:
    """On how many images the accuracies of a front stand, and which of them chose."""
    if not document["members"]:
        return "No finalist could be trained."
    first = document["members"][0]
    return (
        f"The front was chosen by accuracy on {first['accuracy']['images']} validation images, so that figure "
        f"flatters; accuracy on {first['test_accuracy']['images']} test images chose nothing and stands beside it."
    )


_WORTH = {
    "measured": "These latencies were measured on this machine: the median of many runs of each exported model.",
    "calibrated": (
        "These latencies are calibrated: computed from a formula that was fitted to published measurements of whole "
        "networks on such a device; none was measured by this project."
    ),
    "extrapolated": (
        "These latencies are extrapolated: computed from published measurements of larger networks on such a device, "
        "outside the range that was checked. Nobody has measured them; the upper end of each interval keeps the "
        "budget. Measure on your own board before you rely on one."
    ),
}


def worth(document: Mapping[str, Any]) -> str:
    """What the latency figures of a front are worth, in plain words; the least trustworthy tier speaks."""
    tiers = {each["latency_ms"]["tier"] for each in document["members"]}
    for tier in ("extrapolated", "calibrated", "measured"):
        if tier in tiers:
            return _WORTH[tier]
    return "There is no member whose latency could be judged."


def picture(finalists: Sequence[Mapping[str, Any]], on_front: set[int], budget_ms: float) -> str:
    """The finalists as SVG: latency to the right, accuracy upwards, the interval of each as a line."""
    if not finalists:
        return "<p>No finalist was trained.</p>"
    width, height, left, bottom, top, right = 720, 360, 60, 45, 15, 20
    longest: float = max(budget_ms, *(each["latency_ms"]["high"] for each in finalists)) * 1.05
    values = [each["accuracy"]["value"] for each in finalists]
    low: float = max(0.0, min(values) - 0.02)
    high: float = min(1.0, max(values) + 0.01)

    def x(latency: float) -> float:
        return left + latency / longest * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - low) / max(high - low, 1e-9) * (height - bottom - top)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Accuracy of the finalists against their latency">',
        f'<line class="axis" x1="{left}" y1="{y(low):.1f}" x2="{width - right}" y2="{y(low):.1f}"/>',
        f'<line class="axis" x1="{left}" y1="{y(low):.1f}" x2="{left}" y2="{top}"/>',
        f'<line class="budget" x1="{x(budget_ms):.1f}" y1="{y(low):.1f}" x2="{x(budget_ms):.1f}" y2="{top}"/>',
        f'<text x="{x(budget_ms) - 4:.1f}" y="{top + 10}" text-anchor="end">budget {budget_ms:g} ms</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">latency, ms</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">accuracy</text>',
    ]
    for step in range(5):
        latency, value = longest * step / 4, low + (high - low) * step / 4
        parts.append(f'<text x="{x(latency):.1f}" y="{height - 26}" text-anchor="middle">{latency:.2g}</text>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for each in finalists:
        latency, value = each["latency_ms"], each["accuracy"]["value"]
        style = "member" if each["trial"] in on_front else "other"
        parts.append(
            f'<line class="axis" x1="{x(latency["low"]):.1f}" y1="{y(value):.1f}" '
            f'x2="{x(latency["high"]):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(
            f'<circle class="{style}" cx="{x(latency["value"]):.1f}" cy="{y(value):.1f}" r="5">'
            f"<title>trial {each['trial']}: {value:.3f} at {latency['value']:.2f} ms</title></circle>"
        )
    return "\n".join([*parts, "</svg>"])


def _front_row(each: Mapping[str, Any]) -> list[str]:
    latency = each["latency_ms"]
    return [
        str(each["trial"]),
        f"{100 * each['accuracy']['value']:.1f} %",
        f"{100 * each['test_accuracy']['value']:.1f} %",
        f"{latency['value']:.3g} ms",
        f"{latency['low']:.3g} to {latency['high']:.3g} ms",
        latency["tier"],
        f"{each['params']:,}",
        f"{each['macs'] / 1e6:.2f} M",
        ", ".join(each["proxy"]["on_front_of"]) or "-",
        f"{each['parity']['max_rel']:.1e}",
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(title)}</th>' for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return html.escape(str(value))
