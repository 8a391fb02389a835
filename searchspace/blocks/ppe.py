"""PPE (parameterized position encoding): a depthwise 3x3 convolution that trains as two, one of which knows its place.

One path sees the map with the number of the column (first half of the channels) or of the row (second half) added to
it. The other convolves the map itself with a refocused kernel, W + R * W, where R is a depthwise 3x3 convolution that
runs over the kernels. On the device both are one convolution and one constant map.

Source: PPENet (seed 000), section 3.1, Figure 1 and Equations 10 and 11. The paper adds the bare number, up to 111 at
its resolution; here it runs from 0 to 1 and has a learnt scale for each channel. R follows Cai et al., "RefConv", which
mixes the kernels of all channels in a depthwise layer; that would cost 0.38 M parameters in PPENet-L, and the paper,
which found them too many, publishes 0.58 M for the whole network without its RK parts. So R keeps channels apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Activation, AddConstant, Shape
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import ConstantWeights, ConvWeights, NodeWeights, add_branches, fold_batchnorm, scale_and_shift
from searchspace.layers import (
    BranchedConv,
    deployed_conv,
    emit_residual,
    layout_rectangles,
    same_padding,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import train_gene

KERNEL = 3

# A position must be seen beside features of about 1, and must not drown them.
FIRST_SCALE = 0.1


@dataclass(frozen=True, slots=True)
class Ppe:
    """PPE alone: with the input added, as PPENet without its RK parts, or in the place of a convolution."""

    skip: bool = True
    layout: Layout | None = train_gene(None)


class PpeConv(nn.Module):
    """The train form, (n, c, h, w) to the same: ReLU(norm(positioned path + refocused path)).

    With a layout the positioned path is a PBConv: its kernel and its branches have batch norms of their own.
    """

    def __init__(self, in_shape: Shape, layout: Layout | None) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.extent = (height, width)
        self.scale = nn.Parameter(torch.full((channels,), FIRST_SCALE))
        self.positioned = BranchedConv(
            square_conv(channels, channels, KERNEL, groups=channels),
            rectangles=layout_rectangles(layout, KERNEL),
            norm=layout is not None,
        )
        self.refocused = square_conv(channels, channels, KERNEL, groups=channels)
        self.refocus = square_conv(channels, channels, KERNEL, groups=channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.positioned(x + position_map(self.scale, x.shape[2], x.shape[3]))
        return functional.relu(self.norm(y + _depthwise(x, self.refocused_kernel())))

    def refocused_kernel(self) -> Tensor:
        """W + R * W, (c, 1, 3, 3)."""
        kernel = self.refocused.weight
        # R takes the kernels of all channels for one image.
        change: Tensor = self.refocus(kernel.transpose(0, 1))
        return kernel + change.transpose(0, 1)

    def folded(self) -> dict[str, NodeWeights]:
        """The weights of what `emit_ppe` appends, for maps of the size that the block was built for.

        Both paths are linear, so the positions go through the positioned kernel on their own. Zero padding stands
        outside of them as well: beside the border less of the kernel sees them, so what comes out varies along both
        axes and is no sum of a row and a column.
        """
        positioned = self.positioned.folded()
        refocused = self.refocused_kernel().detach()
        both = add_branches([positioned, ConvWeights(refocused, torch.zeros_like(positioned.bias))])
        scale, _ = scale_and_shift(self.norm)
        constant = _depthwise(position_map(self.scale.detach(), *self.extent)[None], positioned.weight)[0]
        return {
            "conv": fold_batchnorm(both, self.norm),
            "positions": ConstantWeights(constant * scale[:, None, None]),
        }


def position_map(scale: Tensor, height: int, width: int) -> Tensor:
    """What is added to a map: (c, height, width), by columns in the first half of the channels, by rows after it.

    Of an odd number of channels one more goes by rows. A map of one column or row has position 0.
    """
    by_column, by_row = scale.tensor_split([len(scale) // 2])
    columns, rows = (torch.linspace(0, 1, length, dtype=scale.dtype, device=scale.device) for length in (width, height))
    return torch.cat(
        [
            (by_column[:, None, None] * columns).expand(-1, height, -1),
            (by_row[:, None, None] * rows[:, None]).expand(-1, -1, width),
        ]
    )


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(x, weight, padding=same_padding(KERNEL), groups=len(weight))


def emit_ppe(graph: GraphBuilder, x: GraphTensor) -> GraphTensor:
    """Appends a depthwise 3x3 convolution, a constant map and ReLU."""
    channels = x.shape[0]
    y = graph.add("conv", deployed_conv(channels, KERNEL, groups=channels), x)
    y = graph.add("positions", AddConstant(x.shape), y)
    return graph.add("relu", Activation("relu"), y)


class PpeBlock(nn.Module):
    """The train form of `Ppe`."""

    def __init__(self, in_shape: Shape, spec: Ppe) -> None:
        super().__init__()
        self.conv = PpeConv(in_shape, spec.layout)
        self.has_skip = spec.skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.has_skip else y

    def folded(self) -> dict[str, NodeWeights]:
        return self.conv.folded()


def emit(graph: GraphBuilder, x: GraphTensor, spec: Ppe) -> GraphTensor:
    """PPE, and the sum with the input where asked."""
    y = emit_ppe(graph, x)
    return emit_residual(graph, x, y) if spec.skip else y


register(
    BlockFamily(
        "ppe",
        Ppe,
        PpeBlock,
        emit,
        examples=(
            ((6, 5, 8), Ppe()),
            ((5, 7, 4), Ppe(skip=False)),
            ((4, 1, 6), Ppe(skip=False)),
            ((4, 6, 5), Ppe(layout=Layout(KERNEL, (Rectangle(0, 0, 2, 3), Rectangle(1, 0, 2, 3))))),
        ),
        layout_kernels=lambda spec: {"layout": KERNEL},
    )
)
