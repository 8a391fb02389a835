"""Evaluating as Ray tasks: on this machine, and on a cluster of two nodes of which one is killed.

Ray takes seconds to begin, so one of our own and one cluster serve all tests.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from evaluators.datasets import open_dataset
from evaluators.evaluator import Failure
from hardware.strict_yaml import ConfigError
from nas.executors.executor import Job
from nas.executors.ray import Baggage, RayExecutor, _init, unpack
from nas.executors.ray_sweeper import users_of
from nas.exit_codes import BROKE
from nas.problem import DataKey, dataset, give_dataset
from nas.storage import open_study
from nas.study import RESULTS
from tests.nas.test_executors import (
    KILLED,
    check_answers,
    check_time_limit,
    check_what_cannot_be_sent,
    children,
    results_of,
    square,
)

# A data set that this machine does not have.
ELSEWHERE = DataKey("/on/the/driver/alone", 0, 200)

WORDS = (
    "--target rk3288 --budget 5ms --data-limit 100 --iterations 2 --finalists 2 --contenders 6 --epochs 6 --trials 10"
)
SEARCH = WORDS.split()


# An address that does not answer


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1", "127.0.0.1:port", "1.2:99999"])
def test_a_cluster_that_does_not_answer_is_the_users_mistake(address):
    with pytest.raises(ConfigError, match=f"ray-address: no Ray cluster answers at '{address}' ") as caught:
        RayExecutor(1, address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer", [None, b"", b"\0\0", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silence", "hang-up", "little", "http"]
)
def test_what_answers_and_is_no_ray_is_not_waited_for_minutes(monkeypatch, answer):
    monkeypatch.setattr("nas.executors.ray.ANSWER_WITHIN_S", 0.3)
    with socket.create_server(("0.0.0.0", 0)) as server:

        def serve():
            with server.accept()[0] as connection:
                connection.recv(100)
                if answer is None:
                    connection.recv(1)  # the other's end
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{address}'"):
            RayExecutor(1, address)
        thread.join()


# Ray on this machine


# Has Ray believe that this machine is 127.0.0.1, as it does where it is our own, in drivers of the test cluster too.
LOOPBACK = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}


def init_with_a_gpu(patch, **options):
    """Begins a Ray that has the driver of a GPU tell it of one."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Manager

    patch.setattr(Manager, "get_current_node_num_accelerators", staticmethod(lambda: 1))
    return _init(**options)


