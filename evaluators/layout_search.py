"""The PBConv layout search: some generated layouts, each trained for a few iterations, and the most dispersed wins.

Source: PBConv (seed 001), section 4.3, with ten candidates and one layout for the whole network. Per stage or per layer
each candidate draws as many layouts, and each stage or layer takes its own from the candidate in which its own kernels
dispersed most: as many trainings as for one layout.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

from torch import Tensor, nn

from evaluators.datasets import Splits
from evaluators.dispersion import dispersion
from evaluators.early import EarlySettings
from evaluators.evaluator import Failure, checked, failure_from
from evaluators.training import train_steps
from searchspace.coverage import Layout
from searchspace.fold import ConvWeights
from searchspace.layouts import GroupLayouts, Place, Scope, draw_layouts, module_places, spec_places, with_layouts
from searchspace.network import Network, build_network
from searchspace.registry import folded_nodes
from searchspace.reparam import keep_drawn, merged_kernels, with_pbconv
from searchspace.spec import ArchSpec

# What a layout is chosen by: the paper's dispersion after the iterations, or its increase over the start, at which
# candidates differ by how often their branches cover a position and by nothing that was learnt.
LayoutScore = Literal["dispersion", "gain"]
LAYOUT_SCORES: Final[tuple[LayoutScore, ...]] = get_args(LayoutScore)

# So many draws for a candidate that differs from the others; a network of 2x2 kernels has 22 layouts in all.
DRAWS = 100


@dataclass(frozen=True, slots=True)
class LayoutSettings:
    """How many candidates, what shares a layout, what is compared, and for how long each candidate trains."""

    candidates: int = 10
    scope: Scope = "network"
    score: LayoutScore = "dispersion"
    early: EarlySettings = field(default_factory=EarlySettings)


class Host(Protocol):
    """A network that layouts are searched for."""

    places: tuple[Place, ...]

    def dressed(self, layouts: GroupLayouts, scope: Scope) -> nn.Module:
        """The network with layouts, fresh and ready to be trained."""

    def kernels(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The folded kernels (out, in / groups, kh, kw) of a dressed network, each with the path of its place."""


