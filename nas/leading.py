"""What leads a search: the score that was asked for, or what a trust report at its beginning put in its place."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardware.strict_yaml import ConfigError
from nas.executors.executor import Executor
from nas.ground import Genes
from nas.problem import Problem
from nas.results import ResultStore
from nas.settings import StudyFile, read_study_file, write_study_file
from nas.study import EARLY, RESULTS
from nas.trust import leading_score
from nas.trust_members import MEMBERS, TIME_SHARE, Allowance, Listener, TrustRun, read_trust


@dataclass(frozen=True, slots=True)
class Led:
    """A problem with the score that leads its search, and the study's record, which says so."""

    problem: Problem
    record: StudyFile


def with_trust(
    problem: Problem, folder: Path, record: StudyFile, executor: Executor, fastest: Genes, listener: Listener
) -> Led:
    """The problem led by a trust report, where one was asked for or the time allows it and no trial is there yet.

    Raises:
        ConfigError: the report that led the study so far is gone or damaged.
        TrustFailed: too few members could be trained.
    """
    allowance = _allowance(problem)
    results = ResultStore(folder / RESULTS)
    if record.led_by is None and allowance is not None and not results.count(EARLY):
        report = TrustRun(problem, folder, executor, results).run(fastest, allowance, listener)
        if report is not None:
            record = _led(record, folder, report)
            listener.note(f"trust: {report['why']}")
    return Led(led_problem(problem, folder, record), record)


def trust_report(
    problem: Problem, folder: Path, executor: Executor, fastest: Genes, listener: Listener, *, members: int
) -> dict[str, Any]:
    """The study's trust report, made where there is none; a search that has not begun will be led by it.

    Raises:
        ConfigError: the report that leads the study is gone or damaged.
        TrustFailed: too few members could be trained.
    """
    record = read_study_file(folder)
    if record.led_by is not None:
        return _report(record, folder)
    results = ResultStore(folder / RESULTS)
    report = TrustRun(problem, folder, executor, results).run(fastest, Allowance(members, None), listener)
    assert report is not None
    if not results.count(EARLY):
        _led(record, folder, report)
    return report


def _led(record: StudyFile, folder: Path, report: Mapping[str, Any]) -> StudyFile:
    led = record.model_copy(update={"led_by": report["leads"]})
    write_study_file(folder, led)
    return led


def led_problem(problem: Problem, folder: Path, record: StudyFile) -> Problem:
    """The problem as the study's trust report leads it, unchanged where none does.

    Raises:
        ConfigError: the report is gone or damaged.
    """
    if record.led_by is None:
        return problem
    score, proxies = leading_score(_report(record, folder))
    return replace(problem, score=score, leading=record.led_by, proxies=proxies)


def _report(record: StudyFile, folder: Path) -> dict[str, Any]:
    report = read_trust(folder)
    if report is None:
        raise ConfigError(
            f"study {record.study}: the trust report that leads its search is gone; restore {folder / 'trust.json'}, "
            "or start a new study with --study NAME"
        )
    return report


def _allowance(problem: Problem) -> Allowance | None:
    """How many members the settings want trained; None for none."""
    settings = problem.settings
    if settings.trust is not None:
        return Allowance(settings.trust, None) if settings.trust else None
    return None if settings.time_s is None else Allowance(MEMBERS, TIME_SHARE * settings.time_s)
