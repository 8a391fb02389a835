"""One front in three runtimes, float and eight bits: how large the files are and how long they take on this machine.

    python studies/front_runtimes/run.py [--study studies/host-1ms-digits] [--work build/front_runtimes]

A study that is not there is searched first. Its front is exported by `nas export`; then all files are timed in turn,
one image at a time on one thread, for several rounds, so that no file has a better hour than another. The median of the
rounds' medians is what is told, with the smallest and the largest of them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware.board import RUNTIMES
from hardware.profiling import ENDS
from nas.cli import main as nas
from nas.settings import STUDY_FILE, versions

RESULTS = Path(__file__).with_name("results.json")
ROUNDS, RUNS, WARM_UP = 7, 30, 5

# What is timed: the file in a member's folder, all files that it needs, and its runtime.
FILES: Mapping[str, tuple[str, Sequence[str], str]] = {
    "onnx": ("model.onnx", ("model.onnx",), "onnxruntime"),
    "onnx int8": ("model.int8.onnx", ("model.int8.onnx",), "onnxruntime"),
    "ncnn": ("model.param", ("model.param", "model.bin"), "ncnn"),
    "mnn": ("model.mnn", ("model.mnn",), "mnn"),
}


def exported(study: Path, work: Path) -> Path:
    """The folder with the exported front."""
    if not (study / STUDY_FILE).exists():
        words = ["search", "--target", "host", "--budget", "1ms", "--trials", "12", "--finalists", "3", "--epochs", "3"]
        assert nas([*words, "--study", study.name, "--out", str(study.parent)]) == 0
    if not work.exists():
        words = ["export", str(study), "--format", "onnx,ncnn,mnn", "--int8", "--max-drop", "1", "--out", str(work)]
        assert nas(words) == 0
    return work


def median_ms(run_once: Callable[[], object]) -> float:
    """Of one round."""
    for _ in range(WARM_UP):
        run_once()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run_once()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def opened(folder: Path, file: str, runtime: str) -> Callable[[], object]:
    """A call that runs the file once, on one thread and noise, as a board is measured."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    entering, leaving = ENDS[runtime]
    shape = [1, *manifest["input"]["shape"][1:]]
    _, open_model = RUNTIMES[runtime]()
    return open_model(str(folder / file), {"inputs": [{"name": entering, "shape": shape}], "output": leaving}, 1)


def timed(folders: Sequence[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """By member and file: median, smallest and largest of the rounds' medians in ms."""
    calls = {
        (folder.name, name): opened(folder, file, runtime)
        for folder in folders
        for name, (file, _, runtime) in FILES.items()
        if (folder / file).exists()
    }
    medians: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, run_once in calls.items():
            medians[key].append(median_ms(run_once))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (member, name), each in medians.items():
        summary = {"median_ms": statistics.median(each), "low_ms": min(each), "high_ms": max(each)}
        found.setdefault(member, {})[name] = {key: round(value, 4) for key, value in summary.items()}
    return found


def described(folder: Path, timings: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A member with what its manifest says and what was timed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        "trial": manifest["trial"],
        "params": manifest["params"],
        "macs": manifest["macs"],
        "accuracy": manifest["int8"]["accuracy_before"],
        "accuracy_int8": manifest["int8"]["accuracy_after"],
        "files": {
            name: {"bytes": sum(manifest["files"][file]["bytes"] for file in FILES[name][1]), **timing}
            for name, timing in timings.items()
        },
    }


def table(members: Sequence[Mapping[str, Any]]) -> str:
    """A row per member and file."""
    rows = ["| trial | params | macs | file | bytes | ms (least to most of 7 rounds) | accuracy |", "|---" * 7 + "|"]
    for member in members:
        for name, each in member["files"].items():
            accuracy = member["accuracy_int8"] if name.endswith("int8") else member["accuracy"]
            rows.append(
                f"| {member['trial']} | {member['params']:,} | {member['macs']:,} | {name} | {each['bytes']:,} | "
                f"{each['median_ms']:.3f} ({each['low_ms']:.3f} to {each['high_ms']:.3f}) | {100 * accuracy:.2f} % |"
            )
    return "\n".join(rows)


def main() -> None:
    """Exports, times, records and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=Path("studies/host-1ms-digits"))
    parser.add_argument("--work", type=Path, default=Path("build/front_runtimes"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    work = exported(options.study, options.work)
    folders = sorted((path.parent for path in work.glob("*/manifest.json")), key=lambda folder: int(folder.name))
    load = os.getloadavg()[0]
    timings = timed(folders)
    members = [described(folder, timings[folder.name]) for folder in folders]
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_at_start": load,
        "load_at_end": os.getloadavg()[0],
        "versions": versions(),
    }
    options.out.write_text(json.dumps({"about": about, "members": members}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(about))
    print(table(members))


if __name__ == "__main__":
    main()
