"""Finalists measured whole on the device itself: fused as they are deployed and, beside it, as they were trained."""

import logging
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from hardware.adb import AdbPython
from hardware.board import SAMPLES
from hardware.graph import DeployGraph
from hardware.isolated import Failed
from hardware.job_folder import SUFFIXES, Job, JobInput, JobList, JobProtocol, write_jobs
from hardware.job_results import JobResults, JobTiming, has_results, load_results
from hardware.latency_table import Latency, Tier
from hardware.onnx_model import INPUT_NAME, OUTPUT_NAME
from hardware.profiling import ENDS
from hardware.runners import onnxruntime as onnx_runner
from hardware.runtimes import RUNTIMES
from hardware.strict_yaml import ConfigError, load_yaml
from hardware.targets import Target, boards_folder
from hardware.transports import Local, Ssh, Transport
from searchspace.network import build_network, deploy_graph
from searchspace.spec import ArchSpec, read_spec

logger = logging.getLogger(__name__)

# Longer than networks are timed for a table, and in rounds, since a single median moves by some per cent.
PROTOCOL = JobProtocol(warmup_s=0.1, min_runs=30, min_s=0.3, max_s=5.0, sentinel_every=6, retries=3)
ROUNDS = 3
ONE_MODEL = JobProtocol(warmup_s=0.1, min_runs=50, min_s=1.0, max_s=30.0, retries=2)


class Connection(BaseModel):
    """How a board was reached when it was measured, so that finalists can be measured there as well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ssh: str | None = None
    adb: str | None = None
    adb_python: str = "python3"


@dataclass(frozen=True, slots=True)
class Measured:
    """A member on the device: as it is deployed, and as it was trained in ms where that could be timed."""

    fused: Latency
    unfused_ms: float | None


def connection_path(target: str) -> Path:
    """Where it is kept how a board was reached."""
    return boards_folder() / target / "connection.yaml"


def transport_to(target: str) -> Transport | None:
    """The way to a device; None where none is known, as for boards that nobody here has.

    Raises:
        ConfigError: what is kept of the way is damaged.
    """
    if target == "host":
        return Local()
    path = connection_path(target)
    if not path.exists():
        return None
    known = load_yaml(path, Connection)
    if known.ssh is not None:
        return Ssh(known.ssh)
    return AdbPython(known.adb, known.adb_python) if known.adb is not None else None


def measure_members(target: Target, models: Mapping[int, Path], folder: Path) -> dict[int, Measured]:
    """The members, by trial, measured on the device; none where there is no way to it. Files go into `folder`.

    Each of models is a folder with spec.yaml and model.onnx, which is the very file that ONNX Runtime is timed with;
    other runtimes are given the same network in their own form, with weights that take as long. What was measured of
    the same members before counts; with others, everything is measured anew. A member that the device cannot run is
    missing, which is logged.

    Raises:
        ConfigError, TransportError: the device cannot be reached or cannot measure.
    """
    transport = transport_to(target.name)
    if transport is None or not models:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _write(target, models, folder)
    write_jobs(folder, jobs)
    _forget_others(folder)
    transport.measure(folder, lambda progress: None)
    results = load_results(folder)
    found = {}
    for trial in models:
        fused = _timed(results, f"fused-{trial}")
        if fused is None:
            why = results.errors.get(f"fused-{trial}-1", "it was not measured")
            logger.warning("trial %s does not run on %s: %s", trial, target.name, why)
            continue
        unfused = _timed(results, f"unfused-{trial}")
        found[trial] = Measured(
            Latency(*fused, Tier.measured, f"{target.latency_model.table}, timed whole"),
            unfused[0] if unfused is not None else None,
        )
    return found


def _forget_others(folder: Path) -> None:
    """Removes results that are not of the folder's jobs: the front of a study changes as it goes on."""
    if has_results(folder):
        try:
            load_results(folder)
        except ConfigError:
            (folder / SAMPLES).unlink()


