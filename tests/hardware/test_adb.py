import json
import sys
from pathlib import Path

import pytest

from hardware.adb import AdbBench, AdbPython
from hardware.job_results import load_results
from hardware.strict_yaml import ConfigError
from hardware.transports import Progress, TransportError

# In the place of adb: notes its arguments, and plays a device whose files are in the folder `device`.
ADB = """#!{python}
import json, pathlib, shutil, subprocess, sys
folder = pathlib.Path({folder!r})
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
assert sys.argv[1:3] == ["-s", "SERIAL-1"], sys.argv
state = (folder / "state").read_text()
verb, *rest = sys.argv[3:]
if verb == "get-state":
    if state != "device":
        sys.stderr.write("error: device " + state + "\\n")
    print(state)
    sys.exit(state != "device")
if state != "device":
    sys.stderr.write("adb: device 'SERIAL-1' not found\\n")
    sys.exit(1)
here = lambda text: text.replace("/data/local/tmp", str(folder / "device"))
if verb == "push":
    *sources, target = rest
    for source in sources:
        shutil.copy(source, here(target))
    sys.exit(0)
assert verb == "shell" and rest[0] == "-T" and len(rest) == 2, rest
sys.exit(subprocess.run(["sh", "-c", here(rest[1])]).returncode)
"""

