"""The tables and the figure of runs.jsonl: python studies/layout_rank/figure.py."""

import json
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hardware.rank_correlation import bootstrap, chance, kendall, spearman
from searchspace.coverage import parse_layout

HERE = Path(__file__).parent
PLAIN = "none"

# Iterations of the search, and how many candidates it has.
LOOK, CANDIDATES, SEARCHES = "20", 10, 20_000

WIDTH, HEIGHT, MARGIN = 420, 300, 45

Run = dict[str, Any]


def cells(run: Run) -> float:
    return sum(each.height * each.width for each in parse_layout(run["layout"]).rectangles)


# What a layout could be chosen by, more being better.
SIGNS: dict[str, Callable[[Run], float]] = {
    "dispersion after 20 iterations (published)": lambda run: run["early"]["dispersion"],
    "dispersion before training": lambda run: run["early"]["dispersion_start"],
    "its increase": lambda run: run["early"]["dispersion"] - run["early"]["dispersion_start"],
    "mean of the layers' own, after 20 of the training": lambda run: run["dispersion_by_step"][LOOK][1],
    "dispersion at the end of training": lambda run: run["dispersion_by_step"][str(run["steps"])][0],
    "loss of the 20 iterations, negated": lambda run: -run["early"]["loss"],
    "cells of all branches": cells,
    "number of branches": lambda run: len(parse_layout(run["layout"]).rectangles),
    "training loss at the end, negated": lambda run: -run["train_loss"],
}


def runs() -> list[Run]:
    return [json.loads(line) for line in (HERE / "runs.jsonl").read_text().splitlines()]


def averaged(found: list[Run]) -> list[Run]:
    """One run for each layout: every number is the mean over the layout's seeds."""
    by_layout: defaultdict[str, list[Run]] = defaultdict(list)
    for run in found:
        if run["layout"] != PLAIN:
            by_layout[run["layout"]].append(run)
    return [_mean(each) for each in by_layout.values()]


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _mean([each[name] for each in values]) for name in values[0]}
    if isinstance(values[0], list):
        return [_mean(list(each)) for each in zip(*values, strict=True)]
    if isinstance(values[0], str) or len(set(values)) == 1:
        return values[0]
    return statistics.mean(values)


def interval(statistic: Callable[..., float | None], first: Sequence[float], second: Sequence[float]) -> str:
    """A correlation with its bootstrap interval."""
    found = statistic(first, second)
    assert found is not None
    limits = bootstrap(lambda drawn: statistic([first[i] for i in drawn], [second[i] for i in drawn]), len(first))
    assert limits is not None
    return f"{found:+.2f} ({limits[0]:+.2f} to {limits[1]:+.2f})"


def correlations(found: list[Run]) -> str:
    rows = [
        "| sign | Spearman with accuracy | Kendall | p | Spearman with held-out loss, negated |",
        "|---|---|---|---|---|",
    ]
    accuracy, loss = [run["accuracy"] for run in found], [-run["loss"] for run in found]
    for name, sign in SIGNS.items():
        values = [sign(run) for run in found]
        likely = chance(values, accuracy)
        assert likely is not None
        cells = [interval(spearman, values, accuracy), interval(kendall, values, accuracy), f"{likely:.2f}"]
        rows.append(f"| {name} | {' | '.join(cells)} | {interval(spearman, values, loss)} |")
    return "\n".join(rows)


def agreement(found: list[Run]) -> str:
    """How early the order of the layouts by dispersion is what it will be."""
    steps = list(found[0]["dispersion_by_step"])
    at = {step: [run["dispersion_by_step"][step][0] for run in found] for step in steps}
    rows = [f"| iteration | {' | '.join(steps)} |", "|---|" + "---|" * len(steps)]
    rows.append(
        "| Spearman with iteration 20 | " + " | ".join(f"{spearman(at[s], at[LOOK]):.3f}" for s in steps) + " |"
    )
    rows.append("| mean | " + " | ".join(f"{statistics.mean(at[s]):.3f}" for s in steps) + " |")
    rows.append("| deviation between layouts | " + " | ".join(f"{statistics.stdev(at[s]):.3f}" for s in steps) + " |")
    return "\n".join(rows)


