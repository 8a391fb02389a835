"""Every runtime that the runner knows opens a real model, runs it, and refuses what is wrong with it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hardware import board
from hardware.job_folder import SUFFIXES, Job, JobInput, JobList, JobProtocol, write_jobs
from hardware.job_results import load_results
from hardware.kernels import Kernel
from hardware.onnx_model import kernel_model
from hardware.ops import Conv
from hardware.transports import Local

PARAM = (
    "7767517\n2 2\nInput in 0 1 {input}\n"
    "Convolution conv 1 1 {input} {output} 0={channels} 1=3 3=1 4=1 5=1 6={weights}\n"
)


def _write_onnx(path: Path, channels: int) -> None:
    kernel = Kernel((Conv(channels, (3, 3), padding=(1, 1)),), ((16, 24, 20),), (channels, 24, 20))
    path.write_bytes(kernel_model(kernel).SerializeToString())


def _write_ncnn(path: Path, channels: int) -> None:
    weights = channels * 16 * 9
    path.write_text(PARAM.format(input=INPUT_NAME, output=OUTPUT_NAME, channels=channels, weights=weights))


def _write_mnn(path: Path, channels: int) -> None:
    converter = shutil.which("mnnconvert", path=str(Path(sys.executable).parent))
    if converter is None:
        pytest.skip("mnnconvert is not installed")
    _write_onnx(path.with_suffix(".source"), channels)
    options = ["-f", "ONNX", "--modelFile", path.with_suffix(".source"), "--MNNModel", path, "--bizCode", "x"]
    subprocess.run([converter, *options], check=True, capture_output=True)


# What a kernel's own inputs and its output are called.
INPUT_NAME = "input0"
OUTPUT_NAME = "op0"

WRITERS: dict[str, Callable[[Path, int], None]] = {"onnxruntime": _write_onnx, "ncnn": _write_ncnn, "mnn": _write_mnn}


def test_every_runtime_is_tried():
    assert set(WRITERS) == set(board.RUNTIMES) == set(SUFFIXES) == set(board.MODULES) == set(board.WHEELS)


@pytest.mark.parametrize("runtime", board.RUNTIMES)
def test_a_runtime_measures_models_and_refuses_wrong_inputs_outputs_and_files(runtime, tmp_path):
    pytest.importorskip(board.MODULES[runtime])
    suffix = SUFFIXES[runtime]
    right = JobInput(name=INPUT_NAME, shape=(1, 16, 24, 20))
    wrong = JobInput(name="another", shape=(1, 16, 24, 20))
    jobs = (
        Job(id="small", file=f"small{suffix}", inputs=(right,), output=OUTPUT_NAME),
        Job(id="large", file=f"large{suffix}", inputs=(right,), output=OUTPUT_NAME),
        Job(id="input", file=f"small{suffix}", inputs=(wrong,), output=OUTPUT_NAME),
        Job(id="output", file=f"small{suffix}", inputs=(right,), output="another"),
        Job(id="broken", file=f"broken{suffix}", inputs=(right,), output=OUTPUT_NAME),
    )
    WRITERS[runtime](tmp_path / f"small{suffix}", 8)
    WRITERS[runtime](tmp_path / f"large{suffix}", 512)
    (tmp_path / f"broken{suffix}").write_bytes(b"no model\n" * 20)
    protocol = JobProtocol(warmup_s=0.01, min_runs=10, min_s=0.02, max_s=2.0, retries=0)
    write_jobs(tmp_path, JobList(runtime=runtime, threads=1, protocol=protocol, sentinel="small", jobs=jobs))
    Local().measure(tmp_path, lambda progress: None)
    results = load_results(tmp_path)
    assert set(results.errors) == {"input", "output", "broken"}
    # 64 times the arithmetic; a busy machine does not turn that round.
    assert results.timings["large"].median_ms > 3 * results.timings["small"].median_ms
    assert results.started.runtime == runtime
    assert results.started.runtime_version[0].isdigit()
