"""Giving a network PBConv layouts: one layout per kernel size for the whole network, as seed 001 does."""

import random
from dataclasses import replace

from searchspace.coverage import generate_layout
from searchspace.registry import BlockSpec, family_of
from searchspace.spec import ArchSpec

# A layout of a large kernel can have one branch per cell; each costs memory and time in training.
MAX_BRANCHES = 8


def with_random_layouts(spec: ArchSpec, rng: random.Random) -> ArchSpec:
    """The network with a generated layout on every convolution that can carry one, the same for equal kernels.

    Source: PBConv (seed 001), section 4.3.
    """
    carriers = [family_of(block).layout_kernels(block) for _, block in spec.blocks()]
    sizes = sorted({size for fields in carriers for size in fields.values()})
    layouts = {size: generate_layout(size, rng, None if size <= 3 else MAX_BRANCHES) for size in sizes}

    def with_layouts(block: BlockSpec) -> BlockSpec:
        chosen = {name: layouts[size] for name, size in family_of(block).layout_kernels(block).items()}
        return replace(block, **chosen)

    return spec.map_blocks(with_layouts)
