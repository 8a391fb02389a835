"""The tables and the figure of runs.jsonl: python studies/proxy_rank/figure.py."""

import json
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluators.proxies import PROXIES, choose_mix, mean_ranks, rank_mix
from hardware.rank_correlation import bootstrap, kendall, spearman

HERE = Path(__file__).parent
STEPS, LONGER_STEPS = 96, 288
BANDS, SPLITS, SAMPLES = 4, 200, 2000
MIX = "mix, chosen on the other members"
WIDTH, ROW, LEFT = 640, 20, 220

Run = dict[str, Any]
Statistic = Callable[[Sequence[float], Sequence[float]], float | None]


def runs(seed: int, steps: int = STEPS) -> list[Run]:
    lines = [json.loads(line) for line in (HERE / "runs.jsonl").read_text().splitlines()]
    return [each for each in lines if (each["seed"], each["steps"]) == (seed, steps)]


def reached(run: Run, share: float = 1.0) -> float:
    """The accuracy behind a share of the training."""
    return float(run["reached"][str(round(share * run["steps"]))]["accuracy"])


def asked(found: list[Run]) -> dict[str, list[float]]:
    """What each proxy says of each member; a proxy that failed on one is not among them."""
    return {
        name: [each["proxies"][name] for each in found]
        for name in PROXIES
        if all(isinstance(each["proxies"][name], float) for each in found)
    }


def left_out(columns: dict[str, list[float]], truth: list[float]) -> list[float]:
    """For each member what a mix says of it that was chosen on all the others."""
    found = []
    for place in range(len(truth)):
        others = [each for each in range(len(truth)) if each != place]
        values = {name: [column[each] for each in others] for name, column in columns.items()}
        chosen = choose_mix(values, [truth[each] for each in others])
        mix = rank_mix(chosen, [{name: columns[name][each] for name in chosen} for each in others])
        found.append(mix.score({name: columns[name][place] for name in chosen}))
    return found


def text(statistic: Statistic, first: Sequence[float], second: Sequence[float]) -> str:
    """A correlation with its bootstrap interval."""
    found = statistic(first, second)
    limits = bootstrap(
        lambda drawn: statistic([first[i] for i in drawn], [second[i] for i in drawn]), len(first), samples=SAMPLES
    )
    assert found is not None
    assert limits is not None
    return f"{found:.2f} ({limits[0]:.2f} to {limits[1]:.2f})"


def within_bands(found: list[Run]) -> list[int]:
    """The band of multiply-adds of each member: as many members in each."""
    order = sorted(range(len(found)), key=lambda each: found[each]["macs"])
    band = [0] * len(found)
    for rank, each in enumerate(order):
        band[each] = rank * BANDS // len(found)
    return band


def mean_within(band: Sequence[int], first: Sequence[float], second: Sequence[float]) -> float | None:
    """The mean of the correlations within the bands."""
    found = []
    for own in set(band):
        inside = [each for each, other in enumerate(band) if other == own]
        value = spearman([first[each] for each in inside], [second[each] for each in inside])
        if value is not None:
            found.append(value)
    return statistics.mean(found) if found else None


def banded(band: Sequence[int], values: Sequence[float], truth: Sequence[float]) -> str:
    found = mean_within(band, values, truth)
    limits = bootstrap(
        lambda drawn: mean_within([band[i] for i in drawn], [values[i] for i in drawn], [truth[i] for i in drawn]),
        len(values),
        samples=SAMPLES // 4,
    )
    assert found is not None
    assert limits is not None
    return f"{found:.2f} ({limits[0]:.2f} to {limits[1]:.2f})"


