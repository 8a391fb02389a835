"""Which networks are run in which order, and what is made of their times: by hand and from a formula."""

import itertools
import random
from dataclasses import replace

import pytest

from hardware.board import SAMPLES
from hardware.graph import DeployGraph, GraphBuilder
from hardware.job_folder import load_jobs
from hardware.job_results import load_results
from hardware.kernels import fuse
from hardware.ops import Activation, Conv, GlobalPool
from hardware.profiled_table import ProfiledModel, TableIdentity, empty_table
from hardware.profiling import (
    FEWEST_NETWORKS,
    ROUNDS,
    Bench,
    Profile,
    Subject,
    Times,
    by_importance,
    certify,
    in_learning_order,
    make_table,
    predict_ms,
    prepare,
)
from hardware.strict_yaml import ConfigError
from hardware.table_fit import Overheads, Row, TableFit
from hardware.transports import TransportError
from tests.formula_device import START_MS, WATCHING_MS, FormulaDevice, kernel_ms, network_ms, write_timed

RULES = (("conv", "relu"),)
IDENTITY = TableIdentity(
    target="mine",
    device="Formula 1",
    cpu="as fast as told",
    cores=4,
    threads=1,
    runtime="onnxruntime",
    runtime_version="1.0",
    precision="fp32",
    unit="ms",
    protocol="formula",
)


def network(*widths: int, size: int = 8) -> DeployGraph:
    graph = GraphBuilder((3, size, size))
    x = graph.input
    for index, width in enumerate(widths):
        x = graph.add(f"conv{index}", Conv(width, (3, 3), padding=(1, 1)), x)
        x = graph.add(f"relu{index}", Activation("relu"), x)
    graph.add("last", GlobalPool(), x)
    return graph.build()


def subjects(count: int, seed: int = 0) -> list[Subject]:
    rng = random.Random(seed)
    drawn = [[rng.choice((4, 8, 16, 24)) for _ in range(rng.randint(1, 6))] for _ in range(count)]
    return [Subject(f"n{index}", network(*widths)) for index, widths in enumerate(drawn)]


def bench(**refusing: object) -> Bench:
    return Bench("onnxruntime", 1, None, write_timed(RULES, **refusing))  # type: ignore[arg-type]


# The order


def weights_of(subject: Subject) -> dict[str, float]:
    """A kernel's share of the work, from the formula of the docstring: multiply-adds and 8 for each moved value."""
    work: dict[str, float] = {}
    graph = subject.graph
    shapes = {node.name: node.shape for node in graph.nodes}
    previous = graph.nodes[0].shape
    kernels = fuse(graph, RULES)
    for index, kernel in enumerate(kernels[:-1]):
        c, h, w = shapes[f"conv{index}"]
        macs = c * h * w * previous[0] * 9
        work[kernel.key] = work.get(kernel.key, 0) + macs + 8 * (previous[0] * h * w + c * h * w)
        previous = (c, h, w)
    c, h, w = previous
    # One multiply-add for each value that is summed up.
    pooled = 8 * (c * h * w + c) + c * h * w
    work[kernels[-1].key] = work.get(kernels[-1].key, 0) + pooled
    total = sum(work.values())
    return {key: value / total for key, value in work.items()}


def test_each_next_network_shows_most_of_what_was_not_seen() -> None:
    drawn = subjects(14)
    shares = {each.name: weights_of(each) for each in drawn}
    importance: dict[str, float] = {}
    for share in shares.values():
        for key, value in share.items():
            importance[key] = importance.get(key, 0.0) + value
    seen: set[str] = set()
    found = by_importance(drawn, RULES)
    assert sorted(each.name for each in found) == sorted(shares)
    left = dict(shares)
    for each in found:
        gains = {name: sum(importance[key] for key in share if key not in seen) for name, share in left.items()}
        assert gains[each.name] == pytest.approx(max(gains.values()), rel=0.01)
        seen |= set(left.pop(each.name))


def test_networks_are_taken_in_turn_by_importance_and_as_they_come() -> None:
    drawn = subjects(9)
    important = [each.name for each in by_importance(drawn, RULES)]
    found = [each.name for each in in_learning_order(drawn, RULES)]
    assert found[0] == important[0]
    assert set(found[:4]) >= {important[0], important[1], "n0"}
    assert sorted(found) == sorted(important)


# The folder


@pytest.fixture
def profile() -> Profile:
    every = subjects(47)
    return Profile(tuple(every[7:]), tuple(every[:7]), RULES)


