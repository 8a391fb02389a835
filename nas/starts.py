"""What a search proposes before its sampler does: what was evaluated on earlier ground, and published networks."""

import json
from collections.abc import Iterable
from pathlib import Path

from hardware.strict_yaml import ConfigError
from nas.files import write_atomically
from nas.ground import Genes, Ground, Place
from searchspace.choosers import Gene, UnknownGene
from searchspace.recognise import for_task, genes_of
from searchspace.references import reference, reference_names
from searchspace.spec import deploy_form

# Genes of all that was evaluated before the target's table or the budget changed, in the order of their trials.
EARLIER = "earlier.json"


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


def write_earlier(folder: Path, genes: Iterable[Genes]) -> None:
    """Keeps genes of what was evaluated under a table or budget that is no longer the study's, each once."""
    kept = {json.dumps(each, sort_keys=True): dict(each) for each in [*read_earlier(folder), *genes]}
    write_atomically(folder / EARLIER, json.dumps(list(kept.values()), indent=1, allow_nan=False) + "\n")


def read_earlier(folder: Path) -> list[dict[str, Gene]]:
    """The genes that `write_earlier` kept; none where neither ever changed.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / EARLIER
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [dict(each) for each in found]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}:1: not genes of this program ({error}); remove the file: then what was evaluated before "
            "the change counts where it is proposed again"
        ) from error


def earlier_members(ground: Ground, folder: Path) -> list[Place]:
    """What was evaluated under an earlier table or budget, whether or not it keeps the budget now."""
    found = []
    for genes in read_earlier(folder):
        try:
            found.append(ground.place(genes))
        except UnknownGene:
            continue
    return found
