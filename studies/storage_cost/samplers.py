"""What it costs to propose, by sampler: milliseconds of processor time for each proposal, after so many trials.

    python studies/storage_cost/samplers.py [--trials 100,1000,5000] [--samplers nsga2,tpe,...]

Space `edge-small` (34 genes) in memory, without a storage: asking, answering every gene, the static cost and telling.
NSGA-II, NSGA-III, random and evolution make the whole way there themselves; TPE and the surrogate, which take longest,
find so many random trials there already, which costs them the same. Prints a JSON line for each sampler.
"""

import argparse
import json
import random
import statistics
import time

from nas.ground import Ground
from nas.problem import Problem, resolve
from nas.proposals import Proposal, Proposer
from nas.sampling import Sampling
from nas.settings import StudySettings
from nas.study import check_budget
from searchspace.space import gene_options

ASKED = 10
PREFILLED = ("tpe", "surrogate")


def tell(sampling: Sampling, proposal: Proposal, rng: random.Random) -> None:
    score = proposal.cost.macs**0.3 * rng.uniform(0.9, 1.1)
    sampling.tell_scored(proposal.trial, score, proposal.cost.latency.value_ms)


def measured(problem: Problem, sampler: str, counts: list[int]) -> dict[str, object]:
    """The median over the proposals before each count, turned-down ones included in the time of the next."""
    ground = Ground(problem, check_budget(problem))
    sampling = Sampling(sampler, 0, gene_options(problem.space), ground)
    rng = random.Random(0)
    found: dict[str, object] = {"sampler": sampler}
    if sampler in PREFILLED:
        others = Sampling("random", 1, gene_options(problem.space), ground)
        source = Proposer(problem, others, ground)
    proposer = Proposer(problem, sampling, ground)
    done = 0
    for count in counts:
        took: list[float] = []
        while done < count:
            if sampler in PREFILLED and done < count - ASKED:
                proposal = source.next()
                tell(others, proposal, rng)
                sampling._study.add_trial(others.frozen(proposal.trial))
                done += 1
                continue
            started, turned_down = time.process_time(), proposer.rejected
            proposal = proposer.next()
            asked = 1 + proposer.rejected - turned_down
            tell(sampling, proposal, rng)
            took.append(1e3 * (time.process_time() - started))
            done += 1
        last = took[-ASKED:]
        found[f"ms_at_{count}"] = round(statistics.median(last), 1)
        found[f"asks_for_the_last_at_{count}"] = asked
    return found


def main() -> None:
    """Measures every sampler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="100,1000,5000")
    parser.add_argument("--samplers", default="random,nsga2,nsga3,evolution,tpe,surrogate")
    options = parser.parse_args()
    counts = [int(text) for text in options.trials.split(",")]
    problem = resolve(StudySettings(study="samplers", target="rk3288", budget="100ms", data_limit=100))
    for sampler in options.samplers.split(","):
        print(json.dumps(measured(problem, sampler, counts)), flush=True)


if __name__ == "__main__":
    main()
