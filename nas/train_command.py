"""`nas train`: a member of a study, a published network or a spec, trained to the end and exported."""

import json
import signal
import sys
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from evaluators.layout_search import LayoutSettings
from evaluators.recipe import Recipe, recipe_for
from evaluators.static import StaticCosts
from hardware.cost import cost
from hardware.parity import PARITY_BOUND
from hardware.strict_yaml import ConfigError, load_yaml
from hardware.targets import Target, load_target
from hardware.transports import TransportError
from nas.certificates import Measured, measure_members
from nas.contenders import Climbed, TrainingPlan
from nas.device_commands import network_graph, read_any_spec
from nas.executors.processes import ProcessExecutor
from nas.exit_codes import BROKEN_CERTIFICATE, DONE, INTERRUPTED
from nas.files import write_atomically
from nas.long_training import MODEL, Pace, TrainingRecord, open_training, train_to_the_end
from nas.members import certificate, latency_json
from nas.problem import DataKey, dataset
from nas.settings import StudyFile, read_study_file, versions
from nas.storage import driver_lock
from nas.view import View, study_folder
from searchspace.recognise import for_task
from searchspace.space import Task
from searchspace.spec import ArchSpec, spec_id, spec_to_dict

MANIFEST = "manifest.json"

# Any of the recipe's numbers; the rest is as the recipe for the data has it.
RecipeDraft: type[BaseModel] = create_model(
    "RecipeDraft",
    __config__=ConfigDict(extra="forbid", frozen=True),
    **{field.name: (field.type | None, None) for field in fields(Recipe)},  # type: ignore[call-overload, operator]
)


@dataclass(frozen=True, slots=True)
class TrainWords:
    """The command as it was typed; None where the study of STUDY:TRIAL, or else a default, has its say."""

    model: str
    epochs: int
    data: str | None
    data_limit: int | None
    seed: int | None
    target: str | None
    threads: int | None
    runtime: str | None
    recipe: Path | None
    checkpoint_every: int | None
    out: Path | None


