"""The tables of runs.jsonl and long.jsonl, and the figure of the former: python studies/search_quality/figure.py."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
COLOURS = {"random": "#888888", "nsga2": "#1f77b4", "tpe": "#2ca02c", "evolution": "#ff7f0e", "surrogate": "#d62728"}
STEP = 5
LONG_AT = (200, 300, 400, 500, 600, 700)
AT = (25, 50, 100, 150, 200, 300, 400)
WIDTH, HEIGHT, MARGIN = 420, 300, 45

Curves = dict[tuple[str, str], list[list[float]]]


def curves() -> Curves:
    """By problem and sampler, one curve for each seed."""
    found: Curves = defaultdict(list)
    for line in (HERE / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        found[run["budget"], run["sampler"]].append(run["curve_every_5"])
    return found


def mean(of: list[list[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*of, strict=True)]


def reached(curve: list[float], volume: float) -> str:
    """After how many evaluations a curve is as high."""
    return next((str(STEP * (index + 1)) for index, each in enumerate(curve) if each >= volume), "-")


def table(found: Curves, budget: str) -> str:
    rows = [f"| {budget} | " + " | ".join(map(str, AT)) + " |", "|---|" + "---|" * len(AT)]
    for sampler in COLOURS:
        runs = found.get((budget, sampler), [])
        cells = []
        for count in AT:
            values = [run[count // STEP - 1] for run in runs if len(run) >= count // STEP]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
        rows.append(f"| {sampler} ({len(runs)}) | " + " | ".join(cells) + " |")
    plain = mean(found[budget, "nsga2"])
    rows += ["", "Evaluations for the mean hypervolume that NSGA-II has after", ""]
    rows += ["| | " + " | ".join(map(str, AT)) + " |", "|---|" + "---|" * len(AT)]
    for sampler in ("tpe", "evolution", "surrogate"):
        if found.get((budget, sampler)):
            own = mean(found[budget, sampler])
            rows.append(f"| {sampler} | " + " | ".join(reached(own, plain[at // STEP - 1]) for at in AT) + " |")
    return "\n".join(rows)


def long_table() -> str:
    """Of long searches by how many scores the surrogate guesses from; the mean over both problems and the seeds."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for line in (HERE / "long.jsonl").read_text().splitlines():
        run = json.loads(line)
        most = run.get("most_scores")
        found[run["sampler"] + (f", {most} scores" if most else "")].append(run["curve_every_5"])
    rows = ["| | " + " | ".join(map(str, LONG_AT)) + " |", "|---|" + "---|" * len(LONG_AT)]
    for name, runs in sorted(found.items()):
        means = (statistics.mean(run[at // STEP - 1] for run in runs) for at in LONG_AT)
        rows.append(f"| {name} ({len(runs)}) | " + " | ".join(f"{each:.3f}" for each in means) + " |")
    return "\n".join(rows)


def panel(found: Curves, budget: str, left: float) -> str:
    low, high = 0.5, 0.78
    parts = [f'<text x="{left + WIDTH / 2}" y="20" text-anchor="middle">rk3288, {budget}</text>']

    def place(evaluations: float, volume: float) -> tuple[float, float]:
        x = left + MARGIN + (WIDTH - MARGIN - 10) * evaluations / 400
        return x, HEIGHT - MARGIN - (HEIGHT - MARGIN - 30) * (volume - low) / (high - low)

    for volume in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75):
        (x, y), (end, _) = place(0, volume), place(400, volume)
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 5}" y="{y + 4:.1f}" text-anchor="end">{volume:.2f}</text>')
    for evaluations in (0, 100, 200, 300, 400):
        x, y = place(evaluations, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{evaluations}</text>')
    for order, (sampler, colour) in enumerate(COLOURS.items()):
        if not found.get((budget, sampler)):
            continue
        points = [place(STEP * (index + 1), volume) for index, volume in enumerate(mean(found[budget, sampler]))]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + WIDTH - 85}" y="{HEIGHT - 125 + 15 * order}" fill="{colour}">{sampler}</text>')
    x, y = place(200, low)
    parts.append(f'<text x="{x}" y="{y + 34}" text-anchor="middle">evaluations</text>')
    return "\n".join(parts)


def main() -> None:
    """Prints the tables and writes figure.svg."""
    found = curves()
    for budget in ("5ms", "20ms"):
        print(table(found, budget), end="\n\n")
    print(long_table())
    panels = "\n".join(panel(found, budget, index * WIDTH) for index, budget in enumerate(("5ms", "20ms")))
    (HERE / "figure.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{panels}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
