"""The second half of both MixMobileNet encoders: a norm, a wider 1x1 convolution, GELU, and a 1x1 convolution back.

Source: MixMobileNet (seed 003), Appendix A, and ConvNeXt, section 2.4. The 1x1 convolutions are linear layers there.
Eq. 4 has the norm between them, the appendix before both, which is what is done here.
"""

from torch import Tensor, nn
from torch.nn import functional

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import ChannelNorm, Conv
from searchspace.fold import ConvWeights, conv_weights
from searchspace.layers import ChannelLayerNorm, emit_square_conv


def widened(channels: int, expand: float) -> int:
    """The number of channels between the two convolutions, rounded down.

    Raises:
        ValueError: none is left.
    """
    hidden = int(channels * expand)
    if hidden < 1:
        raise ValueError(f"expand must leave at least one channel, got {expand} for {channels} channels")
    return hidden


class NormedMlp(nn.Module):
    """The train form, (n, c, h, w) to the same."""

    def __init__(self, channels: int, expand: float) -> None:
        super().__init__()
        hidden = widened(channels, expand)
        self.norm = ChannelLayerNorm(channels)
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.narrow = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(functional.gelu(self.widen(self.norm(x))))
        return y

    def folded(self) -> dict[str, ConvWeights]:
        """The weights of the two convolutions that `emit_normed_mlp` appends."""
        return {"widen": self.norm.folded_into(conv_weights(self.widen)), "narrow": conv_weights(self.narrow)}


def emit_normed_mlp(graph: GraphBuilder, x: GraphTensor, expand: float) -> GraphTensor:
    """Appends what a `NormedMlp` computes, its nodes named `norm`, `widen` and `narrow`."""
    channels = x.shape[0]
    y = graph.add("norm", ChannelNorm(affine=False), x)
    y = emit_square_conv(graph, "widen", y, Conv(widened(channels, expand), (1, 1)), "gelu")
    return graph.add("narrow", Conv(channels, (1, 1)), y)
