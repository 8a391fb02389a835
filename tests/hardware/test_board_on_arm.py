"""The runner as a 32-bit ARM board has it: Debian's armhf Python and the armv7l wheel, under QEMU, reached by ssh.

What is tested is the way from connecting to reading the results. How long anything took there means nothing.
"""

import os
import shlex
from pathlib import Path

import pytest

from hardware.armv7.ground import PYTHON, Ground, GroundMissing, ready_ground
from hardware.graph import GraphBuilder
from hardware.job_folder import Job, JobInput, JobList, JobProtocol, write_jobs
from hardware.job_results import load_results
from hardware.ncnn_model import graph_param
from hardware.ops import Activation, Conv, GlobalPool
from hardware.strict_yaml import ConfigError
from hardware.transports import Progress, Ssh
from tests.hardware.test_instruction_counts import CACHE

ONCE = JobProtocol(warmup_s=0.0, min_runs=2, min_s=0.0, max_s=30.0, retries=0, cooldown_s=0.0)


@pytest.fixture(scope="module")
def ground() -> Ground:
    try:
        return ready_ground(CACHE)
    except GroundMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def arm(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where python3 is that of an ARM board, and an ssh that leads there; returns the home."""
    home, programs = tmp_path / "home of the board", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    python = home / "python3"
    # What Python starts itself must be started under QEMU too, so that it has to know itself by this script's name.
    command = ground.command([])
    assert command[-1] == str(ground.root / PYTHON)
    words = [*command[:-1], "-E", f"PYTHONHOME={ground.root / 'usr'}", "-0", str(python), command[-1]]
    libraries = ground.environment().get("LD_LIBRARY_PATH", "")
    python.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH={shlex.quote(libraries)}\nexec {shlex.join(words)} "$@"\n')
    ssh = programs / "ssh"
    # Everything up to the host is options; what follows it is the command.
    ssh.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -- ]; do shift; done\n'
        f'shift 2\ncd {shlex.quote(str(home))} && PATH={shlex.quote(str(home))}:$PATH && eval "$1"\n'
    )
    for each in (python, ssh):
        each.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, and one that ncnn cannot run."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    jobs = []
    for name, channels in (("small", 8), ("large", 16)):
        builder = GraphBuilder((3, 12, 12))
        x = builder.add("conv", Conv(channels, (3, 3), 2, (1, 1)), builder.input)
        x = builder.add("act", Activation("relu"), x)
        builder.add("pool", GlobalPool(), x)
        (folder / f"{name}.param").write_text(graph_param(builder.build()))
        jobs.append(job(name, trace=("conv", "act", "pool")))
    (folder / "wrong.param").write_text("7767517\n1 1\nNoSuchLayer a 0 1 a\n")
    write_jobs(folder, JobList(runtime="ncnn", threads=1, protocol=ONCE, jobs=(*jobs, job("wrong"))))
    return folder


def job(name: str, trace: tuple[str, ...] | None = None) -> Job:
    inputs = (JobInput(name="in0", shape=(1, 3, 12, 12)),)
    return Job(id=name, file=f"{name}.param", inputs=inputs, output="out0", trace=trace)


def test_a_board_with_arm_cores_is_measured_over_ssh(arm: Path, folder: Path) -> None:
    told: list[Progress] = []
    Ssh("pi@board").measure(folder, told.append)
    assert [each.job for each in told] == ["small", "large", "wrong"]
    results = load_results(folder)
    assert set(results.timings) == {"small", "large"}
    assert results.errors == {"wrong": "ncnn cannot read the model"}
    machine = results.started
    assert machine.os == "Linux armv7l"
    assert (machine.runtime, machine.runtime_version) == ("ncnn", "1.0.20261020")
    assert machine.python is not None
    assert machine.python.startswith("3.11.")
    for timing in results.timings.values():
        assert timing.runs >= 2
        assert timing.traced is not None
        # The activation runs inside the convolution, and a vector becomes a map at the end.
        assert [name for name, _ in timing.traced] == ["act", "pool", "out0"]
    assert [path.name for path in (arm / ".cache/edge-nas").iterdir()] == [], "what was brought there is taken away"


def test_a_runtime_that_the_board_lacks_is_named(arm: Path, folder: Path) -> None:
    (arm / "python3").write_text((arm / "python3").read_text().replace("PYTHONPATH=", "ELSEWHERE="))
    with pytest.raises(ConfigError, match=r"ncnn is needed on the board, .*run there: python3 -m pip install"):
        Ssh("pi@board").measure(folder, lambda _: None)
