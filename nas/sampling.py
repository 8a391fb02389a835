"""Optuna decides: samplers by name, and a chooser that asks a trial.

The sampling study lives in memory. It hears of everything, rejected proposals included, since that is what steers it
towards what fits the budget; the durable study of `storage` keeps what was evaluated.
"""

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from nas import evolution
from nas.ground import Ground, History, Place, Visited
from nas.screening import Screening
from searchspace.choosers import Choose, G, Gene
from searchspace.spec import ArchSpec

POPULATION = 30

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(population_size=POPULATION, seed=seed),
    "nsga3": lambda seed: NSGAIIISampler(population_size=POPULATION, seed=seed),
    "tpe": lambda seed: TPESampler(multivariate=True, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}

# The next place to look at, from what was found so far and a generator that is this proposal's alone.
Propose = Callable[[History, random.Random], Place]

OWN_SAMPLERS: Mapping[str, Callable[[Ground], Propose]] = {
    "evolution": lambda ground: partial(evolution.propose, ground),
    "surrogate": lambda ground: Screening(ground).propose,
}

CONSTRAINT = "latency_over_budget"
# Scores are maximised and latencies minimised; what was never scored gets the worst of both.
DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")
UNSCORED = -1e9

# How the name of the attribute ends in which Optuna's genetic samplers keep a trial's generation.
GENERATION = ":generation"

# Where Optuna keeps genes that are proposed next.
FIXED = "fixed_params"


class KnownSpaceSampler(BaseSampler):
    """A sampler that is told its genes instead of looking for those that all trials have in common.

    A space asks every gene in every trial, so the answer is known; to work it out again at every proposal, as Optuna
    does while a trial is running, costs seconds once a few hundred proposals were turned down. Genes of a single option
    are left to the sampler's independent draw, as its own search space would leave them.

    A result counts to the generation in which it comes back. Optuna counts it to the one in which it was asked for, of
    which it makes parents once: with many candidates out nearly every score would come back too late to be one.
    """

    def __init__(self, sampler: BaseSampler, genes: Mapping[str, Sequence[Gene]]) -> None:
        self._sampler = sampler
        # The tag of the generation that proposals are made in now.
        self._generation: dict[str, int] = {}
        self._space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(options) for name, options in genes.items() if len(options) > 1
        }

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        genes = self._sampler.sample_relative(study, trial, search_space)
        # From the storage, which alone has the tag by now.
        self._generation = generation_of(study.get_trials(deepcopy=False)[trial.number])
        return genes

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if self._generation != generation_of(trial):
            for name, generation in self._generation.items():
                study._storage.set_trial_system_attr(trial._trial_id, name, generation)
        self._sampler.after_trial(study, trial, state, values)


def generation_of(trial: FrozenTrial) -> dict[str, int]:
    """The tag by which a genetic sampler knows a trial's generation; of other samplers' trials empty."""
    return {name: value for name, value in trial.system_attrs.items() if name.endswith(GENERATION)}


