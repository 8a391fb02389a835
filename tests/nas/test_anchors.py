"""A calibrated target rescaled to a board of the user's own by networks that were measured there."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from hardware.anchors import Anchor, AnchorFile, rescale
from hardware.kernels import fuse
from hardware.latency_table import KernelSums, Tier, kernel_sums
from hardware.strict_yaml import ConfigError, load_yaml
from hardware.targets import boards_folder, known_targets, load_target
from hardware.transports import Progress
from nas import anchors_command, tables
from nas.cli import main
from nas.device_commands import network_graph
from nas.exit_codes import DONE, WRONG_INPUT
from nas.profile_command import Way
from nas.view import View
from searchspace.references import reference
from tests.formula_device import START_MS, FormulaDevice

FACTOR = 0.7


@pytest.fixture
def board(monkeypatch, tmp_path):
    """A board that takes 0.7 of what the rk3288 takes, and a little for each network."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    target = load_target("rk3288")

    def write(models):
        for graph, path in models:
            total = kernel_sums(target.latency_model, fuse(graph, target.fusion_rules)).total_ms
            path.write_text(json.dumps([["all", FACTOR * total]]))
            yield path

    device = FormulaDevice("ncnn", "1.0.20261020")
    monkeypatch.setattr(anchors_command, "RUNTIMES", {"ncnn": SimpleNamespace(write_timed=write)})
    monkeypatch.setattr(anchors_command, "transport_by", lambda name, way: device)
    return device


def test_a_factor_and_what_it_leaves_by_hand():
    measured = {"a": 5.0, "b": 5.0, "c": 10.0}
    anchors = {name: Anchor(measured_ms=each, predicted_ms=10.0) for name, each in measured.items()}
    found = rescale(anchors)
    # Shares of predicted over measured are 2, 2 and 1: their sum over the sum of their squares.
    assert found.factor == pytest.approx(5 / 9)
    # Without c the factor is 1/2 and 5 ms are predicted for its 10; without a it is 3/5, and 6 ms for its 5.
    assert found.ratios == pytest.approx({"a": 5 / 6, "b": 5 / 6, "c": 2.0})
    assert found.mape_percent == pytest.approx((20 + 20 + 50) / 3)


def test_too_few_networks_are_refused():
    with pytest.raises(ConfigError, match="at least 3 networks must be measured, got 1"):
        rescale({"a": Anchor(measured_ms=1.0, predicted_ms=1.0)})


def test_a_board_is_its_target_times_the_factor_that_was_measured(board, capsys):
    assert main(["profile", "--target", "rk3288", "--anchors", "--ssh", "pi@board", "--quiet"]) == DONE
    out = capsys.readouterr().out
    assert "my-rk3288: rk3288 x 0.7" in out
    assert "`nas search --target my-rk3288` uses it" in out
    assert "my-rk3288" in known_targets()
    base, own = load_target("rk3288"), load_target("my-rk3288")
    assert own.tier is Tier.calibrated
    assert own.latency_model.table.startswith("my-rk3288/ncnn-1.0.20261020/1t/fp32@")
    kernel = fuse(network_graph(reference("resnet18")), base.fusion_rules)[0]
    factor = own.latency_model.kernel(kernel).value_ms / base.latency_model.kernel(kernel).value_ms
    # The little that each network takes beside its kernels is at most 0.03 of some 4 ms.
    assert FACTOR < factor < FACTOR * 1.01
    assert own.errors.mape_percent < 1
    assert own.errors.networks == len(anchors_command.ANCHORS)
    networks = (network_graph(reference(name)) for name in anchors_command.ANCHORS)
    predicted = [kernel_sums(base.latency_model, fuse(each, base.fusion_rules)).total_ms for each in networks]
    fastest = START_MS + FACTOR * min(predicted)
    assert own.errors.fastest_ms == pytest.approx(fastest, rel=1e-4)
    # From there on networks are calibrated, far below the fastest that is published.
    assert own.latency_model.network(KernelSums(1.05 * fastest)).tier is Tier.calibrated
    assert base.latency_model.network(KernelSums(1.05 * fastest)).tier is Tier.extrapolated
    low, high = own.latency_model.range.inside_ratios
    assert (low, high) == pytest.approx(base.latency_model.range.inside_ratios, rel=0.01)


def test_what_was_measured_is_not_measured_again(board):
    arguments = ["profile", "--target", "rk3288", "--anchors", "--ssh", "pi@board", "--quiet", "--json"]
    assert main(arguments) == DONE
    timed = list(board.timed)
    assert main(arguments) == DONE
    assert board.timed == timed


def test_the_time_that_is_left_follows_from_the_pace(monkeypatch, board):
    told = []
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(tables.time, "monotonic", lambda: next(clock))
    watching = SimpleNamespace(measuring=lambda done, total, left_s: told.append((done, total, left_s)))
    monkeypatch.setattr(anchors_command, "observer", lambda quiet: nullcontext(watching))
    board.measure = lambda folder, on_progress: [on_progress(Progress(done, 21, "a")) for done in (5, 6, 21)]
    with pytest.raises(ConfigError):
        anchors_command.profile_anchors(
            "rk3288", 1, way=Way("pi@board", None, "", None, None), view=View(None, False, True)
        )
    # Four were there; then one each 10 s.
    assert told == [(5, 21, 160.0), (6, 21, 150.0), (21, 21, 0.0)]


def test_another_table_of_the_target_is_compared_anew(board, capsys):
    arguments = ["profile", "--target", "rk3288", "--anchors", "--ssh", "pi@board", "--quiet"]
    assert main(arguments) == DONE
    path = boards_folder() / "my-rk3288" / "anchors-1t.yaml"
    kept = load_yaml(path, AnchorFile)
    path.write_text(path.read_text().replace(kept.base_sha256, "f" * 64))
    with pytest.raises(ConfigError, match="the table of rk3288 has changed since my-rk3288 was compared with it"):
        load_target("my-rk3288")
    assert main(arguments) == DONE
    assert load_target("my-rk3288").name == "my-rk3288"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "host", "--anchors"], "--anchors rescales a calibrated target, and host is measured"),
        (["--target", "rk3288", "--anchors"], "my-rk3288 is not this machine; say how to reach it"),
        (["--target", "rk3588-a76", "--anchors"], "rk3588-a76 has published totals only"),
        (["--target", "rk3288", "--anchors", "--threads", "2"], "figures for 1, 4 threads, got 2"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(words, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["profile", *words]) == WRONG_INPUT
    assert message in capsys.readouterr().err


def test_an_archive_is_written_to_carry_there(board, tmp_path, capsys):
    file = Path(tmp_path) / "board.tar.gz"
    assert main(["profile", "--target", "rk3288", "--anchors", "--bundle", str(file)]) == DONE
    assert file.exists()
    assert f"holds {len(anchors_command.ANCHORS)} models" in capsys.readouterr().out
