"""Finalists on a device that follows a formula, and studies that keep the table they began with."""

import hashlib
import json
import logging
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hardware import kernel_fit
from hardware.board import JobFailed
from hardware.onnx_model import INPUT_NAME, OUTPUT_NAME
from hardware.profiled_table import read_table, write_table
from hardware.runtimes import RUNTIMES
from hardware.strict_yaml import ConfigError
from hardware.targets import described_target, host_identity, load_target, table_path
from hardware.transports import Local, Ssh
from nas import certificates, driver, tables
from nas.certificates import Connection, connection_path, measure_members, transport_to, write_train_form
from nas.cli import main
from nas.exit_codes import BROKEN_CERTIFICATE, DONE, WRONG_INPUT
from nas.settings import read_study_file
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import parse_layout
from searchspace.network import build_network, deploy_graph
from searchspace.spec import ArchSpec, spec_from_dict, write_spec
from tests.formula_device import OTHER_MS, START_MS, FormulaDevice, network_ms, write_timed
from tests.nas.conftest import StudyExecutor, trained

DESCRIBED = described_target("host", None)
RULES = DESCRIBED.fusion_rules

# Few kinds of kernels, so that a few dozen networks show enough of each.
GENES = "genes: {resolution: 32, stem.width: [8, 16], stage*.family: rdp, stage3.width: [24, 32], stage4.width: 48}\n"
STUDY = f"target: host\nbudget: 100ms\ndata_limit: 200\ntrials: 9\nfinalists: 3\nstudy: mine\n{GENES}"


def spec_of(width):
    return ArchSpec((3, 16, 16), Rep(width, 2), ((Rdp(width),),), Classifier(5))


def modelled(tmp_path, **widths):
    """Model folders as finalists have them, for `{"m3": 8}` trial 3 of width 8."""
    found = {}
    for name, width in widths.items():
        folder = tmp_path / f"{name}-{width}"
        folder.mkdir(exist_ok=True)
        write_spec(spec_of(width), folder / "spec.yaml")
        write_model(spec_of(width), folder)
        found[int(name[1:])] = folder
    return found


def write_model(spec, folder):
    (path,) = write_timed(RULES)([(deploy_graph(spec), folder / "model.onnx")])
    return path


def exported(plan):
    """`trained`, with a model that the device can run."""
    found = trained(plan)
    content = write_model(plan.spec, plan.folder).read_bytes()
    return found | {"files": found["files"] | {"model.onnx": hashlib.sha256(content).hexdigest()}}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=120, checks=6))
    monkeypatch.setattr(kernel_fit, "POINTS_FOR_SCALES", 40)
    monkeypatch.setitem(RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], write_timed=write_timed(RULES)))
    # What torch exports is tried once, below.
    monkeypatch.setattr(certificates, "write_train_form", lambda spec, path: path.write_text("as it was trained"))


@pytest.fixture
def device(monkeypatch):
    """In the place of this machine."""
    found = FormulaDevice(version=host_identity(DESCRIBED, 1).runtime_version)
    for module in (driver, certificates):
        monkeypatch.setattr(module, "Local", lambda: found)
    return found


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The table of this machine, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("ready")))
        patch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=120, checks=6))
        patch.setattr(kernel_fit, "POINTS_FOR_SCALES", 40)
        patch.setitem(RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], write_timed=write_timed(RULES)))
        device = FormulaDevice(version=host_identity(DESCRIBED, 1).runtime_version)
        wanted = tables.Wanted("host", "edge-small", None, 1, 60.0)
        return tables.make(wanted, device, lambda done, total, left_s: None)


@pytest.fixture
def known(ready):
    write_table(ready, table_path(ready.identity))
    return ready


