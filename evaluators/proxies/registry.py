"""Every proxy by name, and what they say of a network."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from evaluators.evaluator import Failure, failure_from
from evaluators.proxies.grad_norm import GRAD_NORM
from evaluators.proxies.jacov import JACOV
from evaluators.proxies.meco import MECO
from evaluators.proxies.naswot import NASWOT
from evaluators.proxies.proxy import Proxy
from evaluators.proxies.snip import SNIP
from evaluators.proxies.static import MACS, PARAMS, RECEPTIVE_FIELD
from evaluators.proxies.subject import Subject
from evaluators.proxies.synflow import SYNFLOW
from evaluators.proxies.training import DISPERSION, DISPERSION_GAIN, EARLY_LOSS, TRAINING_SPEED
from evaluators.proxies.zen import ZEN
from evaluators.proxies.zico import ZICO
from evaluators.training import TrainingDiverged

PROXIES: Final[Mapping[str, Proxy]] = {
    each.name: each
    for each in (
        MACS,
        PARAMS,
        RECEPTIVE_FIELD,
        NASWOT,
        MECO,
        ZEN,
        SYNFLOW,
        JACOV,
        SNIP,
        GRAD_NORM,
        ZICO,
        DISPERSION,
        DISPERSION_GAIN,
        TRAINING_SPEED,
        EARLY_LOSS,
    )
}
"""From what costs nothing to what costs most."""


def proxy_scores(names: Iterable[str], subject: Subject) -> dict[str, float | Failure]:
    """What each of the named proxies says of a network, more being better, or why it says nothing.

    Passes and iterations that several of them need are run once.
    """
    return {name: proxy_score(PROXIES[name], subject) for name in names}


def proxy_score(proxy: Proxy, subject: Subject) -> float | Failure:
    """What one proxy says, always finite, or why it says nothing."""
    try:
        value = proxy.score(subject)
    except (TrainingDiverged, ValueError, RuntimeError, MemoryError) as error:
        # A network that a proxy cannot measure is a finding about it, not the end of the search.
        return failure_from(error)
    return value if math.isfinite(value) else Failure(f"not finite: {proxy.name} = {value}")
