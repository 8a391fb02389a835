"""Classifier: an optional 1x1 convolution, the global mean, an optional norm, linear layers as 1x1 convolutions.

Averaging and a 1x1 convolution compute what a flattened linear layer computes, in the form that every runtime and
converter handles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import ChannelNorm, Conv, Flatten, GlobalPool, Shape
from searchspace.fold import ConvWeights, conv_weights
from searchspace.layers import (
    ACTIVATION_MODULES,
    BranchedConv,
    ChannelLayerNorm,
    deployed_conv,
    emit_square_conv,
    square_conv,
)
from searchspace.registry import BlockFamily, register
from searchspace.spec import known_activation, not_negative, positive


@dataclass(frozen=True, slots=True)
class Classifier:
    """The head; width 0 leaves the 1x1 convolution before the mean out, norm puts a layer norm behind the mean.

    hidden is the width of a linear layer with activation before the last one, 0 for none.
    Source: Howard et al., "Searching for MobileNetV3", section 5.1 and figure 5, for hidden.
    """

    classes: int
    width: int = 0
    activation: str = "relu"
    norm: bool = False
    hidden: int = 0

    def __post_init__(self) -> None:
        positive(classes=self.classes)
        not_negative(width=self.width, hidden=self.hidden)
        known_activation(self.activation)


class ClassifierBlock(nn.Module):
    """The train form: (n, c, h, w) to logits (n, classes)."""

    def __init__(self, in_shape: Shape, spec: Classifier) -> None:
        super().__init__()
        self.mix = BranchedConv(square_conv(in_shape[0], spec.width, 1)) if spec.width else None
        self.activation = ACTIVATION_MODULES[spec.activation]()
        channels = spec.width or in_shape[0]
        self.norm = ChannelLayerNorm(channels) if spec.norm else None
        self.hidden = nn.Conv2d(channels, spec.hidden, 1) if spec.hidden else None
        self.linear = nn.Conv2d(spec.hidden or channels, spec.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.mix is not None:
            x = self.activation(self.mix(x))
        y = x.mean((2, 3), keepdim=True)
        if self.norm is not None:
            y = self.norm(y)
        if self.hidden is not None:
            y = self.activation(self.hidden(y))
        logits: Tensor = self.linear(y)
        return logits.flatten(1)

    def folded(self) -> dict[str, ConvWeights]:
        mixed = {} if self.mix is None else {"mix": self.mix.folded()}
        layers = {name: conv_weights(layer) for name, layer in self._linear_layers()}
        if self.norm is not None:
            first = next(iter(layers))
            layers[first] = self.norm.folded_into(layers[first])
        return mixed | layers

    def _linear_layers(self) -> Iterator[tuple[str, nn.Conv2d]]:
        if self.hidden is not None:
            yield "hidden", self.hidden
        yield "linear", self.linear


def emit(graph: GraphBuilder, x: GraphTensor, spec: Classifier) -> GraphTensor:
    """Convolution, mean, norm, one or two convolutions, flatten."""
    if spec.width:
        x = emit_square_conv(graph, "mix", x, deployed_conv(spec.width, 1), spec.activation)
    x = graph.add("pool", GlobalPool(), x)
    if spec.norm:
        x = graph.add("norm", ChannelNorm(affine=False), x)
    if spec.hidden:
        x = emit_square_conv(graph, "hidden", x, Conv(spec.hidden, (1, 1)), spec.activation)
    x = graph.add("linear", Conv(spec.classes, (1, 1)), x)
    return graph.add("logits", Flatten(), x)


register(
    BlockFamily(
        "classifier",
        Classifier,
        ClassifierBlock,
        emit,
        examples=(
            ((8, 3, 2), Classifier(10)),
            ((8, 2, 2), Classifier(2, width=16, activation="hardswish")),
            ((8, 3, 2), Classifier(10, norm=True)),
            ((6, 2, 3), Classifier(5, width=12, activation="hardswish", hidden=9)),
            ((6, 2, 3), Classifier(5, norm=True, hidden=9)),
        ),
    )
)
