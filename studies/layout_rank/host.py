"""The host of both PBConv studies: four convolutions of 3x3 on CIFAR-10, small enough to be trained some hundred times.

A VGG in little: 32x32 images, stride 2 in the first convolution, a max pool behind the first and third, 1.3 million
multiply-adds, 33,482 parameters.
"""

from dataclasses import replace

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.coverage import Layout
from searchspace.registry import family_of
from searchspace.spec import ArchSpec

KERNEL = 3
HOST = ArchSpec(
    (3, 32, 32),
    PlainConv(16, stride=2, max_pool=2),
    ((PlainConv(32), PlainConv(32, max_pool=2)), (PlainConv(64),)),
    Classifier(10),
)


def with_layout(spec: ArchSpec, layout: Layout) -> ArchSpec:
    """The layout on every 3x3 convolution, as the paper does."""
    return spec.map_blocks(
        lambda block: replace(
            block, **{name: layout for name, size in family_of(block).layout_kernels(block).items() if size == KERNEL}
        )
    )