def train(words: TrainWords, view: View) -> int:
    """Trains, from wherever the folder stands, and says what came of it; 4 where a promise is broken."""
    for name, value in (("epochs", words.epochs), ("checkpoint-every", words.checkpoint_every)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: at least 1, got {value}")
    study = _study_of(words.model, view)
    data_name = words.data or (study.data if study else "digits")
    limit = words.data_limit or (study.data_limit if study and words.data is None else None)
    seed = words.seed if words.seed is not None else (study.seed if study else 0)
    if seed < 0:
        raise ConfigError(f"seed: 0 or more, got {seed}")
    target = _target_of(words, study)
    key = DataKey(data_name, seed, limit)
    data = dataset(key)
    spec = for_task(read_any_spec(words.model, view), Task(data.channels, data.num_classes))
    network_graph(spec)  # one whose blocks do not fit is refused before anything is written
    recipe = _recipe(words.recipe, data_name)
    record = TrainingRecord(
        spec_id=spec_id(spec),
        data=data_name,
        data_limit=limit,
        data_fingerprint=data.fingerprint,
        epochs=words.epochs,
        seed=seed,
        recipe=asdict(recipe),
    )
    folder = words.out or Path("trained") / f"{words.model.replace(':', '-').replace('/', '-')}-{words.epochs}-epochs"
    plan = TrainingPlan(spec, key, recipe, words.epochs, seed, LayoutSettings(candidates=0))
    open_training(folder, spec, record)
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def tell(climbed: Climbed) -> None:
        if not view.quiet:
            print(
                f"epoch {climbed.epochs} of {words.epochs}: loss {climbed.train_loss:.3f}, "
                f"validation accuracy {climbed.reached.value:.4f}, {climbed.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    try:
        with driver_lock(folder), redirect_stdout(sys.stderr):
            with closing(ProcessExecutor(1)) as executor:
                found = train_to_the_end(plan, folder, Pace(words.checkpoint_every), executor, tell)
            measured, note = _measured(target, folder)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with it", file=sys.stderr)
        return INTERRUPTED
    if note is not None:
        print(note, file=sys.stderr)
    manifest = _manifest(record, spec, found, target, measured, study.budget_ms if study else None)
    write_atomically(folder / MODEL / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    if view.json:
        print(json.dumps(manifest, indent=2, allow_nan=False))
    else:
        _print(manifest, folder)
    if manifest["certificate"]["kept"] is False:
        print(f"nas: {manifest['certificate']['why']}", file=sys.stderr)
        return BROKEN_CERTIFICATE
    return DONE


def _study_of(model: str, view: View) -> StudyFile | None:
    name, colon, trial = model.rpartition(":")
    return read_study_file(study_folder(name, view)) if colon and trial.isdigit() else None


def _target_of(words: TrainWords, study: StudyFile | None) -> Target | None:
    """The device that was asked for, or else the study's; None for neither."""
    if words.target is None and study is None:
        if words.threads is not None or words.runtime is not None:
            raise ConfigError("threads and runtime are the device's: give --target as well")
        return None
    name = words.target or (study.target if study else "")
    same = study is not None and name == study.target
    threads = words.threads or (study.threads if study and same else 1)
    runtime = words.runtime or (study.runtime if study and same else None)
    return load_target(name, threads=threads, runtime=runtime)


def _recipe(path: Path | None, data_name: str) -> Recipe:
    recipe = recipe_for(data_name)
    if path is None:
        return recipe
    given = load_yaml(path, RecipeDraft).model_dump(exclude_none=True)
    try:
        return replace(recipe, **given)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _measured(target: Target | None, folder: Path) -> tuple[Measured | None, str | None]:
    """What the device says, and why it says nothing where it should."""
    if target is None:
        return None, None
    try:
        return measure_members(target, {0: folder / MODEL}, folder / "measured").get(0), None
    except (ConfigError, TransportError) as error:
        return None, f"it could not be measured on {target.name}: {error}"


def _manifest(
    record: TrainingRecord,
    spec: ArchSpec,
    found: dict[str, Any],
    target: Target | None,
    measured: Measured | None,
    budget_ms: float | None,
) -> dict[str, Any]:
    own = cost(network_graph(spec))
    parity = found["onnxruntime"]
    manifest: dict[str, Any] = {
        "spec_id": found["spec_id"],
        "spec": spec_to_dict(spec),
        "params": own.params,
        "macs": own.macs,
        "peak_memory_bytes": own.peak_memory_bytes,
        **record.model_dump(exclude={"spec_id"}),
        "accuracy": {
            "value": found["accuracy"],
            "epochs": record.epochs,
            "split": "validation",
            "images": found["images"],
            "loss": found["loss"],
            "calibration_error": found["calibration_error"],
        },
        "test_accuracy": {"value": found["test_accuracy"], "images": found["test_images"]},
        "parity": dict(parity),
        "files": {name: {"path": name, "sha256": digest} for name, digest in found["files"].items()},
        "versions": versions(),
    }
    why = f"the exported model differs from the trained one by at most {parity['max_rel']:.1e}"
    same = parity["max_rel"] <= PARITY_BOUND
    promise: dict[str, Any] = {"kept": None if same else False, "why": why}
    if target is not None:
        predicted = StaticCosts(target)(spec).latency
        on_device = measured.fused if measured is not None else None
        manifest["target"] = target.name
        manifest["predicted_latency_ms"] = latency_json(predicted)
        manifest["latency_ms"] = latency_json(on_device or predicted)
        if budget_ms is not None:
            manifest["budget_ms"] = budget_ms
            promise = asdict(certificate(predicted, on_device, budget_ms, parity["max_rel"]))
    return manifest | {"certificate": promise}


def _print(manifest: dict[str, Any], folder: Path) -> None:
    accuracy, tested = manifest["accuracy"], manifest["test_accuracy"]
    seen = f"{accuracy['images']} validation images after {accuracy['epochs']} epochs"
    print(f"accuracy  {accuracy['value']:.4f} on {seen}, loss {accuracy['loss']:.3f}")
    print(f"sureness  off by {accuracy['calibration_error']:.4f} on average (expected calibration error)")
    print(f"test      {tested['value']:.4f} on {tested['images']} images that chose nothing")
    if "latency_ms" in manifest:
        latency = manifest["latency_ms"]
        print(f"latency   {latency['value']:.3f} ms on {manifest['target']}, {latency['tier']}; {latency['table']}")
    print(f"parity    {manifest['parity']['max_abs']:.2e} absolute, {manifest['parity']['max_rel']:.2e} relative")
    print(f"promise   {manifest['certificate']['why']}")
    print(f"{folder / MODEL} has spec.yaml, model.onnx, weights.safetensors and manifest.json.")
