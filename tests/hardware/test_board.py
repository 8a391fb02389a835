import ast
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware import board

SOURCE = Path(board.__file__)

# All of Python 3.7's own that the runner may use: no package of a board has to be there but the runtime.
ALLOWED = {
    *("argparse", "bisect", "collections", "contextlib", "fcntl", "hashlib", "json", "math", "os", "pathlib"),
    *("platform", "signal", "statistics", "subprocess", "sys", "tempfile", "time", "typing", "__future__"),
    *("onnxruntime", "ncnn", "MNN", "numpy"),
}


def test_the_runner_is_python_3_7_and_imports_its_standard_library_only():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert imported - ALLOWED == set()
    # Newer than 3.7, and as attributes not seen by the parser.
    newer = {"prod", "removeprefix", "removesuffix", "missing_ok", "quantiles", "fmean", "readlink", "is_relative_to"}
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _python_3_7() -> str | None:
    found = [shutil.which("python3.7"), *map(str, Path("~/.pyenv/versions").expanduser().glob("3.7.*/bin/python"))]
    for python in filter(None, found):
        if subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 7))"]).returncode == 0:
            return python
    return None


def _run(folder: Path, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, str(SOURCE), *options, str(folder)], capture_output=True, text=True)


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in _records(folder) if "id" in each}


@pytest.mark.skipif(_python_3_7() is None, reason="Python 3.7 is not installed")
def test_python_3_7_measures_a_folder_and_survives_a_crash(fake_ncnn, make_folder):
    folder = make_folder({"a": {"ms": [1.0]}, "b": {"ms": [2.0], "crash": "always"}, "c": {"ms": [3.0]}}, sentinel="a")
    done = _run(folder, python=_python_3_7())
    assert (done.returncode, _records(folder)[0]["machine"]["python"][:4]) == (0, "3.7.")
    results = _results(folder)
    assert results["c"]["samples_ms"] == [3.0, 3.0, 3.0]
    assert results["b"] == {"id": "b", "error": "crashed the runtime"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float]], Callable[[], None]]:
    """Turns a script of run times in ms into a function that takes so long by the only clock there is."""
    now = [100.0]
    monkeypatch.setattr(board.time, "perf_counter", lambda: now[0])

    def runner(times_ms: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            now[0] += next(times_ms) / 1000

        return run

    return runner


PROTOCOL = {"warmup_s": 0.0, "min_runs": 1, "min_s": 0.0, "max_s": 60.0}


def test_samples_are_the_wall_times_of_single_runs_after_the_warm_up(clock):
    times = iter([9.0, 9.0, 1.0, 2.5, 4.0, 100.0])
    found = board.time_runs(clock(times), {**PROTOCOL, "warmup_s": 0.015, "min_runs": 3})
    assert found == ([1.0, 2.5, 4.0], 2)


@pytest.mark.parametrize(
    ("protocol", "runs"),
    [
        ({"min_runs": 7}, 7),
        ({"min_runs": 2, "min_s": 0.0195}, 10),  # 9 runs end at 18 ms
        ({"min_runs": 1000, "max_s": 0.0105}, 6),  # the sixth ends at 12 ms
        ({"min_runs": 1000, "min_s": 50.0, "max_s": 0.0001}, 1),
    ],
)
def test_it_runs_until_runs_and_seconds_are_reached_but_not_beyond_the_cap(clock, protocol, runs):
    samples_ms, _ = board.time_runs(clock(itertools.repeat(2.0)), {**PROTOCOL, **protocol})
    assert samples_ms == [2.0] * runs


def test_quantiles_are_those_of_numpy():
    values = sorted(np.random.default_rng(1).exponential(size=317).tolist())
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0):
        assert board.quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-12)
    assert board.quantile([4.0], 0.9) == 4.0


