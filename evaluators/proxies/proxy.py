"""What a proxy is: one number about a network from little or no training, of which more promises more accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evaluators.proxies.subject import Subject

# What a proxy has to pay for: nothing is run, a forward pass, backward passes, or some iterations of training.
Work = Literal["static", "forward", "backward", "training"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A published quantity and how to read it.

    `measure` gives the quantity as its paper has it, in a logarithm where it spans orders of magnitude; `sign` is -1
    where the paper wants it small. It may raise `NotDefined`, and nothing that it is given changes.
    """

    name: str
    measure: Callable[[Subject], float]
    sign: Literal[1, -1]
    work: Work
    source: str

    def score(self, subject: Subject) -> float:
        """The quantity with its sign: more is better; may be not finite, which `proxy_scores` makes a failure."""
        return self.sign * self.measure(subject)
