"""Climbs the ladder by Ray Tune: its trials train, rest on every rung, and are stopped early or go on from there.

Each contender is one trial. Tune starts it where there is room, keeps its checkpoints, starts it again from the last
one when its worker or node dies, holds it when it has come to a rung and restores it when it is promoted. Who is
promoted says the ladder, which is why a study on Ray is the same as on any other executor.

The study's own files have the last word: a finding is in the results, and a training that is under way in its
checkpoint, before the ladder hears of it. So a run that was killed is not restored from Tune's account of it, which is
pickled (a study's folder is read without running what it contains), knows nothing of the ladder and is written behind
the checkpoints; each trial is restored by Tune from the study's checkpoint instead, whichever executor put it down.
"""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluators.evaluator import Failure, failure_from
from nas.contenders import Climbed, put_down, taken_up
from nas.executors.ray import DEATHS, DIED, LOOK_AFTER_S, Luggage, RayExecutor, unpack
from nas.ladder import Ladder, Trained
from nas.shortlist import Finalist
from nas.stints import Way, next_stint

logger = logging.getLogger(__name__)

# In the study's folder while Tune trains: its checkpoints, and what its trials begin with.
EXPERIMENT = "tune"

# What a trial reports: how far it has come, with a checkpoint, or what came of it.
EPOCHS, FINALIST, FAILURE = "epochs", "finalist", "failure"

# How Ray tells of a worker that came to an end before it was one.
CREATION = "died because of an error raised in its creation task"

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files beside ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C means here what it means everywhere
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output can be silent
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in our own words
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class _RayEnded(BaseException):
    """Nothing that Tune waits for will ever come; no cleaning up of its own gets in the way."""


def refusal(executor: RayExecutor, folder: Path) -> str | None:
    """Why Tune cannot train a study in that folder, None where it can."""
    if executor.is_client:
        return "it does not work through ray:// addresses"
    if missing := executor.nodes_without(folder):
        return f"the study's folder is not on all nodes of the cluster (not on {', '.join(missing)})"
    return None


def climb_by_tune(ladder: Ladder, executor: RayExecutor, folder: Path) -> Trained:
    """Has Tune train whoever is to be; `folder` is the study's, which every node sees."""
    climb = _Climb(ladder, executor, folder.resolve() / EXPERIMENT)
    try:
        climb.look()
        if not ladder.is_over:
            _run(climb, executor.luggage)
    except _RayEnded as error:
        climb.give_up(Failure(str(error), lasting=False))
    except Exception:
        if climb.broken is not None:
            raise climb.broken from None
        raise
    finally:
        clear_away(folder)
    return ladder.trained


def clear_away(folder: Path) -> None:
    """Removes what Tune kept in a study's folder, and what one left there that was killed; nobody reads it again."""
    shutil.rmtree(folder / EXPERIMENT, ignore_errors=True)


def _run(climb: "_Climb", luggage: Luggage) -> None:
    from ray import tune

    # Tune asks only for what they have, and Ray is not at hand where classes are made.
    starts: Any = _Starts(climb)
    rungs: Any = _Rungs(climb)
    with _tune_minding_its_own(climb.room):
        tune.run(
            tune.with_parameters(_train, luggage=luggage),
            name=climb.place.name,
            storage_path=str(climb.place.parent),
            search_alg=starts,
            scheduler=rungs,
            # A process that has its data serves one trial after the other.
            reuse_actors=True,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            raise_on_failed_trial=False,
            verbose=0,
        )


