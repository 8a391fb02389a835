import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.job_results import load_results
from hardware.strict_yaml import ConfigError

MACHINE = {
    **{
        "board": None,
        "cpu": "Some CPU",
        "cores": 2,
        "core_set": [0, 1],
        "clocks": [],
        "temperatures_c": {},
        "load": None,
    },
    **{
        "runtime": "ncnn",
        "runtime_version": "1",
        "os": "Linux armv7l",
        "kernel": "6",
        "python": "3.7.1",
        "date": "2026",
    },
}
NOTHING = {"clock_khz": None, "temperature_c": None, "load1": None}


@pytest.fixture
def folder(make_folder) -> Path:
    return make_folder({"a": {}, "b": {"another": "model"}}, sentinel="a")


def start(folder: Path, **machine: Any) -> dict[str, Any]:
    jobs = json.loads((folder / "jobs.json").read_text())
    settings = {name: jobs[name] for name in ("runtime", "threads", "cpus", "protocol")}
    return {"machine": {**MACHINE, **machine}, "settings": settings, "at": "start", "format": 1, "unit": "ms"}


def result(folder: Path, job: str, **others: Any) -> dict[str, Any]:
    digest = hashlib.sha256((folder / f"{job}.param").read_bytes()).hexdigest()
    counts = {"runs": 4, "warmup_runs": 2, "attempt": 1, "sha256": digest, "before": NOTHING, "after": NOTHING}
    return {"id": job, "samples_ms": [4.0, 1.0, 2.0, 3.0], **counts, **others}


