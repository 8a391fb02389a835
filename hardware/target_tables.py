"""The table of calibrated targets as the README has it, from the shipped calibration."""

from pathlib import Path

from hardware.boards import read_boards, read_calibration

BEGIN, END = "<!-- targets: made by `nas calibrate --write` -->", "<!-- /targets -->"


def targets_table(folder: Path) -> str:
    """A line for each board that calibrates, with its errors by threads, and one for those that do not."""
    boards = {board.name: board for board in read_boards(folder).boards}
    lines = ["| target | device | networks | error at threads | fastest, ms |", "|---|---|---|---|---|"]
    others = []
    for name, rows in read_calibration(folder).items():
        good = {threads: row for threads, row in rows.items() if row.calibrates}
        if 1 not in good:
            others.append(f"`{name}`")
            continue
        errors = ", ".join(f"{row.mape_percent:.1f} % at {threads}" for threads, row in good.items())
        fastest = ", ".join(f"{row.fastest_ms:g}" for row in good.values())
        lines.append(f"| `{name}` | {boards[name].device} | {good[1].networks} | {errors} | {fastest} |")
    return "\n".join([*lines, "", "Published totals only, which no calibration meets: " + ", ".join(others) + ".", ""])


def with_table(text: str, table: str) -> str:
    """The text with the table between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}{END}{after}"
