"""What it costs to remember a trial, by storage: milliseconds beside the sampling in memory, and bytes.

    python studies/storage_cost/run.py [--trials 100,1000,5000] [--genes 60] [--storages journal,sqlite] [--folder /tmp]

A study of 60 genes is sampled in memory, as a search does it; each trial is then added to the storage once. For
comparison the first trials are also written gene by gene, as `study.ask` on the storage itself does it. Everything lies
in --folder, whose disk is part of what is measured. PostgreSQL is a server of its own there, begun for this and reached
through a socket, with what a new one is set to and so on the disk before it answers; without its programs it is left
out. Prints a JSON line for each storage, as soon as it has one.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna

sys.path.insert(0, str(Path(__file__).parents[2]))

from nas.sampling import DIRECTIONS, Sampling, choice_of, set_constraint
from nas.storage import JOURNAL, open_study, remember
from tests.nas.postgres_server import PostgresServer, programs

OPTIONS = (8, 16, 24, 32, 48)
BY_GENE = 20


def sampled(sampling: Sampling, genes: dict[str, tuple[int, ...]]) -> optuna.trial.FrozenTrial:
    """One finished trial in memory."""
    trial = sampling.ask()
    choose = choice_of(trial)
    answers = [choose(name, options) for name, options in genes.items()]
    set_constraint(trial, 1.0 + sum(answers) / 1e4, 5.0)
    for name in ("arch", "latency_tier"):
        trial.set_user_attr(name, "0123456789ab")
    for name in ("latency_high_ms", "macs", "params", "dispersion", "dispersion_start", "loss", "seconds"):
        trial.set_user_attr(name, 1.25)
    sampling.tell_scored(trial, float(sum(answers)), 1.0 + answers[0])
    return sampling.frozen(trial)


def by_gene(study: optuna.Study, genes: dict[str, tuple[int, ...]]) -> float:
    """Milliseconds per trial where the storage hears of every gene by itself."""
    started = time.perf_counter()
    for _ in range(BY_GENE):
        trial = study.ask()
        for name, options in genes.items():
            trial.suggest_categorical(name, options)
        trial.set_constraint("latency_over_budget", -0.1)
        study.tell(trial, (1.0, 1.0))
    return 1e3 * (time.perf_counter() - started) / BY_GENE


def measured(
    open_it: Callable[[str], optuna.Study], genes: dict[str, tuple[int, ...]], counts: list[int]
) -> dict[str, float]:
    """Medians over the 100 trials before each count, and the means of the whole way there."""
    study = open_it("whole")
    sampling = Sampling("random", 0, genes)
    seconds: list[float] = []
    for number in range(max(counts)):
        trial = sampled(sampling, genes)
        started = time.perf_counter()
        remember(study, trial, number)
        seconds.append(time.perf_counter() - started)
    found = {f"median_ms_at_{count}": 1e3 * statistics.median(seconds[count - 100 : count]) for count in counts}
    found |= {f"mean_ms_to_{count}": 1e3 * statistics.mean(seconds[:count]) for count in counts}
    started = time.perf_counter()
    assert len(open_it("whole").get_trials(deepcopy=False)) == max(counts)
    found["seconds_to_open"] = time.perf_counter() - started
    found["gene_by_gene_ms"] = by_gene(open_it("gene by gene"), genes)
    return {name: round(value, 2) for name, value in found.items()}


def opener(storage: str, folder: Path, server: PostgresServer | None) -> Callable[[str], optuna.Study]:
    """What opens a study of a name, made where it does not exist."""
    if storage == "memory":
        kept = optuna.storages.InMemoryStorage()
        return lambda name: optuna.create_study(
            storage=kept, study_name=name, directions=DIRECTIONS, load_if_exists=True
        )
    urls = {"journal": None, "sqlite": f"sqlite:///{folder / 'study.db'}", "postgresql": server and server.url}
    return lambda name: open_study(folder, name, urls[storage])


def main() -> None:
    """Measures every storage that there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="100,1000,5000")
    parser.add_argument("--genes", type=int, default=60)
    parser.add_argument("--storages", default="memory,journal,sqlite,postgresql")
    parser.add_argument("--folder", type=Path, help="where everything is kept meanwhile; without, the system's own")
    options = parser.parse_args()
    counts = [int(text) for text in options.trials.split(",")]
    genes = {f"gene{index}": OPTIONS for index in range(options.genes)}
    for storage in options.storages.split(","):
        if storage == "postgresql" and programs() is None:
            continue
        with TemporaryDirectory(dir=options.folder) as place:
            folder, server = Path(place), None
            if storage == "postgresql":
                folder.chmod(0o755)
                (folder / "server").mkdir()
                server = PostgresServer(folder / "server", fsync=True)
                server.start()
            found: dict[str, object] = {"storage": storage, "load_at_start": round(os.getloadavg()[0], 1)}
            try:
                found |= measured(opener(storage, folder, server), genes, counts)
            finally:
                if server is not None:
                    server.stop()
            found["load_at_end"] = round(os.getloadavg()[0], 1)
            if (folder / JOURNAL).exists():
                found["bytes_per_trial"] = round((folder / JOURNAL).stat().st_size / (max(counts) + BY_GENE))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
