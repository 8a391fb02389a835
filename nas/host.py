"""The machine at hand as a target: how well the sums of its kernels foretell whole networks."""

import random

from hardware.cost import cost
from hardware.graph import DeployModel
from hardware.latency_table import NetworkRatios
from hardware.measuring import MeasuringModel
from nas.problem import Problem
from searchspace.choosers import random_choice
from searchspace.network import build_network, deploy, deploy_graph
from searchspace.space import member

# So many networks of the space are timed whole before the first search, none of them so large as to take for ever.
NETWORKS = 8
LARGEST_MACS = 60_000_000


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
    networks: list[DeployModel] = []
    while len(networks) < NETWORKS:
        spec = member(problem.space, random_choice(rng), problem.task)
        if cost(deploy_graph(spec)).macs <= LARGEST_MACS:
            networks.append(deploy(build_network(spec, 0).eval()))
    return model.compare_with_networks(networks, problem.target.fusion_rules)
