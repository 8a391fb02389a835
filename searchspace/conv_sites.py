"""Where the convolutions of any PyTorch network are, and which batch norm belongs to each.

What reads a convolution's result is written in the network's `forward` alone. torch.fx follows it as far as it can;
where it cannot (a branch on a value, a loop over a length) each child is followed by itself, and an `nn.Sequential`
needs no following. A pair of convolution and norm that was not seen is no pair: that loses a little and is never wrong.
"""

import copy
import inspect
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import fx, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConvSite:
    """A convolution in a network.

    `norm_path` leads to the batch norm that alone reads its result, None where there is none. `uses` is how often the
    convolution or its weight occurs, as a part of several modules or as several calls in one pass.
    """

    path: str
    conv: nn.Conv2d
    norm_path: str | None
    uses: int


def conv_sites(module: nn.Module) -> tuple[ConvSite, ...]:
    """Every plain `nn.Conv2d` of a network, in the order of its parts.

    Left out are subclasses and convolutions whose weight is computed from other parameters, such as with weight norm:
    what they compute is not known from their weight.
    """
    flow = _flow(module)
    occurrences = _occurrences(module)
    return tuple(
        ConvSite(path, part, _norm_behind(path, module, flow, occurrences), max(occurrences[part], flow.calls[path], 1))
        for path, part in module.named_modules()
        if _is_plain(part)
    )


def _is_plain(part: nn.Module) -> bool:
    # An exact type: a subclass may compute something else.
    return type(part) is nn.Conv2d and {name for name, _ in part.named_parameters(recurse=False)} in (
        {"weight"},
        {"weight", "bias"},
    )


@dataclass(frozen=True)
class _Flow:
    """Which modules (by path) read what each one makes, and what each one reads; None stands for anything else."""

    readers: defaultdict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    sources: defaultdict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    calls: Counter[str] = field(default_factory=Counter)


def _occurrences(module: nn.Module) -> Counter[nn.Module]:
    """How many places a part, or the weight of a part, has; a place inside a part that has several is still one."""
    everywhere = list(module.named_modules(remove_duplicate=False))
    parents = dict(everywhere)
    places = {(part, parents[path.rpartition(".")[0]], path.rpartition(".")[2]) for path, part in everywhere if path}
    count = Counter(part for part, _, _ in places)
    owners = Counter(id(weight) for part in module.modules() for weight in part.parameters(recurse=False))
    for part in module.modules():
        count[part] = max([count[part], *(owners[id(weight)] for weight in part.parameters(recurse=False))])
    return count


def _norm_behind(path: str, module: nn.Module, flow: _Flow, occurrences: Counter[nn.Module]) -> str | None:
    if len(flow.readers[path]) != 1:
        return None
    (reader,) = flow.readers[path]
    if reader is None or flow.sources[reader] != {path} or flow.calls[reader] != 1:
        return None
    norm = module.get_submodule(reader)
    # Without running statistics nothing is fixed that could be folded: such a norm stays where it is.
    foldable = type(norm) is nn.BatchNorm2d and norm.running_mean is not None and norm.running_var is not None
    return reader if foldable and occurrences[norm] == 1 else None


def _flow(module: nn.Module) -> _Flow:
    flow = _Flow()
    # Following runs the network's own code, which may keep something, so it gets a copy.
    probe = copy.deepcopy(module)
    for training in (True, False):
        calls: Counter[str] = Counter()
        _follow(probe.train(training), "", flow, calls)
        flow.calls.update({path: count - flow.calls[path] for path, count in calls.items() if count > flow.calls[path]})
    return flow


def _follow(module: nn.Module, prefix: str, flow: _Flow, calls: Counter[str]) -> None:
    graph = _traced(module)
    if graph is None:
        logger.info("the forward of %s cannot be followed, its children are, each alone", prefix or "the network")
        for before, after in _in_sequence(module):
            flow.readers[prefix + before].add(prefix + after)
            flow.sources[prefix + after].add(prefix + before)
        for name, child in module.named_children():
            calls[prefix + name] += 1
            _follow(child, f"{prefix}{name}.", flow, calls)
        return
    for node in graph.nodes:
        if node.op == "call_module":
            path = prefix + node.target
            calls[path] += 1
            flow.readers[path] |= {_called(user, prefix) for user in node.users}
            flow.sources[path] |= {_called(source, prefix) for source in node.all_input_nodes}


def _called(node: fx.Node, prefix: str) -> str | None:
    return f"{prefix}{node.target}" if node.op == "call_module" else None


def _in_sequence(module: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and not _has_own(module):
        # With duplicates: one activation module may stand in several places.
        names = [path for path, _ in module.named_modules(remove_duplicate=False) if path and "." not in path]
        yield from pairwise(names)


def _has_own(module: nn.Module) -> bool:
    """Whether the module's forward was replaced on the object itself."""
    return "forward" in vars(module)


def _traced(module: nn.Module) -> fx.Graph | None:
    """The calls in the module's forward, its optional arguments at their defaults; None where fx cannot tell."""
    if not any(True for _ in module.children()):
        return fx.Graph()
    if _has_own(module):
        # fx would follow the forward of the class.
        return None
    try:
        defaults: dict[str, Any] = {
            name: parameter.default
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fx.Tracer().trace(module, concrete_args=defaults)
    except Exception as error:
        # Anything: this runs the network's own code on stand-ins for tensors.
        logger.debug("torch.fx could not follow %s: %s", type(module).__name__, error)
        return None
