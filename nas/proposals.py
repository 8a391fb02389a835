"""Proposals that are worth an evaluation: new, and within the budget by their static cost."""

import random
from dataclasses import dataclass, field

from optuna.trial import Trial

from evaluators.static import StaticCost
from nas.ground import Ground
from nas.problem import Problem
from nas.sampling import Sampling, choice_of, set_constraint
from searchspace.space import member
from searchspace.spec import ArchSpec, spec_id

# So many proposals in a row without a new feasible one end the search: the space is as good as exhausted.
PATIENCE = 2_000

# After so many in a row above the budget, the last of them is moved towards the fastest member until it fits. Where
# one proposal in thousands fits, waiting for it would take hours, each proposal being slower than the one before.
REPAIR_AFTER = 40


# Where a proposal is from that an earlier budget or table had evaluated.
EVALUATED_BEFORE = "evaluated before"


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
    ground: Ground
    rejected: int = 0
    duplicates: int = 0
    _seen: set[str] = field(default_factory=set)

    def next(self) -> Proposal:
        """The next candidate to evaluate.

        Raises:
            SpaceExhausted: a great many proposals in a row were infeasible or known.
        """
        budget_ms = self.problem.settings.budget_ms
        above_budget = 0
        for _ in range(PATIENCE):
            trial = self.sampling.ask()
            spec = member(self.problem.space, choice_of(trial), self.problem.task)
            cost = self.problem.costs(spec)
            # The upper end of the interval must keep the budget, not the middle.
            set_constraint(trial, cost.latency.high_ms, budget_ms)
            # What was paid for stays, and its constraint says what it is worth now.
            kept = trial.user_attrs.get("origin") == EVALUATED_BEFORE
            if cost.latency.high_ms > budget_ms and not kept:
                self.rejected += 1
                self.sampling.tell_rejected(trial, cost.latency.value_ms)
                above_budget += 1
                if above_budget % REPAIR_AFTER == 0:
                    rng = random.Random(f"{self.problem.settings.seed}/{self.rejected}")
                    self.sampling.enqueue(self.ground.repaired(trial.params, rng).genes, "moved into the budget")
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
