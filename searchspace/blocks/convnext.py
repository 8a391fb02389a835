"""ConvNeXt block: a depthwise 7x7 convolution, a layer norm, a wider 1x1 convolution, GELU, 1x1 back, and the input.

Source: Liu et al., "A ConvNet for the 2020s", section 2.6 and figure 4. Each channel of the result is scaled before the
sum (layer scale of Touvron et al., "Going deeper with Image Transformers", section 2.1) and the block may be left out
at random in training; on the device the scale is a part of the last convolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from searchspace.blocks.normed_mlp import NormedMlp, emit_normed_mlp
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConvWeights, scaled_output
from searchspace.layers import (
    BranchedConv,
    DropPath,
    deployed_conv,
    emit_residual,
    layout_rectangles,
    same_padding,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import not_negative, odd, positive, probability, train_gene

# What ConvNeXt multiplies each channel by at first.
LAYER_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class ConvNext:
    """A ConvNeXt block, which keeps its input's shape; layer_scale is what the scale starts at, 0 for none."""

    kernel: int = 7
    expand: float = 4
    layer_scale: float = train_gene(LAYER_SCALE)
    drop_path: float = train_gene(0.0)
    layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        positive(kernel=self.kernel, expand=self.expand)
        odd(kernel=self.kernel)
        not_negative(layer_scale=self.layer_scale)
        probability(drop_path=self.drop_path)


class ScaledMlp(nn.Module):
    """What follows the convolution over positions: norm, 1x1, GELU, 1x1, layer scale, and stochastic depth."""

    def __init__(self, channels: int, expand: float, *, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.mlp = NormedMlp(channels, expand)
        self.layer_scale = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        if self.layer_scale is not None:
            y = y * self.layer_scale[:, None, None]
        dropped: Tensor = self.drop_path(y)
        return dropped

    def folded(self) -> dict[str, ConvWeights]:
        """The weights of the two convolutions that `emit_normed_mlp` appends."""
        weights = self.mlp.folded()
        if self.layer_scale is not None:
            weights["narrow"] = scaled_output(weights["narrow"], self.layer_scale.detach())
        return weights


class ConvNextBlock(nn.Module):
    """The train form; PBConv branches sit beside the depthwise convolution, without norms, as it has none."""

    def __init__(self, in_shape: Shape, spec: ConvNext) -> None:
        super().__init__()
        channels = in_shape[0]
        self.depthwise = BranchedConv(
            nn.Conv2d(channels, channels, spec.kernel, padding=same_padding(spec.kernel), groups=channels),
            rectangles=layout_rectangles(spec.layout, spec.kernel),
            norm=False,
        )
        self.mlp = ScaledMlp(channels, spec.expand, layer_scale=spec.layer_scale, drop_path=spec.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.depthwise(x))
        return x + y

    def folded(self) -> dict[str, ConvWeights]:
        return {"depthwise": self.depthwise.folded(), **self.mlp.folded()}


def emit(graph: GraphBuilder, x: GraphTensor, spec: ConvNext) -> GraphTensor:
    """A depthwise convolution, a norm, two convolutions, and the sum with the input."""
    y = graph.add("depthwise", deployed_conv(x.shape[0], spec.kernel, groups=x.shape[0]), x)
    return emit_residual(graph, x, emit_normed_mlp(graph, y, spec.expand))


_COLUMNS = tuple(Rectangle(0, column, 5, 1) for column in range(5))

register(
    BlockFamily(
        "convnext",
        ConvNext,
        ConvNextBlock,
        emit,
        examples=(
            ((6, 9, 7), ConvNext()),
            ((4, 3, 5), ConvNext(expand=2.5, layer_scale=0, drop_path=0.5)),
            ((5, 7, 6), ConvNext(kernel=5, layout=Layout(5, _COLUMNS))),
        ),
        layout_kernels=lambda spec: {"layout": spec.kernel} if spec.kernel > 1 else {},
    )
)
