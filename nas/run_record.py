"""What the runs of a study saw beside its front: every finalist, what became of the proposals, what each stage took."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hardware.strict_yaml import ConfigError
from nas.files import write_atomically
from nas.rungs import RungReport
from nas.study import SearchOutcome

RUN_JSON = "run.json"


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of each stage of a run, and what each rung of its ladder took."""

    seconds: Mapping[str, float]
    rungs: Sequence[RungReport]


def write_run_record(
    folder: Path,
    finalists: Sequence[Mapping[str, Any]],
    failures: Sequence[str],
    search: SearchOutcome,
    took: Took,
) -> None:
    """Keeps what a run saw, and what it took behind the runs before it; finalists as in front.json."""
    progress = search.progress
    earlier = read_run_record(folder)["runs"] if (folder / RUN_JSON).exists() else []
    record = {
        "finalists": list(finalists),
        "failures": list(failures),
        "search": {
            "done": progress.done,
            "rejected": progress.rejected,
            "duplicates": progress.duplicates,
            "failed": progress.failed,
            "ended": search.ended,
        },
        # A run that was interrupted has left no line.
        "runs": [
            *earlier,
            {
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": dict(took.seconds),
                "rungs": [asdict(rung) for rung in took.rungs],
            },
        ],
    }
    write_atomically(folder / RUN_JSON, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_run_record(folder: Path) -> dict[str, Any]:
    """What the runs of a study saw.

    Raises:
        ConfigError: none has ended yet, or the file is damaged.
    """
    path = folder / RUN_JSON
    mend = f"`nas resume {folder}` writes it"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: study {folder.name} has no finished run on record; {mend}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); remove it, {mend} again") from error
    if not isinstance(record, dict) or not {"finalists", "failures", "search", "runs"} <= record.keys():
        raise ConfigError(f"{path}: not a record of this program; remove it, {mend} again")
    return record
