"""Kills drivers and workers while Ray Tune trains, and counts what was lost, what was trained twice, and what differs.

    python studies/faults/training.py --what drivers|workers [--kills 10] [--backend ray|local]

One study is searched and trained undisturbed in one process. Every other begins with that search's results, is killed
at a random moment of its training, and is ended by `nas resume`; it must come to the same models, to the last bit.
Every epoch is put down, so that epochs are counted in the results. Prints a line for each study and then the sums.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

WORDS = "--target rk3288 --budget 5ms --data-limit 200 --iterations 2 --finalists 2 --epochs 16 --trials 12"
STUDY = "faults"
COMMAND = """
import sys
from nas import stints
from nas.cli import main
stints.CHECKPOINT_EVERY_S = 0.0
sys.exit(main(sys.argv[1:]))
"""


def nas(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def trained(study: Path) -> list[tuple[str, str]]:
    """Every epoch that was put down and every finalist, in the order of the results."""
    # What follows the last line break is being written, or was when its driver was killed.
    whole = (study / "results.jsonl").read_text().rpartition("\n")[0]
    lines = map(json.loads, whole.splitlines())
    return [(line["arch"], line["fidelity"]) for line in lines if line["fidelity"] != "early"]


def models(study: Path) -> dict[str, bytes]:
    """The front's figures and every model's files."""
    members = json.loads((study / "front.json").read_text())["members"]
    files = [path for path in study.glob("models/*/*") if path.name != "manifest.json"]  # which is dated
    found = {path.relative_to(study).as_posix(): path.read_bytes() for path in files}
    kept = [(each["trial"], each["accuracy"], each["test_accuracy"]) for each in members]
    return found | {"front": json.dumps(kept).encode()}


def without_training(study: Path, folder: Path) -> None:
    """A copy of the study as it was when its search had ended."""
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("models", "checkpoints", "front.*", "run.json"))
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    early = [line for line in lines if json.loads(line)["fidelity"] == "early"]
    (folder / "results.jsonl").write_text("".join(early))


def workers_of(driver: int, backend: str) -> list[int]:
    """Processes that train for a driver: those of its pool, or those that stand in a trial's folder of its Ray."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            words = (process / "cmdline").read_text()
        except OSError:
            continue
        of_ray = place.parent.name == "working_dirs" and any(each.endswith(f"_{driver}") for each in place.parts)
        of_pool = parent == driver and "spawn_main" in words
        if of_ray if backend == "ray" else of_pool:
            found.append(int(process.name))
    return found


def run(study: Path, backend: str, what: str, at: int, rng: random.Random) -> dict[str, int]:
    """One study that is disturbed once `at` epochs were put down, and a random part of the next one later."""
    folder, name = study.parent, study.name
    driver = nas("resume", name, "--out", folder, "--backend", backend)
    while driver.poll() is None and len(trained(study)) < at:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    ended_before = driver.poll() is not None
    killed = 0
    if what == "drivers":
        driver.kill()
        killed = not ended_before
    elif workers := workers_of(driver.pid, backend):
        os.kill(rng.choice(workers), signal.SIGKILL)
        killed = 1
    text = driver.communicate()[1]
    reported = trained(study)
    code = driver.returncode
    if what == "drivers":
        resumed = nas("resume", name, "--out", folder, "--backend", backend)
        text = resumed.communicate()[1]
        code = resumed.returncode
    if code:
        print(text, file=sys.stderr)
    after = trained(study)
    return {
        "killed": int(killed),
        "reported_before": len(reported) if what == "drivers" else 0,
        "lost": len(set(reported) - set(after)),
        "put_down_and_trained_again": sum(count - 1 for count in Counter(after).values()),
        "said_so": int("run again" in text) if what == "workers" else 0,
        "runs_that_failed": int(code != 0),
    }


def main() -> None:
    """Kills so often, and prints the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=["drivers", "workers"], required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--backend", choices=["ray", "local"], default="ray")
    options = parser.parse_args()
    rng = random.Random(0)
    sums = Counter[str]()
    with TemporaryDirectory() as place:
        whole = Path(place) / "undisturbed" / STUDY
        words = (*WORDS.split(), "--study", STUDY, "--out", whole.parent)
        undisturbed = nas("search", *words, "--backend", "inline")
        if undisturbed.wait():
            raise SystemExit("the undisturbed study broke")
        expected, epochs = models(whole), len(trained(whole))
        while sums["killed"] < options.kills:
            study = Path(place) / str(sums["studies"]) / STUDY
            without_training(whole, study)
            found = run(study, options.backend, options.what, rng.randrange(epochs), rng)
            found |= {"studies": 1, "epochs": epochs, "other_models": int(models(study) != expected)}
            sums.update(found)
            print(json.dumps(found), flush=True)
    print(json.dumps({"what": options.what, "backend": options.backend} | sums, indent=2))


if __name__ == "__main__":
    main()
