"""The description of a network: what a search proposes, a file keeps, and everything else is derived from.

An `ArchSpec` is frozen and hashable. It says everything about both forms of a network: the deploy form that a device
runs and the train form with its extra branches. Fields marked `train_gene` shape the train form alone, so two specs
that differ in nothing else share their deploy graph, its cost and its latency.
"""

import hashlib
import json
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from hardware.ops import ACTIVATIONS
from hardware.strict_yaml import nearest
from searchspace.coverage import Layout, parse_layout
from searchspace.registry import BlockSpec, family_named, family_of

Stage = tuple[BlockSpec, ...]


class SpecError(ValueError):
    """A description that no network can be built from; the message names the place, the rule and the value."""


def train_gene(default: Any) -> Any:
    """A field of a block spec that shapes the train form and leaves the deploy form as it is."""
    return field(default=default, metadata={"train_gene": True})


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """A network: the image that enters it (channels, height, width), its blocks in stages, its head."""

    input_shape: tuple[int, int, int]
    stem: BlockSpec
    stages: tuple[Stage, ...]
    head: BlockSpec

    def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
        """Every block in running order with its path, such as `stages.0.1`."""
        yield "stem", self.stem
        for index, stage in enumerate(self.stages):
            for position, block in enumerate(stage):
                yield f"stages.{index}.{position}", block
        yield "head", self.head

    def map_blocks(self, change: Callable[[BlockSpec], BlockSpec]) -> "ArchSpec":
        """The same network with `change(block)` in the place of each block."""
        return replace(
            self,
            stem=change(self.stem),
            stages=tuple(tuple(change(block) for block in stage) for stage in self.stages),
            head=change(self.head),
        )


def deploy_form(spec: ArchSpec) -> ArchSpec:
    """The spec with every train gene at its default: equal for two specs exactly when they deploy alike."""
    return spec.map_blocks(deploy_block)


def deploy_block(block: BlockSpec) -> BlockSpec:
    """The block with every train gene at its default."""
    plain: BlockSpec = replace(block, **{gene.name: gene.default for gene in fields(block) if is_train_gene(gene)})
    return plain


def is_train_gene(gene: Field[Any]) -> bool:
    """Whether a field of a block spec leaves the deploy form as it is."""
    return bool(gene.metadata.get("train_gene", False))


def spec_id(spec: ArchSpec) -> str:
    """12 hex digits that name the network with its train genes; stable across runs, machines and versions.

    What a block leaves at its default plays no part, so that a family can gain a field without renaming its networks.
    """
    stages = [[_chosen(block) for block in stage] for stage in spec.stages]
    named = [list(spec.input_shape), _chosen(spec.stem), stages, _chosen(spec.head)]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def _chosen(block: BlockSpec) -> dict[str, Any]:
    defaults = {gene.name: _plain(gene.default) for gene in fields(block) if not _has_no_default(gene)}
    return {
        name: value for name, value in _block_to_dict(block).items() if name not in defaults or value != defaults[name]
    }


def deploy_id(spec: ArchSpec) -> str:
    """12 hex digits that name what the device runs: equal for specs that differ in train genes alone."""
    return spec_id(deploy_form(spec))


def spec_to_dict(spec: ArchSpec) -> dict[str, Any]:
    """Plain lists, numbers and texts, as a YAML or JSON file keeps them; equal neighbours become one with `repeat`."""
    return {
        "input_shape": list(spec.input_shape),
        "stem": _block_to_dict(spec.stem),
        "stages": [_stage_to_list(stage) for stage in spec.stages],
        "head": _block_to_dict(spec.head),
    }


def _stage_to_list(stage: Stage) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    previous = None
    for block in stage:
        if block == previous:
            rows[-1]["repeat"] = rows[-1].get("repeat", 1) + 1
        else:
            rows.append(_block_to_dict(block))
        previous = block
    return rows


def _block_to_dict(block: BlockSpec) -> dict[str, Any]:
    values = {gene.name: getattr(block, gene.name) for gene in fields(block)}
    return {"family": family_of(block).name} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Layout):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 6 and 6.0 are equal, and so must be what is made of them
    return value


