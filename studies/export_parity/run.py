"""Every block family in every export format: trained, exported, run again in each runtime, and compared.

    python studies/export_parity/run.py [--families rdp,gfae] [--images 6000] [--epochs 2] [--out RUNS.jsonl]

One line per family is added to runs.jsonl as it is done, and families that have one are passed over; at the end the
table is printed from all lines. `nas export` is what writes and compares, so that the study shows the gate that users
have.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from networks import NETWORKS, with_branches
from safetensors.torch import save_file

from evaluators.accuracy import accuracy
from evaluators.datasets import Dataset, open_dataset
from evaluators.recipe import Recipe
from evaluators.training import train
from hardware.targets import load_target
from nas.export import ExportPlan, TrainedStudy, export_members
from nas.export_formats import FORMATS
from nas.finalists import file_hashes
from nas.settings import StudyFile, versions
from searchspace.network import build_network
from searchspace.registry import families
from searchspace.spec import spec_id, write_spec

RUNS = Path(__file__).with_name("runs.jsonl")
SEED, ACCURACY_IMAGES = 0, 2000


def trained_study(family: str, data: Dataset, epochs: int, folder: Path) -> TrainedStudy:
    """A study whose only finalist, trial 0, is the family's network."""
    spec = with_branches(family)
    splits = data.at(spec.input_shape[1])
    network = train(build_network(spec, SEED), splits, Recipe(), epochs=epochs, seed=SEED)
    reached = accuracy(network, splits.val_x[:ACCURACY_IMAGES], splits.val_y[:ACCURACY_IMAGES])
    models = folder / "models" / "0"
    models.mkdir(parents=True)
    write_spec(spec, models / "spec.yaml")
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, models / "weights.safetensors")
    record = StudyFile(
        study=f"parity-{family}",
        target="rk3288",
        budget="1000ms",
        data=data.name,
        data_limit=data.limit,
        created="-",
        target_sha256=load_target("rk3288", threads=1).sha256,
        data_fingerprint=data.fingerprint,
        versions=versions(),
    )
    member = {
        "trial": 0,
        "spec_id": spec_id(spec),
        "accuracy": {"value": reached.value, "images": reached.images, "split": "validation", "epochs": epochs},
        "files": {name: {"sha256": digest} for name, digest in file_hashes(models).items()},
    }
    return TrainedStudy(folder, record, {"study": record.study}, data, {0: member})


def studied(family: str, data: Dataset, epochs: int) -> dict[str, Any]:
    """What became of one family: its accuracy, and each format's sizes and differences."""
    started = time.perf_counter()
    with TemporaryDirectory() as place:
        study = trained_study(family, data, epochs, Path(place) / "study")
        seconds = time.perf_counter() - started
        plan = ExportPlan(tuple(FORMATS.values()), None, None)
        (exported,) = export_members(study, [0], plan, Path(place) / "out")
    manifest = exported.manifest
    return {
        "family": family,
        "accuracy": manifest["accuracy"],
        "training_seconds": round(seconds, 1),
        "formats": manifest["formats"],
        "bytes": {name: entry["bytes"] for name, entry in manifest["files"].items()},
        "versions": manifest["versions"],
    }


def table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per family: the largest relative difference in each format, and the images whose best class differs."""
    rows = [
        f"| family | {' | '.join(FORMATS)} | other top-1 | accuracy |",
        "|---" * (len(FORMATS) + 3) + "|",
    ]
    for family, line in sorted(lines.items()):
        cells, other = [], 0
        for name in FORMATS:
            entry = line["formats"][name]
            if "refused" in entry:
                cells.append(entry["refused"])
                continue
            images = sum(entry["images"].values())
            cells.append(f"{max(each['max_rel'] for each in entry['parity'].values()):.1e}")
            other += sum(round((1 - each["top1_agreement"]) * images) for each in entry["parity"].values())
        cells += [f"{other}", f"{line['accuracy']['value']:.3f}"]
        rows.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Goes through the families that have no line yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(sorted(NETWORKS)))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    assert set(NETWORKS) == {each.name for each in families()}, "a family has no network here"
    torch.set_num_threads(1)
    data = open_dataset(options.data, seed=SEED, limit=options.images)
    lines = {}
    if options.out.exists():
        lines = {line["family"]: line for line in map(json.loads, options.out.read_text("utf-8").splitlines())}
    for family in options.families.split(","):
        if family not in lines:
            lines[family] = studied(family, data, options.epochs)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[family]) + "\n")
            print(family, lines[family]["accuracy"]["value"], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
