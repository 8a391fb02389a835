"""What a search proposes before its sampler does: published networks that are members of the space."""

import logging

from nas.ground import Ground, Place
from searchspace.recognise import for_task, genes_of
from searchspace.references import reference, reference_names
from searchspace.spec import deploy_form

logger = logging.getLogger(__name__)


def published_members(ground: Ground) -> dict[str, Place]:
    """The published networks that the space has as members and that keep the budget, by name, the fastest first.

    Each is taken with the channels and classes of the data, and with the resolution that it was published with.
    """
    task, space = ground.problem.task, ground.problem.space
    found: dict[str, Place] = {}
    for name in reference_names():
        genes = genes_of(space, for_task(reference(name), task), task)
        if genes is None:
            continue
        place = ground.place(genes)
        if ground.keeps_budget(place) and deploy_form(place.spec) not in {deploy_form(p.spec) for p in found.values()}:
            found[name] = place
    return dict(sorted(found.items(), key=lambda each: each[1].latency_ms))
