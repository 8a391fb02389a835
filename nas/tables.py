"""Makes tables of devices: networks of a space, run where the device is, and what they say of every kernel."""

import itertools
import logging
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hardware.board import JOBS, SAMPLES
from hardware.bundle import import_results, write_bundle
from hardware.job_folder import load_jobs
from hardware.job_results import JobResults, has_results, load_results
from hardware.kernels import FusionRule
from hardware.profiled_table import ProfiledTable, TableIdentity, write_table
from hardware.profiling import (
    FEWEST_CHECKS,
    Bench,
    Profile,
    Subject,
    in_learning_order,
    make_table,
    possible_jobs,
    prepare,
)
from hardware.runtimes import RUNTIMES
from hardware.strict_yaml import ConfigError
from hardware.targets import (
    TargetFile,
    board_table_path,
    boards_folder,
    cache_folder,
    described_target,
    host_identity,
    table_path,
)
from hardware.transports import Progress, Transport
from searchspace.choosers import random_choice
from searchspace.network import deploy_graph
from searchspace.space import Space, Task, member
from searchspace.spaces import space_named
from searchspace.spec import SpecError, deploy_id

logger = logging.getLogger(__name__)

OnMeasured = Callable[[int, int, float], None]

# So many members are drawn to know what a space is made of.
DRAWN = 2000
CHECKS = 100
# What little time there is goes into learning: a check, which is timed up to nine times, for so many networks.
NETWORKS_PER_CHECK = 20
# Opening, timing and watching a network takes about so long, s; a slower device gets less far in its time.
EXPECTED_S = 0.25

# Kernels of the first and the last block depend on what the data ask of a network. Grey and colour are both drawn, most
# networks with ten classes and one in so many with another number, so that any number can be foretold.
TASKS = (Task(1, 10), Task(3, 10))
OTHER_CLASSES = (2, 1000, 5, 100, 20, 200, 50, 500)
OTHERS_EVERY = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which table is to be made: of a target, for a space, with a runtime on so many threads, in about so many s."""

    target: str
    space: str
    runtime: str | None
    threads: int
    time_s: float


@lru_cache(maxsize=4)
def profile_of(
    space: Space, rules: tuple[FusionRule, ...], *, drawn: int = DRAWN, checks: int = CHECKS, draw: str = "checks"
) -> Profile:
    """The networks to run for a space, always the same ones in the same order; another `draw` has other checks.

    The checks are drawn first and kept apart: nothing is learnt from a network that computes the same as one of them.
    """
    held_out, rng = random.Random(f"{draw} {space.name}"), random.Random(f"profile {space.name}")
    subjects: dict[str, Subject] = {}
    for index in range(drawn + checks):
        choose = random_choice(held_out if index < checks else rng)
        spec = member(space, choose, TASKS[index % len(TASKS)])
        subjects.setdefault(deploy_id(spec), Subject(deploy_id(spec), deploy_graph(spec)))
    every = list(subjects.values())
    learning = in_learning_order(every[checks:], rules)
    others = _of_other_classes(space, len(learning) // OTHERS_EVERY)
    return Profile(list(_woven(learning, others)), every[:checks], rules)


def _of_other_classes(space: Space, count: int) -> list[Subject]:
    """Members of the space for data of fewer and of more classes, each once."""
    rng = random.Random(f"classes {space.name}")
    found: dict[str, Subject] = {}
    for index in range(count):
        classes = OTHER_CLASSES[index % len(OTHER_CLASSES)]
        spec = member(space, random_choice(rng), Task(TASKS[index % len(TASKS)].channels, classes))
        found.setdefault(deploy_id(spec), Subject(deploy_id(spec), deploy_graph(spec)))
    return list(found.values())


def _woven(most: Sequence[Subject], others: Sequence[Subject]) -> Iterator[Subject]:
    """One of the others behind every so many of the most."""
    left = iter(others)
    for number, subject in enumerate(most, 1):
        yield subject
        if number % OTHERS_EVERY == 0:
            yield from itertools.islice(left, 1)


def make(wanted: Wanted, transport: Transport, on_progress: OnMeasured) -> ProfiledTable:
    """Runs networks of the space on the device and makes its table, with all that was run there before.

    on_progress hears how many models are done, of how many at most, and how many seconds are left for the others.

    Raises:
        ConfigError: a name is unknown, the device cannot measure, or too little was measured.
        TransportError: the way to the device failed; what had arrived stays, and the same call goes on.
    """
    described = described_target(wanted.target, wanted.runtime)
    folder, refused = prepared(wanted, described)
    transport.measure(folder, with_time_left(on_progress, wanted.time_s))
    return tabulate(wanted, described, refused)


def with_time_left(on_progress: OnMeasured, time_s: float) -> Callable[[Progress], None]:
    """Tells `on_progress` what a transport tells, with the seconds left at the pace so far, of `time_s` from now on."""
    started = time.monotonic()
    before: int | None = None

    def tell(progress: Progress) -> None:
        nonlocal before
        before = progress.done - 1 if before is None else before
        passed_s = time.monotonic() - started
        paced_s = passed_s / max(1, progress.done - before) * (progress.total - progress.done)
        on_progress(progress.done, progress.total, max(0.0, min(time_s - passed_s, paced_s)))

    return tell


def prepared(wanted: Wanted, described: TargetFile) -> tuple[Path, dict[str, str]]:
    """The job folder for the space, written anew, and why some of its networks cannot be."""
    space = space_named(wanted.space)
    profile = profile_of(space, described.fusion_rules)
    count = max(20, round(wanted.time_s / EXPECTED_S))
    folder = job_folder(wanted, described)
    _put_others_aside(folder, profile)
    known = len(load_results(folder).timings) if has_results(folder) else 0
    # What was asked for before stays in the list: a device may bring results of it at any time.
    asked = {job.id for job in load_jobs(folder).jobs} if (folder / JOBS).exists() else set()
    learning = max(count + known, _last(profile.learning, "l-", asked))
    checks = max(FEWEST_CHECKS, count // NETWORKS_PER_CHECK, _last(profile.checks, "c1-", asked))
    short = Profile(profile.learning[:learning], profile.checks[:checks], profile.rules)
    bench = Bench(described.runtime, wanted.threads, None, RUNTIMES[described.runtime].write_timed)
    return folder, prepare(short, folder, bench, time_s=wanted.time_s)


def _put_others_aside(folder: Path, profile: Profile) -> None:
    """Keeps what was measured of networks that the space has no longer under another name, out of the way."""
    jobs, samples = folder / JOBS, folder / SAMPLES
    if not jobs.exists() or {job.id for job in load_jobs(folder).jobs} <= possible_jobs(profile):
        return
    jobs.unlink()
    if samples.exists():
        names = (folder / f"other-networks-{number}-{SAMPLES}" for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        samples.replace(aside)
        logger.warning("the networks of %s are others now; begun anew, what was measured is in %s", folder.name, aside)


def _last(subjects: Sequence[Subject], kind: str, asked: Collection[str]) -> int:
    """How many subjects there are up to the last that was asked for."""
    return max((index for index, each in enumerate(subjects, 1) if f"{kind}{each.name}" in asked), default=0)


def job_folder(wanted: Wanted, described: TargetFile) -> Path:
    """Where the networks of a space are run for a device, and what came of it is kept."""
    if wanted.target == "host":
        return cache_folder() / "profiles" / host_identity(described, wanted.threads).digest / wanted.space
    runs = f"{described.runtime}-{wanted.threads}t"
    return boards_folder() / wanted.target / "profiles" / runs / wanted.space


def bundle(wanted: Wanted, file: Path) -> int:
    """Writes an archive to carry to the device; returns how many models are in it, some of which run several times.

    Raises:
        ConfigError: a name is unknown, or the file's folder is not there.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: the folder {file.parent} must be there; make it, or name another")
    described = described_target(wanted.target, wanted.runtime)
    folder, _ = prepared(wanted, described)
    write_bundle(folder, file)
    return len({job.file for job in load_jobs(folder).jobs})


