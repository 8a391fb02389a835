"""What the search maximises: one number made of what is known of a candidate after its first look.

Multiply-adds stand beside the proxies on purpose. On many spaces they rank networks better than published proxies do,
so a proxy has to beat them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Everything known of a candidate: its static cost (`macs`, `params`) and what `look_early` found.
Known = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Score:
    """A number to maximise, and where it comes from."""

    value: Callable[[Known], float]
    source: str


SCORES: Mapping[str, Score] = {
    "dispersion": Score(lambda known: known["dispersion"], "PBConv, section 4.3: std of kernel positions, early on"),
    "dispersion-gain": Score(
        lambda known: known["dispersion"] - known["dispersion_start"],
        "the same less its value before training, which coverage alone decides",
    ),
    "loss": Score(lambda known: -known["loss"], "mean training loss over the last early iterations, negated"),
    "macs": Score(lambda known: math.log(known["macs"]), "logarithm of multiply-adds: the baseline"),
    "params": Score(lambda known: math.log(known["params"]), "logarithm of parameters: the other baseline"),
}