@pytest.fixture
def nas(tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def nas(*words, train=exported):
        executor = StudyExecutor(train)
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        code = main([*map(str, words), "--out", str(tmp_path)])
        told = capsys.readouterr()
        return code, told.out, told.err

    nas.folder = tmp_path / "mine"
    nas.file = tmp_path / "mine.yaml"
    nas.file.write_text(STUDY)
    yield nas
    signal.signal(signal.SIGTERM, before)


# Members


def test_members_are_measured_fused_and_as_they_were_trained(device, known, tmp_path):
    found = measure_members(load_target("host"), modelled(tmp_path, m3=8, m11=16), tmp_path / "measured")
    assert set(found) == {3, 11}
    for trial, spec in {3: spec_of(8), 11: spec_of(16)}.items():
        fused = found[trial].fused
        assert fused.value_ms == pytest.approx(network_ms(deploy_graph(spec), RULES))
        assert fused.low_ms == fused.high_ms == fused.value_ms
        assert (fused.tier, fused.table) == ("measured", f"{known.name}, timed whole")
        assert found[trial].unfused_ms == OTHER_MS
    # In rounds, and the sentinel in between.
    asked = [job for job in device.timed if job != "fused-3-1"]
    assert asked[:4] == ["fused-11-1", "unfused-3-1", "unfused-11-1", "fused-3-2"]


def test_onnx_runtime_is_timed_with_the_very_file_that_ships(device, known, tmp_path):
    models = modelled(tmp_path, m3=8)
    (models[3] / "model.onnx").write_text(json.dumps([["all of it", 4.0]]))
    found = measure_members(load_target("host"), models, tmp_path / "measured")
    assert found[3].fused.value_ms == pytest.approx(START_MS + 4.0)


def test_another_runtime_is_given_the_network_in_its_own_form(known, tmp_path, monkeypatch):
    device = FormulaDevice("ncnn")
    monkeypatch.setattr(certificates, "Local", lambda: device)
    monkeypatch.setitem(RUNTIMES, "ncnn", replace(RUNTIMES["ncnn"], write_timed=write_timed(RULES)))
    models = modelled(tmp_path, m3=8)
    (models[3] / "model.onnx").unlink()
    found = measure_members(load_target("host", runtime="ncnn"), models, tmp_path / "measured")
    assert found[3].fused.value_ms == pytest.approx(network_ms(deploy_graph(spec_of(8)), RULES))
    assert found[3].unfused_ms is None


def test_the_rounds_of_a_member_make_its_interval(device, known, tmp_path):
    factors = {"fused-3-1": 1.5, "fused-3-2": 1.0, "fused-3-3": 1.25}
    device._slower = lambda job, count: factors.get(job, 1.0)
    target = load_target("host")
    own_ms = network_ms(deploy_graph(spec_of(8)), RULES)
    found = measure_members(target, modelled(tmp_path, m2=16, m3=8), tmp_path)[3].fused
    assert (found.low_ms, found.value_ms, found.high_ms) == pytest.approx((own_ms, 1.25 * own_ms, 1.5 * own_ms))


def test_without_members_or_a_way_nothing_is_measured(device, known, tmp_path):
    assert measure_members(load_target("host"), {}, tmp_path / "measured") == {}
    assert measure_members(load_target("rk3288"), modelled(tmp_path, m1=8), tmp_path / "measured") == {}
    assert not (tmp_path / "measured").exists()


def test_other_members_are_measured_anew_and_the_same_ones_are_not(device, known, tmp_path):
    target = load_target("host")
    first = measure_members(target, modelled(tmp_path, m1=8, m2=16), tmp_path)
    count = len(device.timed)
    assert measure_members(target, modelled(tmp_path, m1=8, m2=16), tmp_path) == first
    assert len(device.timed) == count
    found = measure_members(target, modelled(tmp_path, m2=16, m5=24), tmp_path)
    assert set(found) == {2, 5}
    assert found[5].fused.value_ms == pytest.approx(network_ms(deploy_graph(spec_of(24)), RULES))
    # Another network under a known number, as when a study was begun anew in the same place.
    again = measure_members(target, modelled(tmp_path, m2=32, m5=24), tmp_path)
    assert again[2].fused.value_ms == pytest.approx(network_ms(deploy_graph(spec_of(32)), RULES))


def test_a_member_that_the_device_cannot_run_is_missing_and_the_others_are_there(device, known, tmp_path, caplog):
    def broken(job, count):
        if job.startswith("fused-2-"):
            raise JobFailed("out of memory")
        return 1.0

    device._slower = broken
    with caplog.at_level(logging.WARNING, logger="nas"):
        found = measure_members(load_target("host"), modelled(tmp_path, m1=8, m2=16), tmp_path)
    assert set(found) == {1}
    assert "trial 2 does not run on host: out of memory" in caplog.text


def test_a_member_that_cannot_be_written_is_named(device, known, tmp_path, monkeypatch):
    refuse = write_timed(RULES, refuse=lambda graph: True)
    monkeypatch.setitem(RUNTIMES, "ncnn", replace(RUNTIMES["ncnn"], write_timed=refuse))
    target = load_target("host", runtime="ncnn")
    with pytest.raises(ConfigError, match="trial 7: ncnn cannot take it"):
        measure_members(target, modelled(tmp_path, m7=8), tmp_path)


@pytest.mark.parametrize(
    ("known_way", "expected"),
    [
        (Connection(ssh="me@board"), Ssh("me@board")),
        (Connection(adb="0123", adb_python="/data/python"), "adb"),
        (Connection(), None),
    ],
)
def test_the_way_to_a_board_is_the_one_it_was_measured_by(known_way, expected):
    path = connection_path("my-board")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(known_way.model_dump()))
    found = transport_to("my-board")
    if expected == "adb":
        assert (found.serial, found.python) == ("0123", "/data/python")
    else:
        assert found == expected
    assert transport_to("host") == Local()
    assert transport_to("rk3288") is None


