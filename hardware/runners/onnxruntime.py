"""ONNX Runtime on this machine's processor: what a model computes, and what that takes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hardware.graph import FloatArray
from hardware.strict_yaml import ConfigError


@dataclass(frozen=True, slots=True)
class Protocol:
    """How long a model is run before and while it is timed; whichever of runs and seconds lasts longer."""

    warmup_s: float
    min_runs: int
    min_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Median, interquartile range and 90 % quantile of the wall time of single runs at batch 1."""

    median_ms: float
    spread_ms: float
    p90_ms: float
    runs: int


def open_session(model: onnx.ModelProto | Path, threads: int = 1) -> Any:
    """A session that runs one operation after another on so many threads, which sleep between runs.

    Raises:
        ConfigError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's errors share no class of their own; all of them mean that it cannot load the model.
        name = model if isinstance(model, Path) else "the model"
        raise ConfigError(f"{name}: ONNX Runtime cannot load it ({' '.join(str(error).split())[:300]})") from error


def run(model: onnx.ModelProto | Path, images: FloatArray) -> FloatArray:
    """What the model makes of (n, channels, height, width); one of a fixed batch takes that many images at a time."""
    session = open_session(model)
    (entering,) = session.get_inputs()
    batch = entering.shape[0] if isinstance(entering.shape[0], int) else len(images)
    parts = [np.ascontiguousarray(images[start : start + batch], np.float32) for start in range(0, len(images), batch)]
    output: FloatArray = np.concatenate([session.run(None, {entering.name: part})[0] for part in parts])
    return output


def open_timed(model: onnx.ModelProto | Path, *, threads: int = 1) -> Callable[[], None]:
    """A call that runs the model once at batch 1, on noise that is always the same.

    Raises:
        ConfigError: ONNX Runtime cannot load the model.
    """
    session = open_session(model, threads)
    rng = np.random.default_rng(0)
    feed = {
        entry.name: rng.standard_normal([size if isinstance(size, int) else 1 for size in entry.shape], np.float32)
        for entry in session.get_inputs()
    }

    def run_once() -> None:
        session.run(None, feed)

    run_once()
    return run_once


def time_model(model: onnx.ModelProto | Path, *, threads: int, protocol: Protocol) -> Timing:
    """What one run at batch 1 takes, wall time, inputs filled with noise that is always the same."""
    run_once = open_timed(model, threads=threads)
    stop = time.perf_counter() + protocol.warmup_s
    while time.perf_counter() < stop:
        run_once()
    samples: list[float] = []
    stop = time.perf_counter() + protocol.min_s
    while len(samples) < protocol.min_runs or time.perf_counter() < stop:
        begin = time.perf_counter()
        run_once()
        samples.append(1e3 * (time.perf_counter() - begin))
    lower, median, upper = statistics.quantiles(samples, n=4)
    return Timing(median, upper - lower, statistics.quantiles(samples, n=10)[-1], len(samples))
