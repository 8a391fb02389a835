import math
from dataclasses import replace
from pathlib import Path

import pytest

from hardware.kernels import REUSE_CLASSES, Kernel
from hardware.latency_table import KernelSums, Tier, UnmeasuredKernel, of_class
from hardware.ops import Activation, Add, Conv, GlobalPool
from hardware.profiled_table import (
    Certificate,
    Miss,
    ProfiledModel,
    ProfiledTable,
    TableIdentity,
    empty_table,
    read_table,
    write_table,
)
from hardware.strict_yaml import ConfigError
from hardware.table_fit import KNOTS_MB, NO_STEPS, Overheads, Row, TableFit
from hardware.whole_fit import NetworkFactor

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
CERTIFICATE = Certificate(
    networks=30,
    mape_percent=3.0,
    within_5_percent=80.0,
    within_10_percent=99.0,
    spearman=0.99,
    low_ratio=0.85,
    high_ratio=0.97,
    fastest_ms=2.0,
    slowest_ms=20.0,
    noise_percent=1.0,
    noise_within_5_percent=99.0,
    worst=(Miss(network="n", measured_ms=1.0, predicted_ms=1.2),),
)
# From 1 to 2 MB of weights, kernels that use each once double their time; from 1 to 2 MB that kernels move, the price
# of one rises by 0.125 ms.
DOUBLES = tuple(math.log(2.0) if knot == 1.0 else 0.0 for knot in KNOTS_MB[:-1])
GROWTH = (DOUBLES, *[NO_STEPS] * (REUSE_CLASSES - 1))
MOVED = tuple(0.125 if knot == 1.0 else 0.0 for knot in KNOTS_MB[:-1])
# Far from every network here, so that it multiplies by 1.
FACTOR = NetworkFactor((9.0,) * 5, (0.1,) * 5, ((0.0,) * 5, (1.0,) * 5), (0.5, -0.25))


