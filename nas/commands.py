"""`nas search`, `resume` and `show`: one call into the library each, then a table or JSON."""

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hardware.strict_yaml import ConfigError, load_yaml
from nas.device_commands import interval_text, predicted, print_kernels
from nas.exit_codes import BROKE, BROKEN_CERTIFICATE, DONE, INTERRUPTED
from nas.members import read_front
from nas.problem import Problem
from nas.settings import (
    RUN_SETTINGS,
    STUDY_FILE,
    StudyDraft,
    StudySettings,
    checked_settings,
    extended_settings,
    read_study_file,
)
from nas.study_table import study_target
from nas.view import View, study_folder
from searchspace.spaces import space_named
from searchspace.spec import spec_from_dict


def search(study_yaml: Path | None, flags: Mapping[str, Any], view: View) -> int:
    """`nas search`: a new study, or the same one again."""
    return _run(*new_study(study_yaml, flags, view), view)


def new_study(study_yaml: Path | None, flags: Mapping[str, Any], view: View) -> tuple[Problem, Path]:
    """The problem and folder of a study by its file and flags: a new one, or the one that is there.

    Raises:
        ConfigError: a setting is wrong, or a study of that name has others.
        InfeasibleBudget: no member of the space keeps the budget.
    """
    from nas.driver import begin

    draft: dict[str, Any] = {}
    if study_yaml is not None:
        draft = load_yaml(study_yaml, StudyDraft).model_dump(exclude_none=True)
    draft |= flags
    for name in ("target", "budget"):
        if name not in draft:
            raise ConfigError(f"{name}: needed to search; give --{name}, or a study file with `{name}:`")
    named = "study" in draft
    draft.setdefault("study", default_name(draft))
    settings = checked_settings(draft)
    folder = view.studies / settings.study
    if not named:
        folder, settings = _free_folder(view.studies, settings)
    elif (folder / STUDY_FILE).exists():
        _check_same_settings(read_study_file(folder).settings(), settings)
    from nas.console import observer

    with observer(view.quiet) as watching:
        return begin(settings, folder, watching), folder


def default_name(draft: Mapping[str, Any]) -> str:
    """What a study is called whose user gave no name."""
    data = Path(str(draft.get("data", "digits")).partition(":")[0]).name
    text = f"{draft['target']}-{draft['budget']}-{data}"
    # As the pattern of `StudySettings.study` wants it; a folder of images may be called anything.
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:80]


def _free_folder(studies: Path, settings: StudySettings) -> tuple[Path, StudySettings]:
    # The same command again is the same study; other settings under the same default name get a name of their own.
    name, number = settings.study, 1
    while True:
        candidate = settings.model_copy(update={"study": name if number == 1 else f"{name}-{number}"})
        folder = studies / candidate.study
        if not (folder / STUDY_FILE).exists() or not _differences(read_study_file(folder).settings(), candidate):
            return folder, candidate
        number += 1


def _differences(first: StudySettings, second: StudySettings) -> list[str]:
    return [
        name
        for name in StudySettings.model_fields
        if name not in RUN_SETTINGS and getattr(first, name) != getattr(second, name)
    ]


def _check_same_settings(recorded: StudySettings, wanted: StudySettings) -> None:
    if names := _differences(recorded, wanted):
        changes = ", ".join(f"{name} is {getattr(recorded, name)!r} there" for name in names)
        raise ConfigError(
            f"study {wanted.study}: exists with other settings ({changes}); "
            f"give another --study NAME, or go on with `nas resume {wanted.study}`"
        )


def _run(problem: Problem, folder: Path, view: View) -> int:
    from nas.console import observer, print_front, warnings_to
    from nas.driver import run_study
    from nas.report import how_accuracy_was_taken, worth

    # A service manager's stop is Ctrl-C by another name.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # stdout is for the result alone, whatever libraries print while they work.
        with observer(view.quiet) as watching, warnings_to(watching), redirect_stdout(sys.stderr):
            outcome = run_study(problem, folder, watching)
    except KeyboardInterrupt:
        print(f"interrupted; `nas resume {folder}` goes on with it", file=sys.stderr)
        return INTERRUPTED
    if view.json:
        print(json.dumps(outcome.document, indent=2, allow_nan=False))
    if not outcome.document["members"]:
        reasons = Counter([*outcome.failures, *outcome.search.failures]).most_common(1)
        why = f"; most often: {reasons[0][0]}" if reasons else ""
        print(f"nas: study {folder.name} has no member on its front{why}", file=sys.stderr)
        return BROKE
    if not view.json:
        print_front(outcome.document)
        print(how_accuracy_was_taken(outcome.document))
        print(worth(outcome.document))
        for failure in outcome.failures:
            print(failure)
        if problem.settings.data_limit is not None:
            print(f"Trained on at most {problem.settings.data_limit} images of {problem.settings.data}.")
        print(f"Everything is in {folder}; `nas show {folder} --trial N` shows a member in full.")
    if outcome.certificate_broken:
        for each in outcome.document["members"]:
            if each["certificate"]["kept"] is False:
                print(f"nas: trial {each['trial']}: {each['certificate']['why']}", file=sys.stderr)
        return BROKEN_CERTIFICATE
    return DONE


def resume(name: str, more_trials: int | None, changed: Mapping[str, Any], *, accept_table: bool, view: View) -> int:
    """`nas resume`: the rest of a study, or more of it; under a changed latency table only where that is accepted."""
    from nas.driver import reopened

    folder = study_folder(name, view)
    settings = extended_settings(read_study_file(folder), more_trials, changed)
    return _run(reopened(settings, folder, accept_table=accept_table), folder, view)


def show(name: str, trial: int | None, view: View) -> int:
    """`nas show`: the front, or one member."""
    folder = study_folder(name, view)
    document = read_front(folder)
    if trial is None:
        if view.json:
            print(json.dumps(document, indent=2, allow_nan=False))
        else:
            from nas.console import print_front
            from nas.report import worth

            print_front(document)
            print(worth(document))
        return DONE
    each = next((each for each in document["members"] if each["trial"] == trial), None)
    if each is None:
        known = ", ".join(str(each["trial"]) for each in document["members"])
        raise ConfigError(f"trial: {trial} is not on the front of {document['study']}; its members are {known}")
    if view.json:
        print(json.dumps(each, indent=2, allow_nan=False))
        return DONE
    settings = read_study_file(folder)
    space_named(settings.space)  # one of the user's own registers the families of its members
    target = study_target(settings, folder)
    print_kernels(predicted(spec_from_dict(each["spec"]), target), target)
    latency = each["latency_ms"]
    print(f"latency   {interval_text(latency)}; {latency['table']}")
    print(f"macs      {each['macs']:,}")
    print(f"params    {each['params']:,}")
    print(f"memory    {each['peak_memory_bytes']:,} bytes at most, weights included")
    accuracy = each["accuracy"]
    seen = f"{accuracy['images']} {accuracy['split']} images after {accuracy['epochs']} epochs"
    print(f"accuracy  {accuracy['value']:.4f} on {seen}")
    print(
        f"test      {each['test_accuracy']['value']:.4f} on {each['test_accuracy']['images']} images that chose nothing"
    )
    print(f"parity    {each['parity']['max_abs']:.2e} absolute, {each['parity']['max_rel']:.2e} relative")
    print(f"promise   {each['certificate']['why']}")
    for file in each["files"].values():
        print(f"file      {folder / file['path']}")
    return DONE
