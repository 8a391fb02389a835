"""Where a network can carry PBConv layouts, and drawing them: one for all, one per stage, or one per layer.

Source: PBConv (seed 001), section 4.3, which draws one layout for the whole network.
"""

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from searchspace.conv_sites import conv_sites
from searchspace.coverage import Layout, generate_layout
from searchspace.registry import BlockSpec, family_of
from searchspace.reparam import is_carrier
from searchspace.spec import ArchSpec

Scope = Literal["network", "stage", "layer"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

# A layout of a large kernel can have one branch per cell; each costs memory and time in training.
MAX_BRANCHES = 8


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Something that carries layouts: a block of a spec or a convolution of a module, by its path.

    `kernels` are the sizes that it has a layout for. Places of one `stage` lie in one stage of a spec, or make maps of
    one size in a module.
    """

    path: str
    stage: str
    kernels: tuple[int, ...]

    def group(self, scope: Scope) -> str:
        """The name that it shares with all places that get the same layouts."""
        return {"network": "network", "stage": self.stage, "layer": self.path}[scope]


def spec_places(spec: ArchSpec) -> tuple[Place, ...]:
    """The blocks of a spec that can carry layouts, in running order."""
    found = []
    for path, block in spec.blocks():
        if kernels := sorted(set(family_of(block).layout_kernels(block).values())):
            found.append(Place(path, path.rpartition(".")[0] or path, tuple(kernels)))
    return tuple(found)


# Layouts by the group that they are for, and in it by the size of the kernel.
GroupLayouts = Mapping[str, Mapping[int, Layout]]


def draw_layouts(places: Iterable[Place], scope: Scope, rng: random.Random) -> dict[str, dict[int, Layout]]:
    """A generated layout for each group and kernel size in it."""
    sizes: dict[str, set[int]] = {}
    for place in places:
        sizes.setdefault(place.group(scope), set()).update(place.kernels)
    return {
        group: {size: generate_layout(size, rng, None if size <= 3 else MAX_BRANCHES) for size in sorted(kernels)}
        for group, kernels in sizes.items()
    }


def with_random_layouts(spec: ArchSpec, rng: random.Random, scope: Scope = "network") -> ArchSpec:
    """The network with a generated layout on everything that can carry one."""
    return with_layouts(spec, draw_layouts(spec_places(spec), scope, rng), scope)


def with_layouts(spec: ArchSpec, layouts: GroupLayouts, scope: Scope) -> ArchSpec:
    """The network with its groups' layouts; what has none goes without."""
    own = {place.path: layouts.get(place.group(scope), {}) for place in spec_places(spec)}
    dressed = {path: _with_sizes(block, own.get(path, {})) for path, block in spec.blocks()}
    stages = tuple(
        tuple(dressed[f"stages.{index}.{position}"] for position in range(len(stage)))
        for index, stage in enumerate(spec.stages)
    )
    return replace(spec, stem=dressed["stem"], stages=stages, head=dressed["head"])


def _with_sizes(block: BlockSpec, layouts: Mapping[int, Layout]) -> BlockSpec:
    fields = family_of(block).layout_kernels(block)
    return replace(block, **{name: layouts[size] for name, size in fields.items() if size in layouts})


@torch.no_grad()
def module_places(module: nn.Module, images: Tensor) -> tuple[Place, ...]:
    """The convolutions of any network that can carry a layout, in the order of its parts, found by running it once.

    They are square, larger than 1x1, pad with zeros and run once. Those that make maps of one size are one stage.
    """
    probe = copy.deepcopy(module).eval()
    sizes: dict[str, str] = {}

    def seen(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(part: nn.Module, inputs: object, output: Tensor) -> None:
            sizes[path] = f"{output.shape[-2]}x{output.shape[-1]}"

        return record

    sites = [site for site in conv_sites(probe) if is_carrier(site)]
    for site in sites:
        site.conv.register_forward_hook(seen(site.path))
    probe(images)
    return tuple(
        Place(site.path, sizes[site.path], (site.conv.kernel_size[0],)) for site in sites if site.path in sizes
    )