def searches(found: list[Run]) -> str:
    """What choosing one of ten would have brought, by each sign, over a layout drawn at random."""
    rng = random.Random(0)
    draws = [rng.sample(found, CANDIDATES) for _ in range(SEARCHES)]
    rows = ["| chosen by | accuracy over the mean of the ten, points |", "|---|---|"]
    for name, sign in (*SIGNS.items(), ("the accuracy itself", lambda run: run["accuracy"])):
        gains = [max(ten, key=sign)["accuracy"] - statistics.mean(run["accuracy"] for run in ten) for ten in draws]
        rows.append(f"| {name} | {100 * statistics.mean(gains):+.2f} |")
    return "\n".join(rows)


def noise(found: list[Run]) -> str:
    """How much accuracies differ between layouts, and between seeds of one layout."""
    by_layout: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for run in found:
        by_layout[run["layout"]][run["seed"]] = 100 * run["accuracy"]
    repeated = {layout: each for layout, each in by_layout.items() if len(each) > 1 and layout != PLAIN}
    lines = [f"plain: {', '.join(f'{value:.2f}' for value in by_layout[PLAIN].values())} %"]
    firsts = [each[0] for layout, each in by_layout.items() if layout != PLAIN]
    lines.append(
        f"layouts, seed 0: {min(firsts):.2f} to {max(firsts):.2f} %, mean {statistics.mean(firsts):.2f}, deviation "
        f"{statistics.stdev(firsts):.2f} points"
    )
    if len(repeated) > 2:
        within = statistics.mean(statistics.variance(each.values()) for each in repeated.values()) ** 0.5
        pairs = [(each[0], each[1]) for each in repeated.values()]
        lines.append(f"{len(repeated)} layouts with a second seed: deviation between seeds {within:.2f} points")
        lines.append(f"rank correlation between the seeds: {interval(spearman, *map(list, zip(*pairs, strict=True)))}")
    return "\n".join(lines)


def panel(found: list[Run], sign: Callable[[Run], float], title: str, left: float) -> str:
    x, y = [sign(run) for run in found], [100 * run["accuracy"] for run in found]
    low_x, high_x, low_y, high_y = min(x), max(x), min(y) - 0.2, max(y) + 0.2
    parts = [f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle">{title}</text>']

    def place(value: float, accuracy: float) -> tuple[float, float]:
        across = left + MARGIN + 10 + (WIDTH - MARGIN - 30) * (value - low_x) / (high_x - low_x)
        return across, HEIGHT - MARGIN - (HEIGHT - MARGIN - 30) * (accuracy - low_y) / (high_y - low_y)

    for accuracy in range(int(low_y) + 1, int(high_y) + 1):
        (start, height), (end, _) = place(low_x, accuracy), place(high_x, accuracy)
        parts.append(f'<line x1="{start}" y1="{height:.1f}" x2="{end}" y2="{height:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{start - 8}" y="{height + 4:.1f}" text-anchor="end">{accuracy} %</text>')
    for value in (low_x, (low_x + high_x) / 2, high_x):
        across, height = place(value, low_y)
        parts.append(f'<text x="{across:.1f}" y="{height + 18:.1f}" text-anchor="middle">{value:.3f}</text>')
    for value, accuracy in zip(x, y, strict=True):
        across, height = place(value, accuracy)
        parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="3.5" fill="#1f77b4" fill-opacity="0.7"/>')
    across, height = place((low_x + high_x) / 2, low_y)
    parts.append(
        f'<text x="{across:.1f}" y="{height + 36:.1f}" text-anchor="middle">Spearman {spearman(x, y):+.2f}</text>'
    )
    return "\n".join(parts)


def main() -> None:
    """Prints the tables and writes figure.svg."""
    found = runs()
    mean = averaged(found)
    print(noise(found), correlations(mean), agreement(mean), searches(mean), sep="\n\n")
    signs = list(SIGNS.items())
    panels = [panel(mean, *reversed(signs[index]), left) for index, left in ((0, 0), (2, WIDTH))]
    (HERE / "figure.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{chr(10).join(panels)}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
