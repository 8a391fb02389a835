"""Job folders to measure, and a runtime that takes as long as it is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardware.job_folder import Job, JobInput, JobList, JobProtocol, write_jobs

# In the place of ncnn. A model file says in JSON what its runs take, by a clock that only they advance.
FAKE_NCNN = """
import itertools, json, os, pathlib, signal, time

now_s = 0.0
time.perf_counter = lambda: now_s
__version__ = "fake 1"


class Option:
    pass


class Mat:
    def __init__(self, *sizes):
        self.sizes = sizes

    def fill(self, value):
        self.value = value


class DataReaderFromEmpty:
    pass


class Extractor:
    def __init__(self, plan, times):
        self.plan, self.times = plan, times

    def input(self, name, mat):
        return 0 if mat.sizes == tuple(self.plan.get("sizes", mat.sizes)) and mat.value == 0.01 else -1

    def extract(self, name):
        global now_s
        plan = self.plan
        hang = plan.get("hang_once")
        if hang and not pathlib.Path(hang).exists():
            pathlib.Path(hang).touch()
            signal.pause()
        crash = plan.get("crash")
        if crash == "always" or crash and not pathlib.Path(crash).exists():
            if crash != "always":
                pathlib.Path(crash).touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        print("runtimes print what they like", flush=True)
        now_s += next(self.times) / 1000
        return plan.get("code", 0), None


class Net:
    def __init__(self):
        self.opt = Option()

    def load_param(self, path):
        self.plan = json.loads(pathlib.Path(path).read_text())
        self.times = itertools.cycle(self.plan["ms"])
        return 0

    def load_model(self, reader):
        return 0

    def create_extractor(self):
        return Extractor(self.plan, self.times)
"""

MakeFolder = Callable[..., Path]


@pytest.fixture
def fake_ncnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runtime `ncnn`, which processes started from now on import."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "ncnn.py").write_text(FAKE_NCNN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a job folder of plans for the fake runtime, by job id; what a job list may have besides can be given."""

    def make(plans: dict[str, dict[str, Any]], protocol: dict[str, Any] | None = None, **others: Any) -> Path:
        folder = tmp_path / "jobs folder"
        folder.mkdir()
        for name, plan in plans.items():
            (folder / f"{name}.param").write_text(json.dumps(plan))
        timing = {"warmup_s": 0.004, "min_runs": 3, "min_s": 0.0, "max_s": 60.0, "cooldown_s": 0.0}
        jobs = tuple(
            Job(id=name, file=f"{name}.param", inputs=(JobInput(name="in0", shape=(1, 3, 8, 6)),), output="out0")
            for name in plans
        )
        settings = {"runtime": "ncnn", "threads": 1, **others}
        write_jobs(folder, JobList(protocol=JobProtocol(**{**timing, **(protocol or {})}), jobs=jobs, **settings))
        return folder

    return make
