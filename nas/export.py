"""Trained members as folders that stand alone: written in each format, run again from the files, and described.

A folder under its final name is whole. A file that does not compute what the trained network computes is left out of
it, and its manifest says so.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from evaluators.datasets import Dataset
from hardware.graph import DeployModel, FloatArray
from hardware.isolated import Failed, run_isolated
from hardware.onnx_int8 import Int8Method, quantize
from hardware.onnx_model import INPUT_NAME, OPSET, OUTPUT_NAME
from hardware.parity import difference
from hardware.runners import onnxruntime
from hardware.strict_yaml import ConfigError
from nas.examples import PREPROCESSING, ExampleFacts, example, preprocessing, script_name
from nas.export_formats import Format, Subject, library_versions
from nas.finalists import PARITY_IMAGES, logits, onnx_metadata
from nas.members import read_front
from nas.problem import DataKey, dataset
from nas.run_record import RUN_JSON, read_run_record
from nas.settings import StudyFile, read_study_file, versions
from searchspace.network import build_network, deploy
from searchspace.spaces import space_named
from searchspace.spec import read_spec

MANIFEST, SPEC, WEIGHTS, SAMPLE, INT8 = (
    "manifest.json",
    "spec.yaml",
    "weights.safetensors",
    "sample.png",
    "model.int8.onnx",
)

# For one file and all its images.
RUN_TIMEOUT_S = 300.0

# Training images whose activations set the ranges of eight bits.
CALIBRATION_IMAGES = 256

# What lost least in studies/int8.
INT8_METHOD = Int8Method()


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What is to be written; batch None leaves it free, max_drop None writes nothing in eight bits.

    `max_drop` is how much validation accuracy eight bits may cost, as a share of the images.
    """

    formats: tuple[Format, ...]
    batch: int | None
    max_drop: float | None


@dataclass(frozen=True, slots=True)
class Exported:
    """A member's manifest, and the folder that it lies in; folder None where no format could be written."""

    trial: int
    folder: Path | None
    manifest: dict[str, Any]

    @property
    def problems(self) -> list[str]:
        """Why formats were left out, one line each."""
        entries = {**self.manifest["formats"], "int8": self.manifest.get("int8", {})}
        return [f"trial {self.trial}: {name}: {each['refused']}" for name, each in entries.items() if "refused" in each]


@dataclass(frozen=True, slots=True)
class TrainedStudy:
    """A study whose trained networks can be taken out: its record, front.json, data and finalists by trial."""

    folder: Path
    record: StudyFile
    front: Mapping[str, Any]
    data: Dataset
    finalists: Mapping[int, Mapping[str, Any]]


def open_trained(folder: Path) -> TrainedStudy:
    """The study in a folder, with its images.

    Raises:
        ConfigError, DataError: it has no front yet, or its images have changed or are gone.
    """
    record, front = read_study_file(folder), read_front(folder)
    space_named(record.space)  # one of the user's own registers the families of its members
    data = dataset(DataKey(record.data, record.seed, record.data_limit))
    if data.fingerprint != record.data_fingerprint:
        raise ConfigError(
            f"study {record.study}: the images of {record.data} have changed since it began; restore them"
        )
    members = [*front["members"]]
    if (folder / RUN_JSON).exists():
        members += read_run_record(folder)["finalists"]
    return TrainedStudy(folder, record, front, data, {each["trial"]: each for each in reversed(members)})


def chosen_trials(study: TrainedStudy, trials: Sequence[int] | None) -> tuple[int, ...]:
    """The trials asked for, or for None those of the front.

    Raises:
        ConfigError: one was not trained, or the front is empty.
    """
    if trials is None:
        trials = [each["trial"] for each in study.front["members"]]
        if not trials:
            raise ConfigError(f"study {study.record.study}: its front is empty, so there is nothing to export")
    known = ", ".join(map(str, sorted(study.finalists)))
    for trial in trials:
        if trial not in study.finalists:
            raise ConfigError(f"trial: {trial} of {study.record.study} has no trained model; those that have: {known}")
    return tuple(dict.fromkeys(trials))