def write(folder: Path, *records: dict[str, Any]) -> None:
    (folder / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_timing_is_median_and_quartiles_of_the_samples(folder):
    samples = [0.9, 7.25, 1.5, 2.125, 1.625, 30.0, 1.75]
    write(folder, start(folder), result(folder, "a", samples_ms=samples, runs=7))
    results = load_results(folder)
    found = results.timings["a"]
    assert found.median_ms == 1.75  # 0.9 1.5 1.625 [1.75] 2.125 7.25 30
    assert found.spread_ms == pytest.approx((2.125 + 7.25) / 2 - (1.5 + 1.625) / 2)
    assert found.p90_ms == pytest.approx(float(np.quantile(samples, 0.9)))
    assert (found.runs, found.disturbed, results.missing, results.ended) == (7, None, ("b",), None)


def test_quantiles_give_the_timing_of_the_runs_that_they_stand_for(folder):
    samples = np.random.default_rng(0).exponential(size=5000)
    quantiles = np.quantile(samples, np.arange(101) / 100).tolist()
    record = result(folder, "a", quantiles_ms=quantiles, runs=5000)
    del record["samples_ms"]
    write(folder, start(folder), record)
    found = load_results(folder).timings["a"]
    assert found.median_ms == pytest.approx(float(np.median(samples)))
    assert found.spread_ms == pytest.approx(float(np.subtract(*np.quantile(samples, [0.75, 0.25]))))
    assert found.p90_ms == pytest.approx(float(np.quantile(samples, 0.9)))


def test_the_attempt_that_was_accepted_counts(folder):
    write(
        folder,
        start(folder),
        result(folder, "a"),
        {"disturbed": ["a"], "why": "slow", "sentinel_ms": 2.0},
        result(folder, "a", attempt=2, samples_ms=[9.0] * 4),
        {"disturbed": ["a"], "why": "slow", "sentinel_ms": 3.0},
        {"accepted": {"a": 1}, "disturbed": True, "sentinel_ms": None, "why": "slow"},
        {"machine": MACHINE, "at": "end"},
    )
    results = load_results(folder)
    assert (results.timings["a"].median_ms, results.timings["a"].disturbed) == (2.5, True)
    assert results.ended is not None


def test_a_job_that_was_disturbed_and_not_repeated_yet_says_so(folder):
    write(folder, start(folder), result(folder, "a"), {"disturbed": ["a"], "why": "slow", "sentinel_ms": 2.0})
    assert load_results(folder).timings["a"].disturbed is True


def test_a_torn_last_line_is_passed_over(folder):
    write(folder, start(folder), result(folder, "a"))
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"id": "b", "samp')
    assert load_results(folder).missing == ("b",)


def test_errors_are_listed_by_job(folder):
    write(folder, start(folder), {"id": "b", "error": "crashed the runtime"})
    results = load_results(folder)
    assert (dict(results.errors), results.missing) == ({"b": "crashed the runtime"}, ("a",))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"id": "z"}, r"every id must be one of the folder's 2 ids, a to b, got 'z'"),
        ({"samples_ms": [1.0, 2.0, 3.0, 0.0]}, r"samples_ms\.3: must be greater than 0, got 0\.0"),
        ({"samples_ms": [1.0, 2.0, -3.0, 4.0]}, r"samples_ms\.2: must be greater than 0, got -3\.0"),
        ({"samples_ms": [1.0, 2.0, 3.0, float("inf")]}, r"samples_ms\.3"),
        ({"samples_ms": [1.0, float("nan"), 3.0, 4.0]}, r"samples_ms\.1"),
        ({"samples_ms": [1.0, 2.0, 3.0, 60001.0]}, r"samples_ms\.3: must be less than or equal to 60000"),
        ({"samples_ms": [1.0, 2.0, 3.0, "4"]}, r"samples_ms\.3: must be a valid number, got '4'"),
        ({"runs": 5}, "there must be one sample for each of 5 runs, got 4"),
        ({"attempt": 2}, "attempt: must be 1, one more than before, got 2"),
        ({"sha256": "0" * 64}, r"sha256: must be that of a\.param in the folder, .*results of another model"),
        ({"unit": "us"}, "unit: Extra inputs are not permitted"),
        ({"before": {}}, r"before\.clock_khz: Field required"),
    ],
)
def test_a_result_that_breaks_a_rule_is_refused_with_file_and_line(folder, others, message):
    write(folder, start(folder), {"begin": "a"}, result(folder, "a", **others))
    with pytest.raises(ConfigError, match=message) as caught:
        load_results(folder)
    assert str(caught.value).startswith(f"{folder}/samples.jsonl:3: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"begin": "a"', "Invalid JSON"),
        ("", "Invalid JSON"),
        ("[1]", "object"),
        ('{"surprise": 1}', "a record must have one of the keys .*, got surprise"),
        (
            '{"accepted": {"a": 1}, "disturbed": false, "sentinel_ms": 1.0}',
            "there must be a result for attempt 1 of a, got none",
        ),
        ('{"disturbed": ["a"], "why": "slow", "sentinel_ms": 1.0}', "there must be a result for a, got none"),
        ('{"sentinel": "a", "median_ms": 0, "clock_khz": null, "temperature_c": null, "load1": null}', "median_ms"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_file_and_line(folder, line, message):
    write(folder, start(folder))
    with (folder / "samples.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_results(folder)
    assert str(caught.value).startswith(f"{folder}/samples.jsonl:2: ")


def test_another_unit_runtime_or_setting_is_refused(folder):
    good = start(folder)
    wrong = {
        "unit: must be 'ms', got 'us'": {**good, "unit": "us"},
        "settings.threads: must be what jobs.json asks for, 1, got 4": {
            **good,
            "settings": {**good["settings"], "threads": 4},
        },
        "machine.runtime: must be ncnn, as in jobs.json, got mnn": start(folder, runtime="mnn"),
    }
    for message, record in wrong.items():
        write(folder, record)
        with pytest.raises(ConfigError) as caught:
            load_results(folder)
        assert str(caught.value) == f"{folder}/samples.jsonl:1: {message}"


def test_two_machines_in_one_file_are_refused(folder):
    write(folder, start(folder), result(folder, "a"), start(folder, runtime_version="2"))
    rule = r"machine\.runtime_version: must stay as in line 1, '1', got '2'"
    with pytest.raises(ConfigError, match=rf"samples\.jsonl:3: {rule}"):
        load_results(folder)


@pytest.mark.parametrize("text", ["", '{"begin": "a"}\n'])
def test_a_file_that_does_not_begin_with_the_machine_is_refused(folder, text):
    (folder / "samples.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"samples\.jsonl:1: the first line must describe the machine"):
        load_results(folder)


def test_a_folder_that_was_never_measured_says_what_to_do(folder):
    with pytest.raises(ConfigError, match="measure the folder first"):
        load_results(folder)