def _table(**changes: object) -> ProfiledTable:
    rows = {POINTWISE.key: Row(0.012345678901234567, 0.0, 3), SUM.key: Row(0.5, 0.01, 1)}
    table = ProfiledTable(
        IDENTITY,
        "2025-01-01",
        {"load_before": [0.1, 0.2]},
        TableFit(rows, Overheads(0.125, 0.002, GROWTH, MOVED), FACTOR, 4),
        {},
        {"edge-small": CERTIFICATE},
        {"abc": "the runtime says no"},
    )
    return replace(table, **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_table(_table(), tmp_path / "tables" / "t.csv")
    return tmp_path / "tables" / "t.csv"


def test_a_table_comes_back_from_its_file_exactly(path: Path) -> None:
    again = read_table(path, IDENTITY)
    assert again == _table()
    assert again.sha256 == _table().sha256
    assert again.name.startswith("host/onnxruntime-1.23.0/1t/fp32@")
    assert [each.name for each in path.parent.iterdir()] == ["t.csv"]


def test_rows_are_answered_as_they_were_measured() -> None:
    model = ProfiledModel(_table())
    assert model.kernel(POINTWISE).value_ms == 0.012345678901234567
    assert model.kernel(SUM).tier is Tier.measured


def test_a_kernel_unlike_all_that_was_measured_is_an_error_and_not_zero() -> None:
    other = Kernel((GlobalPool(),), ((16, 8, 8),), (16, 1, 1))
    for table in (_table(), empty_table(IDENTITY)):
        with pytest.raises(UnmeasuredKernel, match=r"global_pool\(16x8x8\).*run nas profile") as caught:
            ProfiledModel(table).kernel(other)
        assert caught.value.keys == ("global_pool(16x8x8)",)


def _pooled(channels: int, size: int) -> Kernel:
    return Kernel((GlobalPool(),), ((channels, size, size),), (channels, 1, 1))


def test_between_measured_kernels_of_a_family_times_are_fitted_and_far_from_them_extrapolated() -> None:
    # Time goes with the number of values: 1e-5 ms each.
    rows = {
        _pooled(channels, size).key: Row(1e-5 * channels * size**2, 0.0, 1)
        for channels in (16, 32, 64, 128, 256)
        for size in (4, 8, 16, 32)
    }
    model = ProfiledModel(_table(fit=TableFit(rows, Overheads(0, 0))))
    near = model.kernel(_pooled(96, 12))
    assert near.value_ms == pytest.approx(1e-5 * 96 * 144, rel=0.1)
    assert near.tier is Tier.calibrated
    assert model.kernel(_pooled(4096, 400)).tier is Tier.extrapolated


def test_a_sum_of_measured_kernels_is_no_measurement() -> None:
    unchecked = ProfiledModel(_table(certificates={})).network(KernelSums(9.875, tier=Tier.measured))
    assert (unchecked.tier, unchecked.low_ms, unchecked.high_ms) == (Tier.extrapolated, 8.0, 12.5)
    for model in (ProfiledModel(_table()), ProfiledModel(_table(), "edge-small")):
        answer = model.network(KernelSums(9.875, tier=Tier.measured))
        assert (answer.value_ms, answer.tier, answer.low_ms, answer.high_ms) == (10.0, Tier.calibrated, 8.5, 10.0)
        assert model.network(KernelSums(9.875, tier=Tier.extrapolated)).tier is Tier.extrapolated
        # A fiftieth of unknown kernels decides nothing; of more, the interval is that of an unchecked table.
        few = model.network(KernelSums(9.875, tier=Tier.extrapolated, extrapolated_ms=0.19))
        assert (few.low_ms, few.high_ms) == (8.5, 10.0)
        many = model.network(KernelSums(9.875, tier=Tier.extrapolated, extrapolated_ms=0.21))
        assert (many.low_ms, many.high_ms) == (8.0, 12.5)
        slower = model.network(KernelSums(20.0, tier=Tier.measured))
        assert (slower.tier, slower.high_ms) == (Tier.extrapolated, pytest.approx(1.25 * 20.125))
    assert ProfiledModel(_table(), "parc").network(KernelSums(9.875, tier=Tier.measured)).tier is Tier.extrapolated


MB = 2**20


@pytest.mark.parametrize(
    ("sums", "more_ms"),
    [
        (KernelSums(1.0, of_class(1.0, 0), weight_bytes=MB), 0.0),
        (KernelSums(1.0, of_class(1.0, 0), weight_bytes=3 * MB // 2), 2**0.5 - 1),
        (KernelSums(1.0, of_class(0.4, 0), weight_bytes=2 * MB), 0.4),
        (KernelSums(1.0, of_class(0.4, 0), weight_bytes=10 * MB), 0.4),
        (KernelSums(1.0, of_class(1.0, 1), weight_bytes=10 * MB), 0.0),
        (KernelSums(1.0, moved_bytes=MB), 0.0),
        (KernelSums(1.0, moved_bytes=4 * MB), 0.5),
    ],
)
def test_what_fits_no_cache_costs_more(sums: KernelSums, more_ms: float) -> None:
    assert ProfiledModel(_table()).network(sums).value_ms == pytest.approx(1.125 + more_ms)


def _edit(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_table(path, IDENTITY)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#   unit: ms\n", "", ":2: identity.unit: a value is required, got none"),
        ("unit: ms", "unit: s", ":11: identity.unit: "),
        ("#   cores: 4", "#   cores: 4\n#   core: 5", ":7: identity.core: unknown key; did you mean 'cores'?"),
        (",0.5,", ",-0.5,", "conv(8x4x5,8x4x5>8 k3x3 s1 p1x1 g1)+add: median_ms must be above 0"),
        (",0.5,", ",nan,", "conv(8x4x5,8x4x5>8 k3x3 s1 p1x1 g1)+add: median_ms must be above 0"),
        (",0.5,", ",900000,", "median_ms must be above 0 and at most 60000, got 900000.0"),
        (",0.5,0.01", ",0.5,-1", "spread_ms must be from 0"),
        (",0.5,0.01,1", ",0.5,0.01,0", "networks must be at least 1, got 0"),
        (",0.5,", ",fast,", "could not convert string to float: 'fast'"),
        (",0.5,", ",0.4,", ": sha256: must be that of the table"),
        ("start_ms: 0.125", "start_ms: 0.25", ": sha256: must be that of the table"),
        ("start_ms: 0.125", "start_ms: -0.25", "overheads.start_ms: "),
        ("low_ratio: 0.85", "low_ratio: 0.95", ": sha256: must be that of the table"),
        (",0.5,", ",", ": a row must have 4 cells, got 3"),
        ("key,median_ms", "key,median", ": the columns must be key, median_ms, spread_ms, networks"),
        (
            "# format: 2\n",
            "",
            ":1: format: must be 2, got none; another version wrote this table: run nas profile again",
        ),
        ("# format: 2\n", "# format: 3\n", ":1: format: must be 2, got 3; another version wrote this table"),
        (
            "threads: 1",
            "threads: 2",
            ":2: identity: a table serves one identity only; threads is 2 in the file and 1 here",
        ),
        (
            "runtime_version: 1.23.0",
            "runtime_version: 1.24.0",
            "runtime_version is '1.24.0' in the file and '1.23.0' here",
        ),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(path: Path, old: str, new: str, message: str) -> None:
    assert message in _edit(path, old, new)


def test_a_kernel_that_stands_twice_is_refused_with_its_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(ConfigError, match=rf":{len(lines) + 1}: conv.*: a kernel may stand only once"):
        read_table(path, IDENTITY)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a readable table is needed"):
        read_table(tmp_path / "none.csv")


def test_a_number_that_is_no_latency_never_comes_out_of_a_fit() -> None:
    rows = {_pooled(channels, 4).key: Row(1e-6, 0.0, 1) for channels in (1, 2, 3, 4, 5, 6, 7, 8)}
    model = ProfiledModel(_table(fit=TableFit(rows, Overheads(0, 0))))
    answer = model.kernel(_pooled(100, 1))
    assert math.isfinite(answer.value_ms)
    assert answer.value_ms > 0