def check_destination(out: Path, *, force: bool) -> None:
    """Makes sure that nothing of the user's is written over.

    Raises:
        ConfigError: `out` is a file, or a folder with something in it and `force` is not given.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConfigError(f"out: {out} is not empty; give another folder, or --force to replace members in it")


def export_members(
    study: TrainedStudy,
    trials: Sequence[int],
    plan: ExportPlan,
    out: Path,
    on_format: Callable[[str], None] = lambda name: None,
) -> list[Exported]:
    """Writes a folder for each trial into `out`, in place of one that was there; `on_format` hears what is at work.

    Raises:
        ConfigError: a model's files are not those that the study certified.
    """
    works = [_work(study, trial, plan, out / f".{trial}.partial") for trial in trials]
    try:
        for work in works:
            shutil.rmtree(work.folder, ignore_errors=True)
            work.folder.mkdir(parents=True)
        for each in plan.formats:
            on_format(each.name)
            _write_and_check(each, works)
        if plan.max_drop is not None:
            on_format("int8")
            for work in works:
                _add_int8(work, study, plan.max_drop)
        return [_finished(work, study, plan, out) for work in works]
    finally:
        for work in works:
            shutil.rmtree(work.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Work:
    """A member on its way into `folder`; `formats` and `int8` fill up with what the manifest says of them."""

    trial: int
    member: Mapping[str, Any]
    folder: Path
    subject: Subject
    images: FloatArray
    image_count: Mapping[str, int]
    expected: FloatArray
    formats: dict[str, dict[str, Any]]
    int8: dict[str, Any]

    @property
    def model(self) -> DeployModel:
        return self.subject.model

    @property
    def facts(self) -> ExampleFacts:
        return ExampleFacts(self.model.graph.input_shape, self.subject.batch)


def _work(study: TrainedStudy, trial: int, plan: ExportPlan, folder: Path) -> _Work:
    member = study.finalists[trial]
    models = study.folder / "models" / str(trial)
    for name in (SPEC, WEIGHTS):
        if not (models / name).is_file() or _sha256(models / name) != member["files"][name]["sha256"]:
            raise ConfigError(f"{models / name}: gone, or not what the study certified; `nas resume {study.folder}`")
    network = build_network(read_spec(models / SPEC), 0)
    network.load_state_dict(load_file(models / WEIGHTS))
    network.eval()
    accuracy = member["accuracy"]
    reached = (
        f"{accuracy['value']:.4f} on {accuracy['images']} {accuracy['split']} images after {accuracy['epochs']} epochs"
    )
    title = f"Trial {trial} of study {study.record.study}: accuracy {reached}."
    subject = Subject(deploy(network), title, onnx_metadata(study.data, network.spec, reached), plan.batch)
    images, counted = parity_images(study.data, network.spec.input_shape[1], plan.batch or 1)
    expected = logits(network, images)
    return _Work(trial, member, folder, subject, images.numpy(), counted, expected, {}, {})


def parity_images(data: Dataset, resolution: int, batch: int) -> tuple[Any, dict[str, int]]:
    """At least `PARITY_IMAGES` images in whole batches, and how many of them are from which split.

    Validation images come first. Where there are too few, training images fill up, and after them the same again: the
    forms of one network are compared, so that nothing is learnt from them.
    """
    import torch

    splits = data.at(resolution)
    count = -(-PARITY_IMAGES // batch) * batch
    real = torch.cat([splits.val_x[:count], splits.train_x[: max(0, count - len(splits.val_x))]])
    validation = min(count, len(splits.val_x))
    counted = {"validation": validation, "training": len(real) - validation}
    return real[torch.arange(count) % len(real)], counted


def _write_and_check(chosen: Format, works: Sequence[_Work]) -> None:
    refused = chosen.write([(work.subject, work.folder) for work in works])
    for work, why in zip(works, refused, strict=True):
        work.formats[chosen.name] = {"files": list(chosen.files)} if why is None else {"refused": why.reason}
    written = [work for work in works if "refused" not in work.formats[chosen.name]]
    calls = [(work.folder / file, work.images) for work in written for file in chosen.checked]
    outputs = run_isolated(chosen.run, calls, timeout_s=RUN_TIMEOUT_S)
    for work in written:
        entry = work.formats[chosen.name]
        entry["parity"] = {file: compared(work.expected, next(outputs)) for file in chosen.checked}
        entry["images"] = dict(work.image_count)
        wrong = [f"{file}: {each['why']}" for file, each in entry["parity"].items() if not each["same"]]
        if wrong:
            entry["refused"] = "; ".join(wrong)
    for work in works:
        if "refused" in work.formats[chosen.name]:
            for file in chosen.files:
                (work.folder / file).unlink(missing_ok=True)
            work.formats[chosen.name].pop("files", None)
        else:
            script = work.folder / script_name(chosen.name)
            script.write_text(example(chosen.name, work.facts), encoding="utf-8")
            work.formats[chosen.name]["example"] = script.name


def compared(expected: FloatArray, computed: FloatArray | Failed) -> dict[str, Any]:
    """How far a file's outputs are from the trained network's: largest differences, and how often both agree in top-1.

    Files within the bound can differ in top-1 only where the two best classes are as close as the bound.
    """
    if isinstance(computed, Failed):
        return {"same": False, "why": computed.reason}
    parity = difference(expected, computed)
    if not np.isfinite(parity.max_abs):
        return {"same": False, "why": "its outputs are not finite, or have another shape"}
    found: dict[str, Any] = {
        "same": parity.is_same,
        "max_abs": parity.max_abs,
        "max_rel": parity.max_rel,
        "top1_agreement": float((expected.argmax(1) == computed.argmax(1)).mean()),
    }
    if not parity.is_same:
        found["why"] = (
            f"differs from the trained network by {parity.max_rel:.1e} of the largest output, "
            f"top-1 agrees on {found['top1_agreement']:.1%}"
        )
    return found


def _add_int8(work: _Work, study: TrainedStudy, max_drop: float) -> None:
    if "refused" in work.formats["onnx"]:
        work.int8["refused"] = "there is no float model to make it of"
        return
    splits = study.data.at(work.model.graph.input_shape[1])
    float_file, int8_file = work.folder / "model.onnx", work.folder / INT8
    images = splits.train_x[:CALIBRATION_IMAGES].numpy()
    answer = quantize(float_file, int8_file, images, INT8_METHOD)
    if isinstance(answer, Failed):
        work.int8["refused"] = answer.reason
        return
    labels = splits.val_y.numpy()
    # Whole batches for a model of a fixed one.
    batch = work.subject.batch or 1
    padded = splits.val_x.numpy()[np.arange(-(-len(labels) // batch) * batch) % len(labels)]
    accuracies = []
    for output in run_isolated(onnxruntime.run, [(float_file, padded), (int8_file, padded)], timeout_s=RUN_TIMEOUT_S):
        if isinstance(output, Failed):
            int8_file.unlink()
            work.int8["refused"] = output.reason
            return
        accuracies.append(float((output[: len(labels)].argmax(1) == labels).mean()))
    before, after = accuracies
    work.int8.update(
        {
            "files": [INT8],
            "method": str(INT8_METHOD),
            "calibration_images": {"training": len(images)},
            "accuracy_before": before,
            "accuracy_after": after,
            "validation_images": len(labels),
            "max_drop": max_drop,
        }
    )
    if before - after > max_drop:
        int8_file.unlink()
        del work.int8["files"]
        work.int8["refused"] = f"accuracy falls from {before:.4f} to {after:.4f}, by more than --max-drop {max_drop:g}"


def _finished(work: _Work, study: TrainedStudy, plan: ExportPlan, out: Path) -> Exported:
    standing = [name for name, entry in work.formats.items() if "refused" not in entry]
    if standing:
        shutil.copyfile(study.folder / "models" / str(work.trial) / SPEC, work.folder / SPEC)
        _write_sample(study.data, work.folder / SAMPLE)
        (work.folder / PREPROCESSING).write_text(preprocessing(work.facts), encoding="utf-8")
    manifest = _manifest(work, study, plan)
    if not standing:
        return Exported(work.trial, None, manifest)
    (work.folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    final = out / str(work.trial)
    with set_aside(final):
        work.folder.replace(final)
    return Exported(work.trial, final, manifest)


@contextlib.contextmanager
def set_aside(final: Path) -> Iterator[None]:
    """Moves a folder out of the way until what takes its place has its name, and back if that never comes."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if final.exists():
            final.replace(old)
        yield
    finally:
        # Ctrl-C can come anywhere in between.
        if old.exists() and not final.exists():
            old.replace(final)
        shutil.rmtree(old, ignore_errors=True)