@contextmanager
def _tune_minding_its_own(room: int) -> Iterator[None]:
    """Keeps Tune from printing, from files that nobody asked for, and from the driver's signals.

    What it has to complain of goes into the study's log.
    """
    settings = SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(room)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    talk = logging.getLogger("ray.tune")
    files = [each for each in logging.getLogger("nas").handlers if isinstance(each, logging.FileHandler)]
    listeners = [logging.NullHandler(), *files]
    for each in listeners:
        talk.addHandler(each)
    propagates, talk.propagate = talk.propagate, False
    is_main = threading.current_thread() is threading.main_thread()
    on_user_signal = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGUSR1, on_user_signal)
        talk.propagate = propagates
        for each in listeners:
            talk.removeHandler(each)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _train(config: Mapping[str, Any], luggage: Luggage) -> None:
    """What a trial does: goes its way from where it was put down, and tells of every stint."""
    from ray import tune

    way: Way = config["way"]
    before = None
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as place:
            before = taken_up(Path(place))
    result = unpack(luggage) or _result_of(way, before)
    while isinstance(result, Climbed):
        # Tune has its workers stand in a folder of the session, which nobody needs to clear up.
        with TemporaryDirectory(dir=Path.cwd()) as place:
            put_down(result, Path(place))
            try:
                # Comes back when the trial is to go on; where it is to rest or stop, the thread ends here.
                tune.report({EPOCHS: result.epochs}, checkpoint=tune.Checkpoint.from_directory(place))
            except Exception as error:
                result = Failure(failure_from(error).reason, lasting=False)
                break
        result = _result_of(way, result)
    if isinstance(result, Failure):
        tune.report({FAILURE: json.dumps([result.reason, result.lasting])})
    else:
        tune.report({FINALIST: json.dumps(result)})


def _result_of(way: Way, before: Climbed | None) -> Any:
    function, arguments = next_stint(way, before)
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        return failure_from(error)


class _Climb:
    """The ladder's climb as far as Tune has come with it.

    Tune asks at each of its steps for a trial to add and for one to run; before it is answered, what became of the
    others is looked at and told to the ladder.
    """

    def __init__(self, ladder: Ladder, executor: RayExecutor, place: Path) -> None:
        self.broken: Exception | None = None
        self.room = executor.workers
        self.place = place
        self._ladder = ladder
        self._executor = executor
        self._out: dict[int, Finalist] = {}
        self._wanted: deque[int] = deque()
        self._trials: dict[int, Any] = {}
        self._begun = 0
        self._deaths: Counter[int] = Counter()
        # Those of each trial, as Tune counts them.
        self._failures: Counter[int] = Counter()
        # The checkpoint of each that the ladder has heard of.
        self._known: dict[int, str | None] = {}
        self._ended: dict[int, Mapping[str, Any] | Failure] = {}
        self._looked = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self._ladder.is_over

    def look(self) -> None:
        """Tells the ladder what Tune has come to, and has it hand out as many as there are workers for."""
        try:
            for number in list(self._out):
                self._hear(number)
            while self._ladder.out < self.room and (each := self._ladder.next()) is not None:
                number = each.candidate.number
                self._out[number] = each
                self._wanted.append(number)
        except Exception as error:
            self.broken = error  # Tune would wrap it
            raise
        now = time.monotonic()
        if now - self._looked > LOOK_AFTER_S:
            self._looked = now
            if why := self._executor.hopeless():
                raise _RayEnded(why)

    def _hear(self, number: int) -> None:
        each, trial = self._out[number], self._trials.get(number)
        if trial is None:
            return
        checkpoint = trial.checkpoint
        if checkpoint is not None and checkpoint.path != self._known[number]:
            self._known[number] = checkpoint.path
            # Deaths count while nothing is gained.
            self._deaths[number], trial.max_failures = 0, trial.num_failures + DEATHS - 1
            self._ladder.heard(each, taken_up(Path(checkpoint.path)))
        elif number in self._ended:
            self._ladder.heard(each, self._ended.pop(number))
        elif trial.num_failures > self._failures[number]:
            self._failures[number] = trial.num_failures
            self._go_on_after_death(each, trial)
        if not self._ladder.is_out(each):
            del self._out[number]

    def _go_on_after_death(self, each: Finalist, trial: Any) -> None:
        number = each.candidate.number
        self._deaths[number] += 1
        if self._deaths[number] >= DEATHS:
            self._ladder.heard(each, _cause(trial))
            return
        label = self._ladder.label(each)
        logger.warning("%s: its worker process or its node died; run again from its checkpoint", label)
        if trial.status == trial.ERROR:
            # Tune counts twice where a trial is handed to a worker that is dead already, and gives it up.
            del self._trials[number]
            self._wanted.append(number)

    def give_up(self, failure: Failure) -> None:
        """Has everybody fail who is out or waits."""
        for each in self._out.values():
            self._ladder.heard(each, failure)
        while (left := self._ladder.next()) is not None:
            self._ladder.heard(left, failure)

    def end(self, number: int, result: Mapping[str, Any] | Failure) -> None:
        """Keeps what came of a trial until the next look."""
        self._ended[number] = result

    def goes_on(self, epochs: int) -> bool:
        return self._ladder.goes_on(epochs)

    def new_trial(self, experiment: Any) -> Any | None:
        """A trial for the first who is wanted and has none."""
        number = next((number for number in self._wanted if number not in self._trials), None)
        if number is None:
            return None
        from ray.tune import PlacementGroupFactory
        from ray.tune.experiment import Trial

        self._wanted.remove(number)
        each = self._out[number]
        self._begun += 1
        before, start = self._ladder.before(each), None
        if before is not None:
            start = self.place / "before" / str(self._begun)
            put_down(before, start)
        share = self._executor.share
        self._known[number], self._failures[number] = None if start is None else str(start), 0
        self._trials[number] = Trial(
            experiment.run_identifier,
            config={"number": number, "way": self._ladder.way(each)},
            trial_id=f"{self._begun:05}",
            storage=experiment.storage,
            placement_group_factory=PlacementGroupFactory([{"CPU": share.cpus, "GPU": share.gpus}]),
            checkpoint_config=experiment.checkpoint_config,
            restore_path=self._known[number],
            trial_dirname_creator=lambda trial: f"{number}-{trial.trial_id}",
            max_failures=DEATHS - 1 - self._deaths[number],
        )
        return self._trials[number]

    def promoted(self) -> Any | None:
        """The trial of the first who is wanted and rests."""
        for number in self._wanted:
            trial = self._trials.get(number)
            if trial is not None and trial.status == trial.PAUSED:
                self._wanted.remove(number)
                return trial
        return None

    def left_behind(self) -> list[Any]:
        """Trials that rest and will not go on."""
        return [
            trial
            for number, trial in self._trials.items()
            if trial.status == trial.PAUSED and not self._ladder.is_in(number)
        ]


