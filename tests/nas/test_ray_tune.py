"""Climbing the ladder by Ray Tune: what an executor makes of it to the last bit, whoever is killed on the way."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nas import stints
from nas.contenders import Climbed, put_down, taken_up
from nas.executors.inline import InlineExecutor
from nas.executors.ray import DIED, RayExecutor
from nas.executors.ray_sweeper import users_of
from nas.executors.ray_tune import EXPERIMENT, climb_by_tune, refusal
from nas.finalists import file_hashes
from nas.ladder import Ladder
from nas.ladder import climb as climb_by
from nas.results import ResultStore
from nas.shortlist import Finalist
from nas.stints import next_stint
from nas.study import RESULTS, Evaluated
from nas.trainings import CHECKPOINTS
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rep import Rep
from searchspace.spec import ArchSpec, spec_id
from tests.nas.test_ladder import Heard

pytestmark = pytest.mark.slow

# Networks that train in milliseconds, each faster than the one before; the last cannot learn ten digits.
WIDTHS = (16, 12, 8, 4)
EPOCHS = 8


def network(width, classes=10):
    block = InvertedResidual(width, 1, 3, 2, False, "hardswish")
    return ArchSpec((1, 16, 16), Rep(width, 2), ((block,),), Classifier(classes))


@pytest.fixture(scope="module")
def pool(problem):
    specs = [*map(network, WIDTHS), network(8, classes=3)]
    return [
        Finalist(Evaluated(number, spec, spec_id(spec), problem.costs(spec), {"seconds": 0.1}, 0.0), ())
        for number, spec in enumerate(specs)
    ]


@pytest.fixture(scope="module")
def own():
    """A Ray of our own."""
    with closing(RayExecutor(2, None)) as executor:
        yield executor


@pytest.fixture(scope="module", autouse=True)
def _short_stints():
    """Every epoch is a stint of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stints, "CHECKPOINT_EVERY_S", 0.0)
        yield


@pytest.fixture(scope="module")
def ladder_of(pool, changed):
    """The ladder of the study in a folder."""

    def ladder_of(folder):
        problem = changed(finalists=2, contenders=5, epochs=EPOCHS, workers=2, layouts=2)
        return Ladder(problem, folder, ResultStore(folder / RESULTS), pool, Heard())

    return ladder_of


def lines_of(folder):
    """What the results say, in no order and without what depends on the clock."""
    found = defaultdict(list)
    for line in (folder / RESULTS).read_text().splitlines():
        entry = json.loads(line)
        values = {name: value for name, value in entry.get("values", {}).items() if name != "seconds"}
        found[entry["arch"], entry["fidelity"]].append(entry.get("failure", values))
    return dict(found)


def outcome(trained):
    return (
        [(each.candidate.number, found["accuracy"], found["files"]) for each, found in trained.members],
        trained.failures,
        [(rung.epochs, rung.candidates) for rung in trained.rungs],
    )


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def inline(ladder_of, tmp_path_factory):
    """What an executor in this process makes of the ladder: its outcome, and the folder."""
    folder = tmp_path_factory.mktemp("inline")
    with closing(InlineExecutor(1)) as executor:
        return outcome(climb_by(ladder_of(folder), executor)), folder


def test_the_same_networks_to_the_last_bit_and_nothing_else_is_left(own, inline, ladder_of, tmp_path, capfd):
    environment, on_signal = dict(os.environ), signal.getsignal(signal.SIGUSR1)
    results = Path.home() / "ray_results"
    before = results.exists()
    ladder = ladder_of(tmp_path)
    assert refusal(own, tmp_path) is None
    found = outcome(climb_by_tune(ladder, own, tmp_path))
    (members, failures, rungs), done_inline = inline
    assert found == (members, failures, rungs)
    assert (rungs, len(members)) == ([(1, 5), (2, 4), (8, 2)], 2)
    assert len(failures) == 1
    assert failures[0].startswith("contender 4: WrongLabels: ")
    assert lines_of(tmp_path) == lines_of(done_inline)
    assert files_in(tmp_path) == files_in(done_inline)
    for number, _, hashes in members:
        assert file_hashes(tmp_path / "models" / str(number)) == hashes
    assert capfd.readouterr() == ("", "")
    assert (dict(os.environ), signal.getsignal(signal.SIGUSR1)) == (environment, on_signal)
    assert results.exists() == before


def workers_of(executor):
    """Which process trains which trial: Tune has each stand in a folder that begins with its number."""
    session = Path(executor._ray._private.worker._global_node.get_session_dir_path())
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue
        if place.is_relative_to(session) and place.parent.name == "working_dirs":
            found[int(place.name.partition("-")[0])] = int(process.name)
    return found


