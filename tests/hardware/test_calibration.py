from dataclasses import replace

import numpy as np
import pytest

from hardware.boards import read_boards, read_calibration
from hardware.calibration import (
    COUNTED,
    Benchmark,
    NetworkError,
    Report,
    calibrate_board,
    calibrated,
    fit_costs,
    layer_of,
    model_for,
    read_benchmark,
    read_layers,
    report_text,
)
from hardware.published import PublishedRow, read_published
from hardware.strict_yaml import ConfigError
from hardware.targets import LAYERS_FILE, TARGETS_FOLDER

# Executed instructions of whole networks by the same wheel, in millions: run as they are, layer behind layer, which is
# another way than to count each layer alone.
WHOLE_NETWORKS = {
    "resnet18": 285.394,
    "mobilenet_v2": 117.821,
    "mobilenet": 191.921,
    "shufflenet_v2": 57.578,
    "regnety_400m": 162.399,
    "yolo-fastest-1.1": 62.600,
}


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return read_benchmark(LAYERS_FILE)


@pytest.fixture(scope="module")
def rows() -> tuple[PublishedRow, ...]:
    return read_published(TARGETS_FOLDER / "published.csv")


@pytest.fixture(scope="module")
def reports(benchmark: Benchmark, rows: tuple[PublishedRow, ...]) -> dict[tuple[str, int], Report]:
    boards = read_boards(TARGETS_FOLDER).boards
    found = calibrated(benchmark, rows, {board.name: board.in_order for board in boards})
    return {(report.target, report.threads): report for report in found}


def published_ms(rows: tuple[PublishedRow, ...], threads: int, target: str = "rk3288") -> dict[str, float]:
    return {
        row.network: row.mean_ms
        for row in rows
        if (row.target, row.threads, row.precision) == (target, threads, "fp32")
    }


def test_all_33_published_networks_of_the_rk3288_are_there_and_25_of_them_in_fp32(
    rows: tuple[PublishedRow, ...],
) -> None:
    own = [row for row in rows if row.target == "rk3288"]
    assert {(threads, kind): sum(row.threads == threads and row.precision == kind for row in own)
            for threads in (1, 4) for kind in ("fp32", "int8")} == {
        (1, "fp32"): 25, (1, "int8"): 8, (4, "fp32"): 25, (4, "int8"): 8,
    }  # fmt: skip
    # ncnn's README at 1d0b78f, Rockchip RK3288-CG.W, mean of the runs.
    assert published_ms(rows, 1)["mobilenet_v2"] == 157.86
    assert published_ms(rows, 4)["mobilenet_v2"] == 71.54
    assert published_ms(rows, 4)["blazeface"] == 11.85
    assert published_ms(rows, 1)["vgg16"] == 2123.68


def test_layers_have_the_multiply_adds_of_the_papers(benchmark: Benchmark) -> None:
    assert benchmark.macs["vgg16"] == pytest.approx(15.47e9, rel=0.002)
    assert benchmark.macs["mobilenet"] == pytest.approx(569e6, rel=0.01)
    assert benchmark.macs["resnet50"] == pytest.approx(3.86e9, rel=0.01)


@pytest.mark.parametrize("network", WHOLE_NETWORKS)
def test_layers_counted_alone_add_up_to_the_whole_network(benchmark: Benchmark, network: str) -> None:
    assert benchmark.amounts[network][:3].sum() == pytest.approx(WHOLE_NETWORKS[network], rel=0.007)


def test_what_runs_only_inside_networks_keeps_the_count_of_the_older_version() -> None:
    rows = read_layers(LAYERS_FILE)
    kept = {row["kind"] for row in rows if row[COUNTED] == row["instructions_20211208"]}
    assert kept == {"DetectionOutput", "YoloDetectionOutput", "Yolov3DetectionOutput"}


def test_errors_stay_below_the_bars_on_all_25_networks(reports: dict[tuple[str, int], Report]) -> None:
    one, four = reports["rk3288", 1], reports["rk3288", 4]
    assert len(one.rows) == len(four.rows) == 25
    assert one.mape_percent <= 6.0
    assert one.share_within(20) >= 96
    assert four.mape_percent <= 10.0
    assert sum(report.threads == 1 and report.calibrates for report in reports.values()) >= 5


@pytest.mark.parametrize("target", ["rk3399-a72", "rk3399-a53", "raspberrypi4", "raspberrypi3"])
def test_the_sisters_of_the_rk3288_calibrate_at_one_thread(reports: dict[tuple[str, int], Report], target: str) -> None:
    assert reports[target, 1].calibrates


def test_errors_agree_with_an_earlier_independent_fit(reports: dict[tuple[str, int], Report]) -> None:
    # One constant on whole networks, counted with the same wheel and run layer behind layer: 5.5 %, at most 22 %,
    # Spearman 0.995, 96 % within 20 %; a * macs + b: 36.2 % and at four threads 35.5 %.
    one = reports["rk3288", 1]
    assert one.mape_percent == pytest.approx(5.5, abs=0.5)
    assert one.max_percent == pytest.approx(22, abs=1.5)
    assert one.spearman == pytest.approx(0.995, abs=0.003)
    assert one.macs_only_mape_percent == pytest.approx(36.2, abs=1.0)
    assert reports["rk3288", 4].macs_only_mape_percent == pytest.approx(35.5, abs=1.0)


def test_one_constant_is_what_the_mean_of_the_ratios_says(benchmark: Benchmark, rows: tuple[PublishedRow, ...]) -> None:
    # argmin over c of sum (c x - 1)^2 is sum x / sum x^2, with x instructions per published millisecond.
    published = published_ms(rows, 1)
    ratios = np.array([benchmark.amounts[name][:3].sum() / ms for name, ms in published.items()])
    report = calibrate_board(benchmark, "rk3288", 1, published, "instructions")
    assert report.costs == pytest.approx((ratios.sum() / (ratios**2).sum(),) * 3 + (0.0,))