@pytest.fixture(scope="module")
def own():
    """A Ray of our own; in the end nothing may be left of it."""
    before = children()
    on_terminate = signal.getsignal(signal.SIGTERM)
    data = open_dataset("digits", seed=0, limit=200)
    first = Job("data", give_dataset, (ELSEWHERE, data.to_send()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.executors.ray._init", partial(init_with_a_gpu, patch))
        executor = RayExecutor(2, None, baggage=Baggage(first, size_bytes=data.size_bytes))
    assert signal.getsignal(signal.SIGTERM) == on_terminate, "Ray takes the signal for itself"
    session = Path(executor._ray._private.worker._global_node.get_session_dir_path())
    with closing(executor):
        yield executor
    assert children() == before
    assert not session.exists()


@pytest.mark.slow
def test_jobs_are_answered_as_by_every_executor(own):
    check_answers(own)
    check_what_cannot_be_sent(own)


@pytest.mark.slow
def test_gpus_of_this_machine_are_found(own):
    assert own._ray.cluster_resources()["GPU"] == 1


@pytest.mark.slow
def test_workers_have_the_data_from_the_driver_and_a_thread_each(own):
    sent, threads, variable = results_of(
        own,
        [
            Job("data", dataset, (ELSEWHERE,)),
            Job("threads", torch.get_num_threads, ()),
            Job("env", os.getenv, ("OMP_NUM_THREADS",)),
        ],
    )
    here = open_dataset("digits", seed=0, limit=200)
    assert sent.fingerprint == here.fingerprint
    assert torch.equal(sent.at(16).train_x, here.at(16).train_x)
    assert (threads, variable) == (1, "1")


def open_files(process):
    for file in Path(f"/proc/{process}/fd").iterdir():
        try:
            yield str(file.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue


@pytest.mark.slow
def test_it_listens_to_this_machine_alone(own):
    session = Path(own._ray._private.worker._global_node.get_session_dir_path())
    sockets = {
        target.partition("[")[2].rstrip("]")
        for process in users_of(session) | {os.getpid()}
        for target in open_files(process)
        if target.startswith("socket:")
    }
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                listening.append(fields[1].partition(":")[0])
    # 127.0.0.1 as the kernel writes it, by itself and within IPv6.
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(listening) >= 4
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_job_that_hangs_eats_memory_or_kills_its_worker_fails_and_the_others_do_not(own, caplog):
    check_time_limit(own, (time.sleep, (600,)))
    jobs = [KILLED, square(2), Job("eats memory", bytearray, (2**45,)), square(3)]
    died = Failure("its worker process died, killed or out of memory")
    assert results_of(own, jobs) == [died, 4, Failure("MemoryError: "), 9]
    said = [record.getMessage() for record in caplog.records if "run again" in record.getMessage()]
    assert len(said) == 2
    assert all(text.startswith("is killed: ") for text in said)


@pytest.mark.slow
def test_a_job_that_does_not_come_back_to_python_is_ended(own):
    # Minutes in a library's own code, where no alarm is heard.
    deaf = Job("hangs", hashlib.pbkdf2_hmac, ("sha256", b"", b"", 10**9), limit_s=1.0)
    assert results_of(own, [deaf, square(4)]) == [
        Failure("took longer than the 1 s that an evaluation may take"),
        16,
    ]


# A worker that cannot work


def test_a_worker_without_what_it_computes_with_is_no_candidates_fault(monkeypatch):
    def no_torch(threads):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr("nas.executors.ray.pin_threads", no_torch)
    expected = Failure("ModuleNotFoundError: No module named 'torch'", lasting=False)
    assert unpack(([None], 1, 1)) == expected


# A cluster


@pytest.fixture(scope="module")
def cluster():
    script = Path(__file__).with_name("ray_cluster.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        address = process.stdout.readline().strip()

        def order(words):
            process.stdin.write(f"{words}\n")
            process.stdin.flush()
            return process.stdout.readline() == f"{words.split()[0]}\n"

        yield address, order
        process.stdin.close()
        process.wait()


ASK = """
import os, sys
from contextlib import closing
from evaluators.datasets import open_dataset
from nas.executors.executor import Job
from nas.executors.ray import Baggage, RayExecutor, Share
from nas.problem import DataKey, dataset, give_dataset
from nas import problem

elsewhere = DataKey("/on/the/driver/alone", 0, 200)
data = open_dataset("digits", seed=0, limit=200)
first = Job("data", give_dataset, (elsewhere, data.to_send()))
packages = ("nas", "evaluators", "searchspace", "hardware")
try:
    RayExecutor(2, sys.argv[1], Share(cpus=8))
except Exception as error:
    print(type(error).__name__, error)
import ray
ray.shutdown()
with closing(RayExecutor(2, sys.argv[1], baggage=Baggage(first, packages, data.size_bytes))) as executor:
    for job in (Job("code", eval, ("__import__('nas').__file__",)), Job("data", dataset, (elsewhere,))):
        executor.submit(job)
        found = executor.wait().result
        print(getattr(found, "fingerprint", found))
print(data.fingerprint)
"""


@pytest.mark.slow
def test_code_and_data_reach_the_workers_of_a_cluster(cluster, tmp_path):
    address, _ = cluster
    command = [sys.executable, "-c", ASK, address]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=LOOPBACK)
    assert asked.returncode == 0, asked.stderr
    refused, code, sent, own_data = asked.stdout.splitlines()
    assert refused == "ConfigError cpus-per-trial: no node of the Ray cluster has 8 CPUs; the most is 4"
    assert "py_modules" in code, "the driver's own code, not what the node happens to have"
    assert sent == own_data


SHARE = """
import select, socket, sys
from contextlib import closing
from nas.executors.executor import Job
from nas.executors.ray import Baggage, RayExecutor, Share

code = Baggage(modules=("nas", "evaluators", "hardware"))
server = socket.create_server(("127.0.0.1", 0))
server.settimeout(120)
# Says which GPU it was given, and stays until it is let go.
stays = (
    f"(s := __import__('socket').create_connection(('127.0.0.1', {server.getsockname()[1]})))"
    " and (s.sendall(__import__('os').environ['CUDA_VISIBLE_DEVICES'].encode()), s.recv(1))[1]"
)
with closing(RayExecutor(4, sys.argv[1], Share(cpus=1, gpus=0.5), code)) as executor:
    for number in range(4):
        executor.submit(Job(f"stays {number}", eval, (stays,)))
    inside = [server.accept()[0] for _ in range(2)]
    print(*(each.recv(9).decode() for each in inside))
    # Asked for later, and done by the two cores that the other two jobs would have.
    ray = executor._ray
    ray.get(ray.remote(num_cpus=2)(lambda: None).remote())
    print("waiting" if not select.select([server], [], [], 0)[0] else "too many")
    for _ in range(2):
        inside.pop().send(b"x")
        print(executor.wait().result)
        inside.insert(0, server.accept()[0])
        print(inside[0].recv(9).decode())
    for each in inside:
        each.send(b"x")
        print(executor.wait().result)
"""


@pytest.mark.slow
def test_of_one_gpu_two_jobs_have_half_each_and_the_others_wait(cluster, tmp_path):
    address, _ = cluster
    command = [sys.executable, "-c", SHARE, address]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=LOOPBACK)
    assert asked.returncode == 0, asked.stderr
    both, others, *rest = asked.stdout.splitlines()
    assert (both, others) == ("0 0", "waiting")
    assert rest == ["b'x'", "0", "b'x'", "0", "b'x'", "b'x'"]


@pytest.mark.slow
def test_more_gpus_than_a_node_has_are_the_users_mistake(cluster, tmp_path):
    address, _ = cluster
    search = started(
        tmp_path, "--backend", "ray", "--ray-address", address, "--gpus-per-trial", "2", environment=LOOPBACK
    )
    output, errors = search.communicate()
    assert search.returncode == 2
    assert output == ""
    refused = "nas: gpus-per-trial: no node of the Ray cluster has 2 GPUs; the most is 1"
    assert errors.splitlines()[-1] == refused
    assert "Traceback" not in errors


def started(folder, *words, environment=None):
    command = [sys.executable, "-m", "nas", "search", *SEARCH, "--study", "mine", "--out", str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def found_in(folder):
    """What a study found, without its dates and durations."""
    lines = [json.loads(line) for line in (folder / "mine" / RESULTS).read_text().splitlines()]
    names = [line["arch"] for line in lines if line["fidelity"] == "early"]
    assert max(Counter(names).values()) == 1, "evaluated twice"
    trials = open_study(folder / "mine", "mine", None).get_trials(deepcopy=False)
    attributes = [{key: value for key, value in each.user_attrs.items() if key != "seconds"} for each in trials]
    members = json.loads((folder / "mine" / "front.json").read_text())["members"]
    for member in members:
        del member["proxy"]["seconds"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        "trials": [(each.number, each.state, each.params, each.values) for each in trials],
        "attributes": attributes,
        "members": members,
        "files": [name for name in files if not name.endswith(".lock")],
    }


def lines_in(folder):
    path = folder / "mine" / RESULTS
    return path.read_text().count("\n") if path.exists() else 0


def trains_on(address):
    """Whether a worker of the node there trains: Tune has it stand in its trial's folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if place.parent.name == "working_dirs" and address in Path(f"/proc/{parent}/cmdline").read_text():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """What a study comes to that is begun in one process, stopped by force, and gone on with by others."""
    folder = tmp_path_factory.mktemp("inline")
    inline = started(folder, "--backend", "inline")
    while lines_in(folder) < 4 and inline.poll() is None:
        time.sleep(0.02)
    inline.kill()
    inline.communicate()
    resume = [sys.executable, "-m", "nas", "resume", "mine", "--out", str(folder), "--backend", "local"]
    subprocess.run(resume, check=True, capture_output=True)
    return found_in(folder)


@pytest.mark.slow
def test_inline_processes_and_a_cluster_that_loses_its_nodes_give_the_same_study(cluster, tmp_path, interrupted):
    address, order = cluster
    # As many as there are cores, so that there is work on the node that is killed.
    words = ("--backend", "ray", "--ray-address", address, "--workers", "5")
    on_cluster = started(tmp_path, *words, environment=LOOPBACK)
    while lines_in(tmp_path) < 3 and on_cluster.poll() is None:
        time.sleep(0.02)
    assert order("kill")
    assert order("add")
    while not trains_on("127.0.0.2") and on_cluster.poll() is None:
        time.sleep(0.02)
    assert order("kill")  # while Tune trains
    _, errors = on_cluster.communicate()
    assert on_cluster.returncode == 0, errors
    by_ray = found_in(tmp_path)
    assert len(by_ray["trials"]) == 10
    assert "plain Ray tasks" not in errors
    log = (tmp_path / "mine" / "log.txt").read_text()
    assert "its worker process or its node died; run again from its checkpoint" in log
    assert by_ray == interrupted


@pytest.mark.slow
def test_on_nodes_that_do_not_see_the_folder_plain_tasks_train_and_send_the_files(cluster, tmp_path, interrupted):
    address, order = cluster
    if not order(f"add {tmp_path}"):
        pytest.skip("needs the right to mount a file system")
    on_cluster = started(tmp_path, "--backend", "ray", "--ray-address", address, environment=LOOPBACK)
    _, errors = on_cluster.communicate()
    assert on_cluster.returncode == 0, errors
    assert "trained as plain Ray tasks, not by Ray Tune: the study's folder is not on all nodes" in errors
    assert "127.0.0.2" in errors
    assert found_in(tmp_path) == interrupted


@pytest.mark.slow
def test_a_ray_that_is_killed_ends_the_run_in_one_line_and_costs_nothing_that_was_found(tmp_path):
    driver = started(tmp_path, "--backend", "ray", "--finalists", "1", "--quiet")
    while lines_in(tmp_path) < 2 and driver.poll() is None:
        time.sleep(0.02)
    (session,) = Path("/tmp/ray").glob(f"session_*_{driver.pid}")
    (victim,) = [each for each in users_of(session) if Path(f"/proc/{each}/exe").resolve().name == "gcs_server"]
    os.kill(victim, signal.SIGKILL)
    _, errors = driver.communicate()
    assert driver.returncode == BROKE
    assert errors.count("\n") == 1
    assert "nas: candidates cannot be evaluated: Ray has ended (gcs_server is gone)" in errors
    assert "`nas resume` goes on" in errors
    study = open_study(tmp_path / "mine", "mine", None)
    kept = {each.user_attrs["arch"] for each in study.get_trials(deepcopy=False)}
    known = {line["arch"] for line in map(json.loads, (tmp_path / "mine" / RESULTS).read_text().splitlines())}
    assert len(known) >= 2
    assert kept <= known
