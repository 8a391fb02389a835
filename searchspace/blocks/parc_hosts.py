"""The blocks of three hosts with ParC (position aware circular convolution) in the place of their KxK convolution.

They keep the size of the map and stand in the last blocks of a stage, behind ordinary ones.

Source: ParC-Net (seed 002), section 4.5 and Table 3, rows 5 to 10; everything around the convolution is the host's, the
norm behind it included. In the authors' code a bottleneck's is dense within each half of the channels, the others are
depthwise, and all have a bias; MobileNetV2 has position embeddings in the first ParC block of a stage alone.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Activation, Shape
from searchspace.blocks.convnext import LAYER_SCALE, ScaledMlp
from searchspace.blocks.normed_mlp import emit_normed_mlp
from searchspace.blocks.resnet import emit_activated_sum, emit_shortcut, shortcut_conv
from searchspace.fold import NodeWeights, scoped
from searchspace.layers import (
    ACTIVATION_MODULES,
    BranchedConv,
    deployed_conv,
    emit_residual,
    emit_square_conv,
    square_conv,
)
from searchspace.parc_conv import ParcConv, emit_parc_conv
from searchspace.registry import BlockFamily, register
from searchspace.spec import known_activation, not_negative, positive, probability, train_gene

# The name of the circular convolution's nodes.
RING = "ring"


@dataclass(frozen=True, slots=True)
class ParcBottleneck:
    """A bottleneck block of ResNet; base is the length at which kernels and embeddings are learnt, None the map's."""

    width: int
    inner_width: int
    position_embedding: bool = True
    base: int | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, inner_width=self.inner_width)
        _check_base(self.base)


@dataclass(frozen=True, slots=True)
class ParcInvertedResidual:
    """An inverted residual of MobileNetV2; base is the length at which kernels and embeddings are learnt."""

    width: int
    expand: float = 6
    activation: str = "relu6"
    position_embedding: bool = True
    base: int | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(width=self.width, expand=self.expand)
        known_activation(self.activation)
        _check_base(self.base)


@dataclass(frozen=True, slots=True)
class ParcConvNext:
    """A ConvNeXt block; base is the length at which kernels and embeddings are learnt, the rest is as in `ConvNext`."""

    expand: float = 4
    position_embedding: bool = True
    base: int | None = train_gene(None)
    layer_scale: float = train_gene(LAYER_SCALE)
    drop_path: float = train_gene(0.0)

    def __post_init__(self) -> None:
        positive(expand=self.expand)
        not_negative(layer_scale=self.layer_scale)
        probability(drop_path=self.drop_path)
        _check_base(self.base)


def _check_base(base: int | None) -> None:
    if base is not None:
        positive(base=base)


