"""A small network of each block family, for grey images of 32 pixels and 10 classes."""

import random
from collections.abc import Mapping

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.convnext import ConvNext
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.parc_hosts import ParcBottleneck, ParcConvNext, ParcInvertedResidual
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.ppe import Ppe
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.resnet import Basic, Bottleneck
from searchspace.blocks.rk import Rkp
from searchspace.layouts import with_random_layouts
from searchspace.registry import BlockSpec
from searchspace.spec import ArchSpec

INPUT = (1, 32, 32)
STEM, HEAD = PlainConv(16, 2), Classifier(10, 64)


def _network(*blocks: BlockSpec, stem: BlockSpec = STEM, head: BlockSpec = HEAD) -> ArchSpec:
    return ArchSpec(INPUT, stem, (blocks,), head)


def _between(block: BlockSpec) -> ArchSpec:
    """Blocks that keep the width, at 16 channels and, after a plain step, at 32."""
    return _network(block, block, PlainConv(32, 2), block, block)


# What a family leaves open is what its paper has, in small; the parts around it are plain convolutions.
NETWORKS: Mapping[str, ArchSpec] = {
    "basic": _network(Basic(16), Basic(32, 2), Basic(32)),
    "bottleneck": _network(Bottleneck(32, 16), Bottleneck(64, 16, 2), Bottleneck(64, 16)),
    "classifier": _network(
        PlainConv(32, 2), PlainConv(32), head=Classifier(10, 64, activation="hardswish", norm=True, hidden=32)
    ),
    "conv": _network(PlainConv(24, max_pool=2), PlainConv(32, activation="silu"), PlainConv(32, kernel=5)),
    "convnext": _between(ConvNext(layer_scale=0.1)),
    "dbc": _network(Dbc(32), Dbc(32, 1), stem=Dbc(16)),
    "gfae": _between(Gfae(position_encoding=True)),
    "ir": _network(
        InvertedResidual(16, 1, 5, 4, True), InvertedResidual(32, 2, 3, 4, False, "hardswish"), InvertedResidual(32)
    ),
    "lfae": _between(Lfae()),
    "norm_down": _network(PlainConv(16), NormDown(32), PlainConv(32), NormDown(48)),
    "parc": _network(InvertedResidual(24, 2, expand=4), Parc(24, 32)),
    "parc_bottleneck": _network(Bottleneck(32, 16), ParcBottleneck(32, 16), PlainConv(48, 2), ParcBottleneck(48, 24)),
    "parc_convnext": _between(ParcConvNext(layer_scale=0.1)),
    "parc_ir": _network(ParcInvertedResidual(16), PlainConv(32, 2), ParcInvertedResidual(32, 4, "hardswish")),
    "patch": _network(Lfae(), NormDown(32), Lfae(), stem=Patch(24, 4)),
    "ppe": _between(Ppe()),
    "rdp": _network(Rdp(16), Rdp(32, 2), Rdp(32)),
    "rep": _network(Rep(16), Rep(32, 2), Rep(32), stem=Rep(16, 2)),
    "rkp": _between(Rkp(5, pointwise=True)),
}


def with_branches(family: str) -> ArchSpec:
    """The network of a family with PBConv branches drawn for its convolutions, so that there is something to fold."""
    return with_random_layouts(NETWORKS[family], random.Random(family))
