"""The members of a study's front as data: what front.json, front.csv, manifests and tables are made of."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.latency_table import Latency
from hardware.parity import PARITY_BOUND
from hardware.strict_yaml import ConfigError
from nas.certificates import Measured
from nas.files import write_atomically
from nas.finalists import file_hashes
from nas.pareto import front
from nas.settings import StudyFile, versions
from nas.shortlist import Finalist, known
from searchspace.spec import read_spec, spec_to_dict

FRONT_JSON = "front.json"
FRONT_CSV = "front.csv"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whether a member keeps the budget and equals its trained form; `kept` None where nobody could measure."""

    kept: bool | None
    why: str


def certificate(latency: Latency, measured: Latency | None, budget_ms: float, parity_max_rel: float) -> Certificate:
    """What can be said of a member's promises."""
    if parity_max_rel > PARITY_BOUND:
        return Certificate(
            False,
            f"the exported model differs from the trained one by {parity_max_rel:.1e} (allowed {PARITY_BOUND:.0e})",
        )
    if measured is None:
        return Certificate(
            None,
            f"not measured: no such device at hand; the prediction is {latency.tier} and its upper end, "
            f"{latency.high_ms:.3g} ms, is within the budget of {budget_ms:g} ms",
        )
    kept = measured.value_ms <= budget_ms
    return Certificate(
        kept, f"measured {measured.value_ms:.3g} ms {'keeps' if kept else 'breaks'} the budget of {budget_ms:g} ms"
    )


def member(
    finalist: Finalist,
    trained: Mapping[str, Any],
    measured: Measured | None,
    budget_ms: float,
    epochs: int,
    folder: Path,
) -> dict[str, Any]:
    """One member as front.json holds it; `folder` is the study's.

    unfused_latency_ms is the trained form on the device, None where that was not measured.
    """
    candidate = finalist.candidate
    on_device = measured.fused if measured is not None else None
    latency = on_device or candidate.cost.latency
    models = folder / "models" / str(candidate.number)
    return {
        "trial": candidate.number,
        "spec_id": trained["spec_id"],
        "spec": spec_to_dict(read_spec(models / "spec.yaml")),
        "params": candidate.cost.params,
        "macs": candidate.cost.macs,
        "peak_memory_bytes": candidate.cost.peak_memory_bytes,
        "latency_ms": latency_json(latency),
        "predicted_latency_ms": latency_json(candidate.cost.latency),
        "unfused_latency_ms": measured.unfused_ms if measured is not None else None,
        "proxy": {"score": candidate.score, **known(candidate), "on_front_of": list(finalist.on_front_of)},
        "accuracy": {
            "value": trained["accuracy"],
            "epochs": epochs,
            "split": "validation",
            "images": trained["images"],
        },
        "test_accuracy": {"value": trained["test_accuracy"], "images": trained["test_images"]},
        "parity": dict(trained["onnxruntime"]),
        "certificate": _as_json(
            certificate(candidate.cost.latency, on_device, budget_ms, trained["onnxruntime"]["max_rel"])
        ),
        "files": {
            name: {"path": f"models/{candidate.number}/{name}", "sha256": digest}
            for name, digest in file_hashes(models).items()
        },
    }


def latency_json(latency: Latency) -> dict[str, Any]:
    """A latency in milliseconds with its interval, tier and table."""
    return {
        "value": latency.value_ms,
        "low": latency.low_ms,
        "high": latency.high_ms,
        "tier": latency.tier.value,
        "table": latency.table,
    }


def _as_json(promise: Certificate) -> dict[str, Any]:
    return {"kept": promise.kept, "why": promise.why}


def front_of(members: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The members that no other beats in accuracy and latency, by rising latency.

    One whose exported form differs from the trained one beats nobody; such members follow behind the others, since
    what failed must be seen.
    """
    sound = [each for each in members if each["parity"]["max_rel"] <= PARITY_BOUND]
    points = [(each["accuracy"]["value"], each["latency_ms"]["value"]) for each in sound]
    return [sound[index] for index in front(points)] + [each for each in members if each not in sound]


def front_document(study: StudyFile, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole of front.json."""
    return {
        "study": study.study,
        "target": study.target,
        "budget_ms": study.budget_ms,
        "data": study.data,
        "seed": study.seed,
        "created": study.created,
        # of the run that wrote this; study.yaml keeps those of the first day
        "versions": versions(),
        "members": list(members),
    }


def write_front(folder: Path, document: dict[str, Any]) -> None:
    """Writes front.json, front.csv and a manifest into each member's model folder."""
    write_atomically(folder / FRONT_JSON, json.dumps(document, indent=2, allow_nan=False) + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_row(each) for each in document["members"])
    write_atomically(folder / FRONT_CSV, table.getvalue())
    for each in document["members"]:
        manifest = {name: value for name, value in document.items() if name != "members"} | each
        path = folder / "models" / str(each["trial"]) / "manifest.json"
        write_atomically(path, json.dumps(manifest, indent=2, allow_nan=False) + "\n")


_COLUMNS = {
    "trial": ("trial",),
    "spec_id": ("spec_id",),
    "accuracy": ("accuracy", "value"),
    "test_accuracy": ("test_accuracy", "value"),
    "epochs": ("accuracy", "epochs"),
    "latency_ms": ("latency_ms", "value"),
    "latency_low_ms": ("latency_ms", "low"),
    "latency_high_ms": ("latency_ms", "high"),
    "tier": ("latency_ms", "tier"),
    "table": ("latency_ms", "table"),
    "predicted_latency_ms": ("predicted_latency_ms", "value"),
    "unfused_latency_ms": ("unfused_latency_ms",),
    "params": ("params",),
    "macs": ("macs",),
    "peak_memory_bytes": ("peak_memory_bytes",),
    "score": ("proxy", "score"),
    "parity_max_abs": ("parity", "max_abs"),
    "parity_max_rel": ("parity", "max_rel"),
    "kept": ("certificate", "kept"),
}


def flat_row(each: Mapping[str, Any]) -> dict[str, Any]:
    """A member in one row, for front.csv."""
    row = {}
    for column, path in _COLUMNS.items():
        value: Any = each
        for key in path:
            value = value[key]
        row[column] = value
    return row


def read_front(folder: Path) -> dict[str, Any]:
    """The front.json of a study.

    Raises:
        ConfigError: there is none yet, or it is damaged.
    """
    path = folder / FRONT_JSON
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: study {folder.name} has no front yet; finish it with `nas resume {folder}`"
        ) from error
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise ConfigError(f"{path}:{line}: not valid JSON ({error}); `nas resume {folder}` writes it again") from error
    if not isinstance(document, dict) or not isinstance(document.get("members"), list):
        raise ConfigError(f"{path}:1: not a front of this program; `nas resume {folder}` writes it again")
    return document