class SpecHost:
    """A network that a spec describes; its weights follow from the seed."""

    def __init__(self, spec: ArchSpec, seed: int) -> None:
        self.places = spec_places(spec)
        self._spec = spec
        self._seed = seed

    def dressed(self, layouts: GroupLayouts, scope: Scope) -> Network:
        return build_network(with_layouts(self._spec, layouts, scope), self._seed)

    def kernels(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        assert isinstance(network, Network)
        for path, block in zip(network.paths, network.blocks, strict=True):
            for tensors in folded_nodes(block).values():
                if isinstance(tensors, ConvWeights):
                    yield path, tensors.weight


class ModuleHost:
    """Any network, with the weights that it has; the branches follow from the seed."""

    def __init__(self, module: nn.Module, images: Tensor, seed: int) -> None:
        self.places = module_places(module, images)
        self._module = module
        self._seed = seed

    def dressed(self, layouts: GroupLayouts, scope: Scope) -> nn.Module:
        own = by_convolution(self.places, layouts, scope)
        return with_pbconv(self._module, lambda path, conv: own.get(path), start=keep_drawn, seed=self._seed)

    def kernels(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        return merged_kernels(network)


def by_convolution(places: tuple[Place, ...], layouts: GroupLayouts, scope: Scope) -> dict[str, Layout]:
    """The layout of each convolution of a module, by its path."""
    return {
        place.path: layouts[place.group(scope)][place.kernels[0]] for place in places if place.group(scope) in layouts
    }


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate and, by group, the dispersion of its kernels before and after the iterations; or why there is none.

    `seconds` is wall time for the whole candidate, `training_seconds` for its iterations alone.
    """

    layouts: GroupLayouts
    start: Mapping[str, float]
    end: Mapping[str, float]
    seconds: float
    training_seconds: float
    failure: Failure | None = None

    def score(self, group: str, by: LayoutScore) -> float:
        """What a group is compared by."""
        return self.end[group] - (self.start[group] if by == "gain" else 0.0)


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """The layouts of the winners by group, empty where no candidate trained, and all that was tried.

    `winners` says by group which candidate it was.
    """

    settings: LayoutSettings
    layouts: GroupLayouts
    winners: Mapping[str, int]
    tried: tuple[Tried, ...]

    @property
    def seconds(self) -> float:
        """What the search took."""
        return sum(each.seconds for each in self.tried)

    def share_of_training(self, images: int) -> float:
        """What the search took, as a share of training one candidate on so many images, repeats included.

        Estimated from the candidates' own iterations; a training's checks and its end are left out.

        Raises:
            ValueError: no candidate was trained.
        """
        trained = [each for each in self.tried if each.failure is None]
        if not trained:
            raise ValueError(f"no candidate could be trained: {self.tried[0].failure}")
        seen = len(trained) * self.settings.early.iterations * self.settings.early.recipe.batch_size
        return self.seconds / (sum(each.training_seconds for each in trained) / seen * images)


def search_layouts(
    host: Host,
    splits: Splits,
    settings: LayoutSettings,
    *,
    rng: random.Random,
    seed: int,
    on_tried: Callable[[int, Tried], None] | None = None,
) -> LayoutChoice:
    """Generates, trains and compares the candidates; `seed` orders the images, `rng` draws the layouts.

    `on_tried` hears of each candidate and how many there were so far.

    Raises:
        ValueError: nothing in the network can carry a layout.
    """
    if not host.places:
        raise ValueError("a layout needs a square convolution larger than 1x1, and the network has none")
    tried: list[Tried] = []
    for _ in range(settings.candidates):
        layouts = _another(host, settings.scope, rng, [each.layouts for each in tried])
        tried.append(_tried(host, layouts, splits, settings, seed))
        if on_tried is not None:
            on_tried(len(tried), tried[-1])
    groups = dict.fromkeys(place.group(settings.scope) for place in host.places)
    winners: dict[str, int] = {}
    for group in groups:
        scores = {i: each.score(group, settings.score) for i, each in enumerate(tried) if each.failure is None}
        if scores:
            # The first of equals.
            winners[group] = max(scores, key=lambda index: (scores[index], -index))
    return LayoutChoice(
        settings, {group: tried[index].layouts[group] for group, index in winners.items()}, winners, tuple(tried)
    )


def _another(host: Host, scope: Scope, rng: random.Random, known: list[GroupLayouts]) -> GroupLayouts:
    """Layouts that were not tried yet, where there are any left."""
    for _ in range(DRAWS):
        layouts = draw_layouts(host.places, scope, rng)
        if layouts not in known:
            break
    return layouts


def _tried(host: Host, layouts: GroupLayouts, splits: Splits, settings: LayoutSettings, seed: int) -> Tried:
    started = time.perf_counter()
    try:
        network = host.dressed(layouts, settings.scope)
        start = _dispersions(host, network, settings.scope)
        training = time.perf_counter()
        for _ in train_steps(network, splits, settings.early.recipe, settings.early.iterations, seed):
            pass
        training_seconds = time.perf_counter() - training
        end = _dispersions(host, network, settings.scope)
    except (ValueError, RuntimeError, MemoryError) as error:
        # Layouts that cannot be trained are passed over; the others are still there.
        return Tried(layouts, {}, {}, time.perf_counter() - started, 0.0, failure_from(error))
    finite = checked({**{f"{group} before": value for group, value in start.items()}, **end})
    seconds = time.perf_counter() - started
    if isinstance(finite, Failure):
        return Tried(layouts, {}, {}, seconds, training_seconds, finite)
    return Tried(layouts, start, end, seconds, training_seconds)


def _dispersions(host: Host, network: nn.Module, scope: Scope) -> dict[str, float]:
    """The dispersion of each group's kernels; of the whole network also those count that carry no layout."""
    groups = {place.path: place.group(scope) for place in host.places}
    weights: defaultdict[str, list[Tensor]] = defaultdict(list)
    for path, weight in host.kernels(network):
        if scope == "network":
            weights[scope].append(weight)
        elif path in groups:
            weights[groups[path]].append(weight)
    return {group: dispersion(each).of_mean for group, each in weights.items()}
