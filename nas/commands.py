"""What each command does once its words are understood: one call into the library, then a table or JSON."""

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hardware.cost import cost, receptive_field
from hardware.graph import DeployGraph
from hardware.kernels import fuse
from hardware.latency_table import Tier, kernel_sums
from hardware.profiled_table import ProfiledModel
from hardware.strict_yaml import ConfigError, load_yaml, nearest
from hardware.targets import Target, known_targets, load_target, published_boards, published_rows
from nas.cli import BROKE, BROKEN_CERTIFICATE, DONE, INTERRUPTED
from nas.members import latency_json, read_front
from nas.problem import Problem
from nas.settings import RUN_SETTINGS, STUDY_FILE, StudyDraft, StudySettings, read_study_file
from nas.study_table import study_target
from searchspace.network import deploy_graph
from searchspace.references import reference, reference_names
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec, SpecError, read_spec, spec_from_dict, spec_id, spec_to_dict


@dataclass(frozen=True, slots=True)
class View:
    """Where studies are kept and how a person wants to be told."""

    studies: Path
    json: bool
    quiet: bool


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


def checked_settings(values: Mapping[str, Any]) -> StudySettings:
    """The settings, or what is wrong with them in one line.

    Raises:
        ConfigError: a value breaks its rule.
    """
    try:
        return StudySettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = ".".join(map(str, first["loc"])).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        got = "" if "got" in message else f", got {first['input']!r}"
        raise ConfigError(f"{flag}: {message}{got}") from error


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


def study_folder(name: str, view: View) -> Path:
    """The folder of a study given by name or path.

    Raises:
        ConfigError: there is no such study; the message lists those that are there.
    """
    for folder in (view.studies / name, Path(name)):
        if (folder / STUDY_FILE).exists():
            return folder
    known = sorted(path.parent.name for path in view.studies.glob(f"*/{STUDY_FILE}"))
    listed = f"known in {view.studies}: {', '.join(known)}" if known else f"there are none in {view.studies}"
    raise ConfigError(f"study: no study {name!r}; {listed}; one elsewhere is given by its folder")


def resume(name: str, more_trials: int | None, changed: Mapping[str, Any], *, accept_table: bool, view: View) -> int:
    """`nas resume`: the rest of a study, or more of it; under a changed latency table only where that is accepted."""
    from nas.driver import reopened

    folder = study_folder(name, view)
    record = read_study_file(folder)
    values = record.settings().model_dump() | {"time": None, "training_time": None} | dict(changed)
    if more_trials is not None:
        if more_trials < 1:
            raise ConfigError(f"trials: at least 1 more, got {more_trials}")
        values["trials"] = record.trials + more_trials
    settings = checked_settings(values)
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
    _print_kernels(predicted(spec_from_dict(each["spec"]), target), target)
    latency = each["latency_ms"]
    print(f"latency   {_interval(latency)}; {latency['table']}")
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


def read_any_spec(text: str, view: View) -> ArchSpec:
    """The network that a spec file, STUDY:TRIAL or the name of a published network names.

    Raises:
        SpecError: there is none.
    """
    study, colon, trial = text.rpartition(":")
    if colon and trial.isdigit():
        folder = study_folder(study, view)
        path = folder / "models" / trial / "spec.yaml"
        if not path.exists():
            raise SpecError(f"{text}: trial {trial} of {study} was not trained, so there is no model of it")
        space_named(read_study_file(folder).space)  # as for `show`
        return read_spec(path)
    if Path(text).is_file():
        return read_spec(Path(text))
    if text in reference_names():
        return reference(text)
    hint = nearest(text, list(reference_names()))
    raise SpecError(f"spec: {text!r} is no spec file, no STUDY:TRIAL and no published network; {hint}")


def predicted(spec: ArchSpec, target: Target) -> dict[str, Any]:
    """What is known of a network before it is built, with a line per kernel."""
    graph = network_graph(spec)
    own = cost(graph)
    field = receptive_field(graph)
    kernels = fuse(graph, target.fusion_rules)
    latencies = [target.latency_model.kernel(kernel) for kernel in kernels]
    total = target.latency_model.network(kernel_sums(target.latency_model, kernels))
    return {
        "spec_id": spec_id(spec),
        "spec": spec_to_dict(spec),
        "params": own.params,
        "macs": own.macs,
        "peak_memory_bytes": own.peak_memory_bytes,
        "receptive_field": {"height": field.height, "width": field.width, "jump": float(field.jump)},
        "latency_ms": latency_json(total),
        "kernels": [
            {"kernel": kernel.key, "latency_ms": each.value_ms, "tier": each.tier.value, "why": each.why}
            for kernel, each in zip(kernels, latencies, strict=True)
        ],
    }


def network_graph(spec: ArchSpec) -> DeployGraph:
    """What a device runs for a spec that a person wrote.

    Raises:
        SpecError: its blocks do not fit each other.
    """
    try:
        return deploy_graph(spec)
    except ValueError as error:
        raise SpecError(f"spec {spec_id(spec)}: {error}") from error


def predict(text: str, target_name: str, threads: int, runtime: str | None, view: View) -> int:
    """`nas predict`: everything static about a network."""
    target = load_target(target_name, threads=threads, runtime=runtime)
    found = predicted(read_any_spec(text, view), target)
    if view.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _print_prediction(found, target)
    return DONE