def table(found: list[Run], columns: dict[str, list[float]]) -> str:
    truth = [reached(each) for each in found]
    better = sorted(range(len(found)), key=lambda each: -truth[each])[: len(found) // 2]
    band = within_bands(found)
    rows = ["| proxy | Spearman | Kendall | in bands of equal MACs | better half |", "|---|---|---|---|---|"]
    for name, values in sorted(columns.items(), key=lambda each: -(spearman(each[1], truth) or 0)):
        half = text(spearman, [values[each] for each in better], [truth[each] for each in better])
        cells = [text(spearman, values, truth), text(kendall, values, truth), banded(band, values, truth), half]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def against(columns: dict[str, list[float]], truth: list[float]) -> str:
    """By how much the mix leads the baselines, and how often one that was chosen on a half leads on the other."""
    lines = []
    for name in ("macs", "params"):
        mix, base = columns[MIX], columns[name]

        def lead(drawn: Sequence[int], mix: list[float] = mix, base: list[float] = base) -> float | None:
            own = spearman([mix[i] for i in drawn], [truth[i] for i in drawn])
            other = spearman([base[i] for i in drawn], [truth[i] for i in drawn])
            return None if own is None or other is None else own - other

        limits = bootstrap(lead, len(truth), samples=SAMPLES)
        assert limits is not None
        lines.append(f"mix over {name}: {lead(range(len(truth))):+.2f} ({limits[0]:+.2f} to {limits[1]:+.2f})")
    return "\n".join(lines)


def halves(columns: dict[str, list[float]], truth: list[float]) -> str:
    """Mixes chosen on one half and judged on the other."""
    rng, everyone = random.Random(0), list(range(len(truth)))
    scores: dict[str, list[float]] = {"mix": [], "macs": [], "params": []}
    chosen_names: dict[tuple[str, ...], int] = {}
    for _ in range(SPLITS):
        rng.shuffle(everyone)
        first, second = everyone[: len(everyone) // 2], everyone[len(everyone) // 2 :]
        chosen = choose_mix({n: [c[i] for i in first] for n, c in columns.items()}, [truth[i] for i in first])
        for name in chosen:
            chosen_names[(name,)] = chosen_names.get((name,), 0) + 1
        judged = [truth[i] for i in second]
        mixed = mean_ranks([[columns[name][i] for i in second] for name in chosen])
        for name, values in (("mix", mixed), *((n, [columns[n][i] for i in second]) for n in ("macs", "params"))):
            scores[name].append(spearman(values, judged) or 0.0)
    means = ", ".join(f"{name} {statistics.mean(each):.2f}" for name, each in scores.items())
    ahead = [
        f"{name} in {sum(m > b for m, b in zip(scores['mix'], scores[name], strict=True)) / SPLITS:.0%}"
        for name in ("macs", "params")
    ]
    often = sorted(chosen_names.items(), key=lambda each: -each[1])[:6]
    parts = ", ".join(f"{name} {count / SPLITS:.0%}" for (name,), count in often)
    return (
        f"chosen on one half, judged on the other, {SPLITS} splits: {means}; ahead of {' and of '.join(ahead)}\n"
        f"most often in the mix: {parts}"
    )


def settled(found: list[Run]) -> str:
    """How much the order of the members still changes."""
    half, end = [reached(each, 0.5) for each in found], [reached(each) for each in found]
    lines = [f"half of the training against its end: Spearman {text(spearman, half, end)}"]
    again = {each["spec_id"]: reached(each) for each in runs(1)}
    pairs = [(reached(each), again[each["spec_id"]]) for each in found if each["spec_id"] in again]
    if len(pairs) > 4:
        first, second = map(list, zip(*pairs, strict=True))
        lines.append(f"one seed against another, {len(pairs)} members: Spearman {text(spearman, first, second)}")
    lines.append(f"accuracies from {min(end):.3f} to {max(end):.3f}, deviation {statistics.stdev(end):.3f}")
    return "\n".join(lines)


def longer(found: list[Run], columns: dict[str, list[float]]) -> str:
    """The same for the members that were trained longer as well."""
    by_id = {each["spec_id"]: each for each in runs(0, LONGER_STEPS)}
    places = [place for place, each in enumerate(found) if each["spec_id"] in by_id]
    if len(places) < 5:
        return "none was trained longer"
    short = [reached(found[place]) for place in places]
    half, end = ([reached(by_id[found[place]["spec_id"]], share) for place in places] for share in (0.5, 1.0))
    rows = [
        f"{len(places)} members, {STEPS} steps against {LONGER_STEPS}: Spearman {text(spearman, short, end)}",
        f"half of {LONGER_STEPS} steps against their end: Spearman {text(spearman, half, end)}",
        f"accuracies from {min(end):.3f} to {max(end):.3f}",
        "",
        f"| proxy | Spearman with {STEPS} steps | with {LONGER_STEPS} |",
        "|---|---|---|",
    ]
    own = {name: [column[place] for place in places] for name, column in columns.items()}
    for name, values in sorted(own.items(), key=lambda each: -(spearman(each[1], end) or 0)):
        rows.append(f"| {name} | {text(spearman, values, short)} | {text(spearman, values, end)} |")
    return "\n".join(rows)


def figure(columns: dict[str, list[float]], truth: list[float]) -> str:
    """A point and an interval for each proxy."""
    order = sorted(columns, key=lambda name: -(spearman(columns[name], truth) or 0))
    height = ROW * (len(order) + 3)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * (value + 1) / 2

    parts = []
    for value in (-1, -0.5, 0, 0.5, 0.85, 1):
        bottom, dash = height - 2 * ROW, ' stroke-dasharray="4 3"' if value == 0.85 else ""
        parts.append(f'<line x1="{x(value):.1f}" y1="10" x2="{x(value):.1f}" y2="{bottom}" stroke="#cccccc"{dash}/>')
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value}</text>')
    for row, name in enumerate(order):
        values, y = columns[name], ROW * (row + 1)
        found = spearman(values, truth) or 0.0
        limits = bootstrap(lambda d, v=values: spearman([v[i] for i in d], [truth[i] for i in d]), len(truth))
        assert limits is not None
        colour = "#d62728" if name == MIX else "#333333" if name in ("macs", "params") else "#1f77b4"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" fill="{colour}">{name}</text>')
        ends = f'x1="{x(limits[0]):.1f}" x2="{x(limits[1]):.1f}"'
        parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(found):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    middle = (LEFT + WIDTH) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">Spearman with accuracy, 95 %</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{chr(10).join(parts)}\n</svg>\n'
    )


def main() -> None:
    """Prints the tables and writes figure.svg."""
    found = runs(0)
    columns, truth = asked(found), [reached(each) for each in found]
    failed = [name for name in PROXIES if name not in columns]
    print(f"{len(found)} members; proxies that failed on one: {', '.join(failed) or 'none'}\n\n{settled(found)}\n")
    print(halves(columns, truth), f"chosen on all: {', '.join(choose_mix(columns, truth))}", sep="\n", end="\n\n")
    columns[MIX] = left_out(columns, truth)
    print(table(found, columns), against(columns, truth), longer(found, columns), sep="\n\n")
    (HERE / "figure.svg").write_text(figure(columns, truth))


if __name__ == "__main__":
    main()
