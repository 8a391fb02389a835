"""A candidate on its way through training: some epochs at a time, each from where the last ones ended."""

import json
import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.accuracy import Accuracy, accuracy
from evaluators.checkpoints import from_bytes, to_bytes
from evaluators.datasets import Splits
from evaluators.evaluator import Failure, failure_from
from evaluators.labels import check_labels
from evaluators.layout_search import LayoutSettings, SpecHost, search_layouts
from evaluators.recipe import Recipe
from evaluators.training import OtherTraining, Training, steps_per_epoch
from nas.problem import DataKey, dataset
from searchspace.layouts import with_layouts
from searchspace.network import Network, build_network, deploy_graph
from searchspace.spec import ArchSpec, deploy_form, deploy_id, spec_from_dict, spec_id, spec_to_dict

logger = logging.getLogger(__name__)

# What may come of a network that cannot be built or trained, memory that it has not got among it.
BROKEN_TRAINING = (ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a worker needs to train a candidate; `epochs` is the whole way, `layouts` how many are tried before it."""

    spec: ArchSpec
    data: DataKey
    recipe: Recipe
    epochs: int
    seed: int
    layouts: LayoutSettings


@dataclass(frozen=True, slots=True)
class Climbed:
    """How far a candidate has come: its spec with the layouts chosen, and what it reached; `state` is its training.

    `seconds` is what its epochs took so far, without the choice of layouts. Without its state, None, it is trained from
    the beginning again, to the same end.
    """

    spec: ArchSpec
    layouts_tried: list[dict[str, Any]]
    epochs: int
    reached: Accuracy
    train_loss: float
    seconds: float
    state: bytes | None

    def as_finding(self) -> dict[str, Any]:
        """For the results; the state has a file of its own."""
        return {
            "epochs": self.epochs,
            "accuracy": self.reached.value,
            "loss": self.reached.loss,
            "images": self.reached.images,
            "calibration_error": self.reached.calibration_error,
            "train_loss": self.train_loss,
            "seconds": self.seconds,
            "spec": spec_to_dict(self.spec),
            "layouts_tried": self.layouts_tried,
        }


def climbed_from(finding: dict[str, Any], state: bytes | None) -> Climbed:
    """What `as_finding` told, with the state from its file."""
    reached = Accuracy(finding["accuracy"], finding["loss"], finding["images"], finding["calibration_error"])
    return Climbed(
        spec_from_dict(finding["spec"]),
        finding["layouts_tried"],
        finding["epochs"],
        reached,
        finding["train_loss"],
        finding["seconds"],
        state,
    )


FINDING, TRAINING = "finding.json", "training.pt"


def put_down(climbed: Climbed, folder: Path) -> None:
    """Leaves in a folder how far a candidate has come, and its training where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINDING).write_text(json.dumps(climbed.as_finding()), encoding="utf-8")
    if climbed.state is not None:
        (folder / TRAINING).write_bytes(climbed.state)


def taken_up(folder: Path) -> Climbed:
    """What `put_down` left there."""
    training = folder / TRAINING
    finding = json.loads((folder / FINDING).read_text(encoding="utf-8"))
    return climbed_from(finding, training.read_bytes() if training.exists() else None)


def contender_job(plan: TrainingPlan, before: Climbed | None, until_epoch: int) -> Climbed | Failure:
    """Trains a candidate to the end of an epoch, from where it was put down or from the beginning."""
    try:
        return climb(plan, before, until_epoch)[0]
    except BROKEN_TRAINING as error:
        return failure_from(error)


def climb(plan: TrainingPlan, before: Climbed | None, until_epoch: int) -> tuple[Climbed, Network]:
    """The same, and the network as it is to be judged.

    Raises:
        ValueError, RuntimeError, MemoryError: it cannot be built or trained.
    """
    splits = dataset(plan.data).at(plan.spec.input_shape[1])
    check_labels(splits.train_y, deploy_graph(plan.spec).output_shape[0])
    spec, tried = (before.spec, before.layouts_tried) if before is not None else choose_layouts(plan, splits)
    training = _training_where_left(plan, spec, splits, before, until_epoch)
    started = time.perf_counter()
    train_loss = 0.0 if before is None else before.train_loss
    while training.epochs_done < until_epoch:
        train_loss = training.advance_epoch()
    network = training.result()
    reached = accuracy(network, splits.val_x, splits.val_y)
    seconds = time.perf_counter() - started + (0.0 if before is None else before.seconds)
    return Climbed(spec, tried, training.epochs_done, reached, train_loss, seconds, to_bytes(training)), network


def _training_where_left(
    plan: TrainingPlan, spec: ArchSpec, splits: Splits, before: Climbed | None, until_epoch: int
) -> Training[Network]:
    training = training_of(plan, spec, splits)
    if before is None or before.state is None:
        return training
    try:
        from_bytes(training, before.state)
    except OtherTraining as error:
        logger.warning("%s is trained from the beginning again: %s", spec_id(spec), error)
        return training_of(plan, spec, splits)
    return training if training.epochs_done <= until_epoch else training_of(plan, spec, splits)


def training_of(plan: TrainingPlan, spec: ArchSpec, splits: Splits) -> Training[Network]:
    """The plan's training before its first step."""
    steps = plan.epochs * steps_per_epoch(splits, plan.recipe)
    return Training(build_network(spec, plan.seed), splits, plan.recipe, steps=steps, seed=plan.seed)


def choose_layouts(plan: TrainingPlan, splits: Splits) -> tuple[ArchSpec, list[dict[str, Any]]]:
    """The candidate with the PBConv layouts whose kernels disperse most in a few iterations, and all that were tried.

    Source: PBConv (seed 001), section 4.3. Layouts that fail to train are passed over; without any, or with no
    candidates, the network trains without PBConv branches. `dispersion` is the mean over what has its own layout.
    """
    if plan.spec != deploy_form(plan.spec) or not plan.layouts.candidates:
        return plan.spec, []  # the space has chosen them, or nobody is to
    host = SpecHost(plan.spec, plan.seed)
    if not host.places:
        return plan.spec, []
    rng = random.Random(f"{plan.seed}/{deploy_id(plan.spec)}")
    choice = search_layouts(host, splits, plan.layouts, rng=rng, seed=plan.seed)
    scope = plan.layouts.scope
    tried: list[dict[str, Any]] = []
    for each in choice.tried:
        found: dict[str, Any] = {"spec_id": spec_id(with_layouts(plan.spec, each.layouts, scope))}
        if each.failure is not None:
            found["failure"] = each.failure.reason
        else:
            found["dispersion"] = sum(each.end.values()) / len(each.end)
            found["dispersion_start"] = sum(each.start.values()) / len(each.start)
        tried.append(found)
    return with_layouts(plan.spec, choice.layouts, scope), tried
