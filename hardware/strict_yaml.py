"""YAML files that are read strictly: nothing unknown, nothing twice, and every mistake named with its line."""

import difflib
import json
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

# libyaml's parser is ten times faster, and there are builds of PyYAML without it.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int")
_LONGEST_VALUE = 60


class ConfigError(ValueError):
    """A file or a setting is wrong; each line of the message is `FILE:LINE: key.path: rule, value, what to do`."""


def load_yaml(path: Path, model: type[Model]) -> Model:
    """What the file says, as a `model`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the model.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: a readable file is needed, got {error}; check the path") from error
    return parse_yaml(text, model, name=str(path))


def parse_yaml(text: str, model: type[Model], *, name: str = "<text>") -> Model:
    """What the text says, as a `model`; `name` stands for the file in messages.

    Values are taken literally: "4" in quotes is no number. Aliases and merge keys are refused, because a line number
    would then point to a place that the reader does not see.

    Raises:
        ConfigError: the text is not YAML, or does not fit the model.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{name}:1: a mapping of keys to values is needed at the top, got {_kind(root)}")
        _check_nodes(root, name, "", set())
        content = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(_describe_yaml_error(error, text, name)) from error
    except RecursionError as error:
        raise ConfigError(f"{name}:1: lists and mappings are nested too deeply; write the file flatter") from error
    finally:
        loader.dispose()
    try:
        # Through JSON, where strict means that a list may become a tuple but a text never a number.
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        # A misspelt key is also a missing one; the spelling is what the reader wants to see first.
        mistakes = sorted(error.errors(include_url=False), key=lambda details: details["type"] != "extra_forbidden")
        lines = [_describe(details, root, model, name) for details in mistakes]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def nearest(word: str, known: list[str]) -> str:
    """A clause that suggests the known word most like `word` and lists them all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def _check_nodes(node: yaml.Node, name: str, path: str, seen: set[int]) -> None:
    if id(node) in seen:
        raise ConfigError(f"{name}:{_line(node)}: {path}: aliases (*name) are not allowed, write the value out again")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _check_nodes(child, name, f"{path}.{index}".lstrip("."), seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, child in node.value:
            full = f"{path}.{key.value if isinstance(key, yaml.ScalarNode) else '?'}".lstrip(".")
            if key.tag not in _KEY_TAGS:
                raise ConfigError(
                    f"{name}:{_line(key)}: {full}: a key must be a word or a whole number, got {_kind(key)}; "
                    "put it in quotes if it is meant as a word"
                )
            if key.value in lines:
                raise ConfigError(
                    f"{name}:{_line(key)}: {full}: a key may stand only once, got it in line {lines[key.value]} too; "
                    "remove one of them"
                )
            lines[key.value] = _line(key)
            _check_nodes(child, name, full, seen)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _describe_yaml_error(error: yaml.YAMLError, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    # What is missing at the end is reported one line behind it.
    line = min(mark.line + 1, len(text.splitlines())) if mark else 1
    return f"{name}:{line}: not valid YAML, {problem}; check indentation, quotes and brackets"


def _describe(details: ErrorDetails, root: yaml.MappingNode, model: type[BaseModel], name: str) -> str:
    keys = [str(part) for part in details["loc"]]
    node, found = _walk(root, keys)
    path = ".".join(keys) if details["type"] in ("missing", "extra_forbidden") else ".".join(keys[: len(found)])
    if details["type"] == "extra_forbidden":
        rule = f"unknown key; {nearest(keys[-1], _known_keys(model, keys[:-1]))}"
    elif details["type"] == "missing":
        rule = "a value is required, got none; add the key"
    elif details["type"] == "value_error":
        rule = details["msg"].removeprefix("Value error, ")
    else:
        rule = details["msg"].replace("Input should", "must", 1)
        rule += f", got {_shorten(details['input'])}{_remedy(details)}"
    return f"{name}:{_line(node)}: {path}: {rule}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _remedy(details: ErrorDetails) -> str:
    value, kind = details["input"], details["type"]
    if isinstance(value, str) and kind in ("float_type", "int_type"):
        try:
            number = float(value)
        except ValueError:
            return "; write a number without a unit"
        wanted = int(number) if kind == "int_type" and number.is_integer() else number
        return f"; write {wanted}, without quotes and with a point before an exponent"
    if kind == "string_type" and isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false, put it in quotes"
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    return ""


def _walk(root: yaml.Node, keys: list[str]) -> tuple[yaml.Node, list[str]]:
    """The key node of the deepest part of `keys` that is in the file, and that part.

    Pydantic puts names of union members into the location too; whatever is not in the file ends the walk.
    """
    marked, current = root, root
    found: list[str] = []
    for key in keys:
        if isinstance(current, yaml.MappingNode):
            pair = next(((k, v) for k, v in current.value if k.value == key), None)
            if pair is None:
                break
            marked, current = pair
        elif isinstance(current, yaml.SequenceNode) and key.isdigit() and int(key) < len(current.value):
            marked = current = current.value[int(key)]
        else:
            break
        found.append(key)
    return marked, found


def _known_keys(model: type[BaseModel], keys: list[str]) -> list[str]:
    annotations: list[Any] = [model]
    for key in keys:
        annotations = [inner for outer in annotations for inner in _inside(outer, key)]
    return sorted({field for outer in annotations for each in _models(outer) for field in each.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, GenericAlias) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _inside(annotation: Any, key: str) -> list[Any]:
    """What stands under `key` of something annotated so: a field, or the members of a list or mapping."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType, Annotated):
        return [inner for part in parts for inner in _inside(part, key)]
    if origin is dict:
        return [parts[1]]
    if origin in (list, tuple, set, frozenset):
        return [part for part in parts if part is not Ellipsis]
    return [model.model_fields[key].annotation for model in _models(annotation) if key in model.model_fields]
