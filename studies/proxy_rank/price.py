"""What each proxy costs on one member of `edge-small`: alone, and when passes over the same images are shared.

    python studies/proxy_rank/price.py [--macs 2.5e6] [--repeats 5]

CPU time of one thread, so that what else the machine does counts little; medians. Taken on the study's member whose
multiply-adds are nearest to `--macs`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from evaluators.datasets import open_dataset
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_score, proxy_scores
from hardware.cost import cost
from searchspace.network import build_network, deploy_graph

from run import DATA, TRAIN_IMAGES, drawn_members  # isort: skip  # beside this file

# What the shared parts are, in the order in which they are made.
PARTS: dict[str, Callable[[Subject], object]] = {
    "forward, recording": lambda subject: subject.first_pass,
    "gradients of the weights": lambda subject: subject.gradients,
    "gradients of the images": lambda subject: subject.input_gradients,
    "forward and gradients of a second batch": lambda subject: subject.gradients_by_batch,
    "early training, 20 x 32 images": lambda subject: subject.early,
}
STATIC = [name for name, each in PROXIES.items() if each.work == "static"]
ONE_PASS = [name for name, each in PROXIES.items() if each.work in ("forward", "backward")]


def cpu_ms(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return 1e3 * (time.process_time() - started)


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--macs", type=float, default=2.5e6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(DATA, seed=0, limit=TRAIN_IMAGES)
    spec = min(
        (spec for spec, _ in drawn_members(60)), key=lambda each: abs(cost(deploy_graph(each)).macs - options.macs)
    )
    splits, settings = data.at(spec.input_shape[1]), ProxySettings()

    def fresh() -> Subject:
        return Subject(build_network(spec, 0), splits, settings, 0)

    def median(act: Callable[[Subject], object]) -> float:
        return statistics.median(cpu_ms(partial(act, fresh())) for _ in range(options.repeats))

    print(f"{spec.input_shape}, {cost(deploy_graph(spec)).macs:,} multiply-adds")
    build_ms = statistics.median(cpu_ms(fresh) for _ in range(options.repeats))
    print(f"building the network: {build_ms:.0f} ms\n\n| proxy | alone, ms |\n|---|---|")
    alone = {name: median(partial(proxy_score, proxy)) for name, proxy in PROXIES.items()}
    for name, price in alone.items():
        print(f"| {name} | {price:.1f} |")
    print("\n| shared part | ms |\n|---|---|")
    subjects = [fresh() for _ in range(options.repeats)]
    for name, part in PARTS.items():
        print(f"| {name} | {statistics.median(cpu_ms(partial(part, each)) for each in subjects):.1f} |")
    print("\n| proxies | one by one, ms | shared, ms | candidates a minute |\n|---|---|---|---|")
    for title, names in (("static", STATIC), ("all of one or two batches", ONE_PASS), ("all", list(PROXIES))):
        shared = median(partial(proxy_scores, names))
        apart = sum(alone[name] for name in names)
        print(f"| {title} | {apart:.1f} | {shared:.1f} | {6e4 / (shared + build_ms):.0f} |")


if __name__ == "__main__":
    main()
