"""What the same method gives for int8 networks and for boards whose cores compute in fp16: errors too large to ship.

python studies/int8_fp16/run.py prints the tables of the README.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from hardware.boards import read_boards, read_calibration  # noqa: E402
from hardware.calibration import fit_costs  # noqa: E402
from hardware.published import read_published  # noqa: E402
from hardware.targets import TARGETS_FOLDER  # noqa: E402

# Cores of ARMv8.2 and later with half-precision arithmetic, which ncnn uses by default where it is there.
FP16 = (
    *("raspberrypi5", "rk3566", "rk3568", "rk3588-a55", "rk3588-a76", "radxa-orion-o6", "jetson-orin-nano"),
    *("jetson-agx-orin", "jetson-agx-xavier", "snapdragon-675", "snapdragon-855plus", "snapdragon-8gen2"),
    "dimensity-9300",
)


def int8() -> None:
    """One constant on the eight int8 networks of every board, each network left out in turn."""
    with (HERE / "int8_instructions.csv").open(encoding="utf-8", newline="") as file:
        counts = {row["network"]: float(row["instructions_20211208"]) / 1e6 for row in csv.DictReader(file)}
    published: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in read_published(TARGETS_FOLDER / "published.csv"):
        if row.precision == "int8" and row.network in counts:
            published[row.target, row.threads][row.network] = row.mean_ms
    print("| board | threads | networks | error | worst |\n|---|---|---|---|---|")
    for (target, threads), latencies in published.items():
        names = sorted(latencies)
        amounts = np.array([[counts[name], 0.0, 0.0, 0.0] for name in names])
        known = np.array([latencies[name] for name in names])
        if len(names) < 8:
            continue
        errors = []
        for index in range(len(names)):
            costs = fit_costs("instructions", np.delete(amounts, index, axis=0), np.delete(known, index))
            errors.append(100 * float(amounts[index] @ costs / known[index] - 1))
        worst = max(range(len(names)), key=lambda index: abs(errors[index]))
        print(
            f"| {target} | {threads} | {len(names)} | {np.mean(np.abs(errors)):.1f} % | "
            f"{names[worst]} {errors[worst]:+.0f} % |"
        )


def fp16() -> None:
    """The boards whose cores compute in fp16, as they calibrate."""
    rows = read_calibration(TARGETS_FOLDER)
    devices = {board.name: board.cpu for board in read_boards(TARGETS_FOLDER).boards}
    print("\n| board | cores | error at one thread | at several | shipped |\n|---|---|---|---|---|")
    for name in FP16:
        several = ", ".join(
            f"{row.mape_percent:.0f} % at {threads}" for threads, row in rows[name].items() if threads > 1
        )
        shipped = "yes" if rows[name][1].calibrates else "no"
        print(f"| {name} | {devices[name]} | {rows[name][1].mape_percent:.1f} % | {several} | {shipped} |")


if __name__ == "__main__":
    int8()
    fp16()
