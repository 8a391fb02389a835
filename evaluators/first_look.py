"""The first look at a candidate, and what proxies say of it beside, iterations and passes being shared."""

import time
from collections.abc import Sequence

from evaluators.datasets import Splits
from evaluators.dispersion import network_dispersion
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure, Outcome, checked, failure_from
from evaluators.labels import check_labels
from evaluators.proxies import ProxySettings, Subject, proxy_scores
from searchspace.network import build_network
from searchspace.spec import ArchSpec

PREFIX = "proxy-"


def look_early(
    spec: ArchSpec, splits: Splits, settings: EarlySettings, seed: int, proxies: Sequence[str] = ()
) -> Outcome:
    """What is known of a candidate after a few iterations, or why nothing is.

    `dispersion`, and `dispersion_start` before the first iteration, in which candidates differ for a reason that has
    nothing to do with learning (how often their branches cover a position); `loss`, the mean over the last quarter of
    the iterations; `seconds` of wall time; under `proxy-NAME` what each proxy says, more being better. A proxy that
    says nothing fails the candidate: without it there is no score.
    """
    started = time.perf_counter()
    try:
        subject = Subject(build_network(spec, seed), splits, ProxySettings(early=settings), seed)
        check_labels(splits.train_y, subject.graph.output_shape[0])
        start, end = network_dispersion(subject.network), network_dispersion(subject.early.network)
        loss = subject.early.last_loss
    except (ValueError, RuntimeError, MemoryError) as error:
        # A candidate that cannot be built or trained is a finding about it, not the end of the search.
        return failure_from(error)
    values = {}
    for name, value in proxy_scores(proxies, subject).items():
        if isinstance(value, Failure):
            return Failure(f"proxy {name}: {value.reason}")
        values[PREFIX + name] = value
    seconds = time.perf_counter() - started
    found = {"dispersion": end.of_mean, "dispersion_start": start.of_mean, "loss": loss, "seconds": seconds}
    return checked(found | values)
