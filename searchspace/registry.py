"""The block families: how a new design enters the space, in one file and one registration."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from hardware.graph import GraphBuilder
from hardware.graph import Tensor as GraphTensor
from hardware.ops import Shape
from hardware.strict_yaml import nearest
from searchspace.fold import NodeWeights


class BlockSpec(Protocol):
    """A frozen dataclass that says everything about one block; fields marked `train_gene` cost nothing at deploy."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __hash__(self) -> int: ...


class TrainBlock(Protocol):
    """The train form of a block: an `nn.Module` from a batch of its input shape to a batch of its output shape."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def folded(self) -> Mapping[str, NodeWeights]:
        """Weights by the names of the nodes that the family's `emit` adds, for those that need any."""


def folded_nodes(block: nn.Module) -> Mapping[str, NodeWeights]:
    """What a train block folds into, by the name of the node that it is for."""
    folded: Mapping[str, NodeWeights] = block.folded()  # type: ignore[operator]
    return folded


def folded_weights(block: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What a train block folds into: by the name of the node that it is for, by the name of the tensor within."""
    return {node: tensors._asdict() for node, tensors in folded_nodes(block).items()}


@dataclass(frozen=True)
class BlockFamily:
    """A block design: its spec, its train form, and the operations that the train form folds into.

    `train(in_shape, spec)` and `emit(graph, x, spec)` describe one thing twice; the contract tests hold them together
    for every registered family, on the `examples`: pairs of an input shape and a spec that show each option once.
    `layout_kernels(spec)` says which fields may hold a PBConv layout, and the size of the convolution each sits on.
    """

    name: str
    spec: type[Any]
    train: Callable[[Shape, Any], nn.Module]
    emit: Callable[[GraphBuilder, GraphTensor, Any], GraphTensor]
    examples: tuple[tuple[Shape, Any], ...]
    layout_kernels: Callable[[Any], Mapping[str, int]] = lambda spec: {}


_FAMILIES: dict[str, BlockFamily] = {}
_BY_SPEC: dict[type[Any], BlockFamily] = {}


def register(family: BlockFamily) -> None:
    """Makes a family available to specs, spaces and files.

    Raises:
        ValueError: the name or the spec class is taken by another family.
    """
    if family.name in _FAMILIES or family.spec in _BY_SPEC:
        raise ValueError(f"family {family.name!r} or its spec {family.spec.__name__} is registered already")
    _FAMILIES[family.name] = family
    _BY_SPEC[family.spec] = family


def families() -> tuple[BlockFamily, ...]:
    """Every registered family."""
    _load_own()
    return tuple(_FAMILIES.values())


def family_named(name: str) -> BlockFamily:
    """The family called `name`.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    _load_own()
    if name not in _FAMILIES:
        raise ValueError(f"unknown block family {name!r}; {nearest(name, list(_FAMILIES))}")
    return _FAMILIES[name]


def family_of(spec: BlockSpec) -> BlockFamily:
    """The family that a block spec belongs to."""
    _load_own()
    return _BY_SPEC[type(spec)]


def load_families(module: str) -> ModuleType:
    """Imports a module that registers families of its own, such as `my_blocks`, and returns it.

    Raises:
        ValueError: Python finds no such module.
    """
    _load_own()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(
            f"there is no module {module!r}; put {module}.py into the folder where you work, or install it"
        ) from error


def _load_own() -> None:
    # Our own families register on import; whoever asks for a family by name should not have to import them.
    import searchspace.blocks.classifier
    import searchspace.blocks.conv
    import searchspace.blocks.convnext
    import searchspace.blocks.dbc
    import searchspace.blocks.gfae
    import searchspace.blocks.inverted
    import searchspace.blocks.lfae
    import searchspace.blocks.parc
    import searchspace.blocks.parc_hosts
    import searchspace.blocks.patch
    import searchspace.blocks.ppe
    import searchspace.blocks.rdp
    import searchspace.blocks.rep
    import searchspace.blocks.resnet
    import searchspace.blocks.rk  # noqa: F401