def test_a_network_has_no_say_in_its_own_prediction(benchmark: Benchmark, rows: tuple[PublishedRow, ...]) -> None:
    for threads in (1, 4):
        published, model = published_ms(rows, threads), model_for(threads, in_order=False)
        before = {row.network: row for row in calibrate_board(benchmark, "rk3288", threads, published, model).rows}
        changed = {**published, "googlenet": 10 * published["googlenet"]}
        after = {row.network: row for row in calibrate_board(benchmark, "rk3288", threads, changed, model).rows}
        assert after["googlenet"].predicted_ms == pytest.approx(before["googlenet"].predicted_ms, rel=1e-9)
        assert after["resnet18"].predicted_ms != pytest.approx(before["resnet18"].predicted_ms, rel=1e-3)


def test_the_smallest_third_has_no_say_in_its_own_prediction(
    benchmark: Benchmark, rows: tuple[PublishedRow, ...]
) -> None:
    published = published_ms(rows, 1)
    before = calibrate_board(benchmark, "rk3288", 1, published, "instructions")
    assert [row.network for row in before.small_rows] == sorted(published, key=published.__getitem__)[:8]
    changed = published | {"blazeface": 20.0, "shufflenet_v2": 70.0}
    after = calibrate_board(benchmark, "rk3288", 1, changed, "instructions")
    assert {row.network: row.predicted_ms for row in after.small_rows} == pytest.approx(
        {row.network: row.predicted_ms for row in before.small_rows}
    )


def test_the_margin_holds_every_one_of_the_smallest_networks(reports: dict[tuple[str, int], Report]) -> None:
    for report in reports.values():
        low, high = report.outside_ratios
        for row in (*report.small_rows, *report.rows[: len(report.small_rows)]):
            assert low <= row.ratio <= high


def test_cores_in_order_have_a_constant_for_bytes_and_several_threads_one_for_each_group() -> None:
    assert model_for(1, in_order=False) == "instructions"
    assert model_for(1, in_order=True) == "instructions and bytes"
    assert model_for(4, in_order=False) == model_for(2, in_order=True) == "groups and bytes"


def test_costs_are_found_again_where_they_are_known() -> None:
    rng = np.random.default_rng(5)
    amounts, costs = rng.uniform(1, 100, (12, 4)), np.array([0.3, 0.6, 0.2, 0.4])
    assert fit_costs("groups and bytes", amounts, amounts @ costs) == pytest.approx(costs)


def test_a_board_with_fewer_networks_than_constants_is_refused(
    benchmark: Benchmark, rows: tuple[PublishedRow, ...]
) -> None:
    few = dict(list(published_ms(rows, 4).items())[:4])
    with pytest.raises(ConfigError, match="4 constants and needs more networks than that, got 3"):
        calibrate_board(benchmark, "rk3288", 4, few, "groups and bytes")


def test_a_network_that_was_not_counted_or_stands_twice_is_refused(
    benchmark: Benchmark, rows: tuple[PublishedRow, ...]
) -> None:
    first = next(row for row in rows if row.precision == "fp32")
    with pytest.raises(ConfigError, match="lenet must be counted; known: alexnet"):
        calibrated(benchmark, [replace(first, network="lenet")], {first.target: False})
    with pytest.raises(ConfigError, match=f"{first.network} is published twice"):
        calibrated(benchmark, [first, first], {first.target: False})


def test_summary_figures_of_a_report_by_hand() -> None:
    rows = tuple(NetworkError(name, 100.0, value) for name, value in [("a", 110.0), ("b", 85.0), ("c", 130.0)])
    report = Report("x", 1, "instructions", (1.0, 1.0, 1.0, 0.0), rows, rows[1:2], (0.5, 1.5), 36.0)
    assert report.mape_percent == pytest.approx((10 + 15 + 30) / 3)
    assert report.median_percent == pytest.approx(15)
    assert report.max_percent == pytest.approx(30)
    assert report.share_within(10.001) == pytest.approx(100 / 3)
    assert (report.small_mape_percent, report.small_bias_percent) == (pytest.approx(15), pytest.approx(-15))
    low, high = report.inside_ratios
    assert 100 / 130 < low < 100 / 110 < high < 100 / 85
    assert report.outside_ratios == (0.5, 1.5)
    assert report_text(report).splitlines()[5].split() == ["c", "100.00", "130.00", "+30.0"]


def test_the_shipped_calibration_is_what_the_data_give(reports: dict[tuple[str, int], Report]) -> None:
    from hardware.calibration import calibration_text

    shipped = (TARGETS_FOLDER / "calibration.csv").read_text()
    assert calibration_text(list(reports.values())) == shipped
    assert {target for target, _ in reports} == set(read_calibration(TARGETS_FOLDER))


def test_every_published_row_agrees_with_its_board(rows: tuple[PublishedRow, ...]) -> None:
    boards = {board.name: board for board in read_boards(TARGETS_FOLDER).boards}
    assert {row.target for row in rows} == set(boards)
    for row in rows:
        board = boards[row.target]
        assert (row.version, row.date, row.commit) == (board.version, board.date, board.commit)


def test_a_layer_is_read_as_it_stands() -> None:
    row = next(row for row in read_layers(LAYERS_FILE) if row["network"] == "alexnet")
    layer = layer_of(row)
    assert (layer.kind, layer.in_shape, layer.out_shape) == ("conv", (3, 227, 227), (96, 55, 55))
    assert (layer.kernel, layer.stride, layer.groups, layer.activation) == ((11, 11), 4, 1, "relu")
