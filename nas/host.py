"""The machine at hand as a target: how well the sums of its kernels foretell whole networks."""

import random

from hardware.cost import cost
from hardware.latency_table import NetworkRatios
from hardware.measuring import MeasuringModel
from nas.problem import Problem
from searchspace.choosers import random_choice
from searchspace.network import build_network, deploy, deploy_graph
from searchspace.space import member

# So many networks of the space are timed whole before the first search: the smallest of so many random ones, since
# those are what a budget leaves, and since large ones would take for ever.
NETWORKS = 8
DRAWN = 40


def check_table(problem: Problem) -> NetworkRatios | None:
    """Makes sure that a table of kernels measured here knows its own error on whole networks of the problem's space.

    None where the target is not this machine. Takes some seconds the first time; the result is kept in the table.
    """
    model = problem.target.latency_model
    if not isinstance(model, MeasuringModel):
        return None
    if model.known.network_ratios is not None:
        return model.known.network_ratios
    rng = random.Random(0)
    drawn = [member(problem.space, random_choice(rng), problem.task) for _ in range(DRAWN)]
    smallest = sorted(drawn, key=lambda spec: cost(deploy_graph(spec)).macs)[:NETWORKS]
    networks = (deploy(build_network(spec, 0).eval()) for spec in smallest)
    return model.compare_with_networks(networks, problem.target.fusion_rules)
