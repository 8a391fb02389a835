"""RKP (random kernel and position): RK, convolutions around a kernel of 3x3 to 9x9, and PPE, added to their input.

The paper draws the kernel of each RK block at random when it builds the network; here it is a gene, and a random draw
is what a random sampler does.

Source: PPENet (seed 000), section 3.1, Figure 2. There are two readings of RK: the text has depthwise separable
convolutions (`dw`), the counts in the tables are those of a dense k x k convolution in front (`dense`). The paper's
padding of 1 + n keeps the size without dilation only; here it is a (1 + n).
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Add, Conv, Shape
from searchspace.blocks.ppe import KERNEL as PPE_KERNEL
from searchspace.blocks.ppe import PpeConv, emit_ppe
from searchspace.coverage import Layout, Rectangle
from searchspace.fold import NodeWeights, scoped
from searchspace.layers import (
    BranchedConv,
    deployed_conv,
    emit_residual,
    emit_square_conv,
    layout_rectangles,
    same_padding,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import positive, train_gene

KERNELS = (3, 5, 7, 9)
DILATIONS = (1, 2, 3)
VARIANTS = ("dw", "dense")


@dataclass(frozen=True, slots=True)
class Rkp:
    """An RKP block; it keeps the shape.

    kernel is the paper's 3 + 2n with n from 0 to 3, dilation its a, expand its alpha (hidden channels over channels)
    and pointwise its P: one more 1x1 convolution over the hidden channels. `layout` sits on the kernel x kernel
    convolution, `ppe_layout` on the 3x3 of PPE.
    """

    kernel: int = 3
    dilation: int = 1
    expand: int = 2
    pointwise: bool = False
    ppe: bool = True
    variant: str = "dw"
    layout: Layout | None = train_gene(None)
    ppe_layout: Layout | None = train_gene(None)

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {KERNELS}, got {self.kernel}")
        if self.dilation not in DILATIONS:
            raise ValueError(f"dilation must be one of {DILATIONS}, got {self.dilation}")
        positive(expand=self.expand)
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        if self.ppe_layout is not None and not self.ppe:
            raise ValueError(f"ppe_layout needs ppe, got {self.ppe_layout} without it; leave it out or set ppe")


@dataclass(frozen=True, slots=True)
class _Window:
    """One of RK's first two convolutions: how it looks along both axes, and its PBConv layout."""

    kernel: int
    dilation: int = 1
    layout: Layout | None = None


def _windows(spec: Rkp) -> tuple[_Window, _Window]:
    """Of the dense convolution that widens, and of the depthwise one behind it."""
    chosen = _Window(spec.kernel, spec.dilation, spec.layout)
    return (_Window(1), chosen) if spec.variant == "dw" else (chosen, _Window(3))


def _train_conv(in_channels: int, out_channels: int, window: _Window, *, groups: int = 1) -> BranchedConv:
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        window.kernel,
        padding=same_padding(window.kernel, window.dilation),
        dilation=window.dilation,
        groups=groups,
        bias=False,
    )
    return BranchedConv(conv, rectangles=layout_rectangles(window.layout, window.kernel))


def _deployed_conv(out_channels: int, window: _Window, *, groups: int = 1) -> Conv:
    padding = same_padding(window.kernel, window.dilation)
    return Conv(out_channels, (window.kernel,) * 2, 1, (padding, padding), window.dilation, groups)


class RkConvs(nn.Module):
    """The train form of RK, (n, c, h, w) to the same: widen, filter each channel, mix where asked, narrow."""

    def __init__(self, channels: int, spec: Rkp) -> None:
        super().__init__()
        hidden, (first, second) = channels * spec.expand, _windows(spec)
        self.expand = _train_conv(channels, hidden, first)
        self.depthwise = _train_conv(hidden, hidden, second, groups=hidden)
        self.pointwise = BranchedConv(square_conv(hidden, hidden, 1)) if spec.pointwise else None
        self.project = BranchedConv(square_conv(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise(functional.relu(self.expand(x))))
        if self.pointwise is not None:
            x = functional.relu(self.pointwise(x))
        y: Tensor = self.project(x)
        return y

    def folded(self) -> dict[str, NodeWeights]:
        """The weights of what `emit_rk` appends."""
        return {
            "expand": self.expand.folded(),
            "depthwise": self.depthwise.folded(),
            **({} if self.pointwise is None else {"pointwise": self.pointwise.folded()}),
            "project": self.project.folded(),
        }


def emit_rk(graph: GraphBuilder, x: GraphTensor, spec: Rkp) -> GraphTensor:
    """Appends three or four convolutions, ReLU behind all but the last."""
    channels = x.shape[0]
    hidden, (first, second) = channels * spec.expand, _windows(spec)
    y = emit_square_conv(graph, "expand", x, _deployed_conv(hidden, first), "relu")
    y = emit_square_conv(graph, "depthwise", y, _deployed_conv(hidden, second, groups=hidden), "relu")
    if spec.pointwise:
        y = emit_square_conv(graph, "pointwise", y, deployed_conv(hidden, 1), "relu")
    return graph.add("project", deployed_conv(channels, 1), y)


class RkpBlock(nn.Module):
    """The train form: x + RK(x) + PPE(x)."""

    def __init__(self, in_shape: Shape, spec: Rkp) -> None:
        super().__init__()
        self.rk = RkConvs(in_shape[0], spec)
        self.ppe = PpeConv(in_shape, spec.ppe_layout) if spec.ppe else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.rk(x)
        return y if self.ppe is None else y + self.ppe(x)

    def folded(self) -> dict[str, NodeWeights]:
        return {
            **scoped("rk", self.rk.folded()),
            **({} if self.ppe is None else scoped("ppe", self.ppe.folded())),
        }


def emit(graph: GraphBuilder, x: GraphTensor, spec: Rkp) -> GraphTensor:
    """RK and the sum with the input, then PPE and its sum: in this order fewer maps are alive at once."""
    with graph.scope("rk"):
        y = emit_rk(graph, x, spec)
    y = emit_residual(graph, x, y)
    if not spec.ppe:
        return y
    with graph.scope("ppe"):
        position = emit_ppe(graph, x)
    return graph.add("positioned", Add(), y, position)


def layout_kernels(spec: Rkp) -> dict[str, int]:
    """The kernel of RK, and PPE's where there is one."""
    return {"layout": spec.kernel, **({"ppe_layout": PPE_KERNEL} if spec.ppe else {})}


_ROWS = {size: Layout(size, tuple(Rectangle(row, 0, 1, size) for row in range(size))) for size in (3, 5)}

register(
    BlockFamily(
        "rkp",
        Rkp,
        RkpBlock,
        emit,
        examples=(
            ((4, 6, 6), Rkp()),
            ((6, 7, 5), Rkp(kernel=5, dilation=2, expand=3, pointwise=True, layout=_ROWS[5])),
            ((4, 5, 9), Rkp(kernel=9, expand=1, ppe_layout=_ROWS[3])),
            ((5, 8, 7), Rkp(dilation=3, expand=4, ppe=False, layout=_ROWS[3])),
            ((4, 9, 6), Rkp(kernel=7, pointwise=True, variant="dense")),
            ((3, 7, 9), Rkp(dilation=2, ppe=False, variant="dense", layout=_ROWS[3])),
        ),
        layout_kernels=layout_kernels,
    )
)
