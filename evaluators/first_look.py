"""The first look at a candidate together with what proxies say of it, iterations and passes being shared."""

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


def look_with_proxies(
    spec: ArchSpec, splits: Splits, settings: EarlySettings, seed: int, proxies: Sequence[str]
) -> Outcome:
    """What `look_early` finds, and under `proxy-NAME` what each proxy says, more being better.

    A proxy that says nothing fails the candidate: without it there is no score.
    """
    started = time.perf_counter()
    try:
        subject = Subject(build_network(spec, seed), splits, ProxySettings(early=settings), seed)
        check_labels(splits.train_y, subject.graph.output_shape[0])
        start, end = network_dispersion(subject.network), network_dispersion(subject.early.network)
        loss = subject.early.last_loss
    except (ValueError, RuntimeError, MemoryError) as error:
        return failure_from(error)
    values = {}
    for name, value in proxy_scores(proxies, subject).items():
        if isinstance(value, Failure):
            return Failure(f"proxy {name}: {value.reason}")
        values[PREFIX + name] = value
    seconds = time.perf_counter() - started
    found = {"dispersion": end.of_mean, "dispersion_start": start.of_mean, "loss": loss, "seconds": seconds}
    return checked(found | values)
