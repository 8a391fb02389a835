"""Latencies of whole networks that others have measured and published, read row by row."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hardware.strict_yaml import ConfigError

_COLUMNS = (
    *("target", "version", "threads", "precision", "network", "input"),
    *("min_ms", "mean_ms", "max_ms", "loops", "date", "commit"),
)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One network on one board: mean of the runs; version is the runtime's, commit where the figure stands."""

    target: str
    version: str
    threads: int
    precision: str
    network: str
    mean_ms: float
    date: str
    commit: str


def read_published(path: Path) -> tuple[PublishedRow, ...]:
    """Every row of the file.

    Raises:
        ConfigError: a row does not say version, threads, precision, date or source, or gives no latency above zero.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != _COLUMNS:
            raise ConfigError(f"{path}: the columns must be {', '.join(_COLUMNS)}, got {rows.fieldnames}")
        return tuple(_row(row, f"{path}:{number}") for number, row in enumerate(rows, 2))


def _row(row: Mapping[str, str], where: str) -> PublishedRow:
    for name in ("target", "version", "threads", "precision", "network", "date", "commit"):
        if not (row[name] or "").strip():
            raise ConfigError(
                f"{where}: a published row must say its {name}, which is empty for {row['network'] or 'a network'}; a "
                "figure without it cannot be compared with any other, so leave the row out or find out"
            )
    try:
        threads, mean_ms = int(row["threads"]), float(row["mean_ms"])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: threads and mean_ms must be numbers ({error})") from error
    if threads < 1 or not 0 < mean_ms < float("inf"):
        raise ConfigError(f"{where}: threads and mean_ms must be above zero, got {threads} and {mean_ms}")
    return PublishedRow(
        row["target"], row["version"], threads, row["precision"], row["network"], mean_ms, row["date"], row["commit"]
    )