def _manifest(work: _Work, study: TrainedStudy, plan: ExportPlan) -> dict[str, Any]:
    graph, data = work.model.graph, study.data
    left_out = {"spec", "files", "parity"}
    manifest: dict[str, Any] = {name: value for name, value in study.front.items() if name != "members"}
    manifest |= {name: value for name, value in work.member.items() if name not in left_out}
    manifest |= {
        "input": {"name": INPUT_NAME, "ncnn_name": "in0", "shape": [plan.batch or "batch", *graph.input_shape]},
        "output": {"name": OUTPUT_NAME, "ncnn_name": "out0", "shape": [plan.batch or "batch", *graph.output_shape]},
        "opset": OPSET,
        "classes": list(data.class_names),
        "preprocessing": {
            "colour": "grey" if data.channels == 1 else "RGB",
            "resize": f"centre square, bilinear with antialiasing to {graph.input_shape[2]}x{graph.input_shape[1]}",
            "scale": "pixel / 255, minus mean, divided by std",
            "layout": "batch, channels, height, width; float32",
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "formats": work.formats,
    }
    if work.int8:
        manifest["int8"] = work.int8
    manifest["versions"] = versions() | library_versions(plan.formats)
    manifest["files"] = {
        path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(work.folder.iterdir())
    }
    return manifest


def _write_sample(data: Dataset, path: Path) -> None:
    """A validation image for the examples, as it was read."""
    from PIL import Image

    pixels = data.validation_image(0).transpose(1, 2, 0)
    Image.fromarray(pixels[:, :, 0] if data.channels == 1 else np.ascontiguousarray(pixels)).save(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
