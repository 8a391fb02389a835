"""What Optuna is told, and that it listens."""

import optuna
import pytest
from optuna.samplers import NSGAIIISampler, NSGAIISampler
from optuna.trial import TrialState

from nas import sampling
from nas.sampling import CONSTRAINT, DIRECTIONS, SAMPLERS, Sampling, choice_of, set_constraint

GENES = {f"gene{index}": tuple(range(3 + index % 3)) for index in range(8)} | {
    "family": ("rdp", "ir"),
    "squeeze_excite": (False, True),
    "expand": (1, 2.5, 6),
    "settled": (7,),
}


def drive(one, count, best=lambda genes: sum(map(float, map(hash, genes.values())))):
    """Asks and tells: a score of all genes, a latency of the first ones, feasible when that is small."""
    proposed = []
    for _ in range(count):
        trial = one.ask()
        choose = choice_of(trial)
        genes = {name: choose(name, options) for name, options in GENES.items()}
        latency = 1.0 + genes["gene0"] + genes["gene1"] + genes["gene2"]
        set_constraint(trial, latency, 4.5)
        if latency > 4.5:
            one.tell_rejected(trial, latency)
        elif len(proposed) % 7 == 3:
            one.tell_skipped(trial)
        else:
            one.tell_scored(trial, best(genes), latency)
        proposed.append((genes, one.frozen(trial)))
    return proposed


