"""What is known without running anything. A proxy that does not beat these on a space is not worth its price there."""

import math

from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import Subject
from hardware.cost import receptive_field


def log_macs(subject: Subject) -> float:
    """Natural logarithm of the multiply-adds of the deploy form."""
    return math.log(subject.cost.macs)


def log_params(subject: Subject) -> float:
    """Natural logarithm of the parameters of the deploy form."""
    return math.log(subject.cost.params)


def log_receptive_field(subject: Subject) -> float:
    """Natural logarithm of the side of the true receptive field in pixels, height and width in geometric mean.

    Not cut at the border of the image; attention and global pooling do not count.
    """
    field = receptive_field(subject.graph)
    return math.log(field.height * field.width) / 2


MACS = Proxy("macs", log_macs, 1, "static", "the baseline: logarithm of multiply-adds")
PARAMS = Proxy("params", log_params, 1, "static", "the other baseline: logarithm of parameters")
RECEPTIVE_FIELD = Proxy(
    "receptive-field", log_receptive_field, 1, "static", "logarithm of the true receptive field's side"
)
