import itertools
import math
import pickle
from pathlib import Path

import pytest

from hardware.kernels import Kernel
from hardware.latency_table import (
    CalibratedModel,
    CalibratedRange,
    LatencyModel,
    MeasuredTable,
    NetworkRatios,
    TableIdentity,
    Tier,
    UnmeasuredKernel,
    worst_tier,
)
from hardware.ncnn_layers import AMOUNTS
from hardware.ops import Activation, Add, Conv, GlobalPool, Mul, Pool
from hardware.strict_yaml import ConfigError
from hardware.targets import load_target

POINTWISE = Kernel((Conv(16, (1, 1)), Activation("relu")), ((8, 4, 5),), (16, 4, 5))
SUM = Kernel((Conv(8, (3, 3), padding=(1, 1)), Add()), ((8, 4, 5), (8, 4, 5)), (8, 4, 5))

IDENTITY = TableIdentity(
    target="host",
    device="Linux x86_64",
    cpu="Some: processor # 3",
    cores=4,
    threads=1,
    runtime="onnxruntime",
    runtime_version="1.23.0",
    precision="fp32",
    unit="ms",
    protocol="median of 100",
)


def _coefficients(**values: float) -> tuple[float, ...]:
    return tuple(values.get(name, 0.0) for name in AMOUNTS)


def _model() -> CalibratedModel:
    return CalibratedModel(
        table="x/y/1t/fp32@0",
        formula={"conv1x1": _coefficients(macs=0.5, relu=1.0, calls=1000.0), "add": _coefficients(written=2.0)},
        costs={"matrix": 2.0, "winograd": 3.0, "vector": 5.0, "memory": 7.0, "activation_megabyte": 11.0},
        range=CalibratedRange(25.0, 2000.0, (0.9, 1.2), (0.8, 1.25)),
    )


@pytest.fixture
def table(tmp_path: Path) -> MeasuredTable:
    table = MeasuredTable(tmp_path / "tables" / "t.csv", IDENTITY, started="2025-01-01")
    table.add(POINTWISE, median_ms=0.012345678901234567, spread_ms=0.0, runs=100)
    table.add(SUM, median_ms=0.5, spread_ms=0.01, runs=50)
    return table


@pytest.mark.parametrize(
    ("tiers", "worst"),
    [
        ([Tier.measured, Tier.calibrated], Tier.calibrated),
        ([Tier.extrapolated, Tier.measured], Tier.extrapolated),
        ([Tier.calibrated, Tier.calibrated], Tier.calibrated),
        ([], Tier.measured),
    ],
)
def test_the_worst_tier_is_the_least_trustworthy_not_the_last_in_the_alphabet(tiers: list[Tier], worst: Tier) -> None:
    assert worst_tier(tiers) is worst


def test_a_calibrated_kernel_by_hand() -> None:
    # 8 * 16 * 20 multiply-adds, 320 outputs through the activation, one call; 160 elements read and 320 written.
    expected = 2.0 * (0.5 * 2560 + 320 + 1000) / 1e6 + 11.0 * 4 * 480 / 1e6
    answer = _model().kernel(POINTWISE)
    assert answer.value_ms == pytest.approx(expected, rel=1e-12)
    assert answer.tier is Tier.calibrated


@pytest.mark.parametrize(
    ("total_ms", "kernels", "tier", "low", "high"),
    [
        (100.0, Tier.calibrated, Tier.calibrated, 90.0, 120.0),
        (25.0, Tier.calibrated, Tier.calibrated, 22.5, 31.25),
        (24.999, Tier.calibrated, Tier.extrapolated, 19.9992, 31.24875),
        (2000.1, Tier.calibrated, Tier.extrapolated, 1600.08, 2500.125),
        (100.0, Tier.extrapolated, Tier.extrapolated, 80.0, 125.0),
        (100.0, Tier.measured, Tier.calibrated, 90.0, 120.0),
    ],
)
def test_a_network_is_calibrated_only_inside_the_range(
    total_ms: float, kernels: Tier, tier: Tier, low: float, high: float
) -> None:
    answer = _model().network(total_ms, kernels)
    assert (answer.value_ms, answer.tier, answer.table) == (total_ms, tier, "x/y/1t/fp32@0")
    assert (answer.low_ms, answer.high_ms) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("threads", [1, 4])