# In the place of benchncnn: prints as it does, to standard error, whatever the model's text says.
BENCH = """#!/bin/sh
echo "loop_count = $1" >&2
echo "num_threads = $2" >&2
model="${6#param=}"
if grep -q gone "$model"; then echo "not found" > "$STATE"; exit 1; fi
if grep -q crash "$model"; then kill -SEGV $$; fi
printf '%20s  min = %7.2f  max = %7.2f  avg = %7.2f\\n' "$model" $(cat "$model") >&2
"""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the stand-in for adb notes its calls in."""
    programs, folder = tmp_path / "bin", tmp_path / "adb"
    programs.mkdir()
    (folder / "device").mkdir(parents=True)
    (folder / "state").write_text("device")
    scripts = {
        "adb": ADB.format(python=sys.executable, folder=str(folder)),
        "getprop": '#!/bin/sh\ncase "$1" in ro.product.model) echo "Some Phone";; *) echo 13;; esac\n',
        "taskset": '#!/bin/sh\nshift\nexec "$@"\n',
    }
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (folder / "benchncnn").write_text(BENCH)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("STATE", str(folder / "state"))
    return folder


def calls(device: Path) -> list[list[str]]:
    return [json.loads(line)[2:] for line in (device / "calls.jsonl").read_text().splitlines()]


def ignore(progress: Progress) -> None:
    pass


def plans(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.param").write_text(text)
    return folder


def test_benchncnn_is_copied_run_with_its_arguments_and_read(device, make_folder):
    folder = plans(make_folder({"a": {}, "b": {}}, {"min_runs": 17}, threads=2), a="1.25 1.50 1.31", b="7.00 9 8")
    AdbBench("SERIAL-1", device / "benchncnn", "20260101").measure(folder, ignore)
    called = calls(device)
    there = called[1][2].removeprefix("mkdir -p ")
    assert there.startswith("/data/local/tmp/edge-nas/")
    assert called[:2] == [["get-state"], ["shell", "-T", f"mkdir -p {there}"]]
    assert called[2] == ["push", str(device / "benchncnn"), f"{there}/benchncnn"]
    assert called[3] == ["push", str(folder / "a.param"), str(folder / "b.param"), f"{there}/"]
    runs = [call[2] for call in called if call[0] == "shell" and "param=" in call[2]]
    assert runs == [
        f"cd {there} && ./benchncnn 17 2 0 -1 0 param={name}.param 'shape=[6,8,3]' 2>&1" for name in ("a", "b")
    ]
    assert called[-1] == ["shell", "-T", f"rm -rf {there}"]
    assert list((device / "device/edge-nas").iterdir()) == []
    results = load_results(folder)
    assert results.timings == {}
    found = results.bench_timings["a"]
    assert (found.min_ms, found.max_ms, found.avg_ms, found.runs) == (1.25, 1.5, 1.31, 17)
    assert (results.started.board, results.started.os) == ("Some Phone", "Android 13")
    assert (results.started.runtime_version, results.started.python) == ("20260101", None)


def test_cores_become_the_mask_of_taskset_and_a_sentinel_is_timed(device, make_folder):
    folder = plans(make_folder({"a": {}, "b": {}}, cpus=(4, 7), sentinel="a"), a="1.0 1.0 1.0", b="2 2 2")
    AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    runs = [call[2] for call in calls(device) if call[0] == "shell" and "param=" in call[2]]
    assert [run.partition("param=")[2][:1] for run in runs] == ["a", "a", "b", "a"]
    assert all(" && taskset 90 ./benchncnn 3 1 0 -1 0 " in run for run in runs)
    results = load_results(folder)
    assert results.bench_timings["b"].disturbed is False
    assert results.started.runtime_version.startswith("benchncnn ")


def test_what_benchncnn_cannot_run_or_time_is_an_error_and_never_zero(device, make_folder):
    folder = plans(
        make_folder({"good": {}, "fast": {}, "silent": {}, "crash": {}}),
        good="3 3 3",
        fast="0.00 0.01 0.00",
        silent="inf inf inf",
        crash="crash",
    )
    AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    results = load_results(folder)
    assert set(results.bench_timings) == {"good"}
    assert "too fast" in results.errors["fast"]
    assert "prints no time" in results.errors["silent"]
    assert "code 139" in results.errors["crash"]


def test_a_device_that_vanishes_keeps_what_came_and_is_taken_up_again(device, make_folder):
    folder = plans(make_folder({"a": {}, "b": {}, "c": {}}), a="1 1 1", b="gone", c="3 3 3")
    with pytest.raises(
        TransportError, match=r"SERIAL-1: the device was lost .*1 of 3 jobs are kept in .*; run it again"
    ):
        AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    assert load_results(folder).missing == ("b", "c")
    (device / "state").write_text("device")
    # It vanishes once more: what a connection does twice is no crash of the runtime.
    with pytest.raises(TransportError):
        AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    (device / "state").write_text("offline")
    with pytest.raises(TransportError, match=r"SERIAL-1: the device must be ready \(error: device offline\)"):
        AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    assert load_results(folder).errors == {}


def test_python_on_the_device_measures_as_over_ssh(device, fake_ncnn, make_folder):
    folder = make_folder({"a": {"ms": [1.0]}, "b": {"ms": [2.0, 4.0, 9.0]}}, sentinel="a")
    AdbPython("SERIAL-1", sys.executable).measure(folder, ignore)
    results = load_results(folder)
    assert (results.timings["b"].median_ms, results.bench_timings) == (4.0, {})
    assert list((device / "device/edge-nas").iterdir()) == []


def test_python_on_a_device_that_vanishes_is_a_lost_connection(device, fake_ncnn, make_folder):
    folder = make_folder({"a": {"ms": [1.0]}, "b": {"ms": [2.0]}})
    adb = device.parent / "bin/adb"
    # The device is gone once the runner has come to its end, and adb ends with a code of its own.
    run = "if ' board.py ' in rest[1]:\n    subprocess.run(['sh', '-c', here(rest[1])])\n"
    gone = "    (folder / 'state').write_text('offline')\n    sys.exit(255)\n"
    ends = "sys.exit(subprocess"
    adb.write_text(adb.read_text().replace(ends, run + gone + ends))
    with pytest.raises(TransportError, match="SERIAL-1: the connection was lost, 2 of 2 jobs are kept"):
        AdbPython("SERIAL-1", sys.executable).measure(folder, ignore)


@pytest.mark.parametrize("serial", ["-s", "", "a b", "a;b", "a\n"])
def test_a_serial_that_adb_could_misread_is_refused(serial, device):
    with pytest.raises(ConfigError, match="a serial must be one that `adb devices` lists"):
        AdbPython(serial, "python3")
    with pytest.raises(ConfigError, match="a serial must be one that `adb devices` lists"):
        AdbBench(serial, device / "benchncnn")


def test_other_runtimes_and_a_missing_program_are_refused(device, make_folder, tmp_path):
    folder = make_folder({"a": {}})
    (folder / "a.onnx").touch()
    text = (folder / "jobs.json").read_text()
    (folder / "jobs.json").write_text(text.replace('"ncnn"', '"onnxruntime"').replace("a.param", "a.onnx"))
    with pytest.raises(ConfigError, match="benchncnn runs models for ncnn, got jobs for onnxruntime"):
        AdbBench("SERIAL-1", device / "benchncnn").measure(folder, ignore)
    with pytest.raises(ConfigError, match=r"the program benchncnn is needed, and is not there"):
        AdbBench("SERIAL-1", tmp_path / "nothing")


def test_a_missing_adb_is_named(make_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"the program 'adb' is needed, .*`apt install adb`"):
        AdbPython("SERIAL-1", "python3").measure(make_folder({"a": {}}), ignore)
