"""Everything that follows from a spec without building a network: MACs, parameters, memory and predicted latency.

Costs are sums over blocks, and what a block costs follows from the shape that enters it and its own few numbers. Each
block is worked out once and remembered, so that a network costs a look-up per block: microseconds.
"""

from dataclasses import dataclass

from hardware.cost import BYTES_PER_FLOAT, cost
from hardware.kernels import fuse
from hardware.latency_table import KernelSums, Latency, Tier, kernel_sums
from hardware.ops import Shape
from hardware.targets import Target
from searchspace.network import block_graph
from searchspace.registry import BlockSpec
from searchspace.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class StaticCost:
    """What a network costs on a target, known before anything is trained; memory and MACs at batch 1 in fp32."""

    macs: int
    params: int
    peak_memory_bytes: int
    latency: Latency


@dataclass(frozen=True, slots=True)
class BlockCost:
    """One block's share."""

    out_shape: Shape
    macs: int
    params: int
    peak_activation_bytes: int
    kernels: KernelSums

    @property
    def latency_ms(self) -> float:
        """The sum of its kernels."""
        return self.kernels.total_ms

    @property
    def tier(self) -> Tier:
        """The worst of its kernels."""
        return self.kernels.tier


class StaticCosts:
    """Costs of networks on one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._blocks: dict[tuple[Shape, BlockSpec], BlockCost] = {}

    def block(self, in_shape: Shape, block: BlockSpec) -> BlockCost:
        """What one block costs after a given shape.

        Raises:
            UnmeasuredKernel: the target's table is of measured kernels and knows nothing like one.
            ValueError: the block does not fit the shape.
        """
        found = self._blocks.get((in_shape, block))
        if found is None:
            found = self._blocks[in_shape, block] = _block_cost(self.target, in_shape, block)
        return found

    def __call__(self, spec: ArchSpec) -> StaticCost:
        """What the whole network costs.

        Raises:
            UnmeasuredKernel: the target's table is of measured kernels and knows nothing like one.
            ValueError: the blocks do not fit each other.
        """
        shape: Shape = spec.input_shape
        macs = params = peak = 0
        sums = KernelSums()
        for _, block in spec.blocks():
            part = self.block(shape, block)
            macs += part.macs
            params += part.params
            peak = max(peak, part.peak_activation_bytes)
            sums += part.kernels
            shape = part.out_shape
        weight_bytes = params * BYTES_PER_FLOAT
        return StaticCost(macs, params, weight_bytes + peak, self.target.latency_model.network(sums))


def _block_cost(target: Target, in_shape: Shape, block: BlockSpec) -> BlockCost:
    graph = block_graph(in_shape, block)
    own = cost(graph)
    return BlockCost(
        graph.output_shape,
        own.macs,
        own.params,
        own.peak_activation_bytes,
        kernel_sums(target.latency_model, fuse(graph, target.fusion_rules)),
    )
