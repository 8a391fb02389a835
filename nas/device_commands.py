"""`nas predict`, `measure` and `targets`: what networks take on devices, and what is known of the devices."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardware.cost import cost, receptive_field
from hardware.graph import DeployGraph
from hardware.kernels import fuse
from hardware.latency_table import Tier, kernel_sums
from hardware.profiled_table import ProfiledModel
from hardware.strict_yaml import nearest
from hardware.targets import Target, known_targets, load_target, published_boards, published_rows
from nas.exit_codes import DONE
from nas.members import latency_json
from nas.settings import read_study_file
from nas.view import View, study_folder
from searchspace.network import deploy_graph
from searchspace.references import reference, reference_names
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec, SpecError, read_spec, spec_id, spec_to_dict


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
    print_kernels(found, target)
    field = found["receptive_field"]
    print(f"latency   {interval_text(found['latency_ms'])}")
    print(f"macs      {found['macs']:,}")
    print(f"params    {found['params']:,}")
    print(f"memory    {found['peak_memory_bytes']:,} bytes at most, weights included")
    print(f"sees      {field['height']}x{field['width']} pixels, every {field['jump']:g}")


def print_kernels(found: Mapping[str, Any], target: Target) -> None:
    from nas.console import print_table

    rows = ([each["kernel"], f"{each['latency_ms']:.4f}", each["tier"]] for each in found["kernels"])
    print_table(f"{found['spec_id']} on {target.latency_model.table}", ("kernel", "ms", "tier"), rows)
    if target.tier is Tier.calibrated:
        print("Only totals of whole networks were checked; a line per kernel is its share of the calibrated sum.")


def interval_text(latency: Mapping[str, Any]) -> str:
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
