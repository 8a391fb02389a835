"""`nas trust`: how far the proxies rank the networks of a study's space on its data, against multiply-adds."""

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hardware.strict_yaml import ConfigError
from nas.commands import new_study
from nas.console import observer, print_table, print_text, warnings_to
from nas.driver import ask_trust, reopened
from nas.exit_codes import DONE, INTERRUPTED
from nas.problem import Problem
from nas.settings import LEAST_TRUSTED, read_study_file
from nas.trust_members import MEMBERS, TRUST
from nas.trust_table import TRUST_TITLES, trust_rows, what_it_rests_on
from nas.view import View, study_folder


def trust(name: str | None, flags: Mapping[str, Any], view: View) -> int:
    """Trains the members, from wherever the study stands, and tells what their proxies were worth.

    `name` is a study that exists or a study file; without, or with a file, the flags say what a search would be given.
    """
    members = flags.get("trust", MEMBERS)
    if members < LEAST_TRUSTED:
        raise ConfigError(f"trust: at least {LEAST_TRUSTED} members to say anything, got {members}")
    problem, folder = _study(name, {**flags, "trust": members}, view)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with observer(view.quiet) as watching, warnings_to(watching), redirect_stdout(sys.stderr):
            report = ask_trust(problem, folder, watching, members=members)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with it", file=sys.stderr)
        return INTERRUPTED
    if view.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        _print(report, folder)
    return DONE


def _study(name: str | None, flags: Mapping[str, Any], view: View) -> tuple[Problem, Path]:
    is_file = name is not None and Path(name).is_file()
    if name is None or is_file:
        return new_study(Path(name) if name else None, flags, view)
    folder = study_folder(name, view)
    record = read_study_file(folder)
    changed = {each: flags[each] for each in ("trust_epochs", "workers", "backend", "ray_address") if each in flags}
    others = sorted(set(flags) - set(changed) - {"trust"})
    if others:
        raise ConfigError(f"{others[0].replace('_', '-')}: study {name} has its own; leave the flag out")
    return reopened(record.settings().model_copy(update=changed), folder), folder


def _print(report: Mapping[str, Any], folder: Path) -> None:
    print_table(f"{read_study_file(folder).study}: rank correlation with accuracy", TRUST_TITLES, trust_rows(report))
    print_text(what_it_rests_on(report))
    print_text(f"{report['why'][0].upper()}{report['why'][1:]}.")
    led = read_study_file(folder).led_by
    print_text(
        f"{folder / TRUST} keeps this; "
        + (f"a search in this study is led by {led}." if led else "the study's search was led by its own score.")
    )
