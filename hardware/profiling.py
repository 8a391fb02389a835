"""Makes a table of a device: which networks to run there, in which order, and what their times say.

Every kernel is timed inside networks of the space that will be searched, several hundred of them, drawn at random and
put in an order in which each next one shows most of what was not seen before. Further networks, which the table never
sees, are timed whole, up to nine times over; how well the table foretells those, and how far their own times lie
apart, is its certificate.
"""

import heapq
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from hardware.attribution import OperatorTime, UnknownOperator, attributed
from hardware.board import JOBS
from hardware.cost import node_macs
from hardware.drift import slowness
from hardware.graph import DeployGraph
from hardware.isolated import Failed
from hardware.job_folder import SUFFIXES, Job, JobInput, JobList, JobProtocol, Runtime, read_jobs, write_jobs
from hardware.job_results import JobResults
from hardware.kernel_fit import KernelFit
from hardware.kernels import FusionRule, fuse, fused_chains, moved_elements
from hardware.latency_table import UnmeasuredKernel, kernel_sums
from hardware.onnx_model import INPUT_NAME, OUTPUT_NAME
from hardware.profiled_table import Certificate, Miss, ProfiledModel, ProfiledTable, TableIdentity
from hardware.rank_correlation import spearman
from hardware.strict_yaml import ConfigError
from hardware.table_fit import NetworkTrace, fit_table

# How often each network that checks the table is timed, with everything else in between.
ROUNDS = 9
WORST = 5
# Below this nothing can be learnt of overheads.
FEWEST_NETWORKS = 12
# The network that shows whether anything disturbs the machine.
SENTINEL = "sentinel"
# However short a profile is, it has so many checks, and the sentinel is one of them.
FEWEST_CHECKS = 12

# What the first and the last value of a network are called in the files of a runtime.
ENDS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": (INPUT_NAME, OUTPUT_NAME),
    "ncnn": ("in0", "out0"),
    "mnn": (INPUT_NAME, OUTPUT_NAME),
}
# Moving a value counts as so many multiply-adds where kernels are weighed before anything was measured.
MACS_PER_MOVED_VALUE = 8