def test_below_the_range_the_margin_covers_what_the_fastest_published_network_needs(threads: int) -> None:
    # At one thread blazeface takes 25.47 ms and 19.28 ms are predicted without it: 1.32 times.
    model = load_target("rk3288", threads=threads).latency_model
    assert model.network(3.75, Tier.calibrated).high_ms <= 5.0
    assert model.network(10.0, Tier.calibrated).high_ms >= 10.0 * 25.47 / 19.28
    assert model.network(3.75, Tier.calibrated).low_ms <= 0.8 * 3.75
    assert model.network(3.75, Tier.calibrated).tier is Tier.extrapolated


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (Kernel((Conv(15, (3, 3), padding=(1, 1), groups=5),), ((10, 8, 8),), (15, 8, 8)), "groups of 2 -> 3"),
        (Kernel((Conv(16, (7, 7), padding=(3, 3), groups=16),), ((16, 8, 8),), (16, 8, 8)), "3x3 and 5x5"),
        (Kernel((Conv(16, (9, 9), padding=(4, 4), groups=16),), ((16, 8, 8),), (16, 8, 8)), "3x3 and 5x5"),
        (Kernel((Conv(16, (3, 3), padding=(2, 2), dilation=2),), ((16, 8, 8),), (16, 8, 8)), "dilated"),
        (Kernel((Conv(16, (1, 7), padding=(0, 3)),), ((16, 8, 8),), (16, 8, 8)), "not square"),
        (Kernel((Conv(10, (3, 3), padding=(1, 1)),), ((10, 8, 8),), (10, 8, 8)), "not divisible by 4"),
        (Kernel((Activation("gelu"),), ((16, 8, 8),), (16, 8, 8)), "'gelu'"),
        (Kernel((Activation("relu6"),), ((16, 8, 8),), (16, 8, 8)), "'relu6'"),
        (Kernel((Pool("average", (2, 2), 2),), ((16, 8, 8),), (16, 4, 4)), "averages"),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_a_kernel_without_its_like_is_extrapolated_and_never_zero(kernel: Kernel, why: str, threads: int) -> None:
    answer = load_target("rk3288", threads=threads).latency_model.kernel(kernel)
    assert answer.tier is Tier.extrapolated
    assert why in answer.why
    assert answer.value_ms > 0.0005


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel((Conv(16, (3, 3), 2, (1, 1)), Activation("relu6")), ((3, 33, 33),), (16, 17, 17)),
        Kernel((Conv(58, (1, 1)),), ((58, 7, 7),), (58, 7, 7)),
        Kernel((Conv(16, (5, 5), 2, (2, 2), groups=16),), ((16, 7, 7),), (16, 4, 4)),
        Kernel((Conv(16, (3, 3), 1, (1, 1), groups=2),), ((16, 7, 7),), (16, 7, 7)),
        Kernel((Mul(),), ((16, 7, 7), (16, 1, 1)), (16, 7, 7)),
        Kernel((GlobalPool(),), ((16, 7, 7),), (16, 1, 1)),
        Kernel((Activation("hardswish"),), ((16, 7, 7),), (16, 7, 7)),
    ],
)
def test_kernels_that_the_benchmark_has_are_calibrated(kernel: Kernel) -> None:
    assert load_target("rk3288").latency_model.kernel(kernel).tier is Tier.calibrated


def test_an_operation_that_nobody_foresaw_is_extrapolated_and_not_zero() -> None:
    # Not even the family of last resort is in this formula's neighbourhood.
    answer = _model().kernel(Kernel((Activation("sigmoid"),), ((16, 8, 8),), (16, 8, 8)))
    assert answer.value_ms == pytest.approx(7.0 * 2.0 * 1024 / 1e6 + 11.0 * 4 * 2048 / 1e6)


