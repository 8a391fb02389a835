"""A network taken apart: its blocks in both forms, and where its time goes on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from optuna.trial import FrozenTrial

from evaluators.image_files import DataError
from hardware.kernels import fuse, fused_chains
from hardware.latency_table import UnmeasuredKernel
from hardware.ops import Shape
from hardware.strict_yaml import ConfigError
from hardware.targets import Target
from nas.problem import candidate
from nas.settings import StudyFile
from nas.study_table import study_target
from searchspace.choosers import UnknownGene
from searchspace.network import deploy_graph
from searchspace.references.comparison import BlockCounts, Counts, block_counts
from searchspace.registry import BlockSpec, family_of
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec, SpecError, is_train_gene, read_spec, spec_id


@dataclass(frozen=True, slots=True)
class Row:
    """Equal blocks one after the other, `repeat` of them; counts are of one."""

    family: str
    genes: str
    repeat: int
    output_shape: Shape
    trained: Counts
    deployed: Counts


@dataclass(frozen=True, slots=True)
class StageRows:
    """What a stage does to the shape that enters it."""

    title: str
    input_shape: Shape
    output_shape: Shape
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel: the block that it belongs to, its key in the latency table, and what it is expected to take."""

    block: str
    key: str
    latency_ms: float
    tier: str


@dataclass(frozen=True, slots=True)
class Anatomy:
    """All of a network; kernels are empty and `untimed` says why where the table has no line for one of them."""

    spec_id: str
    stages: tuple[StageRows, ...]
    blocks: tuple[BlockCounts, ...]
    trained: Counts
    deployed: Counts
    kernels: tuple[KernelTime, ...]
    untimed: str | None


def anatomy(record: StudyFile, trial: FrozenTrial, folder: Path | None) -> Anatomy:
    """The network of a trial: as it was trained, or else as its genes describe it.

    `folder` is the study's, None where it is on another machine.

    Raises:
        ConfigError: its spec is damaged, its genes are not of the space that is here, or its block families are not at
            hand.
    """
    path = folder / "models" / str(trial.number) / "spec.yaml" if folder is not None else None
    try:
        if path is not None and path.exists():
            space_named(record.space)  # one of the user's own registers the families of its members
            return _anatomy(Timing.of(record), folder, read_spec(path))
        spec = candidate(record, trial.params)
        known = trial.user_attrs.get("arch")
        if known is not None and spec_id(spec) != known:
            raise ConfigError(
                f"space {record.space} makes another network of these genes today than when the study looked at them"
            )
        return _anatomy(Timing.of(record), folder, spec)
    except (SpecError, UnknownGene, DataError) as error:
        raise ConfigError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Timing:
    """What the latencies of a study's networks follow from."""

    target: str
    sha256: str
    threads: int
    runtime: str | None
    space: str

    @staticmethod
    def of(record: StudyFile) -> "Timing":
        """Of a study as it is kept."""
        return Timing(record.target, record.target_sha256, record.threads, record.runtime, record.space)


@lru_cache(maxsize=64)
def _anatomy(timing: Timing, folder: Path | None, spec: ArchSpec) -> Anatomy:
    blocks = block_counts(spec)
    kernels: tuple[KernelTime, ...] = ()
    untimed = None
    try:
        target = _same_target(timing, folder)
        graph = deploy_graph(spec)
        kernels = tuple(
            KernelTime(_block_of(graph.nodes[chain[0]].name), kernel.key, latency.value_ms, latency.tier.value)
            for chain, kernel in zip(
                fused_chains(graph, target.fusion_rules), fuse(graph, target.fusion_rules), strict=True
            )
            for latency in (target.latency_model.kernel(kernel),)
        )
    except (ConfigError, UnmeasuredKernel) as error:
        untimed = str(error)
    return Anatomy(
        spec_id(spec),
        tuple(_stages(spec.input_shape, blocks)),
        blocks,
        _total([each.trained for each in blocks]),
        _total([each.deployed for each in blocks]),
        kernels,
        untimed,
    )


def _same_target(timing: Timing, folder: Path | None) -> Target:
    """The target of a study with the table that it began with.

    Raises:
        ConfigError: the target is not known here, its table is another one, or the table is damaged.
    """
    target = study_target(timing, folder)
    if target.sha256 != timing.sha256:
        raise ConfigError(f"the latency table of {timing.target} is another one here than the study was searched with")
    return target


def _block_of(node: str) -> str:
    parts = node.split(".")
    return title_of(".".join(parts[:3] if parts[0] == "stages" else parts[:1]))


def title_of(path: str) -> str:
    """A block's path in words: `stages.0.1` is `stage 1, block 2`."""
    parts = path.split(".")
    if parts[0] != "stages":
        return path
    return f"stage {int(parts[1]) + 1}, block {int(parts[2]) + 1}"


def stage_of(path: str) -> str:
    """The stage of a block in words; stem and head are stages of their own."""
    return path if not path.startswith("stages.") else f"stage {int(path.split('.')[1]) + 1}"


def _stages(shape: Shape, blocks: Sequence[BlockCounts]) -> list[StageRows]:
    found = []
    for title, group in groupby(blocks, key=lambda each: stage_of(each.path)):
        own = list(group)
        found.append(StageRows(title, shape, own[-1].output_shape, tuple(_rows(own))))
        shape = own[-1].output_shape
    return found


def _rows(blocks: Sequence[BlockCounts]) -> list[Row]:
    same = groupby(blocks, key=lambda each: (each.block, each.output_shape, each.trained, each.deployed))
    return [
        Row(family_of(block).name, genes_text(block), len(list(group)), shape, trained, deployed)
        for (block, shape, trained, deployed), group in same
    ]


def genes_text(block: BlockSpec) -> str:
    """The genes of a block as people read them; what is not there is left out."""
    genes = [(gene, getattr(block, gene.name)) for gene in fields(block)]
    return ", ".join(
        f"{gene.name.replace('_', ' ')} {_plain(value)}{' (train form only)' if is_train_gene(gene) else ''}"
        for gene, value in genes
        if value is not None and value != ()
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _total(counts: Sequence[Counts]) -> Counts:
    return Counts(sum(each.params for each in counts), sum(each.macs for each in counts))
