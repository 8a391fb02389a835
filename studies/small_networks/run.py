"""What small networks add to the uncertainty: the smallest third of each board's networks, from the larger two thirds.

python studies/small_networks/run.py writes results.csv beside itself and prints the tables of the README.
"""

import csv
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from hardware.boards import read_boards  # noqa: E402
from hardware.calibration import MODELS, Report, calibrate_board, calibrated, model_for, read_benchmark  # noqa: E402
from hardware.published import read_published  # noqa: E402
from hardware.targets import LAYERS_FILE, TARGETS_FOLDER  # noqa: E402

COLUMNS = (
    *("target", "threads", "model", "used", "calibrates", "networks", "small"),
    *("left_out_percent", "small_percent", "small_bias_percent", "least_ratio", "most_ratio", "smallest_ratio"),
)


def rows_of(report: Report, used: bool) -> list[object]:
    """One line of the results."""
    ratios = [row.ratio for row in report.small_rows]
    numbers = (report.mape_percent, report.small_mape_percent, report.small_bias_percent)
    return [
        *(report.target, report.threads, report.model, used, report.calibrates),
        *(len(report.rows), len(report.small_rows), *(f"{each:.1f}" for each in numbers)),
        *(f"{each:.3f}" for each in (min(ratios), max(ratios), ratios[0])),
    ]


def main() -> None:
    """Every board and number of threads by every model."""
    benchmark = read_benchmark(LAYERS_FILE)
    boards = read_boards(TARGETS_FOLDER).boards
    in_order = {board.name: board.in_order for board in boards}
    found = []
    for report in calibrated(benchmark, read_published(TARGETS_FOLDER / "published.csv"), in_order):
        own = model_for(report.threads, in_order=in_order[report.target])
        published = {row.network: row.published_ms for row in report.rows}
        for model in MODELS:
            found.append(
                rows_of(calibrate_board(benchmark, report.target, report.threads, published, model), model == own)
            )
    with (HERE / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *found])
    print("| target | threads | left out in turn | smallest third | bias | measured over predicted |")
    print("|---|---|---|---|---|---|")
    for row in found:
        each = dict(zip(COLUMNS, row, strict=True))
        if each["used"] and each["calibrates"]:
            bias = float(str(each["small_bias_percent"]))
            print(
                f"| `{each['target']}` | {each['threads']} | {each['left_out_percent']} % | "
                f"{each['small_percent']} % | {bias:+.1f} % | {each['least_ratio']} to {each['most_ratio']} |"
            )
    print("\n| model | one thread: smallest third, bias | several threads: smallest third, bias |\n|---|---|---|")
    calibrating = {(row[0], row[1]) for row in found if row[3] and row[4]}
    for model in MODELS:
        cells = []
        for several in (False, True):
            own = [
                row for row in found if row[2] == model and (row[0], row[1]) in calibrating and (row[1] > 1) == several
            ]
            mean = [np.mean([float(str(row[column])) for row in own]) for column in (8, 9)]
            cells.append(f"{mean[0]:.1f} %, {mean[1]:+.1f} %")
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