def test_more_than_200_runs_become_quantiles_at_every_percent():
    few, many = [float(n) for n in range(200, 0, -1)], [float(n) for n in range(1000, -1, -1)]
    assert board.summary(few, 3) == {"runs": 200, "warmup_runs": 3, "samples_ms": few}
    found = board.summary(many, 3)
    assert found["runs"] == 1001
    assert found["quantiles_ms"] == [10.0 * percent for percent in range(101)]


class Script:
    """A bench whose every timing is written down beforehand, job by job, and the clock in kHz beside it."""

    def __init__(self, times_ms: dict[str, list[float]], khz: list[int] | None = None) -> None:
        self.calls: list[str] = []
        self._times = {job: iter(times) for job, times in times_ms.items()}
        self._khz = iter(khz or [])

    def bench(self) -> board.Bench:
        return board.Bench(self._machine, self._conditions, self._time_job)

    def _machine(self) -> dict[str, Any]:
        return {"cpu": "scripted", "cores": 1, "core_set": [0], "runtime": "ncnn", "runtime_version": "1"}

    def _conditions(self) -> dict[str, Any]:
        return {"clock_khz": next(self._khz, None), "temperature_c": None, "load1": None}

    def _time_job(self, job: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(job["id"])
        time_ms = next(self._times[job["id"]])
        return {"samples_ms": [time_ms], "runs": 1, "warmup_runs": 1, "sha256": "0" * 64}


def _jobs(ids: str, **protocol: Any) -> dict[str, Any]:
    protocol = {"sentinel_every": 2, "sentinel_tolerance": 0.1, "retries": 2, "cooldown_s": 0.0, **protocol}
    jobs = [{"id": name, "file": f"{name}.param", "inputs": [], "output": "out"} for name in ids]
    return {"runtime": "ncnn", "threads": 1, "cpus": None, "protocol": protocol, "sentinel": "s", "jobs": jobs}


def _measure(path: Path, jobs: dict[str, Any], script: Script, time_limit_s: float | None = None) -> board.Journal:
    journal = board.Journal.resume(path, lambda line: None)
    with contextlib.closing(journal):
        board.measure(jobs, script.bench(), journal, time_limit_s)
    return board.Journal.read(path)


def test_the_sentinel_runs_before_and_after_every_batch(tmp_path):
    script = Script({"s": [1.0] * 5, "a": [5.0], "b": [6.0], "c": [7.0]})
    journal = _measure(tmp_path / "samples.jsonl", _jobs("sabc"), script)
    assert "".join(script.calls) == "ssasbcs"
    assert journal.accepted == dict.fromkeys("sabc", (1, False))


def test_a_batch_is_measured_again_after_the_sentinel_ran_slower(tmp_path):
    # Sentinel, its own job, sentinel 30 % slower; sentinel again, its own job again, sentinel within 10 %.
    script = Script({"s": [1.0, 1.0, 1.3, 1.0, 1.0, 1.09, 1.0], "a": [5.0, 4.0], "b": [6.0]})
    journal = _measure(tmp_path / "samples.jsonl", _jobs("sab"), script)
    assert "".join(script.calls) == "ssasssasbs"
    assert journal.accepted == {"s": (2, False), "a": (2, False), "b": (1, False)}
    result, disturbed = journal.verdict("a")
    assert (result["samples_ms"], disturbed) == ([4.0], False)


def test_a_batch_that_stays_disturbed_keeps_the_attempt_with_the_fastest_sentinel(tmp_path):
    # Undisturbed around three other jobs, then before and after each of three attempts, the second being the least bad.
    readings_ms = [1.0, 1.0, 1.0, 1.0, 1.5, 1.2, 1.2, 1.4, 1.4]
    script = Script({"s": [*readings_ms, *[1.0] * 9], "a": [5.0, 4.0, 4.5], **{name: [5.0] for name in "bcd"}})
    journal = _measure(tmp_path / "samples.jsonl", _jobs("bcdas", sentinel_every=1), script)
    result, disturbed = journal.verdict("a")
    assert (result["samples_ms"], result["attempt"], disturbed) == ([4.0], 2, True)


def test_what_was_measured_before_the_sentinel_showed_how_fast_it_is_is_measured_again(tmp_path):
    script = Script({"s": [2.0, 2.0, 2.0, *[1.0] * 9], "a": [5.0, 3.0], "b": [6.0, 4.0]})
    journal = _measure(tmp_path / "samples.jsonl", _jobs("sab"), script)
    assert {name: journal.verdict(name)[0]["samples_ms"] for name in "sab"} == {"s": [1.0], "a": [3.0], "b": [4.0]}
    assert {name: journal.verdict(name)[1] for name in "sab"} == dict.fromkeys("sab", False)


def test_a_single_fast_reading_puts_nothing_in_doubt(tmp_path):
    script = Script({"s": [*[2.0] * 7, 1.0, *[2.0] * 9], **{name: [5.0] for name in "abcdefgh"}})
    journal = _measure(tmp_path / "samples.jsonl", _jobs("abcdefghs", sentinel_every=1), script)
    assert "".join(script.calls) == "sasbscsdsesfsgshsss"
    assert set(journal.accepted.values()) == {(1, False)}


def test_a_clock_that_fell_disturbs_like_a_slow_sentinel(tmp_path):
    # Read after the first sentinel, before and after each of two jobs, and after the second sentinel; then it is back.
    khz = [1800, *[1800] * 4, 1200, *[1800] * 20]
    script = Script({"s": [1.0] * 9, "a": [5.0, 4.0]}, khz)
    journal = _measure(tmp_path / "samples.jsonl", _jobs("sa"), script)
    assert journal.verdict("a")[0]["samples_ms"] == [4.0]
    (why,) = [json.loads(x)["why"] for x in (tmp_path / "samples.jsonl").read_text().splitlines() if '"why"' in x]
    assert why == "the clock was 1200 kHz, 1800 kHz at best"


def test_a_clock_that_jitters_within_the_tolerance_disturbs_nothing(tmp_path):
    script = Script({"s": [1.0] * 4, "a": [5.0]}, [1800, *[1800] * 4, 1700])
    assert _measure(tmp_path / "samples.jsonl", _jobs("sa"), script).accepted == {"s": (1, False), "a": (1, False)}


def test_without_a_sentinel_nothing_is_said_of_disturbances(tmp_path):
    jobs = {**_jobs("ab"), "sentinel": None}
    journal = _measure(tmp_path / "samples.jsonl", jobs, Script({"a": [5.0], "b": [6.0]}))
    assert [journal.verdict(name)[1] for name in "ab"] == [None, None]


def test_the_time_limit_ends_before_the_next_job_and_the_first_jobs_come_first(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    script = Script({"s": [1.0] * 9, **{name: [5.0] * 9 for name in "abcd"}})
    timed = script._time_job

    def time_job(job: dict[str, Any]) -> dict[str, Any]:
        now[0] += 1.0
        return timed(job)

    script._time_job = time_job
    jobs = _jobs("sabcd", sentinel_every=20)
    # One second each for the sentinel, its job, a and b: 3.5 s are over in the middle of b.
    journal = _measure(tmp_path / "samples.jsonl", jobs, script, time_limit_s=3.5)
    assert "".join(script.calls) == "ssabs"
    assert sorted(journal.accepted) == ["a", "b", "s"]
    journal = _measure(tmp_path / "samples.jsonl", jobs, script)
    assert "".join(script.calls) == "ssabs" + "scds"
    assert sorted(journal.accepted) == ["a", "b", "c", "d", "s"]
    _measure(tmp_path / "samples.jsonl", jobs, script)
    assert len(script.calls) == 9


def test_a_torn_line_is_repaired_and_its_job_measured_again(tmp_path):
    path = tmp_path / "samples.jsonl"
    jobs = _jobs("sa")
    _measure(path, jobs, Script({"s": [1.0] * 9, "a": [5.0]}))
    lines = path.read_text().splitlines(keepends=True)
    result = next(number for number, line in enumerate(lines) if line.startswith('{"id": "a"'))
    path.write_text("".join(lines[:result]) + lines[result][:30])
    journal = _measure(path, jobs, Script({"s": [1.0] * 9, "a": [7.0]}))
    assert journal.verdict("a")[0]["samples_ms"] == [7.0]
    assert journal.crashes == {"a": 1}  # it began, and nothing says that it ended


def test_another_machine_or_protocol_does_not_continue_a_folder(tmp_path):
    path = tmp_path / "samples.jsonl"
    _measure(path, _jobs("sa"), Script({"s": [1.0] * 9, "a": [5.0]}))
    with pytest.raises(board.Refused, match="settings must stay what the folder was begun with"):
        _measure(path, _jobs("sab", retries=7), Script({"s": [1.0] * 9}))
    other = Script({"s": [1.0] * 9})
    other._machine = lambda: {**Script({})._machine(), "cpu": "another"}
    with pytest.raises(board.Refused, match=r"cpu must stay .* 'scripted', got 'another'"):
        _measure(path, _jobs("sab"), other)


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"begin": "a"}\n[1]\n{"begin": "b"}\n')
    with pytest.raises(board.Refused, match=r"samples\.jsonl:2: the line must be a record"):
        board.Journal.read(path)


def test_the_command_writes_what_the_runtime_took(fake_ncnn, make_folder):
    plans = {"a": {"ms": [1.0]}, "b": {"ms": [2.0, 4.0, 9.0], "sizes": [6, 8, 3]}, "c": {"ms": [1.0], "code": -100}}
    folder = make_folder(plans, sentinel="a")
    done = _run(folder)
    assert done.returncode == 0
    assert "runtimes print what they like" not in done.stdout
    assert done.stdout.splitlines()[0].startswith("1/3 a: 1 ms")
    found = _results(folder)
    # 2 + 4 ms are the warm-up of 4 ms.
    assert (found["b"]["samples_ms"], found["b"]["warmup_runs"]) == ([9.0, 2.0, 4.0], 2)
    assert statistics.median(found["b"]["samples_ms"]) == 4.0
    assert found["c"]["error"] == "ncnn stops with code -100 at output 'out0'"
    first, last = _records(folder)[0], _records(folder)[-1]
    assert (first["at"], first["unit"], last["at"]) == ("start", "ms", "end")
    assert first["machine"]["core_set"] == sorted(os.sched_getaffinity(0))
    assert first["machine"]["runtime_version"] == "fake 1"


def test_a_job_that_crashes_once_is_tried_again_and_twice_is_an_error(fake_ncnn, make_folder, tmp_path):
    plans = {
        "a": {"ms": [1.0]},
        "once": {"ms": [2.0], "crash": str(tmp_path / "crashed")},
        "always": {"ms": [3.0], "crash": "always"},
        "b": {"ms": [4.0]},
    }
    folder = make_folder(plans, sentinel="a")
    assert _run(folder).returncode == 0
    found = _results(folder)
    assert found["once"]["samples_ms"] == [2.0] * 3
    assert found["always"] == {"id": "always", "error": "crashed the runtime"}
    assert found["b"]["samples_ms"] == [4.0] * 3
    assert [each["begin"] for each in _records(folder) if "begin" in each].count("always") == 2


def test_a_sentinel_that_crashes_is_refused(fake_ncnn, make_folder):
    folder = make_folder({"a": {"ms": [1.0], "crash": "always"}, "b": {"ms": [1.0]}}, sentinel="a")
    done = _run(folder)
    assert done.returncode == board.REFUSED
    assert "the sentinel a must run, got: crashed the runtime; choose another" in done.stderr


def test_a_runtime_that_crashes_when_it_is_imported_is_not_started_for_ever(fake_ncnn, make_folder):
    (fake_ncnn / "ncnn.py").write_text("import os; os.abort()")
    done = _run(make_folder({"a": {"ms": [1.0]}}))
    assert done.returncode == board.CRASHED_EARLY
    assert "crashes before it runs a model" in done.stderr


def test_a_missing_runtime_says_what_to_install(fake_ncnn, make_folder):
    (fake_ncnn / "ncnn.py").write_text("raise ImportError('no such thing')")
    done = _run(make_folder({"a": {"ms": [1.0]}}))
    assert done.returncode == board.REFUSED
    assert done.stderr.strip().endswith(f"(no such thing); run `{sys.executable} -m pip install --no-deps ncnn`")


def test_cores_that_are_not_there_are_refused(fake_ncnn, make_folder):
    done = _run(make_folder({"a": {"ms": [1.0]}}, cpus=(4090,)))
    assert done.returncode == board.REFUSED
    assert "cpus must be cores of this machine" in done.stderr


def test_the_process_stays_on_the_cores_that_are_asked_for(fake_ncnn, make_folder):
    core = max(os.sched_getaffinity(0))
    folder = make_folder({"a": {"ms": [1.0]}}, cpus=(core,))
    assert _run(folder).returncode == 0
    assert _records(folder)[0]["machine"]["core_set"] == [core]


def test_an_interrupted_job_counts_as_no_crash_and_the_folder_is_held_while_it_runs(fake_ncnn, make_folder, tmp_path):
    plans = {"a": {"ms": [1.0]}, "b": {"ms": [2.0], "hang_once": str(tmp_path / "hung")}}
    folder = make_folder(plans, sentinel="a")
    process = subprocess.Popen([sys.executable, str(SOURCE), "--stream", str(folder)], stdout=subprocess.PIPE)
    for line in process.stdout:
        if json.loads(line) == {"begin": "b"}:
            break
    second = _run(folder)
    assert second.returncode == board.REFUSED
    assert "another process" in second.stderr
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == board.INTERRUPTED
    process.stdout.close()
    assert json.loads(rest) == {"interrupted": "b"}
    (tmp_path / "hung").touch()
    assert _run(folder).returncode == 0
    assert _results(folder)["b"]["samples_ms"] == [2.0] * 3


def test_nobody_listening_ends_the_measurement_in_good_order(fake_ncnn, make_folder):
    folder = make_folder({name: {"ms": [1.0]} for name in "abcdef"}, sentinel="a")
    process = subprocess.Popen(
        [sys.executable, str(SOURCE), "--stream", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.wait() == board.INTERRUPTED
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    journal = board.Journal.read(folder / "samples.jsonl")
    assert (journal.crashes, journal.running) == ({}, None)


def test_a_board_is_described_by_its_files(tmp_path):
    files = {
        "proc/cpuinfo": "processor : 0\nCPU implementer\t: 0x41\nCPU part : 0xd03\n\nprocessor : 1\nCPU part : 0xd08\n",
        "proc/loadavg": "0.25 0.50 1.75 1/99 4321\n",
        "proc/device-tree/model": "Some Board\0",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1416000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq": "1800000\n",
        "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone1/temp": "not a number\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = board.describe_hardware(tmp_path)
    assert found["board"] == "Some Board"
    assert found["cpu"] == "ARM implementer 0x41 part 0xd03, 0xd08"
    assert found["cores"] == 2
    assert found["clocks"][0] == {"core": 0, **dict.fromkeys(("governor", "min_khz", "max_khz", "current_khz"))}
    assert found["clocks"][1]["governor"] == "ondemand"
    assert found["clocks"][1]["max_khz"] == 1800000
    assert found["temperatures_c"] == {"thermal_zone0 soc-thermal": 48.5}
    expected = {"clock_khz": 1416000, "temperature_c": 48.5, "load1": 0.25}
    assert board.read_conditions([0, 1], tmp_path) == expected
    assert board.read_conditions([0], tmp_path)["clock_khz"] is None


def test_a_machine_without_any_of_these_files_is_unknown_and_no_error(tmp_path):
    found = board.describe_hardware(tmp_path)
    assert found == {"board": None, "cpu": None, "cores": None, "clocks": [], "temperatures_c": {}, "load": None}
