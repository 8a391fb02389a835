"""ncnn on this machine's processor: what a model computes, and a call that runs it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hardware.graph import FloatArray
from hardware.ops import Shape
from hardware.strict_yaml import ConfigError

# What ncnn would rather compute with where the processor can, and the graphics processor.
_NOT_FP32 = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_vulkan_compute",
)


def run(param: Path, images: FloatArray) -> FloatArray:
    """What the model in `param`, with its weights in the .bin beside it, makes of (n, channels, height, width).

    Raises:
        ConfigError: ncnn cannot load it or fails while it runs.
    """
    weights = param.with_suffix(".bin")
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such file; the weights of a .param lie beside it")
    net = _open(param, weights, threads=1)
    results = []
    for image in np.ascontiguousarray(images, np.float32):
        extractor = net.create_extractor()
        extractor.input("in0", own_copy(image))
        status, result = extractor.extract("out0")
        if status:
            raise ConfigError(f"{param}: ncnn fails while it runs it (status {status})")
        results.append(np.array(result))
    output: FloatArray = np.stack(results)
    return output


def open_timed(param: Path, *, threads: int = 1) -> Callable[[], None]:
    """A call that runs the model once, on noise that is always the same.

    Without a .bin beside it the weights are zeros, as in ncnn's own benchmark; that takes as long.

    Raises:
        ConfigError: ncnn cannot load it, or fails while it runs it for the first time.
    """
    weights = param.with_suffix(".bin")
    net = _open(param, weights if weights.is_file() else None, threads)
    rng = np.random.default_rng(0)
    shapes = input_shapes(param.read_text(encoding="ascii"))
    feed = {name: own_copy(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}

    def run_once() -> None:
        extractor = net.create_extractor()
        for name, image in feed.items():
            extractor.input(name, image)
        status, _ = extractor.extract("out0")
        if status:
            raise ConfigError(f"{param}: ncnn fails while it runs it (status {status})")

    run_once()
    return run_once


def own_copy(values: FloatArray) -> Any:
    """The values as ncnn holds them, with channels aligned, in memory of its own.

    `ncnn.Mat(values)` alone points into the array and does not keep it alive: an array made in that very call is freed
    before `clone` reads it. Here it lives until the end of the function.
    """
    import ncnn

    return ncnn.Mat(values).clone()


def input_shapes(param: str) -> dict[str, Shape]:
    """What enters the model in the text of a .param, by name, as its `Input` layers say it."""
    found = {}
    for line in param.splitlines()[2:]:
        kind, name, *rest = line.split()
        if kind == "Input":
            lengths = dict(part.split("=") for part in rest if "=" in part)
            found[name] = tuple(int(lengths[key]) for key in ("2", "11", "1", "0") if key in lengths)
    return found


def _open(param: Path, weights: Path | None, threads: int) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for unwanted in _NOT_FP32:
        setattr(net.opt, unwanted, False)
    if net.load_param(str(param)):
        raise ConfigError(f"{param}: ncnn cannot load it")
    if net.load_model(ncnn.DataReaderFromEmpty() if weights is None else str(weights)):
        raise ConfigError(f"{weights or param}: ncnn cannot load the weights")
    return net
