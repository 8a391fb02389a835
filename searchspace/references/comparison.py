"""The published networks counted here, in the train and the deploy form, next to what the papers print."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.graph import DeployGraph
from hardware.ops import Activation, Conv, GlobalPool, Pool, Shape
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.parc import Parc
from searchspace.blocks.parc_block import REDUCTION
from searchspace.layers import squeezed_width
from searchspace.network import block_graph, deploy_graph
from searchspace.references.figures import Accuracy, Figures, papers
from searchspace.references.published import reference, reference_names
from searchspace.registry import BlockSpec, family_of
from searchspace.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters, and multiply-adds of one image in convolutions, linear layers and matrix products."""

    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """One block of a network in both forms."""

    path: str
    block: BlockSpec
    output_shape: Shape
    trained: Counts
    deployed: Counts


@dataclass(frozen=True, slots=True)
class Compared:
    """One row of figures and our counts for what it counts; flops is None where the row has none."""

    paper: str
    counting: str
    figures: Figures
    trained: Counts
    deployed: Counts
    flops: int | None

    @property
    def counted(self) -> Counts:
        """Of the form that the row is about."""
        return self.trained if self.figures.form == "train" else self.deployed

    @property
    def params_deviation_percent(self) -> float | None:
        """None where no parameters are printed."""
        printed = self.figures.params
        return None if printed is None else printed.deviation_percent(self.counted.params)

    @property
    def flops_deviation_percent(self) -> float | None:
        """Under the row's own convention; None where no FLOPs are printed."""
        printed = self.figures.flops
        return None if printed is None or self.flops is None else printed.deviation_percent(self.flops)

    @property
    def macs_deviation_percent(self) -> float | None:
        """Of plain multiply-adds, whatever the convention is; None where no FLOPs are printed."""
        printed = self.figures.flops
        return None if printed is None else printed.deviation_percent(self.counted.macs)

    @property
    def verdict(self) -> str:
        """`exact` where every count, rounded as the paper rounds, is what it prints."""
        if self.figures.build != "described":
            return self.figures.build
        if not self.figures.has_sizes:
            return "no sizes"
        pairs = ((self.figures.params, self.counted.params), (self.figures.flops, self.flops))
        if all(printed.is_rounded_from(count) for printed, count in pairs if printed is not None and count is not None):
            return "exact"
        deviations = (self.params_deviation_percent, self.flops_deviation_percent)
        largest = max(abs(deviation) for deviation in deviations if deviation is not None)
        return f"within {ceil(largest * 10) / 10:.1f}%"


@dataclass(frozen=True, slots=True)
class ComparedNetwork:
    """A published network block by block, and every row of figures about it, the headline first."""

    name: str
    spec: ArchSpec
    blocks: tuple[BlockCounts, ...]
    rows: tuple[Compared, ...]

    @property
    def headline(self) -> Compared:
        return self.rows[0]

    @property
    def accuracy(self) -> Accuracy | None:
        """What is published first for the classes and the resolution that the spec has; None where nothing is."""
        assert isinstance(self.spec.head, Classifier)
        built = (self.spec.head.classes, self.spec.input_shape[1])
        rows = (row.figures for row in self.rows if (row.figures.classes, row.figures.resolution) == built)
        return next((row.accuracy[0] for row in rows if row.accuracy), None)

    @property
    def trained(self) -> Counts:
        return _total(block.trained for block in self.blocks)

    @property
    def deployed(self) -> Counts:
        return _total(block.deployed for block in self.blocks)


def compare_all() -> tuple[ComparedNetwork, ...]:
    """Every reference in the order of their names; takes a few seconds, since torch counts every block once."""
    return tuple(compare(name) for name in reference_names())


def compare(name: str) -> ComparedNetwork:
    """The published network called `name`.

    Raises:
        SpecError: there is none.
        ConfigError: the shipped figures are damaged.
    """
    spec = reference(name)
    rows = [
        _compared(paper.paper, paper.counting, row, spec) for paper in papers() for row in paper.networks.get(name, ())
    ]
    return ComparedNetwork(
        name, spec, block_counts(spec), tuple(sorted(rows, key=lambda row: not row.figures.headline))
    )