def _cause(trial: Any) -> Failure:
    """Why a trial was given up: its workers died, or could not even begin, which is no network's fault."""
    told = Path(trial.error_file).read_text(encoding="utf-8").strip()
    last = told.rpartition("Failure # ")[2]
    return Failure(last.splitlines()[-1].strip(), lasting=False) if CREATION in last else DIED


class _Starts:
    """What Tune knows as a search algorithm: says whose training begins."""

    metric = None
    total_samples = 0

    def __init__(self, climb: _Climb) -> None:
        self._climb = climb
        self._experiment: Any = None
        self._is_stopped = False

    def add_configurations(self, experiments: list[Any]) -> None:
        (self._experiment,) = experiments

    def next_trial(self) -> Any | None:
        self._climb.look()
        return self._climb.new_trial(self._experiment)

    def is_finished(self) -> bool:
        return self._is_stopped or self._climb.is_over

    def set_finished(self) -> None:
        self._is_stopped = True

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None: ...
    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None: ...
    def save_to_dir(self, folder: str, session_str: str) -> None: ...


class _Rungs:
    """What Tune knows as a scheduler: has trials rest on every rung, and go on or stop as the ladder says."""

    metric = None
    supports_buffered_results = False

    def __init__(self, climb: _Climb) -> None:
        self._climb = climb

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: object) -> bool:
        return True

    def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        if EPOCHS in result:
            return "CONTINUE" if self._climb.goes_on(result[EPOCHS]) else "PAUSE"
        number = trial.config["number"]
        if FAILURE in result:
            reason, lasting = json.loads(result[FAILURE])
            self._climb.end(number, Failure(reason, lasting))
        else:
            self._climb.end(number, json.loads(result[FINALIST]))
        return "STOP"

    def choose_trial_to_run(self, controller: Any) -> Any | None:
        self._climb.look()
        for trial in self._climb.left_behind():
            controller.stop_trial(trial)
        return self._climb.promoted()

    def on_trial_add(self, controller: Any, trial: Any) -> None: ...
    def on_trial_error(self, controller: Any, trial: Any) -> None: ...
    def on_trial_complete(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> None: ...
    def on_trial_remove(self, controller: Any, trial: Any) -> None: ...

    def debug_string(self) -> str:
        return "the rungs of the study's ladder"
