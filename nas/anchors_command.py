"""`nas profile --anchors`: a calibrated target on a board of the user's own, by a few networks measured there."""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import yaml

from hardware.anchors import Anchor, AnchorFile, Rescaled, anchors_path, rescale
from hardware.bundle import import_results, write_bundle
from hardware.job_results import JobResults, load_results
from hardware.kernels import fuse
from hardware.latency_table import Tier, kernel_sums
from hardware.profiling import ROUNDS, Bench, Profile, Subject, prepare
from hardware.runtimes import RUNTIMES
from hardware.strict_yaml import ConfigError
from hardware.targets import Target, boards_folder, load_target
from nas.console import observer, print_table
from nas.device_commands import network_graph
from nas.exit_codes import DONE
from nas.files import write_atomically
from nas.profile_command import Way, remember, transport_by
from nas.tables import with_time_left
from nas.view import View
from searchspace.references import reference

# From some milliseconds to a second on the slower boards; convolutions of all kinds that the spaces have.
ANCHORS = (
    *("rdpnet_x0_25_cifar", "rdpnet_x0_5_cifar", "rdpnet_x1_0_cifar", "mobilenet_v3_small"),
    *("mixmobilenet_xxs", "mobilenet_v2", "resnet18"),
)


def profile_anchors(base: str, threads: int, *, way: Way, view: View) -> int:
    """Measures the networks that are not measured yet, rescales the target and says what error that leaves."""
    target = load_target(base, threads=threads)
    if target.tier is not Tier.calibrated:
        raise ConfigError(f"target: --anchors rescales a calibrated target, and {base} is measured; leave it out")
    name = f"my-{base}"
    folder = boards_folder() / name / "anchors" / f"{threads}t"
    subjects = [Subject(each, network_graph(reference(each))) for each in ANCHORS]
    bench = Bench("ncnn", threads, None, RUNTIMES["ncnn"].write_timed)
    refused = prepare(Profile((), subjects, target.fusion_rules), folder, bench, time_s=None)
    if way.bundle is not None:
        if not way.bundle.parent.is_dir():
            raise ConfigError(f"{way.bundle}: the folder {way.bundle.parent} must be there; make it, or name another")
        write_bundle(folder, way.bundle)
        if view.json:
            print(json.dumps({"bundle": str(way.bundle), "models": len(subjects) - len(refused)}))
        else:
            print(
                f"{way.bundle} holds {len(subjects) - len(refused)} models. Carry it to the board, unpack it, follow "
                f"its README.txt, bring the results back: nas profile --target {base} --anchors --import FILE"
            )
        return DONE
    if way.brought is not None:
        results = import_results(way.brought, folder)
    else:
        with observer(view.quiet) as watching:
            transport_by(name, way).measure(folder, with_time_left(watching.measuring, math.inf))
        results = load_results(folder)
        remember(name, way)
    measured = anchor_file(target, threads, results, {each.name: each for each in subjects})
    path = anchors_path(boards_folder() / name, threads)
    write_atomically(path, yaml.safe_dump(measured.model_dump(), sort_keys=False))
    found = rescale(measured.networks)
    if view.json:
        document = {"target": name, "factor": found.factor, "leave_one_out_mape_percent": found.mape_percent}
        print(json.dumps(document | {"networks": measured.model_dump()["networks"]}, indent=2))
    else:
        _print(name, base, measured, found, path)
    return DONE


def anchor_file(target: Target, threads: int, results: JobResults, subjects: Mapping[str, Subject]) -> AnchorFile:
    """What was measured beside what the target predicts: the median of a network's rounds.

    Raises:
        ConfigError: too few of the networks were measured.
    """
    networks = {}
    for name, subject in subjects.items():
        rounds = [results.timings.get(f"c{number + 1}-{name}") for number in range(ROUNDS)]
        known = [each.median_ms for each in rounds if each is not None]
        if known:
            sums = kernel_sums(target.latency_model, fuse(subject.graph, target.fusion_rules))
            networks[name] = Anchor(measured_ms=statistics.median(known), predicted_ms=sums.total_ms)
    rescale(networks)
    machine = results.started
    return AnchorFile(
        base=target.name,
        base_sha256=target.sha256,
        threads=threads,
        runtime_version=machine.runtime_version,
        device=machine.board or machine.os,
        cpu=machine.cpu or "unknown",
        date=machine.date,
        networks=networks,
    )


def _print(name: str, base: str, measured: AnchorFile, found: Rescaled, path: Path) -> None:
    rows = (
        [
            network,
            f"{each.measured_ms:.4g}",
            f"{each.predicted_ms * found.factor:.4g}",
            f"{100 * (1 / found.ratios[network] - 1):+.1f} %",
        ]
        for network, each in measured.networks.items()
    )
    print_table(f"{name}: {base} x {found.factor:.3f}", ("network", "measured ms", "rescaled ms", "left out"), rows)
    print(f"error     {found.mape_percent:.1f} % on average, each network predicted without itself")
    print(f"kept in   {path}; `nas search --target {name}` uses it")