def test_a_damaged_way_is_named():
    path = connection_path("my-board")
    path.parent.mkdir(parents=True)
    path.write_text("ssg: me@board\n")
    with pytest.raises(ConfigError, match=r"connection.yaml:1: ssg: unknown key; did you mean 'ssh'"):
        transport_to("my-board")


def test_the_trained_form_is_what_torch_computes_with_all_its_branches(tmp_path):
    layout = parse_layout("K3:0.0.3.2-0.1.3.2")
    spec = ArchSpec((3, 16, 16), Rep(8, 2, layout), ((Rdp(8, layout=layout),),), Classifier(5))
    write_train_form(spec, tmp_path / "unfused.onnx")
    images = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "unfused.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
    with torch.no_grad():
        expected = build_network(spec, 0).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    convolutions = [node for node in onnx.load(tmp_path / "unfused.onnx").graph.node if node.op_type == "Conv"]
    fused = sum("conv" in type(node.op).__name__.lower() for node in deploy_graph(spec).nodes)
    assert len(convolutions) > fused


# Studies


def test_a_first_search_on_this_machine_measures_it_and_its_finalists(nas, device):
    code, out, err = nas("search", nas.file, "--json")
    assert code == DONE, err
    assert "this machine has no table for space edge-small yet" in err
    kept = read_table(nas.folder / "table.csv")
    assert kept == read_table(table_path(host_identity(DESCRIBED, 1)))
    members = json.loads(out)["members"]
    assert members
    for each in members:
        spec = spec_from_dict(each["spec"])
        assert each["latency_ms"]["tier"] == "measured"
        assert each["latency_ms"]["value"] == pytest.approx(network_ms(deploy_graph(spec), RULES))
        predicted = each["predicted_latency_ms"]
        assert predicted["table"] == kept.name
        assert predicted["value"] == pytest.approx(each["latency_ms"]["value"], rel=0.15)
        assert each["unfused_latency_ms"] == OTHER_MS
        assert each["certificate"]["kept"] is True
    flat = (nas.folder / "front.csv").read_text()
    assert f",{OTHER_MS}," in flat


