"""What a network is made of and what it costs, as numbers by which a model tells how alike two networks are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

from evaluators.static import StaticCost
from searchspace.registry import BlockSpec, family_of
from searchspace.spec import ArchSpec, Stage


@dataclass(frozen=True, slots=True)
class Features:
    """`structure` by names that networks of one space share, a missing one being 0; in `cost` logarithms of costs."""

    structure: Mapping[str, float]
    cost: tuple[float, ...]


def features_of(spec: ArchSpec, cost: StaticCost) -> Features:
    """The features of a network."""
    found = {"size": math.log2(spec.input_shape[1])}
    groups = {"stem": (spec.stem,), "head": (spec.head,)} | {
        f"stage{index}": stage for index, stage in enumerate(spec.stages)
    }
    for name, blocks in groups.items():
        found |= {f"{name}.{each}": value for each, value in stage_features(blocks)}
    costs = (cost.macs, cost.params, cost.latency.value_ms, cost.peak_memory_bytes)
    return Features(found, tuple(math.log(1 + value) for value in costs))


@lru_cache(maxsize=100_000)
def stage_features(blocks: Stage) -> tuple[tuple[str, float], ...]:
    """How many blocks there are, and each of their numbers on average."""
    found: dict[str, float] = {"depth": math.log2(len(blocks))}
    for block in blocks:
        for name, value in _block_features(block):
            found[name] = found.get(name, 0.0) + value / len(blocks)
    return tuple(found.items())


def _block_features(block: BlockSpec) -> list[tuple[str, float]]:
    found = [(f"is {family_of(block).name}", 1.0)]
    for gene in fields(block):
        value = getattr(block, gene.name)
        if isinstance(value, bool):
            found.append((gene.name, float(value)))
        elif isinstance(value, int | float):
            found.append((gene.name, math.log2(1 + abs(value))))
        elif value is not None:
            found.append((f"{gene.name} {value}", 1.0))
    return found