def test_rounds_of_checks_lie_between_parts_of_what_is_learnt_from(profile, tmp_path) -> None:
    assert prepare(profile, tmp_path, bench(), time_s=None) == {}
    jobs = load_jobs(tmp_path)
    checks = [each.name for each in profile.checks]
    learning = [each.name for each in profile.learning]
    expected = ["sentinel"]
    # Forty networks, nine rounds.
    for number, (start, end) in enumerate(itertools.pairwise((0, 4, 8, 13, 17, 22, 26, 31, 35, 40)), 1):
        expected += [f"c{number}-{name}" for name in checks] + [f"l-{name}" for name in learning[start:end]]
    assert [job.id for job in jobs.jobs] == expected
    assert jobs.sentinel == "sentinel"
    files = {job.id: job.file for job in jobs.jobs}
    assert files["sentinel"] == files["c1-n3"] == files["c3-n3"] == "n3.onnx"
    graph = profile.learning[0].graph
    (first,) = (job for job in jobs.jobs if job.id == f"l-{learning[0]}")
    assert first.trace == tuple(node.name for node in graph.nodes if node.name != "input")
    assert first.inputs[0].shape == (1, 3, 8, 8)
    assert all((job.trace is not None) == job.id.startswith("l-") for job in jobs.jobs)


def test_what_is_written_is_not_written_again_and_what_was_torn_is(profile, tmp_path) -> None:
    prepare(profile, tmp_path, bench(), time_s=None)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")}
    gone = sorted(before)[3]
    (tmp_path / gone).unlink()
    written = []

    def write(models):
        written.extend(path for _, path in models)
        return write_timed(RULES)(models)

    prepare(profile, tmp_path, replace(bench(), write_models=write), time_s=5.0)
    assert len(written) == 1
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.onnx")}
    assert {name for name in before if after[name] != before[name]} == {gone}
    assert load_jobs(tmp_path).time_limit_s == 5.0


def test_a_file_that_was_only_begun_is_not_taken_for_a_model(profile, tmp_path) -> None:
    class Killed(Exception):
        pass

    def torn(models):
        for _, path in models:
            path.write_text("[[")
            raise Killed
            yield

    with pytest.raises(Killed):
        prepare(profile, tmp_path, replace(bench(), write_models=torn), time_s=None)
    prepare(profile, tmp_path, bench(), time_s=None)
    FormulaDevice().measure(tmp_path, lambda progress: None)
    assert load_results(tmp_path).errors == {}
    assert all(path.read_text().endswith("]]") for path in tmp_path.glob("*.onnx"))


def test_a_network_that_cannot_be_written_is_named_and_left_out(profile, tmp_path) -> None:
    unlucky = profile.learning[5]
    refused = prepare(profile, tmp_path, bench(refuse=lambda graph: graph is unlucky.graph), time_s=None)
    assert refused == {unlucky.name: "the device does not know it"}
    ids = {job.id for job in load_jobs(tmp_path).jobs}
    assert f"l-{unlucky.name}" not in ids
    assert len(ids) == 1 + ROUNDS * 7 + 39


def test_another_network_watches_where_the_chosen_one_cannot_be_written(profile, tmp_path) -> None:
    chosen = profile.checks[3]
    prepare(profile, tmp_path, bench(refuse=lambda graph: graph is chosen.graph), time_s=None)
    jobs = load_jobs(tmp_path)
    assert (jobs.sentinel, jobs.jobs[0].id, jobs.jobs[0].file) == ("sentinel", "sentinel", "n0.onnx")


def test_where_nothing_can_be_written_the_first_reason_is_given(profile, tmp_path) -> None:
    with pytest.raises(ConfigError, match="the device does not know it"):
        prepare(profile, tmp_path, bench(refuse=lambda graph: True), time_s=None)


# The certificate


