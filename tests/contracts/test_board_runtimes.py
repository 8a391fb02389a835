"""Every runtime that the runner knows opens a real model, runs it, and refuses what is wrong with it."""

from pathlib import Path

import pytest

from hardware import board
from hardware.graph import GraphBuilder
from hardware.job_folder import SUFFIXES, Job, JobInput, JobList, JobProtocol, write_jobs
from hardware.job_results import load_results
from hardware.ops import Conv
from hardware.profiling import ENDS
from hardware.runtimes import RUNTIMES
from hardware.transports import Local


def _write(runtime: str, path: Path, channels: int) -> None:
    graph = GraphBuilder((16, 24, 20))
    graph.add("conv", Conv(channels, (3, 3), padding=(1, 1)), graph.input)
    assert list(RUNTIMES[runtime].write_timed([(graph.build(), path)])) == [path]


def test_every_runtime_is_tried():
    tables = (board.RUNTIMES, board.TRACERS, board.MODULES, board.WHEELS, SUFFIXES, ENDS)
    assert all(set(table) == set(RUNTIMES) for table in tables)


@pytest.mark.parametrize("runtime", board.RUNTIMES)
def test_a_runtime_measures_models_and_refuses_wrong_inputs_outputs_and_files(runtime, tmp_path):
    pytest.importorskip(board.MODULES[runtime])
    suffix = SUFFIXES[runtime]
    entering, leaving = ENDS[runtime]
    right = JobInput(name=entering, shape=(1, 16, 24, 20))
    wrong = JobInput(name="another", shape=(1, 16, 24, 20))
    jobs = (
        Job(id="small", file=f"small{suffix}", inputs=(right,), output=leaving),
        Job(id="large", file=f"large{suffix}", inputs=(right,), output=leaving),
        Job(id="input", file=f"small{suffix}", inputs=(wrong,), output=leaving),
        Job(id="output", file=f"small{suffix}", inputs=(right,), output="another"),
        Job(id="broken", file=f"broken{suffix}", inputs=(right,), output=leaving),
    )
    _write(runtime, tmp_path / f"small{suffix}", 8)
    _write(runtime, tmp_path / f"large{suffix}", 512)
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
