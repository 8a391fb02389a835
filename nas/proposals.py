"""Proposals that are worth an evaluation: new, and within the budget by their static cost."""

from dataclasses import dataclass, field

from optuna.trial import Trial

from evaluators.static import StaticCost
from nas.problem import Problem
from nas.sampling import Sampling, choice_of, set_constraint
from searchspace.spaces import member
from searchspace.spec import ArchSpec, spec_id

# So many proposals in a row without a new feasible one end the search: the space is as good as exhausted.
PATIENCE = 20_000


class SpaceExhausted(Exception):
    """The sampler finds nothing new within the budget any more."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate within the budget that was not proposed before."""

    trial: Trial
    spec: ArchSpec
    arch_id: str
    cost: StaticCost


@dataclass
class Proposer:
    """Asks the sampler until it proposes something worth an evaluation, and counts what it turned down."""

    problem: Problem
    sampling: Sampling
    rejected: int = 0
    duplicates: int = 0
    _seen: set[str] = field(default_factory=set)

    def next(self) -> Proposal:
        """The next candidate to evaluate.

        Raises:
            SpaceExhausted: a great many proposals in a row were infeasible or known.
        """
        budget_ms = self.problem.settings.budget_ms
        for _ in range(PATIENCE):
            trial = self.sampling.ask()
            spec = member(self.problem.space, choice_of(trial), self.problem.task)
            cost = self.problem.costs(spec)
            # The upper end of the interval must keep the budget, not the middle.
            set_constraint(trial, cost.latency.high_ms, budget_ms)
            if cost.latency.high_ms > budget_ms:
                self.rejected += 1
                self.sampling.tell_rejected(trial, cost.latency.value_ms)
                continue
            # Equal to the deploy architecture's own id unless the space chooses train genes as well.
            name = spec_id(spec)
            if name in self._seen:
                self.duplicates += 1
                self.sampling.tell_skipped(trial)
                continue
            self._seen.add(name)
            return Proposal(trial, spec, name, cost)
        raise SpaceExhausted(f"{PATIENCE} proposals in a row were known already or above the budget")