def test_a_certificate_by_hand() -> None:
    checks = tuple(Subject(f"n{width}", network(width)) for width in (4, 8, 16, 24))
    rows, times = {}, {}
    # Predicted 1.5, 2.5, 3.5 and 4.5 ms: the convolution, 0.25 for the pool, 0.5 for the start.
    for number, subject in enumerate(checks, 1):
        first, pool = fuse(subject.graph, RULES)
        rows |= {first.key: Row(number - 0.25, 0.0, 1), pool.key: Row(0.25, 0.0, 1)}
    table = replace(empty_table(IDENTITY), fit=TableFit(rows, Overheads(0.5, 0.0)))
    times = {"n4": [1.5, 1.5, 1.53], "n8": [2.6, 2.5, 2.4], "n16": [3.15], "n24": [4.0, 5.0, 4.8]}
    whole_ms = {f"c{number}-{name}": ms for name, every in times.items() for number, ms in enumerate(every, 1)}
    # As it was found, each timing took a tenth longer.
    disturbed_ms = {job: 1.1 * ms for job, ms in whole_ms.items()}
    found = certify(Profile((), checks, RULES), ProfiledModel(table), Times(whole_ms, {}, disturbed_ms))
    assert found is not None
    # Medians 1.5, 2.5, 3.15, 4.8 against 1.5, 2.5, 3.5, 4.5 ms.
    assert found.networks == 4
    assert found.mape_percent == pytest.approx(100 * (0 + 0 + 1 / 9 + 1 / 16) / 4)
    assert (found.within_5_percent, found.within_10_percent) == (50.0, 75.0)
    assert found.spearman == 1.0
    assert [miss.network for miss in found.worst[:2]] == ["n16", "n24"]
    assert (found.worst[0].measured_ms, found.worst[0].predicted_ms) == (3.15, pytest.approx(3.5))
    assert (found.fastest_ms, found.slowest_ms) == (pytest.approx(1.5), pytest.approx(4.5))
    # Of ten timings, 8/9, 0.9, ..., 16/15, 10/9 of what was predicted, the least and the most, since a fifth network
    # may well lie beyond those of four; a tenth longer.
    assert found.low_ratio == pytest.approx(1.1 * 8 / 9)
    assert found.high_ratio == pytest.approx(1.1 * 10 / 9)
    # The last of a network's times against the first: 2 %, 7.7 % and 20 % apart.
    assert found.noise_percent == pytest.approx((2 + 100 / 13 + 20) / 3)
    assert found.noise_within_5_percent == pytest.approx(100 / 3)


def test_without_a_check_there_is_no_certificate() -> None:
    nothing = Times({}, {}, {})
    assert certify(Profile((), tuple(subjects(3)), RULES), ProfiledModel(empty_table(IDENTITY)), nothing) is None


# The table


def measured(profile: Profile, folder, device: FormulaDevice | None = None):
    prepare(profile, folder, bench(), time_s=None)
    (device or FormulaDevice()).measure(folder, lambda progress: None)
    return load_results(folder)


def test_a_table_of_exact_times_foretells_networks_exactly(profile, tmp_path) -> None:
    table = make_table(IDENTITY, {"mine": (profile, measured(profile, tmp_path))}, {"odd": "cannot be written"})
    assert table.fit.overheads.start_ms == pytest.approx(START_MS)
    assert table.fit.overheads.watching_ms == pytest.approx(WATCHING_MS)
    graph = profile.learning[0].graph
    for kernel, chain in zip(fuse(graph, RULES), ((1, 2), (3, 4)), strict=False):
        assert table.fit.rows[kernel.key].median_ms == pytest.approx(kernel_ms(graph, chain))
    certificate = table.certificates["mine"]
    assert certificate.networks == 7
    assert certificate.mape_percent < 1
    assert certificate.noise_percent == 0
    assert table.fit.networks == 40
    assert table.cannot_run == {"odd": "cannot be written"}
    assert table.measured_on == "2026-01-02T03:04:05Z"
    assert table.conditions["models_timed"] == 1 + ROUNDS * 7 + 40
    assert table.conditions["disturbed_in_every_attempt"] == 0
    model = ProfiledModel(table)
    for subject in profile.checks:
        assert predict_ms(model, subject.graph, RULES) == pytest.approx(network_ms(subject.graph, RULES), rel=0.02)


def test_networks_that_a_device_cannot_run_are_named_once(profile, tmp_path) -> None:
    prepare(profile, tmp_path, bench(), time_s=None)
    with (tmp_path / SAMPLES).open("w"):
        pass
    FormulaDevice().measure(tmp_path, lambda progress: None)
    results = load_results(tmp_path)
    broken = dict(results.timings)
    errors = {f"c{number}-n2": "crashed" for number in range(1, ROUNDS + 1)} | {"l-n9": "too large"}
    for job in errors:
        del broken[job]
    table = make_table(IDENTITY, {"mine": (profile, replace(results, timings=broken, errors=errors))}, {})
    assert table.cannot_run == {"n2": "crashed", "n9": "too large"}
    assert table.certificates["mine"].networks == 6
    assert table.fit.networks == 39