def test_a_study_goes_on_with_the_table_it_began_with(nas, device, known):
    code, out, err = nas("search", nas.file, "--json")
    assert code == DONE, err
    assert "no table" not in err
    before = json.loads(out)
    newer = replace(
        known, measured_on="2030-01-01", fit=replace(known.fit, rows=dict(list(known.fit.rows.items())[9:]))
    )
    write_table(newer, table_path(known.identity))
    assert load_target("host").sha256 != known.sha256
    code, out, err = nas("resume", "mine", "--trials", "3", "--json")
    assert code == DONE, err
    assert {each["predicted_latency_ms"]["table"] for each in json.loads(out)["members"]} == {known.name}
    assert read_table(nas.folder / "table.csv") == known
    assert read_study_file(nas.folder).trials == 12
    code, out, err = nas("search", nas.file, "--json", "--study", "mine", "--trials", "9")
    assert code == DONE, err
    assert json.loads(out)["target"] == before["target"]
    (nas.folder / "table.csv").unlink()
    code, out, err = nas("resume", "mine")
    assert (code, out) == (WRONG_INPUT, "")
    assert "the latency table of host has changed since it began" in err


def test_a_study_goes_on_under_the_measured_table_of_today_where_that_is_accepted(nas, device, known):
    assert nas("search", nas.file)[0] == DONE
    fit = replace(known.fit, overheads=replace(known.fit.overheads, start_ms=2 * known.fit.overheads.start_ms))
    newer = replace(known, measured_on="2030-01-01", fit=fit)
    write_table(newer, table_path(known.identity))
    own = nas.folder / "table.csv"
    own.write_text(own.read_text().replace("# format: 2", "# format: 1", 1))
    code, out, err = nas("resume", "mine")
    assert (code, out) == (WRONG_INPUT, "")
    assert "format: must be 2, got 1" in err
    assert "`nas resume mine --accept-changed-table`" in err
    code, out, err = nas("resume", "mine", "--accept-changed-table", "--json")
    assert code == DONE, err
    assert read_table(own) == newer
    assert {each["predicted_latency_ms"]["table"] for each in json.loads(out)["members"]} == {newer.name}
    record = read_study_file(nas.folder)
    assert record.target_sha256 == load_target("host").sha256
    assert len(record.accepted_tables) == 1
    write_table(known, table_path(known.identity))
    assert nas("resume", "mine")[0] == DONE, "and it goes on with that one"
    assert read_table(own) == newer


def test_other_finalists_of_a_study_that_went_on_have_certificates(nas, device, known):
    assert nas("search", nas.file)[0] == DONE
    code, out, err = nas("resume", "mine", "--trials", "9", "--json")
    assert code == DONE, err
    assert "could not be measured" not in err
    assert {each["certificate"]["kept"] for each in json.loads(out)["members"]} == {True}


def test_a_budget_that_the_device_breaks_is_exit_code_four(nas, device, known):
    device._slower = lambda job, count: 3000.0 if "fused" in job else 1.0
    code, out, err = nas("search", nas.file, "--json")
    assert code == BROKEN_CERTIFICATE == 4
    document = json.loads(out)
    assert {each["certificate"]["kept"] for each in document["members"]} == {False}
    assert document == json.loads((nas.folder / "front.json").read_text())
    for each in document["members"]:
        assert each["latency_ms"]["value"] > 100 > each["predicted_latency_ms"]["high"]
        assert f"nas: trial {each['trial']}: measured" in err
        assert "breaks the budget of 100 ms" in err
    code, out, _ = nas("resume", "mine")
    assert code == BROKEN_CERTIFICATE
    assert "NO" in out


def test_a_device_that_cannot_be_reached_costs_the_certificates_and_nothing_else(nas, device, known):
    device.stop_after = 0
    code, out, err = nas("search", nas.file, "--json")
    assert code == DONE, err
    assert "finalists could not be measured on host: the connection was lost" in err
    members = json.loads(out)["members"]
    assert members
    for each in members:
        assert each["certificate"]["kept"] is None
        assert each["unfused_latency_ms"] is None
        assert each["latency_ms"] == each["predicted_latency_ms"]
    device.stop_after = None
    code, out, err = nas("resume", "mine", "--json")
    assert code == DONE, err
    assert {each["certificate"]["kept"] for each in json.loads(out)["members"]} == {True}
