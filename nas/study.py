"""The one loop: ask, evaluate the cheapest first, tell, remember; and the same again when a study is resumed.

A study repeats itself. Proposal n follows from the seed and from the results of the first n - `window` proposals,
however many workers there are and whichever is quicker, because results are told in the order of asking. So a resumed
study is run again from its beginning with the remembered results in place of evaluations, which takes as long as the
sampler takes to propose, from milliseconds to a tenth of a second per trial, and then simply goes on; nothing of the
sampler's state needs to be kept.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import optuna

from evaluators.early import EarlySettings
from evaluators.evaluator import Failure, Outcome
from evaluators.static import StaticCost
from hardware.latency_table import Tier
from hardware.ops import Shape
from hardware.strict_yaml import ConfigError
from nas.executors.executor import Executor, Job
from nas.ground import Ground
from nas.jobs import early_job
from nas.problem import Problem
from nas.proposals import EVALUATED_BEFORE, Proposal, Proposer, SpaceExhausted
from nas.results import Key, ResultStore
from nas.sampling import Sampling
from nas.settings import StudyFile
from nas.starts import earlier_members, published_members
from nas.storage import describe, open_study, remember
from searchspace.cheapest import Cheapest, cheapest_member
from searchspace.choosers import Gene
from searchspace.registry import BlockSpec
from searchspace.space import gene_options
from searchspace.spec import ArchSpec, spec_id

logger = logging.getLogger(__name__)

# More failures than half of so many candidates in a row end a search.
FAILURES_AMONG = 50

# Longer than any network takes.
OUT_OF_QUESTION_MS = 1e9

RESULTS = "results.jsonl"
EARLY = "early"


class InfeasibleBudget(Exception):
    """No member of the space keeps the budget; carries the fastest one and what it takes."""

    def __init__(self, problem: Problem, fastest: ArchSpec, cost: StaticCost) -> None:
        super().__init__(
            f"no network of space {problem.space.name} keeps {problem.settings.budget} on {problem.target.name}: "
            f"the fastest member of the space ({spec_id(fastest)}, input {fastest.input_shape[1]} px) is expected to "
            f"take {cost.latency.value_ms:.3g} ms and up to {cost.latency.high_ms:.3g} ms; allow at least that"
        )
        self.fastest = fastest
        self.cost = cost


class EvaluationsBroken(Exception):
    """A candidate could not be looked at for a reason that is not its own; nothing is recorded of it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(
            f"candidates cannot be evaluated: {failure.reason}; this is no candidate's fault, so the search stops. "
            "Mend the cause, then `nas resume` goes on"
        )


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A candidate that was looked at; `number` is its trial in the durable study, `score` None where it failed."""

    number: int
    spec: ArchSpec
    arch_id: str
    cost: StaticCost
    outcome: Outcome
    score: float | None


class TooManyFailures(Exception):
    """More than half of the last candidates failed, so that searching on would only cost time."""

    def __init__(self, failed: Sequence[Evaluated], looked_at: int) -> None:
        reasons = Counter(each.outcome.reason for each in failed if isinstance(each.outcome, Failure))
        (reason, count), *_ = reasons.most_common(1)
        example = next(each.arch_id for each in failed if each.outcome == Failure(reason))
        super().__init__(
            f"{len(failed)} of the last {looked_at} candidates failed, so the search stops; {count} times: {reason} "
            f"(the first of them is {example}; results.jsonl has its spec)"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is.

    `looked_at` of the trials that are done were so in this run, the others are known from before. `best` is the highest
    score within the budget and that network's expected latency in ms, None before there is one; `until_s` is when on
    the monotonic clock its time is up, None without one.
    """

    done: int
    total: int
    rejected: int
    duplicates: int
    failed: int
    looked_at: int
    best: tuple[float, float] | None
    until_s: float | None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search looked at, and why it ended."""

    evaluated: tuple[Evaluated, ...]
    progress: Progress
    ended: str

    @property
    def failures(self) -> tuple[str, ...]:
        """Why candidates failed, one reason each."""
        outcomes = (candidate.outcome for candidate in self.evaluated)
        return tuple(outcome.reason for outcome in outcomes if isinstance(outcome, Failure))


def _lowest_upper_end(problem: Problem) -> tuple[Cheapest, StaticCost]:
    """The member whose interval ends lowest, on a target whose table answers for every kernel."""

    def latency_ms(shape: Shape, block: BlockSpec) -> float:
        return problem.costs.block(shape, block).latency_ms

    def calibrated_ms(shape: Shape, block: BlockSpec) -> float:
        part = problem.costs.block(shape, block)
        return part.latency_ms + (OUT_OF_QUESTION_MS if part.tier is Tier.extrapolated else 0)

    fastest = cheapest_member(problem.space, problem.task, latency_ms)
    found = fastest, problem.costs(fastest.spec)
    if found[1].latency.high_ms > problem.settings.budget_ms:
        # Within a tier the interval's end rises with the latency, but it is nearer without extrapolated kernels.
        surest = cheapest_member(problem.space, problem.task, calibrated_ms)
        return min(found, (surest, problem.costs(surest.spec)), key=lambda each: each[1].latency.high_ms)
    return found


@lru_cache(maxsize=1)
def check_budget(problem: Problem) -> dict[str, Gene]:
    """Genes of the fastest member, after making sure before any trial that it keeps the budget.

    Raises:
        InfeasibleBudget: it does not.
    """
    fastest, cost = _lowest_upper_end(problem)
    if cost.latency.high_ms > problem.settings.budget_ms:
        raise InfeasibleBudget(problem, fastest.spec, cost)
    return fastest.genes


@dataclass
class _Pending:
    proposal: Proposal
    outcome: Outcome | None = None
    is_sent_out: bool = False


class Search:
    """A search in its folder; `run` goes on from wherever the folder says it is."""

    def __init__(self, problem: Problem, folder: Path, executor: Executor, record: StudyFile | None = None) -> None:
        """`record` is the study as its folder keeps it; without, it is taken to be the only one of its name."""
        self._problem = problem
        self._executor = executor
        self._results = ResultStore(folder / RESULTS)
        name, owner = (record.durable_name, record.owner) if record else (problem.settings.study, None)
        self._durable = open_study(folder, name, problem.settings.storage, owner)
        self._folder = folder
        self._kept = self._durable.get_trials(deepcopy=False)
        self._ground = Ground(problem, fastest={})
        settings = problem.settings
        self._sampling = Sampling(settings.sampler, settings.seed, gene_options(problem.space), self._ground)
        self._proposer = Proposer(problem, self._sampling, self._ground)
        self._evaluated: list[Evaluated] = []
        self._window: deque[_Pending] = deque()
        self._out: dict[int, _Pending] = {}
        self._looked_at = 0
        self._best: tuple[float, float] | None = None
        self._deadline: float | None = None

    @property
    def results(self) -> ResultStore:
        return self._results

    def describe(self, record: StudyFile) -> None:
        """Leaves the settings in a shared storage, for those who see that and not the folder."""
        if record.storage is not None:
            shared = record.model_copy(update={"storage": None})
            describe(self._durable, record.storage, shared.model_dump_json())

    def run(
        self, fastest: Mapping[str, Gene], on_progress: Callable[[Progress], None], *, spent_s: float = 0.0
    ) -> SearchOutcome:
        """Searches until the study has its trials, its time is up, or nothing new fits the budget.

        `fastest` are genes known to keep the budget; they are proposed first, so that there is always a feasible trial,
        and published networks that keep it after them. `spent_s` of its time are gone already.

        Raises:
            ConfigError: a resumed study does not repeat itself, so something it rests on has changed.
            EvaluationsBroken: a candidate cannot be looked at, for no reason of its own.
            TooManyFailures: more than half of the last candidates failed.
            StorageLost: the storage stopped answering and does not come back.
        """
        settings = self._problem.settings
        self._deadline = None if settings.time_s is None else time.monotonic() + settings.time_s - spent_s
        self._ground.fastest = fastest
        self._enqueue_starts()
        asked, ended = 0, "all trials done"
        while True:
            while asked < settings.trials and len(self._window) < settings.window:
                if self._deadline is not None and time.monotonic() > self._deadline:
                    ended, asked = f"time is up ({settings.time})", settings.trials
                    break
                try:
                    self._enter(self._proposer.next())
                except SpaceExhausted as error:
                    ended, asked = str(error), settings.trials
                    break
                asked += 1
            if not self._window:
                return SearchOutcome(tuple(self._evaluated), self._progress(), ended)
            self._wait_for_oldest()
            self._tell(self._window.popleft())
            on_progress(self._progress())

    def _enqueue_starts(self) -> None:
        # Before all others, so that they keep their numbers.
        for place in earlier_members(self._ground, self._folder):
            self._sampling.enqueue(place.genes, EVALUATED_BEFORE)
        self._sampling.enqueue(self._ground.fastest, "fastest member")
        if self._problem.settings.start == "published":
            for name, place in published_members(self._ground).items():
                self._sampling.enqueue(place.genes, f"published {name}")

    def _enter(self, proposal: Proposal) -> None:
        pending = _Pending(proposal, self._results.get(Key(proposal.arch_id, EARLY)))
        self._window.append(pending)
        if pending.outcome is None:
            settings = self._problem.settings
            early = EarlySettings(iterations=settings.iterations)
            arguments = (proposal.spec, self._problem.data, early, settings.seed, self._problem.proxies)
            job = Job(f"candidate {proposal.arch_id}", early_job, arguments, settings.evaluation_time_s)
            self._out[self._executor.submit(job)] = pending
            pending.is_sent_out = True

    def _wait_for_oldest(self) -> None:
        while self._window[0].outcome is None:
            finished = self._executor.wait()
            if isinstance(finished.result, Failure) and not finished.result.lasting:
                raise EvaluationsBroken(finished.result)
            pending = self._out.pop(finished.handle)
            pending.outcome = finished.result
            proposal = pending.proposal
            self._results.add(Key(proposal.arch_id, EARLY), finished.result, proposal.spec)

    def _tell(self, pending: _Pending) -> None:
        proposal, outcome = pending.proposal, pending.outcome
        assert outcome is not None
        self._looked_at += pending.is_sent_out
        trial, cost = proposal.trial, proposal.cost
        known = {"macs": float(cost.macs), "params": float(cost.params)}
        trial.set_user_attr("arch", proposal.arch_id)
        trial.set_user_attr("latency_tier", cost.latency.tier.value)
        trial.set_user_attr("latency_high_ms", cost.latency.high_ms)
        score = None
        if isinstance(outcome, Failure):
            trial.set_user_attr("failure", outcome.reason)
            logger.warning("candidate %s failed: %s", proposal.arch_id, outcome.reason)
            self._sampling.tell_skipped(trial)
        else:
            known |= outcome
            score = self._problem.score.value(known)
            for name, value in known.items():
                trial.set_user_attr(name, value)
            self._sampling.tell_scored(trial, score, cost.latency.value_ms)
            if cost.latency.high_ms <= self._problem.settings.budget_ms and (not self._best or score > self._best[0]):
                self._best = score, cost.latency.value_ms
        number = self._keep(self._sampling.frozen(trial))
        self._evaluated.append(Evaluated(number, proposal.spec, proposal.arch_id, cost, outcome, score))
        recent = self._evaluated[-FAILURES_AMONG:]
        failed = [each for each in recent if each.score is None]
        if len(failed) > FAILURES_AMONG // 2:
            raise TooManyFailures(failed, len(recent))

    def _keep(self, trial: optuna.trial.FrozenTrial) -> int:
        number = len(self._evaluated)
        if number < len(self._kept):
            if self._kept[number].params != trial.params:
                raise ConfigError(
                    f"study {self._problem.settings.study}: trial {number} does not repeat itself, so the space, the "
                    "data, the latency table or a library has changed since; start a new study with --study NAME"
                )
        else:
            remember(self._durable, trial, number)
            if trial.values is not None:
                logger.info("trial %d: score %.4g at %.3g ms", number, *trial.values)
        return number

    def _progress(self) -> Progress:
        return Progress(
            done=len(self._evaluated),
            total=self._problem.settings.trials,
            rejected=self._proposer.rejected,
            duplicates=self._proposer.duplicates,
            failed=sum(candidate.score is None for candidate in self._evaluated),
            looked_at=self._looked_at,
            best=self._best,
            until_s=self._deadline,
        )
