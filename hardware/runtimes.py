"""The runtimes that run models on this machine: how a model gets into each one's files, and is run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx

from hardware import mnn_model, ncnn_model, onnx_model
from hardware.graph import DeployGraph, DeployModel, FloatArray, with_weights
from hardware.isolated import Failed
from hardware.runners import mnn, ncnn, onnxruntime


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime; `library` is what pip calls it, `suffix` what the files end with that it loads.

    Writing goes on after a model that cannot be written and says why; `write_timed` writes networks without weights of
    their own that take as long as those with. `run` raises `ConfigError` for a file that the runtime cannot load, if it
    does not crash: see `hardware.isolated`.
    """

    name: str
    library: str
    suffix: str
    write_models: Callable[[Sequence[tuple[DeployModel, Path]]], Iterable[Path | Failed]]
    write_timed: Callable[[Sequence[tuple[DeployGraph, Path]]], Iterable[Path | Failed]]
    run: Callable[[Path, FloatArray], FloatArray]


def _write_onnx_models(models: Sequence[tuple[DeployModel, Path]]) -> Iterator[Path | Failed]:
    for model, path in models:
        onnx.save(onnx_model.to_onnx(model, batch=1), path)
        yield path


def _write_onnx_timed(graphs: Sequence[tuple[DeployGraph, Path]]) -> Iterator[Path | Failed]:
    for graph, path in graphs:
        onnx.save(onnx_model.weightless_onnx(graph), path)
        yield path


def _write_ncnn_timed(graphs: Sequence[tuple[DeployGraph, Path]]) -> Iterator[Path | Failed]:
    for graph, path in graphs:
        try:
            param = ncnn_model.graph_param(graph)
        except ValueError as error:
            yield Failed(str(error))
            continue
        path.write_text(param, encoding="ascii")
        yield path


def _write_mnn_timed(graphs: Sequence[tuple[DeployGraph, Path]]) -> Iterator[Path | Failed]:
    return mnn_model.write_mnn(
        (onnx_model.to_onnx(_with_drawn_weights(graph), batch=1), path) for graph, path in graphs
    )


def _with_drawn_weights(graph: DeployGraph) -> DeployModel:
    """The graph with weights that keep values at their size.

    MNN's error function takes twice as long for values of the size of 1 than for smaller ones, and with it a network
    with GELU.
    """
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in graph.weight_shapes().items()}
    return with_weights(
        graph,
        {
            name: values * np.float32((2 / prod(values.shape[1:])) ** 0.5) if name.endswith(".weight") else values
            for name, values in weights.items()
        },
    )


def _write_ncnn_models(models: Sequence[tuple[DeployModel, Path]]) -> Iterator[Path | Failed]:
    for model, path in models:
        try:
            written = ncnn_model.to_ncnn(model)
        except ValueError as error:
            yield Failed(str(error))
            continue
        written.save(path)
        yield path


def _write_mnn_models(models: Sequence[tuple[DeployModel, Path]]) -> Iterator[Path | Failed]:
    return mnn_model.write_mnn((onnx_model.to_onnx(model, batch=1), path) for model, path in models)


RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "onnxruntime",
            "onnxruntime",
            ".onnx",
            _write_onnx_models,
            _write_onnx_timed,
            onnxruntime.run,
        ),
        Runtime(
            "ncnn",
            "ncnn",
            ".param",
            _write_ncnn_models,
            _write_ncnn_timed,
            ncnn.run,
        ),
        Runtime("mnn", "MNN", ".mnn", _write_mnn_models, _write_mnn_timed, mnn.run),
    )
}