PROTOCOL = JobProtocol(warmup_s=0.02, min_runs=10, min_s=0.06, max_s=3.0, trace_runs=14, sentinel_every=8)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to be run, under a name that is its own."""

    name: str
    graph: DeployGraph


def in_learning_order(subjects: Sequence[Subject], rules: Sequence[FusionRule]) -> list[Subject]:
    """The same networks, taken in turn by what they show of new kernels and as they come.

    Those with most new kernels are large ones; what a launch costs shows in small ones, of which there are more among
    those that come at random.
    """
    ordered: dict[str, Subject] = {}
    for important, drawn in zip(by_importance(subjects, rules), subjects, strict=True):
        ordered.setdefault(important.name, important)
        ordered.setdefault(drawn.name, drawn)
    return list(ordered.values())


def by_importance(subjects: Sequence[Subject], rules: Sequence[FusionRule]) -> list[Subject]:
    """The same networks, each next one with most of what those before it lack.

    A kernel counts for its share of the networks' time, as far as multiply-adds and moved values tell.
    """
    shares = [_kernel_shares(subject.graph, rules) for subject in subjects]
    importance: Counter[str] = Counter()
    for each in shares:
        importance.update(each)
    seen: set[str] = set()

    def gain(index: int) -> float:
        return sum(importance[key] for key in shares[index] if key not in seen)

    # What was worth so much before is never worth more later, so only the best guess has to be looked at again.
    queue = [(-gain(index), index) for index in range(len(subjects))]
    heapq.heapify(queue)
    ordered = []
    while queue:
        _, index = heapq.heappop(queue)
        now = gain(index)
        if queue and now < -queue[0][0]:
            heapq.heappush(queue, (-now, index))
            continue
        seen.update(shares[index])
        ordered.append(subjects[index])
    return ordered


def _kernel_shares(graph: DeployGraph, rules: Sequence[FusionRule]) -> dict[str, float]:
    work: Counter[str] = Counter()
    for kernel, chain in zip(fuse(graph, rules), fused_chains(graph, rules), strict=True):
        moved = moved_elements(kernel)
        work[kernel.key] += MACS_PER_MOVED_VALUE * moved + sum(node_macs(graph, graph.nodes[index]) for index in chain)
    total = sum(work.values())
    return {key: value / total for key, value in work.items()}


@dataclass(frozen=True)
class Profile:
    """What is to be run on a device: networks to learn from, the most important first, and networks to check with."""

    learning: Sequence[Subject]
    checks: Sequence[Subject]
    rules: tuple[FusionRule, ...]


# Writes networks into files that a runtime loads, and says of each that it cannot write why.
WriteModels = Callable[[Sequence[tuple[DeployGraph, Path]]], Iterable[Path | Failed]]


@dataclass(frozen=True, slots=True)
class Bench:
    """On what networks are run: the runtime, its threads, the cores it is kept on, and how its models are written."""

    runtime: Runtime
    threads: int
    cpus: tuple[int, ...] | None
    write_models: WriteModels


def prepare(profile: Profile, folder: Path, bench: Bench, *, time_s: float | None) -> dict[str, str]:
    """Writes the job folder of a profile; returns why some networks cannot be written, by their names.

    Each round of checks is followed by a part of what is learnt from, so that rounds show how far the machine drifts
    meanwhile. A device that is slower than expected gets less far in its time: through fewer rounds and fewer parts.
    time_s None times every network.

    Raises:
        ConfigError: the runtime cannot run any of the networks.
    """
    count = len(profile.learning)
    bounds = [count * number // ROUNDS for number in range(ROUNDS + 1)]
    asked = [_Asked(SENTINEL, _sentinel(profile, folder))]
    for number in range(ROUNDS):
        asked += [_Asked(f"c{number + 1}-{subject.name}", subject) for subject in profile.checks]
        learning = profile.learning[bounds[number] : bounds[number + 1]]
        asked += [_Asked(f"l-{subject.name}", subject, is_traced=True) for subject in learning]
    return _write_folder(folder, asked, bench, time_s)


def _sentinel(profile: Profile, folder: Path) -> Subject:
    """The network that is timed in between: the one that it was before, however many networks are asked for now."""
    if (folder / JOBS).exists():
        (before,) = {job.file for job in read_jobs(folder).jobs if job.id == SENTINEL}
        for subject in (*profile.checks, *profile.learning):
            if subject.name == Path(before).stem:
                return subject
    return profile.checks[min(len(profile.checks), FEWEST_CHECKS) // 2]


def possible_jobs(profile: Profile) -> set[str]:
    """The jobs that `prepare` may write for a profile."""
    checks = {job for subject in profile.checks for job in _rounds(subject)}
    return {SENTINEL} | checks | {f"l-{subject.name}" for subject in profile.learning}


@dataclass(frozen=True, slots=True)
class _Asked:
    id: str
    subject: Subject
    is_traced: bool = False


def _write_folder(folder: Path, asked: Sequence[_Asked], bench: Bench, time_limit_s: float | None) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {each.subject.name: each.subject.graph for each in asked}
    files = {name: folder / f"{name}{SUFFIXES[bench.runtime]}" for name in graphs}
    refused = _write_missing(graphs, files, bench)
    possible = [each for each in asked if each.subject.name not in refused]
    if not possible:
        raise ConfigError(
            f"{bench.runtime} must be able to run some of the networks, got none that it can: "
            f"{next(iter(refused.values()))}; choose another --runtime"
        )
    if possible[0].id != SENTINEL:
        possible.insert(0, _Asked(SENTINEL, possible[0].subject))
    entering, leaving = ENDS[bench.runtime]
    jobs = tuple(
        Job(
            id=each.id,
            file=files[each.subject.name].name,
            inputs=(JobInput(name=entering, shape=(1, *each.subject.graph.input_shape)),),
            output=leaving,
            trace=tuple(node.name for node in each.subject.graph.nodes[1:]) if each.is_traced else None,
        )
        for each in possible
    )
    write_jobs(
        folder,
        JobList(
            runtime=bench.runtime,
            threads=bench.threads,
            cpus=bench.cpus,
            protocol=PROTOCOL,
            time_limit_s=time_limit_s,
            sentinel=SENTINEL,
            jobs=jobs,
        ),
    )
    return refused


def _write_missing(graphs: Mapping[str, DeployGraph], files: Mapping[str, Path], bench: Bench) -> dict[str, str]:
    """Writes the files that are not there, and returns why some cannot be."""
    # What an earlier run has written is what would be written now. It gets its name once it is whole.
    missing = [name for name, path in files.items() if not path.exists()]
    drafts = [files[name].with_name(f"draft-{files[name].name}") for name in missing]
    refused = {}
    written = bench.write_models([(graphs[name], draft) for name, draft in zip(missing, drafts, strict=True)])
    for name, draft, answer in zip(missing, drafts, written, strict=True):
        if isinstance(answer, Failed):
            refused[name] = answer.reason
        else:
            draft.replace(files[name])
    return refused


@dataclass(frozen=True)
class Times:
    """What was timed, as it would be on a machine that nothing else disturbs.

    whole_ms is by job: the 10 % quantile of its runs, since what disturbs a machine only ever adds, divided by how slow
    the machine was as a whole. traced_ms is by job as well, each operator in the order of running. disturbed_ms is the
    median of a job's runs as it was found, which is what somebody sees who times a network once.
    """

    whole_ms: Mapping[str, float]
    traced_ms: Mapping[str, Sequence[tuple[str, float]]]
    disturbed_ms: Mapping[str, float]


def undisturbed(profile: Profile, results: JobResults) -> Times:
    """The results without the drift of the machine."""
    slow = slowness(results.timings, (_rounds(subject) for subject in profile.checks))
    return Times(
        {job: timing.p10_ms / slow[job] for job, timing in results.timings.items()},
        {
            job: [(name, time_ms / slow[job]) for name, time_ms in timing.traced]
            for job, timing in results.timings.items()
            if timing.traced is not None
        },
        {job: timing.median_ms for job, timing in results.timings.items()},
    )


def _rounds(check: Subject) -> list[str]:
    """The jobs that time a check."""
    return [f"c{number}-{check.name}" for number in range(1, ROUNDS + 1)]


def learnt(profile: Profile, times: Times, *, apart: Collection[str] = ()) -> tuple[list[NetworkTrace], dict[str, str]]:
    """What the times say of the networks to learn from, but for those that are to be kept apart.

    Also why nothing can be learnt from some, by their names.
    """
    traces, refused = [], {}
    for subject in profile.learning:
        job = f"l-{subject.name}"
        if subject.name in apart or job not in times.traced_ms:
            continue
        operators = [OperatorTime(name, time_ms) for name, time_ms in times.traced_ms[job]]
        try:
            kernels = attributed(subject.graph, profile.rules, operators)
        except UnknownOperator as error:
            refused[subject.name] = str(error)
            continue
        traces.append(NetworkTrace(subject.name, times.whole_ms[job], kernels))
    return traces, refused


def certify(profile: Profile, model: ProfiledModel, times: Times) -> Certificate | None:
    """How well the model foretells networks that it has not seen; None where none was timed.

    Networks with kernels of which it knows nothing do not count, see `not_foretold`.
    """
    misses, apart, ratios = [], [], []
    for subject in profile.checks:
        timed = [job for job in _rounds(subject) if job in times.whole_ms]
        if len(timed) > 1:
            apart.append(abs(times.whole_ms[timed[-1]] / times.whole_ms[timed[0]] - 1))
        if timed and not _unknown_kernels(model, subject.graph, profile.rules):
            measured_ms = statistics.median(times.whole_ms[job] for job in timed)
            predicted_ms = predict_ms(model, subject.graph, profile.rules)
            misses.append(Miss(network=subject.name, measured_ms=measured_ms, predicted_ms=predicted_ms))
            ratios += [times.disturbed_ms[job] / predicted_ms for job in timed]
    if not misses:
        return None
    measured = np.array([miss.measured_ms for miss in misses])
    predicted = np.array([miss.predicted_ms for miss in misses])
    errors = np.abs(predicted / measured - 1)
    # Of n networks and one more, which is the one to come, 2.5 % lie above.
    inside = min(1.0, 0.975 * (len(misses) + 1) / len(misses))
    return Certificate(
        networks=len(misses),
        mape_percent=_percent(errors),
        within_5_percent=_percent(errors <= 0.05),
        within_10_percent=_percent(errors <= 0.1),
        spearman=spearman(measured.tolist(), predicted.tolist()) or 0.0,
        low_ratio=float(np.quantile(ratios, 1 - inside)),
        high_ratio=float(np.quantile(ratios, inside)),
        fastest_ms=float(predicted.min()),
        slowest_ms=float(predicted.max()),
        noise_percent=_percent(np.array(apart)) if apart else 0.0,
        noise_within_5_percent=_percent(np.array(apart) <= 0.05) if apart else 0.0,
        worst=tuple(misses[index] for index in np.argsort(-errors)[:WORST]),
    )


def not_foretold(profile: Profile, model: ProfiledModel) -> dict[str, str]:
    """Of each check that the model can say nothing of, why."""
    unknown = {each.name: _unknown_kernels(model, each.graph, profile.rules) for each in profile.checks}
    return {
        name: f"it has kernels unlike all that were measured: {'; '.join(keys)}"
        for name, keys in unknown.items()
        if keys
    }


def _unknown_kernels(model: ProfiledModel, graph: DeployGraph, rules: Sequence[FusionRule]) -> list[str]:
    found = []
    for kernel in fuse(graph, rules):
        try:
            model.kernel(kernel)
        except UnmeasuredKernel:
            found.append(kernel.key)
    return found


def predict_ms(model: ProfiledModel, graph: DeployGraph, rules: Sequence[FusionRule]) -> float:
    """What the model expects of a network."""
    return model.network(kernel_sums(model, fuse(graph, rules))).value_ms


def _percent(values: npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> float:
    return 100 * float(np.mean(values))


def make_table(
    identity: TableIdentity, profiles: Mapping[str, tuple[Profile, JobResults]], cannot_run: Mapping[str, str]
) -> ProfiledTable:
    """The table of all that was timed on a device; profiles and their results are by space.

    Raises:
        ConfigError: too few networks were timed to learn anything from.
    """
    # Spaces overlap: what checks the table in one of them must not be learnt from in another.
    apart = {check.name for profile, _ in profiles.values() for check in profile.checks}
    times = {space: undisturbed(profile, results) for space, (profile, results) in profiles.items()}
    traces: list[NetworkTrace] = []
    unclear: dict[str, str] = {}
    for space, (profile, _) in profiles.items():
        found, reasons = learnt(profile, times[space], apart=apart)
        traces += found
        unclear |= reasons
    if len(traces) < FEWEST_NETWORKS:
        _refuse(len(traces), profiles, unclear)
    fit = fit_table(traces)
    if fit.networks < FEWEST_NETWORKS:
        raise ConfigError(
            f"at least {FEWEST_NETWORKS} networks must be left alone while they are timed, got {fit.networks} of "
            f"{len(traces)}: their parts do not add up to the whole; give it more --time on a machine with less to do"
        )
    scales = KernelFit({key: row.median_ms for key, row in fit.rows.items()}).scales
    refused = {
        job.partition("-")[2] or job: reason
        for _, results in profiles.values()
        for job, reason in results.errors.items()
    }
    table = ProfiledTable(
        identity,
        min(results.started.date for _, results in profiles.values()),
        _conditions(profiles),
        fit,
        {family: tuple(theta) for family, theta in scales.items()},
        {},
        {**cannot_run, **refused},
    )
    model = ProfiledModel(table)
    certificates = {}
    for space, (profile, _) in profiles.items():
        refused |= not_foretold(profile, model)
        if (certificate := certify(profile, model, times[space])) is not None:
            certificates[space] = certificate
    return replace(table, certificates=certificates, cannot_run={**cannot_run, **refused, **unclear})


def _refuse(count: int, profiles: Mapping[str, tuple[Profile, JobResults]], unclear: Mapping[str, str]) -> NoReturn:
    advice = "give it more --time"
    if unclear:
        advice = f"{len(unclear)} say nothing of their kernels ({next(iter(unclear.values()))})"
    elif sum(len(profile.learning) for profile, _ in profiles.values()) < FEWEST_NETWORKS:
        advice = (
            f"{', '.join(profiles)} has no more, so measure a larger space as well, such as edge-small: one table of a "
            "device serves all spaces"
        )
    raise ConfigError(f"at least {FEWEST_NETWORKS} networks must be timed to learn from, got {count}; {advice}")


def _conditions(profiles: Mapping[str, tuple[Profile, JobResults]]) -> dict[str, Any]:
    """How the machine was before and after, and how much of what it measured was disturbed."""
    every = [results for _, results in profiles.values()]
    first, last = every[0].started, every[-1].ended
    timings = [timing for results in every for timing in results.timings.values()]
    return {
        "protocol": PROTOCOL.model_dump(mode="json"),
        "machine": first.model_dump(mode="json"),
        "clocks_after": [clock.current_khz for clock in last.clocks] if last else None,
        "load_after": list(last.load or ()) if last else None,
        "temperatures_after_c": last.temperatures_c if last else None,
        "models_timed": len(timings),
        "networks_traced": sum(timing.traced is not None for timing in timings),
        "disturbed_in_every_attempt": sum(timing.disturbed is True for timing in timings),
        "median_spread_percent": round(
            100 * statistics.median(timing.spread_ms / timing.median_ms for timing in timings), 2
        ),
    }
