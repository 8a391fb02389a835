"""`nas layouts`: the PBConv layout search on a published network, a spec or a module of the user's own."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evaluators.datasets import Dataset, open_dataset
from evaluators.early import EarlySettings
from evaluators.labels import check_labels
from evaluators.layout_search import (
    LAYOUT_SCORES,
    Host,
    LayoutChoice,
    LayoutSettings,
    ModuleHost,
    SpecHost,
    Tried,
    by_convolution,
    search_layouts,
)
from hardware.strict_yaml import ConfigError, nearest
from nas.console import print_table, print_text
from nas.device_commands import read_any_spec
from nas.exit_codes import BROKE, DONE
from nas.files import write_atomically
from nas.view import View
from searchspace.layouts import SCOPES, with_layouts
from searchspace.recognise import for_task
from searchspace.registry import load_families
from searchspace.space import Task
from searchspace.spec import ArchSpec, SpecError, deploy_form, write_spec

WordT = TypeVar("WordT", bound=str)


@dataclass(frozen=True, slots=True)
class LayoutWords:
    """What the user asked for; `resolution` None is the network's own, and for a module that of the images."""

    model: str
    data: str
    data_limit: int | None
    resolution: int | None
    candidates: int
    iterations: int
    scope: str
    score: str
    epochs: int
    seed: int
    threads: int
    write: Path | None


def layouts(words: LayoutWords, view: View) -> int:
    """Searches, tells what won and what it took, and writes it for the training to come."""
    settings = LayoutSettings(
        candidates=_at_least_one("candidates", words.candidates),
        scope=_known("scope", words.scope, SCOPES),
        score=_known("score", words.score, LAYOUT_SCORES),
        early=EarlySettings(iterations=_at_least_one("iterations", words.iterations)),
    )
    _at_least_one("epochs", words.epochs)
    if words.resolution is not None:
        _at_least_one("resolution", words.resolution)
    # A second thread costs more than it saves as soon as something else runs on the machine.
    torch.set_num_threads(_at_least_one("threads", words.threads))
    if words.write is not None and not words.write.parent.is_dir():
        raise ConfigError(f"write: {words.write.parent} is no folder")
    data = open_dataset(words.data, seed=words.seed, limit=words.data_limit)
    host, spec, resolution = _host(words, data, view)
    if not host.places:
        raise SpecError(
            f"model: {words.model} has no square convolution larger than 1x1, which is what carries a layout"
        )
    splits = data.at(resolution)
    check_labels(splits.train_y, data.num_classes)
    told = None if view.quiet else _teller(settings)
    choice = search_layouts(host, splits, settings, rng=random.Random(words.seed), seed=words.seed, on_tried=told)
    failures = [each.failure.reason for each in choice.tried if each.failure is not None]
    if not choice.winners:
        print(f"nas: none of {len(failures)} candidates could be trained: {failures[0]}", file=sys.stderr)
        return BROKE
    if words.write is not None:
        _write(words.write, host, spec, choice)
    share = choice.share_of_training(words.epochs * data.num_train)
    if view.json:
        print(json.dumps(_document(words, choice, share), indent=2, allow_nan=False))
    else:
        _print(words, choice, share, data)
    return DONE


def _host(words: LayoutWords, data: Dataset, view: View) -> tuple[Host, ArchSpec | None, int]:
    """The network, its spec if it has one, and the resolution that it is trained at."""
    module_name, colon, attribute = words.model.partition(":")
    if colon and not attribute.isdigit():
        module = _own_module(module_name, attribute)
        resolution = data.native_resolution if words.resolution is None else words.resolution
        images = data.at(resolution).train_x[:2]
        _check_answers(words.model, module, images, data.num_classes)
        return ModuleHost(module, images, words.seed), None, resolution
    spec = for_task(deploy_form(read_any_spec(words.model, view)), Task(data.channels, data.num_classes))
    if words.resolution is not None and words.resolution != spec.input_shape[1]:
        raise ConfigError(f"resolution: {words.model} is for {spec.input_shape[1]} pixels, got {words.resolution}")
    return SpecHost(spec, words.seed), spec, spec.input_shape[1]


