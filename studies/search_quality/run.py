"""How good a front is after so many evaluations, by sampler: hypervolume over seeds on problems whose truth is known.

    python studies/search_quality/run.py --seeds 10 --trials 400 [--samplers nsga2,surrogate] [--problems 5ms,20ms]
    python studies/search_quality/run.py --seeds 4 --trials 1000 --samplers surrogate --most-scores 250 --runs FILE

Runs what is not in runs.jsonl yet, one line per run, then prints the table. The search is the real one, with the
latency table of the rk3288 and the space edge-small; only the score is synthetic, and answers at once.
"""

import argparse
import json
import math
import random
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from evaluators.static import StaticCost
from nas import screening
from nas.executors.executor import Finished, Job
from nas.problem import Problem, resolve
from nas.settings import StudySettings
from nas.study import Search, check_budget
from searchspace.registry import family_of
from searchspace.spec import ArchSpec, spec_id

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
SAMPLERS = ("random", "nsga2", "tpe", "evolution", "surrogate")
CHECKPOINTS = (25, 50, 75, 100, 150, 200, 300, 400)

# Standard deviation of an evaluation about the truth; truths of random networks spread by about 0.1.
NOISE = 0.03


def answers(spec: ArchSpec) -> list[tuple[str, str]]:
    """What a network of edge-small answers to each question that it reads, as words."""
    found = [("size", str(spec.input_shape[1])), ("stem", str(spec.stem)), ("head", str(spec.head))]
    for index, stage in enumerate(spec.stages):
        first = stage[0]
        found += [(f"{index}.family", family_of(first).name), (f"{index}.depth", str(len(stage)))]
        for name in ("width", "stride", "kernel", "expand", "squeeze_excite"):
            if hasattr(first, name):
                found.append((f"{index}.{name}", str(getattr(first, name))))
    return found


@cache
def drawn(*words: object) -> float:
    """A number from a normal distribution that follows from the words and from nothing else."""
    return random.Random(repr(words)).gauss(0, 1)


class Truth:
    """A score made of three parts, of which a sampler's model knows at most the names of the inputs.

    Work that pays less and less: a saturating function of the logarithm of the MACs. Taste: 40 hidden units over the
    answers as words, in no order, so that a kernel of 5 tells nothing of 3 and 7. Ruggedness: for each answer a number
    that depends on two other answers as well (Kauffman's NK landscapes, K = 2).
    """

    def __init__(self, world: str) -> None:
        self.world = world

    def __call__(self, spec: ArchSpec, cost: StaticCost) -> float:
        found = answers(spec)
        work = 1 - math.exp(-max(0.0, math.log10(cost.macs) - 4.5) / 1.2)
        units = [sum(drawn(self.world, "unit", unit, *each) for each in found) for unit in range(40)]
        scale = math.sqrt(len(found))
        taste = sum(drawn(self.world, "out", unit) * math.tanh(1.5 * value / scale) for unit, value in enumerate(units))
        rugged = 0.0
        for place, each in enumerate(found):
            others = random.Random(f"{self.world}/{each[0]}").sample(range(len(found)), 2)
            rugged += drawn(self.world, "rugged", each, *(found[other] for other in others if other != place))
        return 0.6 * work + 0.06 * taste / math.sqrt(40) * 1.6 + 0.05 * rugged / scale


class SyntheticExecutor:
    """Answers with the truth and the noise of an evaluation, which is the same whoever asks."""

    def __init__(self, problem: Problem, truth: Truth) -> None:
        self.truths: dict[str, float] = {}
        self._problem, self._truth = problem, truth
        self._jobs: list[tuple[int, Job]] = []
        self._submitted = 0

    def submit(self, job: Job) -> int:
        self._submitted += 1
        self._jobs.append((self._submitted, job))
        return self._submitted

    def wait(self) -> Finished:
        handle, job = self._jobs.pop(0)
        spec = job.arguments[0]
        name = spec_id(spec)
        self.truths[name] = self._truth(spec, self._problem.costs(spec))
        score = self.truths[name] + NOISE * drawn(self._truth.world, "noise", name)
        return Finished(handle, {"dispersion": 0.0, "dispersion_start": 0.0, "loss": -score, "seconds": 0.0})

    def close(self) -> None:
        self._jobs.clear()


def hypervolume(points: list[tuple[float, float]], budget_ms: float) -> float:
    """Between a score of 0 and the budget, as a share of a perfect score that takes no time."""
    total, best = 0.0, 0.0
    ordered = sorted(points, key=lambda point: (point[1], -point[0]))
    for index, (score, _) in enumerate(ordered):
        best = max(best, score)
        end = ordered[index + 1][1] if index + 1 < len(ordered) else budget_ms
        total += max(0.0, best) * (end - ordered[index][1])
    return total / budget_ms


def run(sampler: str, budget: str, seed: int, trials: int) -> dict[str, object]:
    """One search and what it had after each number of evaluations, by the truth and not by what was seen."""
    settings = StudySettings(
        study="quality",
        target="rk3288",
        budget=budget,
        trials=trials,
        sampler=sampler,
        seed=seed,
        data_limit=200,
        score="loss",
        start="fastest",
    )
    problem = resolve(settings)
    executor = SyntheticExecutor(problem, Truth(f"world {budget}"))
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        outcome = Search(problem, Path(folder), executor).run(check_budget(problem), lambda progress: None)
        seconds = time.perf_counter() - started
    points = [(executor.truths[each.arch_id], each.cost.latency.value_ms) for each in outcome.evaluated]
    volumes = {
        count: hypervolume(points[:count], problem.settings.budget_ms) for count in CHECKPOINTS if count <= trials
    }
    curve = [round(hypervolume(points[:count], problem.settings.budget_ms), 6) for count in range(5, trials + 1, 5)]
    return {
        "sampler": sampler,
        "budget": budget,
        "seed": seed,
        "trials": trials,
        "hypervolume": volumes,
        "curve_every_5": curve,
        "ms_per_trial": round(1e3 * seconds / trials, 1),
    }


def main() -> None:
    """Runs what is missing and prints one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--problems", default="5ms,20ms")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument(
        "--most-scores", type=int, default=screening.MOST_SCORES, help="what the surrogate guesses from"
    )
    options = parser.parse_args()
    screening.MOST_SCORES = options.most_scores
    done = set()
    if options.runs.exists():
        lines = map(json.loads, options.runs.read_text().splitlines())
        done = {(each["sampler"], each["budget"], each["seed"], each.get("most_scores")) for each in lines}
    for seed in range(options.seeds):
        for budget in options.problems.split(","):
            for sampler in options.samplers.split(","):
                most = options.most_scores if sampler == "surrogate" else None
                if (sampler, budget, seed, most) in done:
                    continue
                result = run(sampler, budget, seed, options.trials)
                if most is not None:
                    result["most_scores"] = most
                with options.runs.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                last = list(result["hypervolume"].values())
                print(
                    sampler, budget, seed, " ".join(f"{each:.4f}" for each in last), result["ms_per_trial"], flush=True
                )


if __name__ == "__main__":
    main()
