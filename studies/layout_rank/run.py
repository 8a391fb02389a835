"""Fig. 6 of PBConv again: whether the dispersion of a layout's kernels, early on, foretells the accuracy at the end.

    python studies/layout_rank/run.py --cifar FOLDER [--layouts 40] [--seeds 2] [--steps 320]

40 layouts of the paper's generator and the host without any, each trained to the end from several seeds. A run that
was recorded is not made again. One thread; `figure.py` makes the tables and the figure.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from evaluators.accuracy import accuracy
from evaluators.datasets import Splits, open_dataset
from evaluators.dispersion import network_dispersion
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure
from evaluators.first_look import look_early
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from searchspace.coverage import Layout, generate_layout, parse_layout
from searchspace.network import Network, build_network

from host import HOST, KERNEL, with_layout  # isort: skip  # beside this file

RUNS = Path(__file__).parent / "runs.jsonl"
PLAIN = "none"

# Iterations behind which the dispersion is taken, within the training that ends in the accuracy.
LOOKS = (0, 5, 10, 20, 40, 80, 160)


def drawn_layouts(count: int) -> list[Layout]:
    """Distinct layouts in the order in which the paper's generator draws them."""
    rng = random.Random(0)
    found: dict[Layout, None] = {}
    while len(found) < count:
        found.setdefault(generate_layout(KERNEL, rng))
    return list(found)


def looked_at(network: Network) -> list[float]:
    """The paper's dispersion (std of the mean importance) and the mean of the layers' own."""
    found = network_dispersion(network)
    return [round(found.of_mean, 6), round(found.mean_of, 6)]


def run(layout: str, seed: int, steps: int, splits: Splits, held_out: tuple[torch.Tensor, torch.Tensor]) -> object:
    """One training to the end and what was seen on the way."""
    spec = HOST if layout == PLAIN else with_layout(HOST, parse_layout(layout))
    # What a search sees: twenty iterations with a learning rate that falls to nothing.
    early = look_early(spec, splits, EarlySettings(), seed)
    if isinstance(early, Failure):
        raise SystemExit(f"{layout}: {early.reason}")
    started = time.process_time()
    network = build_network(spec, seed)
    looks = {0: looked_at(network)}
    losses = []
    for step, loss in enumerate(train_steps(network, splits, Recipe(), steps, seed), start=1):
        losses.append(loss)
        if step in LOOKS or step == steps:
            looks[step] = looked_at(network)
    seconds = time.process_time() - started
    reached = accuracy(network, *held_out, batch_size=128)
    return {
        "layout": layout,
        "seed": seed,
        "steps": steps,
        "accuracy": round(reached.value, 6),
        "loss": round(reached.loss, 6),
        "train_loss": round(sum(losses[-40:]) / len(losses[-40:]), 6),
        "dispersion_by_step": looks,
        "early": {name: round(value, 6) for name, value in early.items()},
        "cpu_seconds": round(seconds, 2),
    }


def main() -> None:
    """Runs what is missing, seed by seed, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", required=True, help="folder of CIFAR-10's binary or pickled batches")
    parser.add_argument("--layouts", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--runs", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(f"cifar10:{options.cifar}", seed=0)
    splits, test = data.at(32), data.test(32)
    # Neither chooses anything here, so both measure: 3,670 images of which none was trained on.
    held_out = torch.cat([splits.val_x, test.x]), torch.cat([splits.val_y, test.y])
    lines = map(json.loads, options.runs.read_text().splitlines()) if options.runs.exists() else ()
    done = {(each["layout"], each["seed"]) for each in lines if each["steps"] == options.steps}
    for seed in range(options.seeds):
        for layout in [PLAIN, *map(str, drawn_layouts(options.layouts))]:
            if (layout, seed) in done:
                continue
            found = run(layout, seed, options.steps, splits, held_out)
            with options.runs.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found)[:160], flush=True)


if __name__ == "__main__":
    main()