def take_in(wanted: Wanted, file: Path) -> ProfiledTable:
    """Makes the table of a device from what was brought back from there.

    Raises:
        ConfigError: a name is unknown, or the file is no result of the bundle that was written here.
    """
    described = described_target(wanted.target, wanted.runtime)
    space_named(wanted.space)
    folder = job_folder(wanted, described)
    if not (folder / JOBS).exists():
        raise ConfigError(f"{file}: there is no bundle that these could be results of; write one with --bundle first")
    import_results(file, folder)
    return tabulate(wanted, described, {})


def tabulate(wanted: Wanted, described: TargetFile, refused: Mapping[str, str]) -> ProfiledTable:
    """The table of everything that was run on the device, written where `load_target` finds it."""
    profiles = {}
    for samples in sorted(job_folder(wanted, described).parent.glob(f"*/{SAMPLES}")):
        name = samples.parent.name
        if not has_results(samples.parent):
            continue
        try:
            space = space_named(name)
        except SpecError as error:
            if name == wanted.space:
                raise
            logger.warning("what was measured for %s is left out: %s", name, error)
            continue
        profiles[name] = profile_of(space, described.fusion_rules), load_results(samples.parent)
    if not profiles:
        raise ConfigError(f"target {wanted.target}: nothing was measured; give it more --time")
    identity = _identity(wanted, described, [results for _, results in profiles.values()])
    table = make_table(identity, profiles, refused)
    of_host = wanted.target == "host"
    write_table(
        table, table_path(identity) if of_host else board_table_path(wanted.target, identity.runtime, wanted.threads)
    )
    return table


def _identity(wanted: Wanted, described: TargetFile, results: Sequence[JobResults]) -> TableIdentity:
    """What was measured, which is one thing; of this machine what `load_target` looks for.

    Raises:
        ConfigError: results are from different machines or versions.
    """
    if wanted.target == "host":
        expected = host_identity(described, wanted.threads)
        versions = {expected.runtime_version, *(each.started.runtime_version for each in results)}
        if len(versions) > 1:
            raise ConfigError(f"runtime: one table is of one version, got {', '.join(sorted(versions))}")
        return expected
    machines = {(each.started.cpu, each.started.cores, each.started.runtime_version) for each in results}
    if len(machines) > 1:
        raise ConfigError(
            f"target {wanted.target}: one table is of one device and version, got "
            + " and ".join(map(str, sorted(machines, key=str)))
        )
    machine = results[0].started
    return TableIdentity(
        target=wanted.target,
        device=machine.board or machine.os,
        cpu=machine.cpu or "unknown",
        cores=machine.cores or 1,
        threads=wanted.threads,
        runtime=machine.runtime,
        runtime_version=machine.runtime_version,
        precision=described.precision,
        unit="ms",
        protocol=described.protocol,
    )
