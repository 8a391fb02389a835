"""What becomes of the best candidates: trained to the end, folded, exported, and all forms held against each other."""

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
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
    # A folder under its final name is always whole.
    partial = plan.folder.with_name(f"{plan.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    parity = export(network, data, data.at(resolution), partial, accuracy_text(reached, epochs))
    if not all(math.isfinite(each.max_abs) for each in parity.values()):
        shutil.rmtree(partial)
        return Failure("its folded or exported form computes values that are not finite")
    shutil.rmtree(plan.folder, ignore_errors=True)
    partial.replace(plan.folder)
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


def accuracy_text(reached: Accuracy, epochs: int) -> str:
    """One line for the model's own metadata."""
    return f"{reached.value:.4f} on {reached.images} validation images after {epochs} epochs"


def export(network: Network, data: Dataset, splits: Splits, folder: Path, accuracy_line: str) -> dict[str, Parity]:
    """Writes spec, weights of the train form and the fused ONNX model, and compares the three forms on real images."""
    folder.mkdir(parents=True, exist_ok=True)
    write_spec(network.spec, folder / "spec.yaml")
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
    )
    deployed = deploy(network)
    model = to_onnx(deployed, metadata=onnx_metadata(data, network.spec, accuracy_line))
    path = folder / "model.onnx"
    onnx.save(model, path)
    for written in folder.iterdir():
        with written.open("rb") as file:
            os.fsync(file.fileno())
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