def test_more_of_anything_never_costs_less() -> None:
    model = load_target("rk3288").latency_model

    def conv_ms(channels: int, size: int, kernel: int, groups: int) -> float:
        op = Conv(channels, (kernel, kernel), padding=(kernel // 2, kernel // 2), groups=groups)
        return model.kernel(Kernel((op,), ((channels, size, size),), (channels, size, size))).value_ms

    for kernel, depthwise in [(1, False), (3, False), (3, True), (5, True), (7, True)]:
        times = [conv_ms(width, 8, kernel, width if depthwise else 1) for width in (8, 16, 32, 64, 128)]
        assert all(small < large for small, large in itertools.pairwise(times))
        times = [conv_ms(16, size, kernel, 16 if depthwise else 1) for size in (2, 4, 8, 16, 32, 64)]
        assert all(small < large for small, large in itertools.pairwise(times))


def test_a_calibrated_model_survives_pickling_for_worker_processes() -> None:
    model = load_target("rk3288").latency_model
    before = model.kernel(POINTWISE)
    again: LatencyModel = pickle.loads(pickle.dumps(model))
    assert again.kernel(POINTWISE) == before


def test_rows_come_back_exactly_as_they_were_measured(table: MeasuredTable) -> None:
    again = MeasuredTable.load(table.path, IDENTITY)
    assert dict(again.rows) == dict(table.rows)
    assert again.table == table.table
    assert again.kernel(POINTWISE).value_ms == 0.012345678901234567
    assert again.kernel(SUM).tier is Tier.measured
    assert again.table.startswith("host/onnxruntime-1.23.0/1t/fp32@")


def test_an_unmeasured_kernel_is_an_error_and_not_zero(table: MeasuredTable) -> None:
    other = Kernel((GlobalPool(),), ((16, 8, 8),), (16, 1, 1))
    with pytest.raises(UnmeasuredKernel, match=r"global_pool\(16x8x8\)") as caught:
        table.kernel(other)
    assert caught.value.keys == ("global_pool(16x8x8)",)
    assert table.missing([POINTWISE, other, other, SUM]) == ("global_pool(16x8x8)",)


def test_measuring_again_replaces_the_row(table: MeasuredTable) -> None:
    before = table.table
    table.add(SUM, median_ms=0.25, spread_ms=0.01, runs=50)
    assert table.kernel(SUM).value_ms == 0.25
    assert table.table != before
    assert len(MeasuredTable.load(table.path, IDENTITY).rows) == 2


def test_nothing_is_left_beside_the_table(table: MeasuredTable) -> None:
    assert [path.name for path in table.path.parent.iterdir()] == ["t.csv"]


def test_a_sum_of_measured_kernels_is_no_measurement(table: MeasuredTable) -> None:
    answer = table.network(10.0, Tier.measured)
    assert (answer.tier, answer.low_ms, answer.high_ms) == (Tier.extrapolated, 8.0, 12.5)
    ratios = NetworkRatios(networks=30, low_ratio=0.85, high_ratio=0.97, fastest_ms=2.0, slowest_ms=20.0)
    table.add_network_ratios(ratios)
    for each in (table, MeasuredTable.load(table.path, IDENTITY)):
        answer = each.network(10.0, Tier.measured)
        assert (answer.tier, answer.low_ms, answer.high_ms) == (Tier.calibrated, 8.5, 10.0)
    assert table.network(10.0, Tier.extrapolated).tier is Tier.extrapolated
    slower = table.network(20.1, Tier.measured)
    assert (slower.tier, slower.high_ms) == (Tier.extrapolated, pytest.approx(25.125))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_slower_network_never_seems_safer(threads: int) -> None:
    model = load_target("rk3288", threads=threads).latency_model
    upper_ends = [model.network(0.05 * step, Tier.calibrated).high_ms for step in range(1, 60_000)]
    assert upper_ends == sorted(upper_ends)


def test_a_whole_number_of_milliseconds_survives_the_file(table: MeasuredTable) -> None:
    table.add(SUM, median_ms=1, spread_ms=0, runs=15)
    assert MeasuredTable.load(table.path, IDENTITY).sha256 == table.sha256


@pytest.mark.parametrize(
    ("median_ms", "spread_ms", "runs", "message"),
    [
        (0.0, 0.0, 1, "median_ms must be above 0"),
        (-1.0, 0.0, 1, "median_ms must be above 0"),
        (math.nan, 0.0, 1, "median_ms must be above 0"),
        (math.inf, 0.0, 1, "median_ms must be above 0"),
        (1e6, 0.0, 1, "at most 60000"),
        (1.0, -0.1, 1, "spread_ms must be from 0"),
        (1.0, math.nan, 1, "spread_ms must be from 0"),
        (1.0, 0.0, 0, "runs must be at least 1"),
    ],
)
def test_what_is_no_latency_does_not_enter(
    table: MeasuredTable, median_ms: float, spread_ms: float, runs: int, message: str
) -> None:
    before = table.path.read_text()
    with pytest.raises(ValueError, match=message):
        table.add(SUM, median_ms=median_ms, spread_ms=spread_ms, runs=runs)
    assert table.path.read_text() == before
    assert table.kernel(SUM).value_ms == 0.5


def _edit(table: MeasuredTable, old: str, new: str) -> str:
    text = table.path.read_text()
    assert old in text
    table.path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        MeasuredTable.load(table.path, IDENTITY)
    return str(caught.value).removeprefix(str(table.path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#   unit: ms\n", "", ":1: identity.unit: a value is required, got none"),
        ("unit: ms", "unit: s", ":10: identity.unit: must be 'ms', got 's'"),
        ("#   cores: 4", "#   cores: 4\n#   core: 5", ":6: identity.core: unknown key; did you mean 'cores'?"),
        (",0.5,", ",-0.5,", ":16: conv(8x4x5,8x4x5>8 k3x3 s1 p1x1 g1)+add: median_ms must be above 0"),
        (",0.5,", ",nan,", ":16: conv(8x4x5,8x4x5>8 k3x3 s1 p1x1 g1)+add: median_ms must be above 0"),
        (",0.5,", ",900000,", "median_ms must be above 0 and at most 60000, got 900000.0"),
        (",0.5,", ",fast,", "could not convert string to float: 'fast'"),
        (",0.5,", ",0.4,", ":13: sha256: must be that of the rows"),
        (",0.5,", ",", ":16: a row must have 4 cells, got 3"),
        ("key,median_ms", "key,median", ":14: the columns must be key, median_ms, spread_ms, runs"),
        (
            "threads: 1",
            "threads: 2",
            ":1: identity: a table serves one identity only; threads is 2 in the file and 1 here",
        ),
        (
            "runtime_version: 1.23.0",
            "runtime_version: 1.24.0",
            "runtime_version is '1.24.0' in the file and '1.23.0' here",
        ),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(table: MeasuredTable, old: str, new: str, message: str) -> None:
    assert message in _edit(table, old, new)


def test_a_kernel_that_stands_twice_is_refused(table: MeasuredTable) -> None:
    row = table.path.read_text().splitlines(keepends=True)[-1]
    table.path.write_text(table.path.read_text() + row)
    with pytest.raises(ConfigError, match=r":17: conv.*: a kernel may stand only once"):
        MeasuredTable.load(table.path, IDENTITY)
