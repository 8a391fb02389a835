"""Asks every proxy for members of `edge-small`, and trains them, to see which ranks them as training does.

    python studies/proxy_rank/run.py [--members 60] [--steps 96] [--again 15] [--first 60]

Members are drawn evenly over the logarithm of their multiply-adds, asked by every proxy, and trained on Fashion-MNIST
with the recipe of the library. A quarter of them train from a second seed. What was recorded is not done again. One
thread; `figure.py` makes the tables and the figure.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from evaluators.accuracy import accuracy
from evaluators.datasets import Dataset, open_dataset
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_scores
from evaluators.recipe import Recipe
from evaluators.training import train_steps
from hardware.cost import cost
from searchspace.choosers import Choose, G, Gene, recording
from searchspace.deploy_module import DeployModule
from searchspace.network import build_network, deploy, deploy_graph
from searchspace.space import Task, member
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec, spec_id

RUNS = Path(__file__).parent / "runs.jsonl"
DATA, TRAIN_IMAGES, HELD_OUT = "fashion-mnist", 6144, 2000

# Bands of equal ratio between these, with as many members in each.
LEAST_MACS, MOST_MACS, BANDS = 0.08e6, 4e6, 12

# A proxy's network is another draw than the one that trains: what it says must hold for the architecture.
PROXY_SEED = 100


def leaning_choice(rng: random.Random) -> Choose:
    """Options at random, leaning to the front of each list by a degree that is drawn once."""
    degree = rng.uniform(1, 5)

    def choose(name: str, options: "list[G]") -> G:
        return options[int(len(options) * rng.random() ** degree)]

    return choose


def drawn_members(count: int) -> list[tuple[ArchSpec, dict[str, Gene]]]:
    """Distinct members with their genes, an equal number in each band of multiply-adds, in an order of chance."""
    rng, space = random.Random(0), space_named("edge-small")
    bands: list[dict[str, tuple[ArchSpec, dict[str, Gene]]]] = [{} for _ in range(BANDS)]
    ratio = (MOST_MACS / LEAST_MACS) ** (1 / BANDS)
    while any(len(band) < count // BANDS for band in bands):
        genes: dict[str, Gene] = {}
        spec = member(space, recording(leaning_choice(rng), genes), Task(1, 10))
        macs = cost(deploy_graph(spec)).macs
        for index, band in enumerate(bands):
            if LEAST_MACS * ratio**index <= macs < LEAST_MACS * ratio ** (index + 1) and len(band) < count // BANDS:
                band[spec_id(spec)] = (spec, genes)
    members = [each for band in bands for each in band.values()]
    rng.shuffle(members)
    return members


def trained(spec: ArchSpec, data: Dataset, steps: int, seed: int) -> dict[str, object]:
    """The accuracy of a member behind half and all of its training, in the form that a device runs."""
    splits = data.at(spec.input_shape[1])
    started = time.process_time()
    network = build_network(spec, seed)
    reached, losses = {}, []
    for step, loss in enumerate(train_steps(network, splits, Recipe(), steps, seed), start=1):
        losses.append(loss)
        if step in (steps // 2, steps):
            deployed = DeployModule(deploy(network.eval()))
            found = accuracy(deployed, splits.val_x[:HELD_OUT], splits.val_y[:HELD_OUT], batch_size=128)
            reached[step] = {"accuracy": found.value, "loss": round(found.loss, 6)}
    return {"reached": reached, "cpu_seconds": round(time.process_time() - started, 2)}


def asked(spec: ArchSpec, data: Dataset) -> dict[str, object]:
    """What every proxy says of a member."""
    started = time.process_time()
    splits = data.at(spec.input_shape[1])
    found = proxy_scores(PROXIES, Subject(build_network(spec, PROXY_SEED), splits, ProxySettings(), PROXY_SEED))
    values = {name: value if isinstance(value, float) else value.reason for name, value in found.items()}
    return {"proxies": values, "proxy_cpu_seconds": round(time.process_time() - started, 3)}


def main() -> None:
    """Does what is missing, a line for each training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=60)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--first", type=int, default=None, help="only so many members; with other steps, to compare")
    parser.add_argument("--again", type=int, default=15, help="members that train from a second seed")
    parser.add_argument("--runs", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(DATA, seed=0, limit=TRAIN_IMAGES)
    members = drawn_members(options.members)
    lines = map(json.loads, options.runs.read_text().splitlines()) if options.runs.exists() else ()
    done = {(each["spec_id"], each["seed"]) for each in lines if each["steps"] == options.steps}
    for seed, chosen in ((0, members[: options.first]), (1, members[: options.again])):
        for spec, genes in chosen:
            if (spec_id(spec), seed) in done:
                continue
            line = {"spec_id": spec_id(spec), "seed": seed, "steps": options.steps}
            if seed == 0:
                graph_cost = cost(deploy_graph(spec))
                line |= {"genes": genes, "macs": graph_cost.macs, "params": graph_cost.params} | asked(spec, data)
            line |= trained(spec, data, options.steps, seed)
            with options.runs.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps({name: line[name] for name in line if name != "genes"})[-200:], flush=True)


if __name__ == "__main__":
    main()
