"""Re-parameterized networks of seven families, and one without branches, for grey images of 32 pixels."""

import random
from collections.abc import Mapping

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.patch import NormDown
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.resnet import Basic
from searchspace.blocks.rk import Rkp
from searchspace.layouts import with_random_layouts
from searchspace.spec import ArchSpec, Stage

INPUT = (1, 32, 32)
STEM, HEAD = Rep(16, 2), Classifier(10, 128)


def _network(*stages: Stage) -> ArchSpec:
    return ArchSpec(INPUT, STEM, stages, HEAD)


def _branched(spec: ArchSpec) -> ArchSpec:
    return with_random_layouts(spec, random.Random(0))


_RESNET = _network((Basic(16),) * 2, (Basic(32, 2), Basic(32)), (Basic(64, 2), Basic(64)))

NETWORKS: Mapping[str, ArchSpec] = {
    "resnet, one branch": _RESNET,
    "resnet, PBConv": _branched(_RESNET),
    "rep (RepVGG)": _network((Rep(16),) * 2, (Rep(32, 2), *(Rep(32),) * 3), (Rep(64, 2), *(Rep(64),) * 3)),
    "rdp (RDPNet), PBConv": _branched(
        _network((Rdp(16),) * 2, (Rdp(32, 2), *(Rdp(32),) * 3), (Rdp(64, 2), *(Rdp(64),) * 3))
    ),
    "ir (MobileNetV2), PBConv": _branched(
        _network(
            (InvertedResidual(16, 1, expand=3),),
            (InvertedResidual(24, 2, expand=4), InvertedResidual(24, expand=4)),
            (InvertedResidual(48, 2, expand=4), *(InvertedResidual(48, expand=4),) * 2),
        )
    ),
    "lfae (MixMobileNet), PBConv": _branched(
        _network((Lfae(),) * 2, (NormDown(32), *(Lfae(),) * 3), (NormDown(64), *(Lfae(),) * 2))
    ),
    "rkp (PPENet)": _network((Dbc(16, 1), Rkp()), (Dbc(32), *(Rkp(5),) * 2), (Dbc(64), *(Rkp(),) * 2)),
    "parc (ParC-Net)": _network(
        (InvertedResidual(16, 1, expand=3),), (InvertedResidual(32, 2, expand=4), Parc(32, 48)), (NormDown(48),)
    ),
}
