"""A study's problem, and an executor that answers from a formula, in any order that a cluster could."""

import hashlib
import random
from dataclasses import dataclass, replace

import pytest

from evaluators.accuracy import Accuracy
from evaluators.evaluator import Failure, failure_from
from nas.contenders import Climbed, TrainingPlan, contender_job
from nas.executors.executor import Finished
from nas.finalists import FinalistPlan, finalist_job
from nas.jobs import early_job
from nas.problem import resolve
from nas.settings import StudySettings
from nas.study import Search, check_budget
from searchspace.spec import ArchSpec, spec_id, write_spec


class Stopped(Exception):
    """Whatever ends a run in the middle."""


def share(text):
    """A number from 0 to 1 that follows from the text and from nothing else."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def formula(spec):
    """What `look_early` might say of a network, or a failure for one in ten of them."""
    name = spec_id(spec)
    if share(f"fails {name}") < 0.1:
        return Failure(f"ValueError: {name} would not train")
    return {
        "dispersion": share(f"end {name}"),
        "dispersion_start": share(f"start {name}") / 2,
        "loss": 2 + share(f"loss {name}"),
        "seconds": 0.25,
    }


class FormulaExecutor:
    """Looks at the first `workers` jobs at once; which of them ends next is drawn from `seed`, None for the oldest.

    Raises Stopped in place of the result after `stop_after`.
    """

    def __init__(self, workers=1, seed=None, stop_after=None, answer=formula):
        self.specs = []
        self.out = []
        self._workers = workers
        self._rng = None if seed is None else random.Random(seed)
        self._left = stop_after
        self._answer = answer

    def submit(self, job):
        assert job.function is early_job
        return self._take(job.arguments[0])

    def _take(self, asked):
        self.specs.append(asked)
        self.out.append(len(self.specs))
        return len(self.specs)

    def wait(self):
        if self._left == 0:
            raise Stopped
        if self._left is not None:
            self._left -= 1
        running = self.out[: self._workers]
        handle = running[0] if self._rng is None else self._rng.choice(running)
        self.out.remove(handle)
        try:
            return Finished(handle, self._answer(self.specs[handle - 1]))
        except Exception as error:
            return Finished(handle, failure_from(error))

    def close(self):
        self.out.clear()


def trained(plan):
    """What `finalist_job` might make of a candidate, its files included."""
    name = spec_id(plan.spec)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_spec(plan.spec, plan.folder / "spec.yaml")
    (plan.folder / "model.onnx").write_bytes(name.encode())
    (plan.folder / "weights.safetensors").write_bytes(b"")
    small = {"max_abs": 1e-6, "max_rel": 1e-7}
    return {
        "spec_id": name,
        "deploy_id": name,
        "accuracy": round(share(f"accuracy {name}"), 2),
        "loss": 1.0,
        "images": 249,
        "test_accuracy": round(share(f"test {name}"), 2),
        "test_images": 299,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(plan.folder.iterdir())},
        "layouts_tried": [],
        "seconds": 0.5,
        "folded": small,
        "onnxruntime": small,
    }


@dataclass(frozen=True)
class Stint:
    """What `contender_job` was asked."""

    plan: TrainingPlan
    before: Climbed | None
    until_epoch: int


def contend(stint):
    """What `contender_job` might make of a candidate, an epoch taking 0.1 s."""
    name = spec_id(stint.plan.spec)
    reached = Accuracy(round(share(f"early accuracy {name}"), 2), 1.5, 249, 0.1)
    state = f"{name} {stint.until_epoch}".encode()
    return Climbed(stint.plan.spec, [], stint.until_epoch, reached, 1.6, 0.1 * stint.until_epoch, state)


class StudyExecutor(FormulaExecutor):
    """Looks at candidates and trains finalists, in no time; `train` says what becomes of a finalist."""

    def __init__(self, train=trained, contend=contend, with_before=False, **options):
        """With `with_before`, `train` is also given how far the finalist has come."""
        self._befores = {}

        def finish(plan):
            return train(plan, self._befores[plan.trial]) if with_before else train(plan)

        answers = {ArchSpec: formula, Stint: contend, FinalistPlan: finish}
        super().__init__(answer=lambda asked: answers[type(asked)](asked), **options)
        self.closed = False

    def submit(self, job):
        assert job.function in (early_job, contender_job, finalist_job)
        if job.function is finalist_job:
            self._befores[job.arguments[0].trial] = job.arguments[1]
        return self._take(Stint(*job.arguments) if job.function is contender_job else job.arguments[0])

    def close(self):
        super().close()
        self.closed = True

    @property
    def plans(self):
        """Of the finalists that were trained to the end."""
        return [asked for asked in self.specs if isinstance(asked, FinalistPlan)]

    @property
    def stints(self):
        """Of the contenders that were trained a little."""
        return [asked for asked in self.specs if isinstance(asked, Stint)]


@pytest.fixture(scope="session")
def problem():
    """edge-small on the rk3288 within 100 ms, which most random networks keep."""
    settings = StudySettings(study="study", target="rk3288", budget="100ms", data_limit=200, trials=36, sampler="nsga2")
    return resolve(settings)


@pytest.fixture(scope="session")
def fastest(problem):
    return check_budget(problem)


@pytest.fixture(scope="session")
def changed(problem):
    """The problem under other settings, for those that do not change the target, the space or the data."""
    return lambda **settings: replace(problem, settings=problem.settings.model_copy(update=settings))


@pytest.fixture
def run_search(tmp_path, problem, fastest):
    """Runs the search of a study in its folder, from its beginning or from wherever it was stopped."""

    def run(executor, name="study", own_problem=problem, genes=fastest, on_progress=lambda progress: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Search(own_problem, folder, executor).run(genes, on_progress)

    run.folder = tmp_path
    return run