class OwnSampler(BaseSampler):
    """A way to propose of our own, as Optuna asks for it.

    Each proposal follows from the seed, its number and what was told before, so there is no state to be kept.
    """

    def __init__(self, propose: Propose, ground: Ground, seed: int) -> None:
        self._propose, self._ground, self._seed = propose, ground, seed
        # Of all trials before this number, which have ended: those with a score, and every network.
        self._ended = 0
        self._scored: list[Visited] = []
        self._seen: set[ArchSpec] = set()
        self._places: dict[int, Place] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        raise AssertionError("the genes are known")

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if FIXED in trial.system_attrs:
            return {}
        rng = random.Random(f"{self._seed}/{trial.number}")
        place = self._propose(self._history(study, trial), rng)
        return {name: place.genes[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} was not proposed")

    def _history(self, study: Study, trial: FrozenTrial) -> History:
        trials = study.get_trials(deepcopy=False)
        # What has ended stays as it ended; of the rest there are no more than may be out at once.
        while trials[self._ended].state.is_finished():
            self._scored += self._taken_in(trials[self._ended], self._seen)
            self._places.pop(self._ended, None)
            self._ended += 1
        scored, pending, seen = list(self._scored), [], set(self._seen)
        for each in trials[self._ended :]:
            if each.number != trial.number:
                scored += self._taken_in(each, seen)
                if each.params and each.state is TrialState.RUNNING:
                    pending.append(self._places[each.number])
        return History(scored, pending, frozenset(seen))

    def _taken_in(self, trial: FrozenTrial, seen: set[ArchSpec]) -> list[Visited]:
        """The trial as a place that was visited, none where it has no score that counts; `seen` learns its network."""
        if not trial.params:
            return []
        if trial.number not in self._places:
            self._places[trial.number] = self._ground.place(trial.params)
        place = self._places[trial.number]
        seen.add(place.spec)
        counts = trial.state is TrialState.COMPLETE and trial.values[0] != UNSCORED and keeps_budget(trial)
        return [Visited(place, trial.values[0])] if counts else []


class Sampling:
    """The memory that proposals come from."""

    def __init__(
        self, sampler: str, seed: int, genes: Mapping[str, Sequence[Gene]], ground: Ground | None = None
    ) -> None:
        """`genes` are all that the space asks, with their options; `ground` is for samplers of our own alone."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Multivariate TPE and NSGA-III are marked experimental; their behaviour is pinned by the version range.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            known = KnownSpaceSampler(_sampler(sampler, seed, ground), genes)
            self._study = optuna.create_study(directions=DIRECTIONS, sampler=known)

    def enqueue(self, genes: Mapping[str, Gene], origin: str) -> None:
        """Has these genes proposed next; `origin` says in the trial where they are from."""
        self._study.enqueue_trial(dict(genes), user_attrs={"origin": origin})

    def ask(self) -> Trial:
        """A new proposal, its genes not yet chosen."""
        trial = self._study.ask()
        # Touching this makes NSGA-II count enqueued trials to its population, which it silently does not otherwise.
        _ = trial.relative_params
        return trial

    def tell_scored(self, trial: Trial, score: float, latency_ms: float) -> None:
        """A candidate that was evaluated."""
        self._study.tell(trial, (score, latency_ms))

    def tell_rejected(self, trial: Trial, latency_ms: float) -> None:
        """A proposal that does not fit the budget; it counts as complete and infeasible, which is what steers."""
        self._study.tell(trial, (UNSCORED, latency_ms))

    def tell_skipped(self, trial: Trial) -> None:
        """A proposal that was seen before, or could not be evaluated: it steers nothing."""
        self._study.tell(trial, state=TrialState.FAIL)

    def frozen(self, trial: Trial) -> FrozenTrial:
        """The trial as it was told."""
        return self._study.get_trials(deepcopy=False)[trial.number]


def _sampler(name: str, seed: int, ground: Ground | None) -> BaseSampler:
    if name in SAMPLERS:
        return SAMPLERS[name](seed)
    assert ground is not None
    return OwnSampler(OWN_SAMPLERS[name](ground), ground, seed)


def choice_of(trial: Trial) -> Choose:
    """Answers a space's questions with an Optuna trial, every gene a categorical parameter."""

    def choose(name: str, options: Sequence[G]) -> G:
        chosen: Any = trial.suggest_categorical(name, options)
        return chosen  # type: ignore[no-any-return]

    return choose


def keeps_budget(trial: FrozenTrial) -> bool:
    """Whether a trial is feasible by what `set_constraint` recorded."""
    return all(value <= 0 for value in trial.constraints.values())


def set_constraint(trial: Trial, latency_ms: float, budget_ms: float) -> None:
    """Records by which share of the budget a latency exceeds it; feasible is at most zero."""
    trial.set_constraint(CONSTRAINT, (latency_ms - budget_ms) / budget_ms)
