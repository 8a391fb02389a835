"""Zen-score: how strongly what a network makes of noise depends on the noise, its norms' divisions multiplied back in.

Source: Lin et al., "Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition", section 3.3 and Algorithm 1.
It is defined on plain convolutions, each with a batch norm. Our train forms have several norms side by side where the
device runs one convolution, so the deploy graph is scored: Gaussian weights, a norm behind each convolution, links
around blocks and gates taken out as the paper does. The two inputs compared are normed by the first one's statistics.
"""

import math

import torch
from torch import Tensor

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import NotDefined, Subject
from hardware.graph import DeployGraph
from hardware.ops import Add, Conv, GlobalPool, Mul, weight_shapes
from searchspace.deploy_module import run_op

# The published code's share of noise, and what keeps a norm from dividing by zero.
NOISE, EPSILON = 0.01, 1e-5


def main_path(graph: DeployGraph) -> list[int]:
    """The nodes, in order, that lead to the maps before the last global pooling; of sums and gates the first input.

    Blocks put what they compute first in a sum, and what they gate first in a product.
    """
    pools = [index for index, node in enumerate(graph.nodes) if isinstance(node.op, GlobalPool)]
    todo = [graph.nodes[pools[-1]].inputs[0] if pools else len(graph.nodes) - 1]
    found: set[int] = set()
    while todo:
        index = todo.pop()
        if index not in found:
            found.add(index)
            todo.extend(_followed(graph, index))
    return sorted(found)


def _followed(graph: DeployGraph, index: int) -> tuple[int, ...]:
    node = graph.nodes[index]
    return node.inputs[:1] if isinstance(node.op, Add | Mul) else node.inputs


@torch.no_grad()
def zen_score(subject: Subject) -> float:
    """Log of the mean Euclidean distance that noise makes, plus the logs of what each norm divided by."""
    graph = subject.graph
    generator = torch.Generator().manual_seed(subject.seed)
    count = subject.settings.batch_size
    clean = torch.randn(count, *graph.input_shape, generator=generator)
    noisy = clean + NOISE * torch.randn(clean.shape, generator=generator)
    values: dict[int, Tensor] = {}
    divided, last = 0.0, 0
    for last in main_path(graph):
        node = graph.nodes[last]
        inputs = [values[source] for source in _followed(graph, last)] or [torch.cat([clean, noisy])]
        if isinstance(node.op, Add | Mul):
            values[last] = inputs[0]
            continue
        shapes = weight_shapes(node.op, graph.input_shapes(node))
        values[last] = run_op(node.op, inputs, {name: _drawn(name, shape, generator) for name, shape in shapes.items()})
        if isinstance(node.op, Conv):
            values[last], deviation = _normed(values[last], count)
            divided += math.log(deviation)
    distance = float((values[last][:count] - values[last][count:]).flatten(1).norm(dim=1).mean())
    if distance == 0:
        raise NotDefined("noise on the image changes nothing in the last maps")
    return math.log(distance) + divided


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian weights; scales of one, and shifts, biases and constants of zero."""
    if name == "weight":
        return torch.randn(shape, generator=generator)
    return torch.ones(shape) if name == "scale" else torch.zeros(shape)


def _normed(y: Tensor, count: int) -> tuple[Tensor, float]:
    """Batch norm by the first `count` images, and the root of the channels' mean variance."""
    variance, mean = torch.var_mean(y[:count], (0, 2, 3), correction=0, keepdim=True)
    if not float(variance.mean()) > 0:
        raise NotDefined("a convolution gives the same value everywhere, which no norm can scale")
    return (y - mean) * (variance + EPSILON).rsqrt(), math.sqrt(float(variance.mean()))


ZEN = Proxy("zen", zen_score, 1, "forward", "Lin et al. 2021: Gaussian complexity with the norms' scales")
