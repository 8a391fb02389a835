import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hardware import board, transports
from hardware.job_results import load_results
from hardware.strict_yaml import ConfigError
from hardware.transports import Local, Progress, Ssh, TransportError, follow

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="OpenSSH is not installed")


@dataclass(frozen=True)
class Server:
    """An ssh server of this user's own on the loopback address; `home` is where its commands start."""

    process: subprocess.Popen
    port: int
    key: Path
    home: Path

    def ssh(self, **others) -> Ssh:
        return Ssh("127.0.0.1", (*self.options, "-o", "StrictHostKeyChecking=no"), sys.executable, **others)

    @property
    def options(self) -> tuple[str, ...]:
        return ("-F", "none", "-p", str(self.port), "-i", str(self.key), "-o", f"UserKnownHostsFile={self.home}/known")

    def drop_connections(self) -> None:
        """Kills what the server started, which is one process for each connection."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder, home = tmp_path / "sshd", tmp_path / "home of the board"
    folder.mkdir()
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A board's home of its own, and the fake runtime where the board's Python finds it.
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f'SetEnv PYTHONPATH="{tmp_path}/fake"\n'
        f'ForceCommand cd {shlex.quote(str(home))} && eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=subprocess.PIPE)
    said = [next(iter(process.stderr.readline, b""))]
    assert b"Server listening" in said[0]
    # Whatever it says later must not fill the pipe.
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    process.stderr.close()
    try:
        yield Server(process, port, folder / "user", home)
    finally:
        process.terminate()
        process.wait()
        drain.wait()


def ignore(progress: Progress) -> None:
    pass


def test_this_machine_measures_and_tells_how_far_it_is(fake_ncnn, make_folder):
    plans = {"a": {"ms": [1.0]}, "b": {"ms": [2.0, 4.0, 9.0]}, "c": {"ms": [1.0], "code": 7}}
    folder = make_folder(plans, sentinel="a")
    told: list[Progress] = []
    Local().measure(folder, told.append)
    assert told == [Progress(1, 3, "a"), Progress(2, 3, "b"), Progress(3, 3, "c")]
    results = load_results(folder)
    assert (results.timings["b"].median_ms, results.missing) == (4.0, ())
    assert results.errors == {"c": "ncnn stops with code 7 at output 'out0'"}
    told.clear()
    Local().measure(folder, told.append)
    assert told == []


def test_this_machine_goes_on_after_a_crash_of_the_runtime(fake_ncnn, make_folder, tmp_path):
    plans = {"a": {"ms": [1.0]}, "b": {"ms": [2.0], "crash": str(tmp_path / "once")}, "c": {"ms": [3.0]}}
    folder = make_folder(plans, sentinel="a")
    Local().measure(folder, ignore)
    assert {name: each.median_ms for name, each in load_results(folder).timings.items()} == {
        "a": 1.0,
        "b": 2.0,
        "c": 3.0,
    }


def test_a_runtime_that_is_missing_here_is_the_users_to_install(fake_ncnn, make_folder):
    (fake_ncnn / "ncnn.py").write_text("raise ImportError('no ncnn')")
    with pytest.raises(ConfigError, match=r"this machine: ncnn is needed .*\(no ncnn\); run `.* -m pip install"):
        Local().measure(make_folder({"a": {"ms": [1.0]}}), ignore)


def test_a_line_that_was_torn_off_is_no_record(tmp_path):
    heard: list[str] = []
    assert follow(["printf", "one\\r\\ntwo\\nthr"], heard.append) == (0, "")
    assert heard == ["one", "two"]


def test_what_an_older_process_still_writes_does_not_get_into_a_new_copy(tmp_path):
    old = tmp_path / "board/jobs/samples.jsonl"
    old.parent.mkdir(parents=True)
    with old.open("a") as older_process:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            (tmp_path / "new").write_text("new\n")
            archive.add(tmp_path / "new", "jobs/samples.jsonl")
        unpack = [sys.executable, "-c", transports._UNPACK, str(tmp_path / "board")]
        subprocess.run(unpack, input=(tmp_path / "x.tar").read_bytes(), check=True)
        older_process.write("from the older process\n")
    assert old.read_text() == "new\n"


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "", "a b", "a;b", "$(b)", "user@-h x", "a\nb"])
def test_a_host_that_ssh_or_a_shell_could_misread_is_refused(host):
    with pytest.raises(ConfigError, match="an ssh host must be"):
        Ssh(host)


@pytest.mark.parametrize("host", ["board", "user@192.168.0.7", "user@[fe80::1%eth0]", "my-board_2.local"])
def test_the_host_stands_behind_all_options(host):
    command = Ssh(host, ("-p", "22")).command("echo 'it''s'")
    assert command[-3:-1] == ["--", host]
    assert command[:4] == ["ssh", "-T", "-o", "BatchMode=yes"]
    # What the board's own shell makes of it.
    done = subprocess.run(["sh", "-c", command[-1]], capture_output=True, text=True)
    assert done.stdout == "its\n"


@needs_sshd
def test_a_board_measures_over_ssh_and_is_left_clean(server, fake_ncnn, make_folder):
    folder = make_folder(
        {"a": {"ms": [1.0]}, "b": {"ms": [2.0, 4.0, 9.0]}, "c": {"ms": [1.0], "code": 7}}, sentinel="a"
    )
    told: list[Progress] = []
    server.ssh().measure(folder, told.append)
    assert told[-1] == Progress(3, 3, "c")
    results = load_results(folder)
    assert results.timings["b"].median_ms == 4.0
    assert set(results.errors) == {"c"}
    assert results.ended is not None
    assert list((server.home / ".cache/edge-nas").iterdir()) == []


@needs_sshd
def test_a_connection_that_dies_keeps_what_came_and_is_taken_up_again(server, fake_ncnn, make_folder, tmp_path):
    plans = {name: {"ms": [float(number)]} for number, name in enumerate("abcdef", 1)}
    hung = tmp_path / "hung"
    plans["d"] |= {"hang_once": str(hung)}
    folder = make_folder(plans, sentinel="a")

    def drop_in_the_middle(progress: Progress) -> None:
        if progress.job == "c":
            while not hung.exists():
                time.sleep(0.005)
            server.drop_connections()

    with pytest.raises(TransportError, match=r"the connection was lost, 3 of 6 jobs are kept in .*; run it again"):
        server.ssh().measure(folder, drop_in_the_middle)
    kept = load_results(folder)
    assert {name: each.median_ms for name, each in kept.timings.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert kept.missing == ("d", "e", "f")
    # The process on the board still hangs in d, and does not know that nobody listens.
    (remains,) = (server.home / ".cache/edge-nas").iterdir()
    orphan = int((remains / "jobs" / board.LOCK).read_text())
    os.kill(orphan, 0)
    told: list[Progress] = []
    server.ssh().measure(folder, told.append)
    assert [each.job for each in told] == ["d", "e", "f"]
    results = load_results(folder)
    assert {name: each.median_ms for name, each in results.timings.items()} == {
        name: float(number) for number, name in enumerate("abcdef", 1)
    }
    assert {each.disturbed for each in results.timings.values()} == {False}
    assert results.missing == ()
    with pytest.raises(ProcessLookupError):
        os.kill(orphan, 0)


@needs_sshd
def test_a_board_without_the_runtime_says_what_to_run_there(server, fake_ncnn, make_folder):
    (fake_ncnn / "ncnn.py").write_text("raise ImportError('no ncnn here')")
    folder = make_folder({"a": {"ms": [1.0]}})
    with pytest.raises(
        ConfigError, match=r"127\.0\.0\.1: ncnn is needed .*\(no ncnn here\); run there: .* --no-deps ncnn"
    ):
        server.ssh().measure(folder, ignore)
    (fake_ncnn / "ncnn.py").write_text("import os; os.abort()")
    with pytest.raises(ConfigError, match="ncnn must load on the board, its import ends with code 134"):
        server.ssh().measure(folder, ignore)


@needs_sshd
def test_a_board_without_python_or_with_an_old_one_says_so(server, fake_ncnn, make_folder):
    folder = make_folder({"a": {"ms": [1.0]}})
    with pytest.raises(ConfigError, match="python9 is needed on the board, and is not there"):
        Ssh("127.0.0.1", server.ssh().options, "python9").measure(folder, ignore)
    old = server.home / "python old"
    old.write_text("#!/bin/sh\necho 3.6 >&2\nexit 91\n")
    old.chmod(0o755)
    with pytest.raises(ConfigError, match=r"Python must be 3\.7 or newer on the board, got 3\.6"):
        Ssh("127.0.0.1", server.ssh().options, str(old)).measure(folder, ignore)


@needs_sshd
def test_a_host_that_does_not_answer_is_no_mistake_of_the_folder(server, fake_ncnn, make_folder):
    server.process.terminate()
    server.process.wait()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1: cannot be reached \(.*refused"):
        server.ssh().measure(make_folder({"a": {"ms": [1.0]}}), ignore)


def test_a_missing_ssh_client_is_named(fake_ncnn, make_folder, monkeypatch, tmp_path):
    folder = make_folder({"a": {"ms": [1.0]}})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"the program 'ssh' is needed, .* `apt install openssh-client`"):
        Ssh("board").measure(folder, ignore)


# A net of two convolutions as ncnn's own tools write it.
REAL_NCNN = """7767517
3 3
Input in0 0 1 in0
Convolution first 1 1 in0 middle 0=16 1=3 3=1 4=1 5=1 6=432 9=1
Convolution second 1 1 middle out0 0=16 1=3 3=1 4=1 5=1 6=2304 9=1
"""


@needs_sshd
def test_the_real_ncnn_measures_over_ssh(server, make_folder):
    pytest.importorskip("ncnn")
    folder = make_folder({"a": {}, "b": {}}, {"warmup_s": 0.01, "min_runs": 20, "min_s": 0.02})
    for name in ("a", "b"):
        (folder / f"{name}.param").write_text(REAL_NCNN)
    server.ssh().measure(folder, ignore)
    results = load_results(folder)
    assert results.errors == {}
    ratio = results.timings["a"].median_ms / results.timings["b"].median_ms
    assert 0.2 < ratio < 5  # two equal models, on a machine that may be busy
    assert json.loads((folder / board.SAMPLES).read_text().splitlines()[0])["machine"]["runtime_version"] != "fake 1"