def genes_of(proposed):
    return [genes for genes, _ in proposed]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_seed_does_not(name):
    first, again, other = (genes_of(drive(Sampling(name, seed, GENES), 90)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_answer_is_one_of_the_options_with_its_type(name):
    for genes in genes_of(drive(Sampling(name, 0, GENES), 60)):
        for gene, value in genes.items():
            assert any(value == option and type(value) is type(option) for option in GENES[gene])


def test_there_are_the_four_samplers_that_are_promised():
    assert set(SAMPLERS) == {"nsga2", "nsga3", "tpe", "random"}


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe"])
def test_what_is_rejected_steers_towards_what_fits(name, monkeypatch):
    monkeypatch.setattr(sampling, "POPULATION", 20)
    feasible = [1 + sum(g[f"gene{i}"] for i in range(3)) <= 4.5 for g in genes_of(drive(Sampling(name, 1, GENES), 240))]
    by_chance = [
        1 + sum(g[f"gene{i}"] for i in range(3)) <= 4.5 for g in genes_of(drive(Sampling("random", 1, GENES), 240))
    ]
    assert sum(feasible[120:]) > sum(by_chance[120:]) + 20


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe"])
def test_scores_are_maximised(name, monkeypatch):
    monkeypatch.setattr(sampling, "POPULATION", 20)

    def fours(genes):
        return float(sum(genes[f"gene{index}"] for index in range(3, 8)))

    tail = genes_of(drive(Sampling(name, 2, GENES), 300, best=fours))[-60:]
    chance = genes_of(drive(Sampling("random", 2, GENES), 300, best=fours))[-60:]
    assert sum(map(fours, tail)) > sum(map(fours, chance)) + 60


@pytest.mark.parametrize(
    ("name", "generation"), [("nsga2", "NSGAIISampler:generation"), ("nsga3", "NSGAIIISampler:generation")]
)
def test_genes_that_are_put_first_enter_the_population(name, generation, monkeypatch):
    # Without the tag of a generation a trial is never a parent, and Optuna does not tag enqueued trials by itself.
    monkeypatch.setattr(sampling, "POPULATION", 6)
    one = Sampling(name, 0, GENES)
    seed = {gene: options[-1] for gene, options in GENES.items()} | {"gene0": 0, "gene1": 0, "gene2": 0}
    one.enqueue(seed, "a test")
    proposed = drive(one, 80, best=lambda genes: 1e3 if genes == seed else 0.0)
    first_genes, first = proposed[0]
    assert first_genes == seed
    assert first.system_attrs[generation] == 0
    later = [genes for genes, trial in proposed if trial.system_attrs[generation] >= 2]
    alike = [sum(genes[gene] == seed[gene] for gene in GENES) for genes in later]
    by_chance = sum(1 / len(options) for options in GENES.values())
    assert sum(alike) / len(alike) > by_chance + 2, "its children take after it"


@pytest.mark.parametrize(("name", "plain"), [("nsga2", NSGAIISampler), ("nsga3", NSGAIIISampler)])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_is_told_at_once_steers_as_optuna_alone_would(name, plain, monkeypatch):
    monkeypatch.setattr(sampling, "POPULATION", 6)
    genes = {gene: GENES[gene] for gene in sorted(GENES)}  # the order in which Optuna finds them
    one = Sampling(name, 5, genes)
    alone = optuna.create_study(directions=DIRECTIONS, sampler=plain(population_size=6, seed=5))
    for _ in range(80):
        own, other = one.ask(), alone.ask()
        found = {gene: choice_of(own)(gene, options) for gene, options in genes.items()}
        assert found == {gene: other.suggest_categorical(gene, options) for gene, options in genes.items()}
        score = float(sum(found[f"gene{index}"] for index in range(8)))
        latency_ms = 1.0 + found["gene0"] * found["expand"]
        for trial in (own, other):
            set_constraint(trial, latency_ms, 4.0)
        one.tell_scored(own, score, latency_ms)
        alone.tell(other, (score, latency_ms))


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_what_is_told_late_becomes_a_parent_all_the_same(name, monkeypatch):
    # Optuna makes parents of a generation once; what was asked in it and comes back afterwards is forgotten.
    monkeypatch.setattr(sampling, "POPULATION", 6)
    one = Sampling(name, 0, GENES)
    best = {gene: options[-1] for gene, options in GENES.items()} | {"gene0": 0, "gene1": 0, "gene2": 0}
    one.enqueue(best, "a test")
    slow = one.ask()
    assert {gene: choice_of(slow)(gene, options) for gene, options in GENES.items()} == best
    set_constraint(slow, 1.0, 4.5)

    def alike(proposed):
        return sum(sum(genes[gene] == best[gene] for gene in GENES) for genes in genes_of(proposed)) / len(proposed)

    before = alike(drive(one, 60, best=lambda genes: 0.0)[30:])
    one.tell_scored(slow, 1e3, 1.0)
    assert alike(drive(one, 120, best=lambda genes: 0.0)[60:]) > before + 1


def test_a_constraint_is_optunas_own_and_keeps_the_infeasible_out_of_the_best():
    one = Sampling("nsga2", 0, GENES)
    frozen = []
    for high_ms, score, latency_ms in ((4.0, 0.0, 2.0), (5.0, 0.5, 3.0), (6.0, 1.0, 1.0)):
        trial = one.ask()
        choice_of(trial)("family", ("rdp", "ir"))
        set_constraint(trial, high_ms, 5.0)
        one.tell_scored(trial, score, latency_ms)
        frozen.append(one.frozen(trial))
    assert [trial.constraints for trial in frozen] == [{CONSTRAINT: -0.2}, {CONSTRAINT: 0.0}, {CONSTRAINT: 0.2}]
    copy = optuna.create_study(directions=DIRECTIONS)
    copy.add_trials(frozen)
    # The last one is best in both, and above the budget; the second keeps it exactly.
    assert [trial.number for trial in copy.best_trials] == [0, 1]


def test_a_rejected_proposal_is_told_to_the_sampler_as_complete():
    one = Sampling("nsga2", 0, GENES)
    trial = one.ask()
    set_constraint(trial, 6.0, 5.0)
    one.tell_rejected(trial, 4.0)
    assert one.frozen(trial).state is TrialState.COMPLETE


def test_a_skipped_trial_is_neither_complete_nor_best():
    one = Sampling("nsga2", 0, GENES)
    trial = one.ask()
    choice_of(trial)("family", ("rdp", "ir"))
    set_constraint(trial, 1.0, 2.0)
    one.tell_skipped(trial)
    assert one.frozen(trial).state is TrialState.FAIL


def test_a_constraint_that_is_no_number_is_refused():
    trial = Sampling("random", 0, GENES).ask()
    with pytest.raises(ValueError):
        set_constraint(trial, float("nan"), 5.0)
