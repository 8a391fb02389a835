"""One page about a study that needs nothing beside itself: what was asked and found, and what that is worth."""

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hardware.rank_correlation import chance, spearman
from nas.files import write_atomically
from nas.front_picture import COLOURS, front_picture, svg
from nas.members import read_front
from nas.run_record import read_run_record
from nas.settings import RUN_SETTINGS, StudyFile, StudySettings, read_study_file
from nas.trust_members import read_trust
from nas.trust_table import TRUST_TITLES, trust_rows, what_it_rests_on

REPORT = "report.html"

_LIGHT = "; ".join(f"--{role}: {colour}" for role, colour in COLOURS.items())

_STYLE = (
    f""":root {{ color-scheme: light dark; {_LIGHT}; --quiet: #59636e; --panel: #f5f6f8; }}
"""
    + """@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #15181c; --faint: #363d45; --front: #e69f00; --other: #56b4e9; --quiet: #a3adb8;
    --panel: #1f242a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.5rem; }
p, ul { max-width: 44rem; } li { margin: 0.3rem 0; } .lead { font-size: 1.1rem; }
.wide { overflow-x: auto; } .note { color: var(--quiet); font-size: 0.9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; white-space: normal; vertical-align: bottom; }
.words { white-space: normal; min-width: 6rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
th { min-width: 3rem; }
.pairs td { text-align: left; white-space: normal; } .pairs td:first-child { color: var(--quiet); white-space: nowrap; }
svg { width: 100%; max-width: 44rem; height: auto; display: block; }
@media screen and (max-width: 34rem) {
  svg text { font-size: 19px; }
  .rows, .rows tbody, .rows tr { display: block; } .rows thead { position: absolute; left: -99rem; }
  .rows tr { background: var(--panel); border-radius: 6px; padding: 0.4rem 0.7rem; margin-bottom: 0.5rem; }
  .rows td, .rows td:first-child { display: flex; gap: 0.8rem; border: 0; padding: 0.1rem 0; text-align: left;
    white-space: normal; }
  .rows td::before { content: attr(data-title); color: var(--quiet); flex: 0 0 8rem; } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #bbb; --front: #d55e00;
    --other: #0072b2; --quiet: #333; --panel: #fff; }
  body { max-width: none; } .wide { overflow: visible; } table { font-size: 0.68rem; }
  th, td { padding: 0.2rem 0 0.2rem 0.6rem; min-width: 0; }
  h2 { break-after: avoid; } tr, svg { break-inside: avoid; } }
pre { background: var(--panel); padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""
)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the report of a finished study, into its folder where no other file is named; says where it is.

    Raises:
        ConfigError: the study has no front, or no finished run on record.
    """
    text = page(read_front(folder), read_study_file(folder), read_run_record(folder), read_trust(folder))
    path = out or folder / REPORT
    write_atomically(path, text)
    return path


def page(
    document: Mapping[str, Any],
    record: StudyFile,
    run: Mapping[str, Any],
    trust: Mapping[str, Any] | None = None,
) -> str:
    """The report as HTML, of front.json, study.yaml, run.json and, where there is one, the trust report."""
    finalists = run["finalists"]
    on_front = {each["trial"] for each in document["members"]}
    sections = [
        f"<h1>{_text(document['study'])}</h1>",
        f'<p class="lead">{_text(summary(document))}</p>',
        "<h2>What was asked</h2>",
        _pairs(_asked(record)),
        "<h2>What was found</h2>",
        svg(front_picture(finalists, on_front, document["budget_ms"]), alone=False)
        if finalists
        else "<p>No finalist was trained.</p>",
        '<p class="note">Diamonds are the front, rings the other finalists; each line is the interval in which a '
        "latency is expected, the dashed one the budget.</p>",
        _table(_FRONT_TITLES, [_front_row(each) for each in document["members"]]),
        f"<p>{_text(how_accuracy_was_taken(document))}</p>",
        "<h2>What the latencies are worth</h2>",
        f"<p>{_text(worth(document))}</p>",
        *_measured(finalists),
        "<h2>How far the early scores can be trusted</h2>",
        *(_trust_report(trust, record) if trust is not None else []),
        *_trust(finalists, record.leading),
        "<h2>What it took</h2>",
        *_took(run),
        "<h2>Limits of these figures</h2>",
        "<ul>" + "".join(f"<li>{_text(limit)}</li>" for limit in _limits(document, record)) + "</ul>",
        "<h2>To make it again</h2>",
        f"<pre>{_text(command_line(record))}</pre>",
        _pairs([(name, value) for name, value in document["versions"].items()]),
        f'<p class="note">Latency table {_text(record.target_sha256[:16])}, images '
        f"{_text(record.data_fingerprint[:16])}; under the same versions the same seed proposes the same networks.</p>",
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(document['study'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _asked(record: StudyFile) -> list[tuple[str, str]]:
    genes = yaml.safe_dump(record.genes, default_flow_style=True, width=10_000).strip() if record.genes else "all"
    limit = f", at most {record.data_limit} training images" if record.data_limit is not None else ""
    return [
        ("device", f"{record.target}, threads: {record.threads}"),
        ("budget", record.budget),
        ("images", f"{record.data}{limit}"),
        ("networks", f"space {record.space}, genes: {genes}"),
        (
            "search",
            f"{record.trials} candidates by {record.sampler}, scored by {record.leading} after "
            f"{record.iterations} iterations",
        ),
        ("training", f"{record.finalists} finalists, {record.epochs} epochs, {record.layouts} layouts each"),
        ("seed", str(record.seed)),
    ]


# What changes nothing that is found, what only a file can say, and what may hold a password.
_NOT_RETYPED = (RUN_SETTINGS - {"trials"}) | {"genes", "storage"}


def command_line(record: StudyFile) -> str:
    """What to type to run the study again, elsewhere; genes stand in a study file only, so they follow as a comment."""
    words = ["nas", "search"]
    for name, field in StudySettings.model_fields.items():
        value = getattr(record, name)
        if name not in _NOT_RETYPED and value is not None and value != field.default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    line = shlex.join(words)
    if not record.genes:
        return line
    genes = yaml.safe_dump({"genes": record.genes}, sort_keys=False, allow_unicode=True).rstrip()
    return f"{line.replace('nas search', 'nas search STUDY.yaml', 1)}\n\n# STUDY.yaml:\n{genes}"


def _measured(finalists: Sequence[Mapping[str, Any]]) -> list[str]:
    """Predicted against measured and fused against unfused, of those that ran on the device."""
    seen = [each for each in finalists if each["latency_ms"]["tier"] == "measured"]
    if not seen:
        return ["<p>No finalist ran on the device, so there is nothing to hold the predictions against.</p>"]
    rows, errors, gains = [], [], []
    for each in seen:
        predicted, value, unfused = (
            each["predicted_latency_ms"],
            each["latency_ms"]["value"],
            each["unfused_latency_ms"],
        )
        errors.append(abs(predicted["value"] / value - 1))
        row = [
            str(each["trial"]),
            f"{predicted['value']:.3g} ms",
            f"{value:.3g} ms",
            f"{100 * (predicted['value'] / value - 1):+.0f} %",
            "yes" if predicted["low"] <= value <= predicted["high"] else "no",
            "-" if unfused is None else f"{unfused:.3g} ms",
            "-" if unfused is None else f"{unfused / value:.2f}x",
        ]
        gains += [] if unfused is None else [unfused / value]
        rows.append(row)
    titles = ["trial", "predicted", "measured", "off by", "in interval", "unfused", "fusing gains"]
    told = f"On {len(seen)} finalists the prediction is off by {100 * sum(errors) / len(errors):.0f} % on average."
    if gains:
        told += f" As they were trained, unfused, they take {sum(gains) / len(gains):.2f} times as long on average."
    return [_table(titles, rows), f"<p>{_text(told)}</p>"]


def _trust_report(trust: Mapping[str, Any], record: StudyFile) -> list[str]:
    led = f"The search was led by {record.led_by}." if record.led_by else "The search was led by its own score."
    return [
        f"<p>{_text(trust['why'][0].upper() + trust['why'][1:])}. {_text(led)}</p>",
        _table(TRUST_TITLES, trust_rows(trust)),
        f'<p class="note">{_text(what_it_rests_on(trust))}</p>',
    ]


_SCORE_SIGN = {"loss": -1.0}


def _trust(finalists: Sequence[Mapping[str, Any]], leading: str) -> list[str]:
    """Rank correlation of what was known early with the accuracy after training."""
    count = len(finalists)
    if count < 3:
        return [f"<p>{count} trained network{'s' if count != 1 else ''}: too few to say anything about the scores.</p>"]
    accuracies = [each["accuracy"]["value"] for each in finalists]
    rows = []
    for name in dict.fromkeys(("score", "loss", "macs", "params")):
        values = [_SCORE_SIGN.get(name, 1.0) * each["proxy"][name] for each in finalists if name in each["proxy"]]
        if len(values) != len(accuracies):
            continue
        rho, luck = spearman(values, accuracies), chance(values, accuracies)
        called = {"score": f"{leading}, which led", "loss": "early loss, lower is better"}.get(name, name)
        rows.append([called, "-" if rho is None else f"{rho:+.2f}", "-" if luck is None else f"{100 * luck:.3g} %"])
    return [
        _table(["known early", "rank correlation", "as strong by chance"], rows),
        f"<p>{count} points, chosen because a score favoured them and trained once each; the correlation is Spearman's "
        "with the accuracy, the last column the share of all orders that correlate as strongly. "
        "This shows a score that misleads, not one that is right.</p>",
    ]


def _took(run: Mapping[str, Any]) -> list[str]:
    search, runs = run["search"], run["runs"]
    stages = list(dict.fromkeys(name for each in runs for name in each["seconds"]))
    rows = [[name, f"{sum(each['seconds'].get(name, 0.0) for each in runs):.1f}"] for name in stages]
    early = [each["proxy"]["seconds"] for each in run["finalists"] if "seconds" in each["proxy"]]
    told = (
        f"{search['done']} candidates were looked at, {search['rejected']} proposals were turned down by their static "
        f"latency alone, {search['duplicates']} were repeats, {search['failed']} failed. "
        f"{search['ended'].capitalize()}."
    )
    if early:
        told += f" A first look at one of the finalists took {sum(early) / len(early):.1f} s."
    if len(runs) > 1:
        told += f" Seconds are the sum of {len(runs)} runs that came to their end."
    failures = [f"<p>{_text(failure)}</p>" for failure in run["failures"]]
    return [f"<p>{_text(told)}</p>", _table(["stage", "seconds"], rows), *_ladder(runs), *failures]


def _ladder(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rungs of training took in all runs; runs from before there were rungs have none."""
    rungs = [rung for each in runs for rung in each.get("rungs", ()) if rung["candidates"]]
    if not rungs:
        return []
    rows = [
        [str(each["epochs"]), str(each["candidates"]), f"{each['seconds']:.1f}", f"{each['expected_s']:.1f}"]
        for each in rungs
    ]
    return [
        "<p>Training went in rungs, of which only the best went on to the next; seconds are the sum over candidates."
        "</p>",
        _table(["to epoch", "candidates", "seconds", "expected"], rows),
    ]


def _limits(document: Mapping[str, Any], record: StudyFile) -> list[str]:
    members = document["members"]
    limits = [
        "Each network was trained once, from one seed; another seed moves its accuracy, and the order of the close."
    ]
    if members:
        accuracy = max((each["accuracy"] for each in members), key=lambda each: float(each["value"]))
        share, count = accuracy["value"], accuracy["images"]
        error = 100 * math.sqrt(max(share * (1 - share), 0.25 / count) / count)
        limits.append(
            f"On {count} validation images an accuracy of {100 * share:.1f} % has a standard error of "
            f"{error:.1f} points."
        )
    tiers = {each["latency_ms"]["tier"] for each in members}
    if tiers - {"measured"}:
        limits.append(
            "A latency that was not measured is a computation; its interval is the error seen on other networks."
        )
    if record.data_limit is not None:
        limits.append(
            f"The networks saw at most {record.data_limit} images; with all of them the order may be another."
        )
    limits.append(f"{record.epochs} epochs rank networks; for the one that is used, train longer.")
    return limits


def summary(document: Mapping[str, Any]) -> str:
    """What was asked and how much was found, in a sentence."""
    count = len(document["members"])
    return (
        f"{count} network{'s' if count != 1 else ''} for {document['target']} within {document['budget_ms']:g} ms, "
        f"trained on {document['data']} with seed {document['seed']}, begun {document['created'][:10]}."
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
    "measured": "These latencies were measured on the device: the median of many runs of the model.onnx of each; where "
    "the runtime reads no ONNX, of the same network in its own form.",
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


_FRONT_TITLES = (
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
)


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


# A table of more columns is too wide for a phone.
CARDS_ABOVE = 4


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their titles; where there is no room each row is a card, whose lines have the titles again."""
    head = "".join(f'<th scope="col">{_text(title)}</th>' for title in titles)
    body = "".join("<tr>" + "".join(map(_cell, titles, row)) + "</tr>" for row in rows)
    kind = ' class="rows"' if len(titles) > CARDS_ABOVE else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(title: str, text: str) -> str:
    # Lists of words may go on in a second line, figures with their units may not.
    words = ' class="words"' if ", " in text else ""
    return f'<td{words} data-title="{_text(title)}">{_text(text)}</td>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows)
    return f'<div class="wide"><table class="pairs"><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return html.escape(str(value))
