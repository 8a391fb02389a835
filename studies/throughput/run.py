"""How fast candidates are costed without being built, and what the search spends on a trial outside its evaluation.

    python studies/throughput/run.py [--members 300]

Prints medians over repeats, and ratios to torch's FLOP counter (and fvcore's, where installed) on the same networks in
the same run. One core. Absolute figures depend on the machine; quote the ratios.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluators.static import StaticCosts
from hardware.cost import cost
from hardware.targets import load_target
from nas.executors.executor import Finished, Job
from nas.problem import resolve
from nas.settings import StudySettings
from nas.study import Progress, Search, check_budget
from searchspace.choosers import random_choice
from searchspace.network import build_network, deploy_graph
from searchspace.space import Task, member
from searchspace.spaces import EDGE_SMALL
from searchspace.spec import ArchSpec

REPEATS = 5
COUNTED_BY_TORCH = 20


def per_second(function: Callable[[ArchSpec], object], specs: list[ArchSpec]) -> float:
    """Median over repeats of how many networks `function` gets through in a second."""
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for spec in specs:
            function(spec)
        rates.append(len(specs) / (time.perf_counter() - started))
    return statistics.median(rates)


def torch_macs(spec: ArchSpec) -> int:
    """What a user would do: build the network, run it once, and let torch count."""
    network = build_network(spec, 0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *spec.input_shape))
    return counter.get_total_flops() // 2


def fvcore_macs(spec: ArchSpec) -> int:
    """The same through fvcore's tracer."""
    from fvcore.nn import FlopCountAnalysis

    network = build_network(spec, 0).eval()
    analysis = FlopCountAnalysis(network, torch.zeros(1, *spec.input_shape))
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


class InstantExecutor:
    """Answers from a formula, so that what is left is the search itself."""

    def __init__(self) -> None:
        self._jobs: list[tuple[int, Job]] = []
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs.append((self._submitted, job))
        return self._submitted

    def wait(self) -> Finished:
        handle, job = self._jobs.pop(0)
        spec = job.arguments[0]
        value = cost(deploy_graph(spec)).params / 1e6
        return Finished(handle, {"dispersion": value, "dispersion_start": 0.0, "loss": -value, "seconds": 0.0})

    def close(self) -> None:
        self._jobs.clear()


def search_overhead(trials: int) -> dict[str, float]:
    """Milliseconds that a search spends per trial when evaluations take no time, rejected proposals included."""
    settings = StudySettings(study="overhead", target="rk3288", budget="5ms", trials=trials)
    problem = resolve(settings)
    fastest = check_budget(problem)
    seen: list[Progress] = []
    with TemporaryDirectory() as folder:
        search = Search(problem, Path(folder), InstantExecutor())
        started = time.perf_counter()
        search.run(fastest, seen.append)
        seconds = time.perf_counter() - started
    return {"trials": trials, "rejected": seen[-1].rejected, "ms_per_trial": 1e3 * seconds / trials}


def main() -> None:
    """Runs everything and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    specs = [member(EDGE_SMALL, random_choice(rng), Task(3, 10)) for _ in range(options.members)]
    small = specs[:COUNTED_BY_TORCH]
    costs = StaticCosts(load_target("rk3288"))
    started = time.perf_counter()
    for spec in specs:
        costs(spec)
    cold = len(specs) / (time.perf_counter() - started)
    warm = per_second(costs, specs)
    by_torch = per_second(torch_macs, small)
    proposed = per_second(lambda _: costs(member(EDGE_SMALL, random_choice(rng), Task(3, 10))), specs)
    result: dict[str, object] = {
        "new_members_proposed_and_costed_per_second": round(proposed),
        "known_blocks_costed_per_second": round(warm),
        "nothing_remembered_costed_per_second": round(cold),
        "torch_flop_counter_per_second": round(by_torch, 2),
        "ratio_of_new_members_to_torch": round(proposed / by_torch),
        "ratio_of_known_blocks_to_torch": round(warm / by_torch),
    }
    try:
        by_fvcore = per_second(fvcore_macs, small)
    except ImportError:
        result["fvcore"] = "not installed"
    else:
        result["ratio_of_new_members_to_fvcore"] = round(proposed / by_fvcore)
        result["ratio_of_known_blocks_to_fvcore"] = round(warm / by_fvcore)
    result["search_overhead"] = [search_overhead(trials) for trials in (50, 200)]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
