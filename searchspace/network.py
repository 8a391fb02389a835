"""From a spec to its two forms: the graph that a device runs and the network that is trained."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from hardware.graph import DeployGraph, DeployModel, GraphBuilder, with_weights
from hardware.ops import Shape
from searchspace.registry import BlockSpec, family_of
from searchspace.spec import ArchSpec


def deploy_graph(spec: ArchSpec) -> DeployGraph:
    """What a device runs for `spec`: operations and shapes, without building anything to train.

    Raises:
        ValueError: the blocks do not fit each other or the input is too small for them.
    """
    builder = GraphBuilder(spec.input_shape)
    x = builder.input
    for path, block in spec.blocks():
        with builder.scope(path):
            x = family_of(block).emit(builder, x, block)
    return builder.build()


@lru_cache(maxsize=65536)
def block_graph(in_shape: Shape, block: BlockSpec) -> DeployGraph:
    """What a device runs for one block alone; remembered, since the blocks of a space repeat."""
    builder = GraphBuilder(in_shape)
    family_of(block).emit(builder, builder.input, block)
    return builder.build()


class Network(nn.Module):
    """The train form of a spec: images (n, channels, height, width) to logits (n, classes).

    Weights are drawn from torch's global generator; see `build_network` for a seeded one.
    """

    def __init__(self, spec: ArchSpec) -> None:
        super().__init__()
        self.spec = spec
        self.paths = []
        self.blocks = nn.ModuleList()
        shape: Shape = spec.input_shape
        for path, block in spec.blocks():
            self.paths.append(path)
            self.blocks.append(family_of(block).train(shape, block))
            shape = block_graph(shape, block).output_shape

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def build_network(spec: ArchSpec, seed: int) -> Network:
    """The train form with weights that follow from `seed` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(spec)


def deploy(network: Network) -> DeployModel:
    """The network in eval mode as what a device runs: every block's branches folded, the graph from the spec.

    Raises:
        ValueError: a block folds into other weights than its operations need.
    """
    weights = {
        f"{path}.{node}.{tensor}": value.detach().cpu().numpy()
        for path, block in zip(network.paths, network.blocks, strict=True)
        for node, tensors in block.folded().items()  # type: ignore[operator]
        for tensor, value in tensors._asdict().items()
    }
    return with_weights(deploy_graph(network.spec), weights)
