"""An export of a study's front as a process of its own: what `nas export` writes, in the study's folder `exported`.

    python -m nas.web.export_job STUDY_FOLDER onnx,ncnn [--int8]

It outlives the page that started it. The folder is put into its place whole, so that what lies there is always one
export from beginning to end; `export.json` beside it says how far the job is, or how it ended. SIGTERM cancels it.
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from hardware.strict_yaml import ConfigError
from nas.exit_codes import BROKE, DONE, INTERRUPTED
from nas.export import Exported, ExportPlan, chosen_trials, export_members, open_trained, set_aside
from nas.export_formats import formats_named
from nas.files import write_atomically
from nas.flags import MAX_DROP
from nas.study_log import add_line

EXPORTED, PARTIAL = "exported", ".exported.partial"
STATE, LOCK = "export.json", "export.lock"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportState:
    """How an export got on: `doing` what is at work, `ended` None and `failure` None as long as it runs.

    `problems` are formats that were left out of members, `failure` why there is no export at all where it was not
    cancelled.
    """

    formats: tuple[str, ...]
    int8: bool
    began: str
    doing: str = ""
    members: int = 0
    ended: str | None = None
    problems: tuple[str, ...] = ()
    failure: str | None = None
    cancelled: bool = False


def read_state(folder: Path) -> ExportState | None:
    """How the last export of a study got on, None where there was none."""
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return ExportState(**values | {name: tuple(values[name]) for name in ("formats", "problems")})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _write_state(folder: Path, state: ExportState) -> None:
    write_atomically(folder / STATE, json.dumps(asdict(state), indent=2) + "\n")


def run(folder: Path, formats: str, *, int8: bool) -> ExportState:
    """Exports the front of the study in a folder and says how that ended; another job at work there is left to it.

    Raises:
        ConfigError: another export of the study is at work.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        _hold(lock, folder)
        state = ExportState(tuple(formats.split(",")), int8, _now())
        _write_state(folder, state)
        try:
            exported = _export(folder, state)
            problems = tuple(problem for each in exported for problem in each.problems)
            state = replace(state, members=sum(each.folder is not None for each in exported), problems=problems)
        except KeyboardInterrupt:
            state = replace(state, cancelled=True)
        except Exception as error:
            # Nobody waits for this process: what went wrong is told on the page.
            logger.exception("export failed")
            state = replace(state, failure=f"{' '.join(str(error).split())}" or type(error).__name__)
        finally:
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        state = replace(state, ended=_now())
        _write_state(folder, state)
    return state


def _hold(lock: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"study {folder.name} is being exported already; wait for that") from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()


def _export(folder: Path, state: ExportState) -> Sequence[Exported]:
    chosen = formats_named(",".join(state.formats))
    study = open_trained(folder)
    trials = chosen_trials(study, None)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)

    def at_work(name: str) -> None:
        _write_state(folder, replace(state, doing=name, members=len(trials)))

    plan = ExportPlan(chosen, None, MAX_DROP if state.int8 else None)
    with redirect_stdout(sys.stderr):
        exported = export_members(study, trials, plan, partial, at_work)
    if all(each.folder is None for each in exported):
        raise ConfigError("; ".join(problem for each in exported for problem in each.problems))
    with set_aside(folder / EXPORTED):
        partial.replace(folder / EXPORTED)
    return exported


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cancel(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # pressed twice, it is still cancelled once
    raise KeyboardInterrupt


def main() -> int:
    """What the command line at the top does; 0 where there is an export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("formats")
    parser.add_argument("--int8", action="store_true")
    options = parser.parse_args()
    os.nice(3)  # studies that train go first
    signal.signal(signal.SIGTERM, _cancel)
    state = run(options.folder, options.formats, int8=options.int8)
    how = f"failed: {state.failure}" if state.failure else f"done: {state.members} members"
    add_line(options.folder, f"dashboard: export {'cancelled' if state.cancelled else how}")
    return INTERRUPTED if state.cancelled else BROKE if state.failure else DONE


if __name__ == "__main__":
    sys.exit(main())