def spec_from_dict(data: Any) -> ArchSpec:
    """The network that `spec_to_dict` described.

    Raises:
        SpecError: a key is missing, unknown or of the wrong type, or a block refuses its values.
    """
    keys = _checked_keys(data, "spec", required={"input_shape", "stem", "stages", "head"}, optional=set())
    shape = keys["input_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(_is_int(size) and size > 0 for size in shape)):
        raise SpecError(f"spec.input_shape: three positive whole numbers (channels, height, width), got {shape!r}")
    if not isinstance(keys["stages"], list):
        raise SpecError(f"spec.stages: a list of lists of blocks, got {keys['stages']!r}")
    return ArchSpec(
        (shape[0], shape[1], shape[2]),
        _single_block(keys["stem"], "spec.stem"),
        tuple(_stage_from_list(rows, f"spec.stages[{index}]") for index, rows in enumerate(keys["stages"])),
        _single_block(keys["head"], "spec.head"),
    )


def _stage_from_list(rows: Any, where: str) -> Stage:
    if not isinstance(rows, list):
        raise SpecError(f"{where}: a list of blocks, got {rows!r}")
    blocks: list[BlockSpec] = []
    for index, row in enumerate(rows):
        repeat = row.get("repeat", 1) if isinstance(row, Mapping) else 1
        if not _is_int(repeat) or not 1 <= repeat <= 1000:
            raise SpecError(f"{where}[{index}].repeat: a whole number from 1 to 1000, got {repeat!r}")
        blocks += [_block_from_dict(row, f"{where}[{index}]")] * repeat
    return tuple(blocks)


def _single_block(data: Any, where: str) -> BlockSpec:
    if isinstance(data, Mapping) and "repeat" in data:
        raise SpecError(f"{where}: only blocks of a stage can repeat; leave `repeat` out")
    return _block_from_dict(data, where)


def _block_from_dict(data: Any, where: str) -> BlockSpec:
    if not isinstance(data, Mapping) or not isinstance(data.get("family"), str):
        raise SpecError(f"{where}: a block with its `family`, got {data!r}")
    try:
        block_class = family_named(data["family"]).spec
    except ValueError as error:
        raise SpecError(f"{where}.family: {error}") from error
    hints = get_type_hints(block_class)
    required = {gene.name for gene in fields(block_class) if _has_no_default(gene)}
    values = _checked_keys(data, where, required=required | {"family"}, optional=hints.keys() | {"repeat"})
    genes = {
        name: _read(hints[name], value, f"{where}.{name}")
        for name, value in values.items()
        if name not in ("family", "repeat")
    }
    try:
        block: BlockSpec = block_class(**genes)
    except ValueError as error:
        raise SpecError(f"{where}: {error}") from error
    return block


def _has_no_default(gene: Field[Any]) -> bool:
    return gene.default is MISSING and gene.default_factory is MISSING


def _checked_keys(data: Any, where: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: a mapping with the keys {', '.join(sorted(required))}, got {data!r}")
    known = required | set(optional)
    for key in data:
        if key not in known:
            raise SpecError(f"{where}: unknown key {key!r}; {nearest(str(key), list(known))}")
    missing = sorted(required - data.keys())
    if missing:
        raise SpecError(f"{where}: the key {missing[0]!r} is missing")
    return dict(data)


def _read(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is Layout and isinstance(value, str):
            try:
                return parse_layout(value)
            except ValueError as error:
                raise SpecError(f"{where}: {error}") from error
        if option is types.NoneType and value is None:
            return None
        if option is int and _is_int(value):
            return value
        if option is float and (_is_int(value) or isinstance(value, float)):
            return value
        if option in (bool, str) and type(value) is option:
            return value
    wanted = " or ".join("nothing" if option is types.NoneType else option.__name__ for option in options)
    raise SpecError(f"{where}: must be {wanted}, got {value!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def write_spec(spec: ArchSpec, path: Path) -> None:
    """Keeps a network as YAML."""
    path.write_text(yaml.safe_dump(spec_to_dict(spec), sort_keys=False, width=120), encoding="utf-8")


def read_spec(path: Path) -> ArchSpec:
    """The network in a YAML file.

    Raises:
        SpecError: the file cannot be read as YAML, or describes no network; the message names the file.
    """
    try:
        return spec_from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, SpecError) as error:
        raise SpecError(f"{path}: {' '.join(str(error).split())}") from error


def positive(**values: float) -> None:
    """Checks at a block's door.

    Raises:
        ValueError: one of the named values is not above zero, or without end.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
        if value == math.inf:
            raise ValueError(f"{name} must be finite, got {value}")


def not_negative(**values: float) -> None:
    """Checks at a block's door.

    Raises:
        ValueError: one of the named values is below zero.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def probability(**values: float) -> None:
    """Checks at a block's door.

    Raises:
        ValueError: one of the named values is not from 0 to below 1.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {value}")


def odd(**values: int) -> None:
    """Checks at a block's door.

    Raises:
        ValueError: one of the named values is even.
    """
    for name, value in values.items():
        if value % 2 == 0:
            raise ValueError(f"{name} must be odd, got {value}; the nearest are {value - 1} and {value + 1}")


def known_activation(name: str) -> None:
    """Checks at a block's door.

    Raises:
        ValueError: no such activation is known.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
