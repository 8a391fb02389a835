"""The formats that a network can be taken home in: how each is written, and run again to see that it is the same."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from hardware import runtimes
from hardware.graph import DeployModel, FloatArray
from hardware.isolated import Failed
from hardware.onnx_model import to_onnx
from hardware.runners import mnn, ncnn, onnxruntime
from hardware.strict_yaml import ConfigError, nearest
from nas import torch_programs
from searchspace.torch_source import SOURCE, STEPS, WEIGHTS


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be written: the folded network, one line about it, what an ONNX file carries, and the fixed batch.

    batch None leaves the first axis free where the format can.
    """

    model: DeployModel
    title: str
    metadata: Mapping[str, str]
    batch: int | None


@dataclass(frozen=True, slots=True)
class Format:
    """`write` puts files into a folder or says why it cannot; `checked` are those that `run` runs on images.

    `module` and `library` are what Python and pip call the runtime.
    """

    name: str
    module: str
    library: str
    files: tuple[str, ...]
    checked: tuple[str, ...]
    write: Callable[[Sequence[tuple[Subject, Path]]], Sequence[Failed | None]]
    run: Callable[[Path, FloatArray], FloatArray]


def _write_onnx(subjects: Sequence[tuple[Subject, Path]]) -> Sequence[Failed | None]:
    for subject, folder in subjects:
        onnx.save(to_onnx(subject.model, metadata=subject.metadata, batch=subject.batch), folder / "model.onnx")
    return [None] * len(subjects)


def _through(runtime: str, file: str) -> Callable[[Sequence[tuple[Subject, Path]]], Sequence[Failed | None]]:
    def write(subjects: Sequence[tuple[Subject, Path]]) -> Sequence[Failed | None]:
        models = [(subject.model, folder / file) for subject, folder in subjects]
        answers = runtimes.RUNTIMES[runtime].write_models(models)
        return [answer if isinstance(answer, Failed) else None for answer in answers]

    return write


def _write_torch(subjects: Sequence[tuple[Subject, Path]]) -> Sequence[Failed | None]:
    for subject, folder in subjects:
        torch_programs.write_torch(subject.model, folder, subject.title, subject.batch)
    return [None] * len(subjects)


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", "onnxruntime", "onnxruntime", ("model.onnx",), ("model.onnx",), _write_onnx, onnxruntime.run),
        Format(
            "ncnn",
            "ncnn",
            "ncnn",
            ("model.param", "model.bin"),
            ("model.param",),
            _through("ncnn", "model.param"),
            ncnn.run,
        ),
        Format("mnn", "MNN", "MNN", ("model.mnn",), ("model.mnn",), _through("mnn", "model.mnn"), mnn.run),
        Format(
            "torch",
            "torch",
            "torch",
            (torch_programs.PROGRAM, SOURCE, STEPS, WEIGHTS),
            (torch_programs.PROGRAM, SOURCE),
            _write_torch,
            torch_programs.run,
        ),
    )
}


def formats_named(text: str) -> tuple[Format, ...]:
    """The formats in a list with commas, each once, once it is sure that their runtimes are there to check them.

    Raises:
        ConfigError: one is unknown, or its runtime is not installed.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ConfigError(f"format: at least one, got {text!r}; known: {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise ConfigError(
                f"format: unknown format {name!r}; {nearest(name, list(FORMATS))}; known: {', '.join(FORMATS)}"
            )
        if importlib.util.find_spec(FORMATS[name].module) is None:
            library = FORMATS[name].library
            raise ConfigError(f"format: what is written as {name} is run to check it, so pip install {library} first")
    return tuple(FORMATS[name] for name in names)


def library_versions(formats: Sequence[Format]) -> dict[str, str]:
    """Of the runtimes that the files were checked with."""
    return {each.library: importlib.metadata.version(each.library) for each in formats}
