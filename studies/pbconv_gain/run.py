"""What PBConv's branches gain: plain, ACB-like, DBB-like and searched PBConv on one host, trained alike.

    python studies/pbconv_gain/run.py --cifar FOLDER [--seeds 5] [--steps 200]

PBConv's layout is chosen by the library's search, anew from each seed. A run that was recorded is not made again. One
thread; `figure.py` makes the table and the figure.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from evaluators.accuracy import accuracy
from evaluators.datasets import Splits, open_dataset
from evaluators.layout_search import LayoutChoice, LayoutSettings, SpecHost, search_layouts
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from hardware.cost import cost
from searchspace.deploy_module import DeployModule
from searchspace.layouts import with_layouts
from searchspace.network import Network, build_network, deploy

from branches import acb_like, dbb_like, replaced  # isort: skip  # beside this file

sys.path.append(str(Path(__file__).parents[1] / "layout_rank"))
from host import HOST  # the host of both PBConv studies

RUNS = Path(__file__).parent / "runs.jsonl"

# How each arm's network is made from a seed and what the search has found.
ARMS: dict[str, Callable[[int, LayoutChoice], Network]] = {
    "plain": lambda seed, choice: build_network(HOST, seed),
    "acb-like": lambda seed, choice: replaced(build_network(HOST, seed), acb_like, seed),
    "dbb-like": lambda seed, choice: replaced(build_network(HOST, seed), dbb_like, seed),
    "pbconv": lambda seed, choice: build_network(with_layouts(HOST, choice.layouts, "network"), seed),
}


def searched(seed: int, splits: Splits) -> LayoutChoice:
    """The library's search with the paper's settings: ten candidates, twenty iterations."""
    return search_layouts(SpecHost(HOST, seed), splits, LayoutSettings(), rng=random.Random(seed), seed=seed)


def run(arm: str, seed: int, steps: int, splits: Splits, held_out: tuple[Tensor, Tensor]) -> dict[str, object]:
    """One training, its accuracy in the form that a device runs, and what that form costs."""
    started = time.process_time()
    choice = searched(seed, splits) if arm == "pbconv" else None
    search_seconds = time.process_time() - started
    network = ARMS[arm](seed, choice)  # type: ignore[arg-type]  # the other arms do not look at it
    started = time.process_time()
    losses = list(train_steps(network, splits, Recipe(), steps, seed))
    seconds = time.process_time() - started
    model = deploy(network.eval())
    deployed = DeployModule(model)
    with torch.no_grad():
        images = held_out[0][:256]
        difference = float((network(images) - deployed(images)).abs().max())
    reached = accuracy(deployed, *held_out, batch_size=128)
    found: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "accuracy": reached.value,
        "loss": round(reached.loss, 6),
        "train_loss": round(sum(losses[-40:]) / len(losses[-40:]), 6),
        "train_params": sum(parameter.numel() for parameter in network.parameters()),
        "fused_macs": cost(model.graph).macs,
        "fused_params": cost(model.graph).params,
        "fused_fingerprint": model.graph.fingerprint(),
        "fused_difference": difference,
        "cpu_seconds": round(seconds, 2),
    }
    if choice is not None:
        found["search"] = {
            "cpu_seconds": round(search_seconds, 2),
            "layout": str(choice.layouts["network"][3]),
            "winner": choice.winners["network"],
            "dispersions": [round(each.end["network"], 6) for each in choice.tried],
        }
    return found


def main() -> None:
    """Runs what is missing, seed by seed, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", required=True, help="folder of CIFAR-10's binary or pickled batches")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(f"cifar10:{options.cifar}", seed=0)
    splits, test = data.at(32), data.test(32)
    # Neither chooses anything here, so both measure: 3,670 images of which none was trained on.
    held_out = torch.cat([splits.val_x, test.x]), torch.cat([splits.val_y, test.y])
    lines = map(json.loads, options.runs.read_text().splitlines()) if options.runs.exists() else ()
    done = {(each["arm"], each["seed"]) for each in lines if each["steps"] == options.steps}
    for seed in range(options.seeds):
        for arm in ARMS:
            if (arm, seed) in done:
                continue
            found = run(arm, seed, options.steps, splits, held_out)
            with options.runs.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found)[:120], flush=True)


if __name__ == "__main__":
    main()
