"""The table and the figure of runs.jsonl: python studies/pbconv_gain/figure.py."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ARMS = {"plain": "#888888", "acb-like": "#2ca02c", "dbb-like": "#1f77b4", "pbconv": "#d62728"}
WIDTH, HEIGHT, LEFT = 560, 260, 60

# 97.5 % points of Student's distribution, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Run = dict[str, Any]


def runs() -> dict[str, dict[int, Run]]:
    """By arm and seed; seeds that not every arm has are left out."""
    found: dict[str, dict[int, Run]] = {arm: {} for arm in ARMS}
    for line in (HERE / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        found[run["arm"]][run["seed"]] = run
    whole = set.intersection(*(set(each) for each in found.values()))
    return {arm: {seed: each[seed] for seed in sorted(whole)} for arm, each in found.items()}


def interval(values: list[float]) -> str:
    """The mean with its 95 % interval."""
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def table(found: dict[str, dict[int, Run]]) -> str:
    rows = [
        "| branches | accuracy, % | over plain, points | training loss | parameters in training | CPU seconds | "
        "fused multiply-adds | fused parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = found["plain"]
    for arm, by_seed in found.items():
        accuracy = {seed: 100 * run["accuracy"] for seed, run in by_seed.items()}
        lead = [accuracy[seed] - 100 * plain[seed]["accuracy"] for seed in by_seed]
        one = next(iter(by_seed.values()))
        params = sorted({run["train_params"] for run in by_seed.values()})
        cells = [
            interval(list(accuracy.values())),
            "" if arm == "plain" else interval(lead),
            f"{statistics.mean(run['train_loss'] for run in by_seed.values()):.3f}",
            f"{params[0]:,}" if len(params) == 1 else f"{params[0]:,} to {params[-1]:,}",
            f"{statistics.mean(run['cpu_seconds'] for run in by_seed.values()):.1f}",
            f"{one['fused_macs']:,}",
            f"{one['fused_params']:,}",
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def checks(found: dict[str, dict[int, Run]]) -> str:
    """Whether what is deployed is one and the same, and what the search took."""
    every = [run for by_seed in found.values() for run in by_seed.values()]
    graphs = {(run["fused_fingerprint"], run["fused_macs"], run["fused_params"]) for run in every}
    worst = max(run["fused_difference"] for run in every)
    searched = [run for run in found["pbconv"].values() if "search" in run]
    seconds = statistics.mean(run["search"]["cpu_seconds"] for run in searched)
    share = statistics.mean(run["search"]["cpu_seconds"] / run["cpu_seconds"] for run in searched)
    return (
        f"kinds of deployed graphs: {len(graphs)}; largest difference of logits, trained to fused: {worst:.1e}\n"
        f"the search took {seconds:.1f} s, {share:.0%} of this training"
    )


def figure(found: dict[str, dict[int, Run]]) -> str:
    values = {arm: [100 * run["accuracy"] for run in by_seed.values()] for arm, by_seed in found.items()}
    low = math.floor(min(map(min, values.values())))
    high = math.ceil(max(map(max, values.values())))

    def y(accuracy: float) -> float:
        return HEIGHT - 40 - (HEIGHT - 70) * (accuracy - low) / (high - low)

    parts = []
    for accuracy in range(low, high + 1):
        parts.append(
            f'<line x1="{LEFT}" y1="{y(accuracy):.1f}" x2="{WIDTH - 10}" y2="{y(accuracy):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y(accuracy) + 4:.1f}" text-anchor="end">{accuracy} %</text>')
    step = (WIDTH - LEFT) / len(values)
    for place, (arm, own) in enumerate(values.items()):
        x = LEFT + step * (place + 0.5)
        mean = statistics.mean(own)
        ends = f'x1="{x - 25:.1f}" x2="{x + 25:.1f}"'
        parts.append(f'<line {ends} y1="{y(mean):.1f}" y2="{y(mean):.1f}" stroke="{ARMS[arm]}" stroke-width="2"/>')
        for seed, accuracy in enumerate(own):
            across = x + 8 * (seed - (len(own) - 1) / 2)
            parts.append(
                f'<circle cx="{across:.1f}" cy="{y(accuracy):.1f}" r="4" fill="{ARMS[arm]}" fill-opacity="0.6"/>'
            )
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 15}" text-anchor="middle" fill="{ARMS[arm]}">{arm}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{chr(10).join(parts)}\n</svg>\n'
    )


def main() -> None:
    """Prints the table and writes figure.svg."""
    found = runs()
    print(f"{len(found['plain'])} seeds\n\n{table(found)}\n\n{checks(found)}")
    (HERE / "figure.svg").write_text(figure(found))


if __name__ == "__main__":
    main()
