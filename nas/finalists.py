"""What becomes of the best candidates: trained to the end, folded, exported, and all forms held against each other."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from evaluators.accuracy import Accuracy, accuracy
from evaluators.datasets import Dataset, Splits
from evaluators.evaluator import Failure, failure_from
from hardware.onnx_model import to_onnx
from hardware.parity import Parity, difference
from hardware.runners import onnxruntime as runner
from nas.contenders import BROKEN_TRAINING, Climbed, TrainingPlan, climb
from nas.problem import dataset
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, deploy
from searchspace.spec import ArchSpec, deploy_id, spec_id, write_spec

# Images of the validation split on which trained, folded and exported forms are compared.
PARITY_IMAGES = 256


class NotFinite(Exception):
    """A form of a network computes values that are no numbers."""


@dataclass(frozen=True, slots=True)
class FinalistPlan:
    """What a worker needs to make a model of a candidate; `folder` is where its files go."""

    trial: int
    training: TrainingPlan
    folder: Path

    @property
    def spec(self) -> ArchSpec:
        return self.training.spec


def finalist_job(plan: FinalistPlan, before: Climbed | None = None) -> dict[str, Any] | Failure:
    """Trains, folds, exports and checks one candidate; what came of it, as it goes into the results, or why nothing.

    `before` is how far its training has come already, None where it begins here.
    """
    epochs = plan.training.epochs
    try:
        climbed, network = climb(plan.training, before, epochs)
    except BROKEN_TRAINING as error:
        return failure_from(error)
    data = dataset(plan.training.data)
    resolution = climbed.spec.input_shape[1]
    reached = climbed.reached
    held_out = data.test(resolution)
    tested = accuracy(network, held_out.x, held_out.y)
    try:
        with whole_or_not(plan.folder) as partial:
            parity = export(network, data, data.at(resolution), partial, accuracy_text(reached, epochs))
            if not all(math.isfinite(each.max_abs) for each in parity.values()):
                raise NotFinite
    except NotFinite:
        return Failure("its folded or exported form computes values that are not finite")
    return {
        "spec_id": spec_id(climbed.spec),
        "deploy_id": deploy_id(climbed.spec),
        "accuracy": reached.value,
        "loss": reached.loss,
        "calibration_error": reached.calibration_error,
        "images": reached.images,
        "test_accuracy": tested.value,
        "test_images": tested.images,
        "seconds": climbed.seconds,
        "files": file_hashes(plan.folder),
        "layouts_tried": climbed.layouts_tried,
        "folded": asdict(parity["folded"]),
        "onnxruntime": asdict(parity["onnxruntime"]),
    }


@dataclass(frozen=True, slots=True)
class Carried:
    """What `finalist_job` found, with the contents of its files by name, for a driver on another machine."""

    found: dict[str, Any]
    files: dict[str, bytes]


def carried_finalist_job(plan: FinalistPlan, before: Climbed | None = None) -> Carried | Failure:
    """`finalist_job` for a machine that need not have the study's folder."""
    with TemporaryDirectory() as place:
        away = replace(plan, folder=Path(place) / str(plan.trial))
        found = finalist_job(away, before)
        if isinstance(found, Failure):
            return found
        return Carried(found, {path.name: path.read_bytes() for path in away.folder.iterdir()})


def unpack(carried: Carried, folder: Path) -> dict[str, Any]:
    """Puts the files where `finalist_job` would have put them, and gives what it found."""
    with whole_or_not(folder) as partial:
        for name, content in carried.files.items():
            (partial / name).write_bytes(content)
    return carried.found


@contextmanager
def whole_or_not(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which takes the place of `folder` once its files are on the disk, or is given up."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for written in partial.iterdir():
            with written.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def accuracy_text(reached: Accuracy, epochs: int) -> str:
    """One line for the model's own metadata."""
    return f"{reached.value:.4f} on {reached.images} validation images after {epochs} epochs"


def export(network: Network, data: Dataset, splits: Splits, folder: Path, accuracy_line: str) -> dict[str, Parity]:
    """Writes spec, weights of the train form and the fused ONNX model, and compares the three forms on real images."""
    write_spec(network.spec, folder / "spec.yaml")
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
    )
    deployed = deploy(network)
    model = to_onnx(deployed, metadata=onnx_metadata(data, network.spec, accuracy_line))
    path = folder / "model.onnx"
    onnx.save(model, path)
    images = splits.val_x[:PARITY_IMAGES]
    trained = logits(network, images)
    return {
        "folded": difference(trained, logits(DeployModule(deployed), images)),
        # from the file, as its user will load it
        "onnxruntime": difference(trained, runner.run(path, images.numpy())),
    }


def onnx_metadata(data: Dataset, spec: ArchSpec, accuracy_line: str) -> dict[str, str]:
    """What an ONNX file says of itself, so that it can be used without anything beside it."""
    return {
        "classes": json.dumps(data.class_names),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "preprocessing": "resize to the input, scale pixels to 0..1, subtract mean, divide by std",
        "accuracy": accuracy_line,
        "spec_id": spec_id(spec),
    }


@torch.no_grad()
def logits(network: nn.Module, images: torch.Tensor) -> npt.NDArray[np.floating]:
    """What a network in eval mode makes of images."""
    # In small batches, as in `accuracy`: large activations cost more time than they save.
    result: npt.NDArray[np.floating] = torch.cat([network(batch) for batch in torch.split(images, 32)]).numpy()
    return result


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a model folder except the manifest, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "manifest.json"
    }