def _print_prediction(found: Mapping[str, Any], target: Target) -> None:
    _print_kernels(found, target)
    field = found["receptive_field"]
    print(f"latency   {_interval(found['latency_ms'])}")
    print(f"macs      {found['macs']:,}")
    print(f"params    {found['params']:,}")
    print(f"memory    {found['peak_memory_bytes']:,} bytes at most, weights included")
    print(f"sees      {field['height']}x{field['width']} pixels, every {field['jump']:g}")


def _print_kernels(found: Mapping[str, Any], target: Target) -> None:
    from nas.console import print_table

    rows = ([each["kernel"], f"{each['latency_ms']:.4f}", each["tier"]] for each in found["kernels"])
    print_table(f"{found['spec_id']} on {target.latency_model.table}", ("kernel", "ms", "tier"), rows)
    if target.tier is Tier.calibrated:
        print("Only totals of whole networks were checked; a line per kernel is its share of the calibrated sum.")


def _interval(latency: Mapping[str, Any]) -> str:
    return f"{latency['value']:.3f} ms, expected {latency['low']:.3f} to {latency['high']:.3f}, {latency['tier']}"


def measure(text: str, target_name: str, threads: int, runtime: str | None, view: View) -> int:
    """`nas measure`: a network or a model file, run on the device."""
    from nas.certificates import measure_graph, measure_onnx

    target = load_target(target_name, threads=threads, runtime=runtime)
    if text.endswith(".onnx"):
        timing = measure_onnx(target, Path(text))
    else:
        timing = measure_graph(target, network_graph(read_any_spec(text, view)), text)
    found = {
        "model": text,
        "target": target.name,
        "runtime": f"{target.runtime} {target.runtime_version}",
        "threads": threads,
        "tier": "measured",
        "latency_ms": {"median": timing.median_ms, "spread": timing.spread_ms, "p90": timing.p90_ms},
        "runs": timing.runs,
        "disturbed": timing.disturbed,
    }
    if view.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print(
            f"{timing.median_ms:.4f} ms measured: median of {timing.runs} runs, spread {timing.spread_ms:.4f} ms "
            f"(interquartile), 90 % within {timing.p90_ms:.4f} ms; {found['runtime']}, threads: {threads}"
        )
        if timing.disturbed:
            print("Something else kept the machine busy meanwhile, in every attempt.", file=sys.stderr)
    return DONE


def targets(name: str | None, view: View) -> int:
    """`nas targets`: the devices that are known."""
    from nas.console import print_table

    rows = [
        row for known in (known_targets() if name is None else (load_target(name).name,)) for row in _target_rows(known)
    ]
    totals = published_rows() if name is None else []
    if view.json:
        print(json.dumps({"targets": rows, "published_totals": totals}, indent=2, allow_nan=False))
        return DONE
    columns = ("name", "runtime", "threads", "tier", "n", "error", "checked ms")
    print_table("targets", columns, (_target_cells(row) for row in rows))
    if totals:
        print(
            "Published totals only, which no calibration meets; these predict nothing: " + ", ".join(published_boards())
        )
    if name is not None:
        about = load_target(name).about
        for title, text in (("device", about.device), ("about", about.description), ("protocol", about.protocol)):
            print(f"{title:9} {text}")
        print(f"source    {about.provenance.source}, {about.provenance.date}, {about.provenance.licence}")
        print(f"method    {about.provenance.method}")
        for row in rows:
            if row["outside_ratios"] is not None:
                low, high = row["outside_ratios"]
                print(
                    f"beyond    at {row['threads']} threads {low:.2f} to {high:.2f} times what is predicted, as its "
                    "smallest published networks and the errors of all need"
                )
    return DONE


def _target_cells(row: Mapping[str, Any]) -> list[str]:
    known = [row["name"], row["runtime"], str(row["threads"]), row["tier"]]
    error = row["leave_one_out_mape_percent"] or row["held_out_mape_percent"]
    if error is None:
        return [*known, "-", "-", "-"]
    return [*known, str(row["networks"]), f"{error:.1f} %", f"{row['fastest_ms']:.4g}-{row['slowest_ms']:.4g}"]


def _target_rows(name: str) -> list[dict[str, Any]]:
    first = load_target(name)
    rows = []
    for threads in first.supported_threads:
        target = load_target(name, threads=threads)
        errors, model = target.errors, target.latency_model
        measured = model.profiled.certificates.values() if isinstance(model, ProfiledModel) else ()
        rows.append(
            {
                "name": target.name,
                "device": target.about.device,
                "runtime": f"{target.runtime} {target.runtime_version}",
                "threads": threads,
                "tier": target.tier.value,
                "networks": errors.networks if errors else sum(each.networks for each in measured) or None,
                "leave_one_out_mape_percent": errors.mape_percent if errors else None,
                # Of the space that was foretold worst.
                "held_out_mape_percent": max((each.mape_percent for each in measured), default=None),
                "fastest_ms": errors.fastest_ms
                if errors
                else min((each.fastest_ms for each in measured), default=None),
                "slowest_ms": errors.slowest_ms
                if errors
                else max((each.slowest_ms for each in measured), default=None),
                "outside_ratios": [errors.outside_low_ratio, errors.outside_high_ratio] if errors else None,
                "table": model.table,
            }
        )
    return rows