class Deadly:
    """Kills whoever unpacks it."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)

    def __deepcopy__(self, memo):
        return self


def test_workers_are_killed_and_trainings_go_on_from_their_checkpoints(
    own, inline, ladder_of, tmp_path, caplog, monkeypatch
):
    ladder = ladder_of(tmp_path)
    heard, killed = [], []
    tell, way = ladder.heard, ladder.way

    def kill_after(each, result):
        tell(each, result)
        if not isinstance(result, Climbed):
            return
        heard.append((each.candidate.number, result.epochs))
        # On the first rung, and on the last one in the middle of it.
        if len(killed) < 2 and result.epochs == (1, 4)[len(killed)]:
            killed.append(each.candidate.number)
            os.kill(workers_of(own)[each.candidate.number], signal.SIGKILL)

    def deadly_for_one(each):
        return replace(way(each), epoch_s=Deadly()) if each.candidate.number == 4 else way(each)

    monkeypatch.setattr(ladder, "heard", kill_after)
    monkeypatch.setattr(ladder, "way", deadly_for_one)
    members, failures, rungs = outcome(climb_by_tune(ladder, own, tmp_path))
    assert (members, rungs) == (inline[0][0], inline[0][2])
    assert failures == [f"contender 4: {DIED.reason}"]
    assert len(killed) == 2
    assert len(set(heard)) == len(heard), "an epoch that was put down was trained again"
    said = [record.getMessage() for record in caplog.records if "run again" in record.getMessage()]
    assert sum(text.startswith(f"finalist {killed[1]}: ") for text in said) >= 1
    assert any(text.startswith("contender 4: ") for text in said)
    # Two were killed from outside, and the one that kills was begun three times.
    assert len(said) == 2 + 2


def test_a_ladder_that_has_been_climbed_does_not_begin_tune(own, inline, ladder_of, monkeypatch):
    monkeypatch.setattr("nas.executors.ray_tune._run", None)
    found, folder = inline
    assert outcome(climb_by_tune(ladder_of(folder), own, folder)) == found


def test_a_ray_that_has_ended_before_tune_begins_costs_nobody_more_than_this_run(ladder_of, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.executors.ray_tune.LOOK_AFTER_S", -1.0)
    gone = SimpleNamespace(workers=2, hopeless=lambda: "Ray has ended")
    trained = climb_by_tune(ladder_of(tmp_path), gone, tmp_path)
    assert trained.failures == [f"contender {number}: Ray has ended" for number in range(5)]
    assert not (tmp_path / RESULTS).exists(), "it is tried again on resume"


def test_an_error_of_the_drivers_own_comes_out_and_any_backend_goes_on(own, inline, ladder_of, tmp_path, monkeypatch):
    ladder = ladder_of(tmp_path)
    stopped = []

    def full_disk(each, result):
        Ladder.heard(ladder, each, result)
        if isinstance(result, Climbed) and result.epochs == 4:
            stopped.append(each.candidate.number)
            raise OSError("no space left")

    monkeypatch.setattr(ladder, "heard", full_disk)
    with pytest.raises(OSError, match="no space left"):
        climb_by_tune(ladder, own, tmp_path)
    assert not (tmp_path / EXPERIMENT).exists()
    begun = {}
    with closing(InlineExecutor(1)) as executor:
        submit = executor.submit

        def note_the_first(job):
            before = job.arguments[1]
            begun.setdefault(int(job.label.split()[1]), 0 if before is None else before.epochs)
            return submit(job)

        monkeypatch.setattr(executor, "submit", note_the_first)
        assert outcome(climb_by(ladder_of(tmp_path), executor)) == inline[0]
    assert begun[stopped[0]] == 4
    assert min(begun.values()) >= 2, "nobody begins anew"


# By the command


COMMAND = """
import sys
from nas import stints
from nas.cli import main
stints.CHECKPOINT_EVERY_S = 0.0
sys.exit(main(sys.argv[1:]))
"""
WORDS = (
    "--target rk3288 --budget 2ms --data-limit 100 --iterations 2 --finalists 1 --contenders 3 --epochs 12 --trials 6"
)


def nas(*words):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def without_training(study, folder):
    """A copy of a study as it was when its search had ended."""
    shutil.copytree(study, folder, ignore=shutil.ignore_patterns("models", CHECKPOINTS, "front.json", "run.json"))
    lines = (folder / RESULTS).read_text().splitlines(keepends=True)
    (folder / RESULTS).write_text("".join(line for line in lines if json.loads(line)["fidelity"] == "early"))


def test_a_driver_that_is_killed_while_tune_trains_leaves_no_process_and_goes_on_from_the_checkpoints(tmp_path):
    inline = nas("search", *WORDS.split(), "--study", "mine", "--out", tmp_path / "inline", "--backend", "inline")
    inline.communicate()
    assert inline.returncode == 0
    folder = tmp_path / "tune" / "mine"
    without_training(tmp_path / "inline" / "mine", folder)
    driver = nas("resume", "mine", "--out", folder.parent, "--backend", "ray")
    while driver.poll() is None and '"trained-6-of-12-' not in (folder / RESULTS).read_text():
        time.sleep(0.01)
    (session,) = Path("/tmp/ray").glob(f"session_*_{driver.pid}")
    waiting = [os.pidfd_open(process) for process in users_of(session)]
    assert len(waiting) >= 5
    driver.kill()
    driver.communicate()
    for process in waiting:
        assert select.select([process], [], [], 20)[0], "a process of Ray outlives its driver"
        os.close(process)
    before = (folder / RESULTS).read_text()
    assert '"trained-12-' not in before, "killed too late to show anything"
    assert (folder / EXPERIMENT).exists()
    resumed = nas("resume", "mine", "--out", folder.parent, "--backend", "ray")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert (folder / RESULTS).read_text().startswith(before)
    assert lines_of(folder) == lines_of(tmp_path / "inline" / "mine")
    assert all(len(found) == 1 for found in lines_of(folder).values()), "an epoch was trained twice"
    assert files_in(folder) == files_in(tmp_path / "inline" / "mine")


# What is put down


def test_what_is_put_down_is_taken_up(tmp_path, ladder_of, pool):
    ladder = ladder_of(tmp_path)
    function, arguments = next_stint(ladder.way(pool[0]), None)
    climbed = function(*arguments)
    for number, left in enumerate([climbed, replace(climbed, state=None)]):
        put_down(left, tmp_path / str(number))
        assert taken_up(tmp_path / str(number)) == left