def _compared(paper: str, counting: str, figures: Figures, spec: ArchSpec) -> Compared:
    assert isinstance(spec.head, Classifier)
    built = replace(
        spec,
        input_shape=(spec.input_shape[0], figures.resolution, figures.resolution),
        head=replace(spec.head, classes=figures.classes),
    )
    blocks = block_counts(built)
    trained = _total(block.trained for block in blocks)
    deployed = _total(block.deployed for block in blocks)
    counted = trained if figures.form == "train" else deployed
    flops = None
    if figures.convention is not None:
        flops = CONVENTIONS[figures.convention](counted.macs, built)
    return Compared(paper, counting, figures, trained, deployed, flops)


def block_counts(spec: ArchSpec) -> tuple[BlockCounts, ...]:
    """Every block of `spec` in running order; nothing is allocated."""
    counted = []
    shape: Shape = spec.input_shape
    for path, block in spec.blocks():
        graph = block_graph(shape, block)
        own = cost(graph)
        counted.append(
            BlockCounts(path, block, graph.output_shape, trained_counts(shape, block), Counts(own.params, own.macs))
        )
        shape = graph.output_shape
    return tuple(counted)


@lru_cache(maxsize=4096)
def trained_counts(in_shape: Shape, block: BlockSpec) -> Counts:
    """The train form of one block, counted by torch; remembered, since the blocks of a network repeat."""
    with torch.device("meta"):
        # The counter stumbles over modules that are given a parameter, as the refocused kernel of PPE is.
        trained = family_of(block).train(in_shape, block).eval().requires_grad_(False)
        image = torch.empty(1, *in_shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trained(image)
    return Counts(sum(each.numel() for each in trained.parameters()), counter.get_total_flops() // 2)


def _total(counts: Iterable[Counts]) -> Counts:
    listed = tuple(counts)
    return Counts(sum(each.params for each in listed), sum(each.macs for each in listed))


def elementwise_flops(graph: DeployGraph) -> int:
    """What ptflops adds to the multiply-adds of folded convolutions: one for each bias, activation and pooled value.

    Sums and products of maps are left out. Source: the counters of ptflops' PyTorch engine.
    """
    total = 0
    for node in graph.nodes:
        if isinstance(node.op, (Conv, Activation)):
            total += prod(node.shape)
        elif isinstance(node.op, (Pool, GlobalPool)):
            total += sum(prod(shape) for shape in graph.input_shapes(node))
    return total


def profiler_excess(spec: ArchSpec) -> int:
    """The multiply-adds that the profiler of ParC-Net's authors counts and nobody computes.

    It takes the two layers of a channel attention to be as wide as the feed-forward layers and to run at every pixel,
    where they have the width of the block and run once, and it counts the biases of the feed-forward layers.
    Source: the code of ParC-Net's authors.
    """
    total = 0
    for counted in block_counts(spec):
        if isinstance(counted.block, Parc):
            pixels = prod(counted.output_shape[1:])
            inner, ffn = counted.block.inner_width, round(counted.block.inner_width * counted.block.ffn_ratio)
            excess = (inner + ffn) * pixels
            if counted.block.channel_attention:
                excess += 2 * ffn * (ffn // REDUCTION) * pixels - 2 * inner * squeezed_width(inner, REDUCTION)
            total += counted.block.depth * excess
    return total


# From the multiply-adds of the form that a table counts, and the network, to FLOPs as its paper counts them.
CONVENTIONS: Mapping[str, Callable[[int, ArchSpec], int]] = {
    "macs": lambda macs, spec: macs,
    "2 macs": lambda macs, spec: 2 * macs,
    "ptflops": lambda macs, spec: macs + elementwise_flops(deploy_graph(spec)),
    "profiler": lambda macs, spec: 2 * (macs + profiler_excess(spec)),
}