def test_a_network_whose_operators_go_by_other_names_is_left_out_and_named(profile, tmp_path) -> None:
    results = measured(profile, tmp_path)
    strange = replace(results.timings["l-n9"], traced=(("Fused_7", 1.0),))
    timings = {**results.timings, "l-n9": strange}
    table = make_table(IDENTITY, {"mine": (profile, replace(results, timings=timings))}, {})
    assert table.fit.networks == 39
    assert table.cannot_run.keys() == {"n9"}
    assert "operators must be named after the nodes" in table.cannot_run["n9"]
    every = {job: replace(timing, traced=(("Fused_7", 1.0),)) for job, timing in results.timings.items()}
    with pytest.raises(ConfigError, match="got 0; 40 say nothing of their kernels"):
        make_table(IDENTITY, {"mine": (profile, replace(results, timings=every))}, {})


def test_networks_that_were_nearly_all_disturbed_make_no_table(profile, tmp_path) -> None:
    results = measured(profile, tmp_path)
    timings = dict(results.timings)
    for number, subject in enumerate(profile.learning):
        job = f"l-{subject.name}"
        # Something took time from the whole of these while their parts were timed in peace, each as much as it likes.
        if number >= FEWEST_NETWORKS - 2:
            slower = 2.0 + number % 7
            timings[job] = replace(timings[job], p10_ms=slower * timings[job].p10_ms)
    with pytest.raises(
        ConfigError, match=r"must be left alone while they are timed, got \d+ of 40: .*give it more --time"
    ):
        make_table(IDENTITY, {"mine": (profile, replace(results, timings=timings))}, {})


def test_the_network_that_shows_disturbances_stays_the_same_when_more_is_asked_for(tmp_path) -> None:
    every = subjects(90)
    files = []
    for checks in (4, 30, 16):
        prepare(Profile(tuple(every[30:]), tuple(every[:checks]), RULES), tmp_path, bench(), time_s=None)
        files.append({job.file for job in load_jobs(tmp_path).jobs if job.id == "sentinel"})
    assert files == [{"n2.onnx"}] * 3
    # Of the first dozen, so that an hour and a minute begin with the same one.
    for checks in (12, 30):
        folder = tmp_path / str(checks)
        prepare(Profile(tuple(every[30:]), tuple(every[:checks]), RULES), folder, bench(), time_s=None)
        assert {job.file for job in load_jobs(folder).jobs if job.id == "sentinel"} == {"n6.onnx"}


def test_what_checks_one_space_teaches_nothing_in_another(profile, tmp_path) -> None:
    # The spaces overlap: the checks of the first are among what the second learns from, and the other way round.
    other = Profile((*profile.checks, *profile.learning[3:]), tuple(profile.learning[:3]), RULES)
    profiles = {
        "mine": (profile, measured(profile, tmp_path / "mine")),
        "other": (other, measured(other, tmp_path / "other")),
    }
    table = make_table(IDENTITY, profiles, {})
    assert table.fit.networks == 2 * 37
    alone = {key for each in profile.learning[3:] for key in (kernel.key for kernel in fuse(each.graph, RULES))}
    assert table.fit.rows.keys() == alone


def test_a_space_of_few_networks_says_that_time_is_no_help(tmp_path) -> None:
    few = subjects(9)
    profile = Profile(tuple(few[3:]), tuple(few[:3]), RULES)
    with pytest.raises(ConfigError, match="got 6; mine has no more, so measure a larger space as well"):
        make_table(IDENTITY, {"mine": (profile, measured(profile, tmp_path))}, {})


def test_too_few_networks_make_no_table_and_say_what_to_do(profile, tmp_path) -> None:
    device = FormulaDevice(stop_after=2 + 7 + FEWEST_NETWORKS - 1)
    prepare(profile, tmp_path, bench(), time_s=None)
    with pytest.raises(TransportError):
        device.measure(tmp_path, lambda progress: None)
    with pytest.raises(ConfigError, match=r"at least 12 networks must be timed to learn from, got \d+; give it more"):
        make_table(IDENTITY, {"mine": (profile, load_results(tmp_path))}, {})


def test_checks_with_kernels_unlike_all_that_was_learnt_are_named_and_not_counted(profile, tmp_path) -> None:
    graph = GraphBuilder((3, 8, 8))
    graph.add("last", Activation("gelu"), graph.input)
    odd = Subject("odd", graph.build())
    wider = replace(profile, checks=(*profile.checks, odd))
    table = make_table(IDENTITY, {"mine": (wider, measured(wider, tmp_path))}, {})
    assert table.certificates["mine"].networks == 7
    assert "gelu(3x8x8)" in table.cannot_run["odd"]
