"""ncnn on this machine's processor: what a model computes."""

from pathlib import Path
from typing import Any

import numpy as np

from hardware.board import NCNN_NOT_FP32
from hardware.graph import FloatArray
from hardware.strict_yaml import ConfigError


def run(param: Path, images: FloatArray) -> FloatArray:
    """What the model in `param`, with its weights in the .bin beside it, makes of (n, channels, height, width).

    Raises:
        ConfigError: ncnn cannot load it or fails while it runs.
    """
    weights = param.with_suffix(".bin")
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such file; the weights of a .param lie beside it")
    net = _open(param, weights)
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


def own_copy(values: FloatArray) -> Any:
    """The values as ncnn holds them, with channels aligned, in memory of its own.

    `ncnn.Mat(values)` alone points into the array and does not keep it alive: an array made in that very call is freed
    before `clone` reads it. Here it lives until the end of the function.
    """
    import ncnn

    return ncnn.Mat(values).clone()


def _open(param: Path, weights: Path) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    for unwanted in NCNN_NOT_FP32:
        setattr(net.opt, unwanted, False)
    if net.load_param(str(param)):
        raise ConfigError(f"{param}: ncnn cannot load it")
    if net.load_model(str(weights)):
        raise ConfigError(f"{weights}: ncnn cannot load the weights")
    return net
