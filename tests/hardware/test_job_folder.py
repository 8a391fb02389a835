import json
from pathlib import Path
from typing import Any

import pytest

from hardware.job_folder import load_jobs, write_jobs
from hardware.strict_yaml import ConfigError


def _change(folder: Path, **changes: Any) -> None:
    path = folder / "jobs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_is_what_is_read(make_folder):
    folder = make_folder({"k2": {}, "k1": {}}, sentinel="k1", cpus=(1,), time_limit_s=2.5, threads=4)
    jobs = load_jobs(folder)
    assert [job.id for job in jobs.jobs] == ["k2", "k1"]
    assert (jobs.sentinel, jobs.cpus, jobs.time_limit_s, jobs.threads) == ("k1", (1,), 2.5, 4)
    first = json.loads((folder / "jobs.json").read_text())["jobs"][0]
    assert first["inputs"] == [{"name": "in0", "shape": [1, 3, 8, 6]}]
    write_jobs(folder, jobs)
    assert load_jobs(folder) == jobs


JOB = {"id": "a", "file": "a.param", "inputs": [{"name": "in0", "shape": [1, 3, 8, 6]}], "output": "out0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: must be 1"),
        ({"runtime": "tflite"}, "runtime: must be 'onnxruntime', 'ncnn' or 'mnn'"),
        ({"runtime": "mnn"}, r"models for mnn must be called \*\.mnn, got a\.param"),
        ({"threads": 0}, "threads: must be greater than or equal to 1, got 0"),
        ({"threads": "1"}, "threads: must be a valid integer, got '1'"),
        ({"cpus": []}, "cpus"),
        ({"sentinel": "z"}, "the sentinel must be the id of a job, got 'z'"),
        ({"time_limit_s": 0}, "time_limit_s"),
        ({"time_limit_s": float("nan")}, "time_limit_s"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"jobs": []}, "jobs"),
        ({"jobs": [JOB, JOB]}, "the id of a job must be its own, got twice: a"),
        ({"jobs": [{**JOB, "id": "../a"}]}, r"jobs\.0\.id"),
        ({"jobs": [{**JOB, "file": "../a.param"}]}, r"jobs\.0\.file"),
        ({"jobs": [{**JOB, "file": "-a.param"}]}, r"jobs\.0\.file"),
        ({"jobs": [{**JOB, "file": "b.param"}]}, r"must be in the folder, missing: b\.param"),
        ({"jobs": [{**JOB, "inputs": []}]}, r"jobs\.0\.inputs"),
        ({"jobs": [{**JOB, "inputs": [{"name": "in0", "shape": [2, 3]}]}]}, "must begin with a batch of 1, got"),
        ({"jobs": [{**JOB, "inputs": [{"name": "in0", "shape": [1, 0]}]}]}, r"shape\.1"),
    ],
)
def test_a_list_that_breaks_a_rule_is_refused_with_the_place(make_folder, changes, message):
    folder = make_folder({"a": {}})
    _change(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        load_jobs(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_file_that_is_no_object_is_refused(make_folder, text):
    folder = make_folder({"a": {}})
    (folder / "jobs.json").write_text(text)
    with pytest.raises(ConfigError, match=r"jobs\.json:1"):
        load_jobs(folder)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a readable file is needed"):
        load_jobs(tmp_path)