class NormedParc(nn.Module):
    """ParC and a batch norm, for one size of map when folded."""

    def __init__(self, in_shape: Shape, groups: int, spec: ParcBottleneck | ParcInvertedResidual) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.extent = (height, width)
        self.conv = ParcConv(
            in_shape, channels, groups=groups, position_embedding=spec.position_embedding, base=spec.base
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y

    def folded(self) -> dict[str, NodeWeights]:
        return scoped(RING, self.conv.folded(self.extent, self.norm))


def _emit_ring(graph: GraphBuilder, x: GraphTensor, groups: int, position_embedding: bool) -> GraphTensor:
    with graph.scope(RING):
        return emit_parc_conv(graph, x, x.shape[0], groups=groups, position_embedding=position_embedding)


class ParcBottleneckBlock(nn.Module):
    """The train form."""

    def __init__(self, in_shape: Shape, spec: ParcBottleneck) -> None:
        super().__init__()
        channels, inner = in_shape[0], spec.inner_width
        self.reduce = BranchedConv(square_conv(channels, inner, 1))
        self.ring = NormedParc((inner, *in_shape[1:]), 1, spec)
        self.expand = BranchedConv(square_conv(inner, spec.width, 1))
        self.shortcut = shortcut_conv(channels, spec.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.reduce(x))
        y = self.expand(nn.functional.relu(self.ring(y)))
        return nn.functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def folded(self) -> dict[str, NodeWeights]:
        return {
            "reduce": self.reduce.folded(),
            **self.ring.folded(),
            "expand": self.expand.folded(),
            **({} if self.shortcut is None else {"shortcut": self.shortcut.folded()}),
        }


def emit_bottleneck(graph: GraphBuilder, x: GraphTensor, spec: ParcBottleneck) -> GraphTensor:
    """A convolution, ParC, the shortcut, a convolution, the sum and its activation."""
    y = emit_square_conv(graph, "reduce", x, deployed_conv(spec.inner_width, 1), "relu")
    y = _emit_ring(graph, y, 1, spec.position_embedding)
    y = graph.add("ring_relu", Activation("relu"), y)
    shortcut = emit_shortcut(graph, x, spec.width, 1)
    return emit_activated_sum(graph, shortcut, graph.add("expand", deployed_conv(spec.width, 1), y))


class ParcInvertedResidualBlock(nn.Module):
    """The train form; with expand 1 there is no widening convolution."""

    def __init__(self, in_shape: Shape, spec: ParcInvertedResidual) -> None:
        super().__init__()
        channels, hidden = in_shape[0], round(in_shape[0] * spec.expand)
        self.expand = None if spec.expand == 1 else BranchedConv(square_conv(channels, hidden, 1))
        self.ring = NormedParc((hidden, *in_shape[1:]), hidden, spec)
        self.project = BranchedConv(square_conv(hidden, spec.width, 1))
        self.activation = ACTIVATION_MODULES[spec.activation]()
        self.has_skip = channels == spec.width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else self.activation(self.expand(x))
        y = self.project(self.activation(self.ring(y)))
        return y + x if self.has_skip else y

    def folded(self) -> dict[str, NodeWeights]:
        return {
            **({} if self.expand is None else {"expand": self.expand.folded()}),
            **self.ring.folded(),
            "project": self.project.folded(),
        }


def emit_inverted(graph: GraphBuilder, x: GraphTensor, spec: ParcInvertedResidual) -> GraphTensor:
    """Up to two convolutions around ParC, and the sum with the input where the width stays."""
    hidden = round(x.shape[0] * spec.expand)
    y = x if spec.expand == 1 else emit_square_conv(graph, "expand", x, deployed_conv(hidden, 1), spec.activation)
    y = _emit_ring(graph, y, hidden, spec.position_embedding)
    y = graph.add(f"ring_{spec.activation}", Activation(spec.activation), y)
    y = graph.add("project", deployed_conv(spec.width, 1), y)
    return emit_residual(graph, x, y) if x.shape[0] == spec.width else y


class ParcConvNextBlock(nn.Module):
    """The train form."""

    def __init__(self, in_shape: Shape, spec: ParcConvNext) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.extent = (height, width)
        self.ring = ParcConv(
            in_shape, channels, groups=channels, position_embedding=spec.position_embedding, base=spec.base
        )
        self.mlp = ScaledMlp(channels, spec.expand, layer_scale=spec.layer_scale, drop_path=spec.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.ring(x))
        return x + y

    def folded(self) -> dict[str, NodeWeights]:
        """The layer norm behind ParC looks at all channels, so nothing of it goes into the circular convolutions."""
        return {**scoped(RING, self.ring.folded(self.extent, None)), **self.mlp.folded()}


def emit_convnext(graph: GraphBuilder, x: GraphTensor, spec: ParcConvNext) -> GraphTensor:
    """ParC, a norm, two convolutions, and the sum with the input."""
    y = _emit_ring(graph, x, x.shape[0], spec.position_embedding)
    return emit_residual(graph, x, emit_normed_mlp(graph, y, spec.expand))


register(
    BlockFamily(
        "parc_bottleneck",
        ParcBottleneck,
        ParcBottleneckBlock,
        emit_bottleneck,
        examples=(
            ((8, 5, 7), ParcBottleneck(8, inner_width=4)),
            ((6, 7, 5), ParcBottleneck(8, inner_width=6, base=9)),
            ((8, 4, 6), ParcBottleneck(8, inner_width=4, position_embedding=False)),
        ),
    )
)
register(
    BlockFamily(
        "parc_ir",
        ParcInvertedResidual,
        ParcInvertedResidualBlock,
        emit_inverted,
        examples=(
            ((8, 6, 5), ParcInvertedResidual(8)),
            ((8, 7, 4), ParcInvertedResidual(10, expand=2.5, activation="hardswish", base=3)),
            ((6, 1, 5), ParcInvertedResidual(6, expand=1, position_embedding=False)),
        ),
    )
)
register(
    BlockFamily(
        "parc_convnext",
        ParcConvNext,
        ParcConvNextBlock,
        emit_convnext,
        examples=(
            ((6, 5, 8), ParcConvNext()),
            ((4, 7, 3), ParcConvNext(expand=2, base=5, layer_scale=0)),
            ((8, 4, 4), ParcConvNext(position_embedding=False, drop_path=0.2)),
        ),
    )
)