def measure_graph(target: Target, graph: DeployGraph, name: str) -> JobTiming:
    """A network on the device; `name` stands for it in messages.

    Raises:
        ConfigError: there is no way to the device, or its runtime cannot run the network.
        TransportError: the way to the device failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIXES[target.about.runtime]}"
        (written,) = RUNTIMES[target.about.runtime].write_timed([(graph, path)])
        if isinstance(written, Failed):
            raise ConfigError(f"{name}: {target.runtime} cannot take it ({written.reason})")
        entering, leaving = ENDS[target.about.runtime]
        inputs = (JobInput(name=entering, shape=(1, *graph.input_shape)),)
        return _measure_file(target, path, inputs, leaving, name)


def measure_onnx(target: Target, model: Path) -> JobTiming:
    """A model file on the device, at batch 1.

    Raises:
        ConfigError: the file is no model of fixed shapes, or the target does not run such files.
        TransportError: the way to the device failed.
    """
    if target.about.runtime != "onnxruntime":
        raise ConfigError(f"{model}: {target.runtime} reads no ONNX; measure it with --runtime onnxruntime")
    if not model.is_file():
        raise ConfigError(f"{model}: no such file")
    entries, leaving = onnx_runner.inputs_and_output(model)
    inputs = tuple(JobInput(name=name, shape=shape) for name, shape in entries)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        shutil.copyfile(model, copy)
        return _measure_file(target, copy, inputs, leaving, str(model))


def _measure_file(target: Target, path: Path, inputs: tuple[JobInput, ...], leaving: str, name: str) -> JobTiming:
    transport = transport_to(target.name)
    if transport is None:
        raise ConfigError(
            f"target: {target.name} cannot be measured from here; `nas predict` has its figures, `nas profile --target "
            "NAME --ssh HOST` makes a board of your own known"
        )
    job = Job(id="model", file=path.name, inputs=inputs, output=leaving)
    jobs = JobList(
        runtime=target.about.runtime,
        threads=target.threads,
        cpus=None,
        protocol=ONE_MODEL,
        sentinel="model",
        jobs=(job,),
    )
    write_jobs(path.parent, jobs)
    transport.measure(path.parent, lambda progress: None)
    results = load_results(path.parent)
    if "model" in results.errors:
        raise ConfigError(f"{name}: {target.runtime} cannot run it ({results.errors['model']})")
    return results.timings["model"]


def _write(target: Target, models: Mapping[int, Path], folder: Path) -> JobList:
    runtime = target.about.runtime
    entering, leaving = ENDS[runtime]
    specs = {trial: read_spec(model / "spec.yaml") for trial, model in models.items()}
    files = {f"fused-{trial}": folder / f"fused-{trial}{SUFFIXES[runtime]}" for trial in models}
    if runtime == "onnxruntime":
        for trial, model in models.items():
            shutil.copyfile(model / "model.onnx", files[f"fused-{trial}"])
            files[f"unfused-{trial}"] = folder / f"unfused-{trial}.onnx"
            write_train_form(specs[trial], files[f"unfused-{trial}"])
    else:
        fused = [(deploy_graph(spec), files[f"fused-{trial}"]) for trial, spec in specs.items()]
        written = RUNTIMES[runtime].write_timed(fused)
        for trial, answer in zip(models, written, strict=True):
            if isinstance(answer, Failed):
                raise ConfigError(f"trial {trial}: {target.runtime} cannot take it ({answer.reason})")
    shapes = {trial: (1, *spec.input_shape) for trial, spec in specs.items()}
    jobs = tuple(
        Job(
            id=f"{name}-{number}",
            file=path.name,
            inputs=(JobInput(name=entering, shape=shapes[int(name.partition("-")[2])]),),
            output=leaving,
        )
        for number in range(1, ROUNDS + 1)
        for name, path in files.items()
    )
    return JobList(
        runtime=runtime, threads=target.threads, cpus=None, protocol=PROTOCOL, sentinel=jobs[0].id, jobs=jobs
    )


def write_train_form(spec: ArchSpec, path: Path) -> None:
    """The network as it trains, with all its branches, as ONNX: what would run if nobody fused it."""
    network = build_network(spec, 0).eval()
    with warnings.catch_warnings():
        # The exporter that needs no further package is the older one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, *spec.input_shape),),
            path,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=17,
            dynamo=False,
        )


def _timed(results: JobResults, name: str) -> tuple[float, float, float] | None:
    """Median over the rounds, and an interval: half the widest spread below the fastest and above the slowest."""
    timings = [
        results.timings[job] for number in range(1, ROUNDS + 1) if (job := f"{name}-{number}") in results.timings
    ]
    if not timings:
        return None
    medians = [timing.median_ms for timing in timings]
    half = max(timing.spread_ms for timing in timings) / 2
    return statistics.median(medians), max(0.0, min(medians) - half), max(medians) + half