def _own_module(module_name: str, attribute: str) -> nn.Module:
    try:
        module = load_families(module_name)
    except ValueError as error:
        raise SpecError(f"model: {error}") from error
    known = [name for name, value in vars(module).items() if isinstance(value, nn.Module) or callable(value)]
    if attribute not in known:
        raise SpecError(f"model: {module_name} has no network {attribute!r}; {nearest(attribute, known)}")
    found = getattr(module, attribute)
    if not isinstance(found, nn.Module):
        try:
            found = found()
        except TypeError as error:
            raise SpecError(f"model: {module_name}:{attribute} must need no arguments: {error}") from error
    if not isinstance(found, nn.Module):
        raise SpecError(f"model: {module_name}:{attribute} must be or return an nn.Module, got {type(found).__name__}")
    return found


@torch.no_grad()
def _check_answers(name: str, module: nn.Module, images: Tensor, classes: int) -> None:
    shape = tuple(images.shape[1:])
    try:
        answer = module.eval()(images)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SpecError(f"model: {name} does not take images of {shape}: {reason}") from error
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(images), classes):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise SpecError(f"model: {name} must give {classes} logits for each of {len(images)} images, got {got}")


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name}: at least 1, got {value}")
    return value


def _known(name: str, value: str, words: tuple[WordT, ...]) -> WordT:
    for word in words:
        if word == value:
            return word
    raise ConfigError(f"{name}: {', '.join(words)}; got {value!r}")


def _teller(settings: LayoutSettings) -> Callable[[int, Tried], None]:
    def tell(done: int, tried: Tried) -> None:
        if tried.failure is not None:
            found = f"failed: {tried.failure.reason}"
        else:
            mean = sum(tried.score(group, settings.score) for group in tried.end) / len(tried.end)
            found = f"{settings.score} {mean:.4f}, {tried.seconds:.1f} s"
        print(f"layouts: {done} of {settings.candidates}, {found}", file=sys.stderr, flush=True)

    return tell


def _write(path: Path, host: Host, spec: ArchSpec | None, choice: LayoutChoice) -> None:
    if spec is not None:
        write_spec(with_layouts(spec, choice.layouts, choice.settings.scope), path)
        return
    own = by_convolution(host.places, choice.layouts, choice.settings.scope)
    write_atomically(path, json.dumps({name: str(layout) for name, layout in own.items()}, indent=1) + "\n")


def _document(words: LayoutWords, choice: LayoutChoice, share: float) -> dict[str, Any]:
    return {
        "model": words.model,
        "data": words.data,
        "seed": words.seed,
        "scope": words.scope,
        "score": words.score,
        "iterations": words.iterations,
        "layouts": {group: _texts(each) for group, each in choice.layouts.items()},
        "winners": dict(choice.winners),
        "tried": [
            {
                "layouts": {group: _texts(sizes) for group, sizes in each.layouts.items()},
                "dispersion_start": dict(each.start),
                "dispersion": dict(each.end),
                "seconds": round(each.seconds, 3),
                "failure": None if each.failure is None else each.failure.reason,
            }
            for each in choice.tried
        ],
        "search_seconds": round(choice.seconds, 3),
        "epochs": words.epochs,
        "share_of_training": share,
    }


def _texts(layouts: Any) -> dict[str, str]:
    return {str(size): str(layout) for size, layout in layouts.items()}


def _print(words: LayoutWords, choice: LayoutChoice, share: float, data: Dataset) -> None:
    rows = []
    for group, winner in choice.winners.items():
        tried = choice.tried[winner]
        numbers = [str(winner + 1), f"{tried.start[group]:.4f}", f"{tried.end[group]:.4f}"]
        rows.append([group, *numbers, " ".join(map(str, choice.layouts[group].values()))])
    columns = ("for", "candidate", "at the start", "dispersion", "layout")
    print_table(f"of {len(choice.tried)} candidates after {words.iterations} iterations", columns, rows)
    print_text(
        f"The search took {choice.seconds:.1f} s, {share:.1%} of training for {words.epochs} epochs on "
        f"{data.num_train:,} images, estimated from the candidates' own iterations."
    )
    if words.write is not None:
        print_text(f"{words.write} has the layouts.")
