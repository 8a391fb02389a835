"""`nas profile` with a device that takes as long as a formula says: from the first run to a table that answers."""

import json
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from hardware import board, kernel_fit, profiling
from hardware.job_folder import load_jobs
from hardware.profiled_table import read_table
from hardware.profiling import ROUNDS, Profile
from hardware.runtimes import RUNTIMES
from hardware.targets import boards_folder, described_target, host_identity, load_target, table_path
from nas import profile_command, tables
from nas.certificates import Connection, connection_path, transport_to
from nas.cli import main
from nas.exit_codes import BROKE, DONE, WRONG_INPUT
from searchspace.choosers import random_choice
from searchspace.network import deploy_graph
from searchspace.space import Task, member
from searchspace.spaces import space_named
from searchspace.spec import write_spec
from tests.formula_device import START_MS, FormulaDevice, network_ms, write_timed

RULES = described_target("host", None).fusion_rules
NCNN_RULES = described_target("host", "ncnn").fusion_rules


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Spaces are known by 28 of their members, and files are of the device's own kind."""
    monkeypatch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=22, checks=6))
    monkeypatch.setattr(kernel_fit, "POINTS_FOR_SCALES", 40)
    for name, rules in (("onnxruntime", RULES), ("ncnn", NCNN_RULES)):
        monkeypatch.setitem(RUNTIMES, name, replace(RUNTIMES[name], write_timed=write_timed(rules)))


@pytest.fixture
def nas(capsys):
    def run(*words):
        try:
            code = main([*map(str, words)])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def device(monkeypatch):
    """In the place of this machine, and of every board that ssh reaches; `hosts` says which were asked for."""
    found = FormulaDevice(version=host_identity(described_target("host", None), 1).runtime_version)
    found.hosts = []

    def ssh(host):
        found.hosts.append(host)
        return found

    monkeypatch.setattr(profile_command, "Local", lambda: found)
    monkeypatch.setattr(profile_command, "Ssh", ssh)
    return found


def on_board(device, version="20260101"):
    device.machine |= {"runtime": "ncnn", "runtime_version": version}
    return ["profile", "--target", "my-board", "--ssh", "me@board", "--quiet"]


HOST = ["profile", "--target", "host", "--quiet"]


def refused(answer, *parts):
    code, out, err = answer
    assert code == WRONG_INPUT, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def others(count, space="edge-small"):
    """Members that are drawn from another seed."""
    rng = random.Random(f"others {space}")
    return [member(space_named(space), random_choice(rng), Task(3, 10)) for _ in range(count)]


# A table


def test_a_profile_of_this_machine_makes_a_table_that_foretells_networks(nas, device, tmp_path):
    code, out, err = nas(*HOST, "--json")
    assert code == DONE, err
    found = json.loads(out)
    table = read_table(table_path(host_identity(described_target("host", None), 1)))
    assert found["table"] == table.name
    assert found["networks"] == table.fit.networks == 24, "22, and 2 of other classes"
    assert found["kernels"] == len(table.fit.rows)
    assert table.fit.overheads.start_ms == pytest.approx(START_MS, rel=0.05)
    certificate = found["certificates"]["edge-small"]
    assert certificate["networks"] == 6
    assert certificate["noise_percent"] == 0
    assert certificate["mape_percent"] < 5
    target = load_target("host")
    errors = []
    for number, spec in enumerate(others(8)):
        write_spec(spec, tmp_path / f"{number}.yaml")
        code, out, err = nas("predict", f"{number}.yaml", "--target", "host", "--json")
        assert code == DONE, err
        predicted = json.loads(out)["latency_ms"]
        errors.append(abs(predicted["value"] / network_ms(deploy_graph(spec), RULES) - 1))
        assert predicted["table"] == target.latency_model.table
        assert predicted["low"] <= predicted["value"] <= predicted["high"]
        assert predicted["tier"] != "measured"
    assert sum(errors) / len(errors) < 0.05


def test_a_table_for_people_says_what_it_is_worth(nas, device):
    code, out, err = nas(*HOST[:-1])
    assert code == DONE, err
    assert "6 networks of edge-small that the table had not seen" in out
    assert "kernels inside 24 networks; further kernels" in out
    assert "noise     0.0 % between two timings" in out
    assert "the worst" in out
    assert "measuring: " in err


def test_a_profile_that_was_cut_off_goes_on_where_it_was(nas, device):
    device.stop_after = 30
    code, out, err = nas(*HOST)
    assert (code, out) == (BROKE, "")
    assert err == "nas: the connection was lost\n"
    first = list(device.timed)
    device.stop_after = None
    assert nas(*HOST)[0] == DONE
    rest = device.timed[len(first) :]
    assert set(first) & set(rest) <= {"sentinel"}
    assert len({*first, *rest}) == 1 + ROUNDS * 6 + 24
    code, out, _ = nas(*HOST, "--json")
    assert code == DONE
    assert device.timed[len(first) + len(rest) :] == [], "and when all is done nothing is run"
    assert json.loads(out)["networks"] == 24


def test_a_way_that_fails_at_once_leaves_nothing_in_the_way(nas, device):
    on = on_board(device)
    device.stop_after = 0
    device.machine, machine = None, device.machine  # fails before the first record is written
    assert nas(*on)[0] == BROKE
    (samples,) = boards_folder().rglob("samples.jsonl")
    assert samples.read_bytes() == b""
    device.machine, device.stop_after = machine, None
    code, _, err = nas(*on, "--space", "rdp")
    assert code == DONE, err
    assert nas(*on)[0] == DONE


def test_a_second_bundle_asks_for_no_less_than_the_first_so_that_results_of_either_can_come(nas, device):
    words = ["profile", "--target", "my-board", "--quiet", "--bundle", "b.tar.gz"]
    folder = boards_folder() / "my-board" / "profiles" / "ncnn-1t" / "edge-small"
    for time in ("1h", "1s"):
        assert nas(*words, "--time", time)[0] == DONE
        assert sum(job.id.startswith("l-") for job in load_jobs(folder).jobs) == 24


def test_a_table_grows_with_other_spaces_and_has_a_certificate_for_each(nas, device):
    assert nas(*HOST)[0] == DONE
    first = read_table(table_path(host_identity(described_target("host", None), 1)))
    code, out, err = nas(*HOST, "--space", "rdp", "--json")
    assert code == DONE, err
    found = json.loads(out)
    assert set(found["certificates"]) == {"edge-small", "rdp"}
    both = read_table(table_path(host_identity(described_target("host", None), 1)))
    assert first.fit.rows.keys() < both.fit.rows.keys()
    assert both.fit.networks > first.fit.networks


# Boards


def test_a_board_is_a_target_once_it_was_measured(nas, device, tmp_path):
    code, out, err = nas(*on_board(device), "--json")
    assert code == DONE, err
    assert device.hosts == ["me@board"]
    profiled = json.loads(out)
    identity = profiled["identity"]
    assert (identity["target"], identity["device"], identity["cpu"]) == ("my-board", "Formula 1", "as fast as told")
    assert (identity["runtime"], identity["runtime_version"], identity["cores"]) == ("ncnn", "20260101", 4)
    code, out, err = nas("targets")
    assert code == DONE, err
    row = next(line for line in out.splitlines() if line.startswith("my-board"))
    assert "ncnn 20260101" in row
    assert "measured" in row
    certificate = profiled["certificates"]["edge-small"]
    assert f"{certificate['mape_percent']:.1f} %" in row
    assert f"{certificate['fastest_ms']:.4g}-{certificate['slowest_ms']:.4g}" in row
    code, out, err = nas("targets", "my-board")
    assert code == DONE, err
    assert "Formula 1" in out
    (spec,) = others(1)
    write_spec(spec, tmp_path / "spec.yaml")
    code, out, err = nas("predict", "spec.yaml", "--target", "my-board", "--json")
    assert code == DONE, err
    found = json.loads(out)["latency_ms"]
    assert found["value"] == pytest.approx(network_ms(deploy_graph(spec), NCNN_RULES), rel=0.1)
    assert found["table"].startswith("my-board/ncnn-20260101/1t/fp32@")
    assert yaml.safe_load(connection_path("my-board").read_text()) == Connection(ssh="me@board").model_dump()
    assert transport_to("my-board").host == "me@board"


def test_kernels_that_a_board_was_not_measured_for_are_named_and_not_zero(nas, device):
    assert nas(*on_board(device))[0] == DONE
    refused(nas("predict", "resnet18", "--target", "my-board"), "must be measured", "max_pool(", "run nas profile")


def test_a_board_that_was_measured_on_four_threads_only_is_listed_too(nas, device):
    code, _, err = nas(*on_board(device), "--threads", "4")
    assert code == DONE, err
    code, out, err = nas("targets", "--json")
    assert code == DONE, err
    (row,) = (row for row in json.loads(out)["targets"] if row["name"] == "my-board")
    assert row["threads"] == 4
    refused(nas("predict", "resnet18", "--target", "my-board"), "has figures for 4 threads, got 1")


def test_measurements_of_two_boards_are_never_one_table(nas, device):
    assert nas(*on_board(device))[0] == DONE
    refused(nas(*on_board(device, "20270101"), "--space", "rdp"), "one device and version", "20260101", "20270101")


def test_the_table_of_another_board_is_refused(nas, device):
    assert nas(*on_board(device))[0] == DONE
    (table,) = boards_folder().rglob("ncnn-1t.csv")
    other = boards_folder() / "other"
    other.mkdir()
    (other / table.name).write_bytes(table.read_bytes())
    refused(nas("predict", "resnet18", "--target", "other"), "must be its own, got one of my-board")


# Bundles


def test_a_bundle_is_carried_to_a_board_and_its_results_back(nas, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=16, checks=2))
    quick = profiling.PROTOCOL.model_copy(update={"warmup_s": 0.0, "min_runs": 3, "min_s": 0.0, "trace_runs": 3})
    monkeypatch.setattr(profiling, "PROTOCOL", quick.model_copy(update={"retries": 0, "cooldown_s": 0.0}))
    words = ["profile", "--target", "my-board", "--quiet"]
    archive = tmp_path / "bundle.tar.gz"
    code, out, err = nas(*words, "--bundle", archive, "--json")
    assert code == DONE, err
    assert json.loads(out) == {"bundle": str(archive), "models": 20}
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / "edge-nas-bundle"
    # Isolated from this package and from whatever else is around.
    subprocess.run([sys.executable, "-I", "board.py", "jobs"], cwd=there, check=True, capture_output=True)
    code, out, err = nas(*words, "--import", there / "jobs" / "samples.jsonl", "--json")
    assert code == DONE, err
    found = json.loads(out)
    assert (found["conditions"]["networks_traced"], found["cannot_run"]) == (18, {})
    assert 2 <= found["networks"] <= 18, "what something disturbed is left out"
    assert found["certificates"]["edge-small"]["networks"] == 2
    assert load_target("my-board").latency_model.certificate.networks == 2


def test_what_comes_back_must_be_of_the_bundle(nas, device, tmp_path):
    words = ["profile", "--target", "my-board", "--quiet"]
    refused(nas(*words, "--import", "gone.jsonl"), "there is no bundle that these could be results of")
    assert nas(*words, "--bundle", "b.tar.gz")[0] == DONE
    refused(nas(*words, "--import", "gone.jsonl"), "gone.jsonl", "No such file")
    assert nas(*words[:2], "other", "--bundle", "other.tar.gz", "--space", "rdp", "--quiet")[0] == DONE
    folder = boards_folder() / "other" / "profiles" / "ncnn-1t" / "rdp"
    on_board(device)
    device.measure(folder, lambda progress: None)
    refused(nas(*words, "--import", folder / board.SAMPLES), "samples.jsonl:", "these are results of another model")
    lines = (folder / board.SAMPLES).read_text()
    (tmp_path / "old.jsonl").write_text(lines.replace('"format": 1', '"format": 2'))
    refused(nas(*words, "--import", "old.jsonl"), "old.jsonl:1: format: ", "got 2")


# Mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--target", "host", "--space", "edge-smal"], ["space", "did you mean 'edge-small'?"]),
        (["--target", "my-board", "--space", "../x", "--import", "x"], ["space"]),
        (["--target", "host", "--threads", "0"], ["threads: at least 1, got 0"]),
        (["--target", "host", "--threads", "1000000"], ["threads", "got 1000000"]),
        (["--target", "host", "--time", "5"], ["a duration needs a unit", "'5'"]),
        (["--target", "host", "--runtime", "tflite"], ["runtime", "'tflite'", "onnxruntime, ncnn, mnn"]),
        (["--target", "rk3288", "--ssh", "me@board"], ["rk3288 is calibrated", "my-rk3288"]),
        (["--target", "My Board", "--ssh", "me@board"], ["small letters", "'My Board'"]),
        (["--target", "my-board"], ["my-board is not this machine", "--ssh USER@HOST"]),
        (["--target", "my-board", "--bundle", "no/such/b.tar.gz"], ["no/such/b.tar.gz", "must be there"]),
        (["--target", "my-board", "--bundle", "b", "--ssh", "me@board"], ["--ssh", "not allowed with"]),
        *[
            (["--target", "host", flag, "x"], ["host is this machine"])
            for flag in ("--ssh", "--adb", "--bundle", "--import")
        ],
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_measured(nas, device, words, parts):
    refused(nas("profile", *words), *parts)
    assert device.timed == []
    assert not list(Path().rglob("*.csv"))


def test_too_little_time_says_so_and_keeps_what_there_is(nas, device):
    device.stop_after = 20
    assert nas(*HOST)[0] == BROKE
    (samples,) = Path("cache").rglob("samples.jsonl")
    kept = samples.read_bytes()
    device.stop_after = None

    def nothing(folder, on_progress):
        pass

    device.measure = nothing
    refused(nas(*HOST), "at least 12 networks must be timed", "give it more --time")
    assert samples.read_bytes() == kept


def test_a_runtime_that_was_updated_begins_a_table_of_its_own(nas, device, monkeypatch):
    assert nas(*HOST)[0] == DONE
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    device.machine |= {"runtime_version": "99.0"}
    count = len(device.timed)
    assert nas(*HOST)[0] == DONE
    assert len(device.timed) > 2 * count - 10
    assert len(list(Path("cache").rglob("host-*.csv"))) == 2


def test_networks_of_a_space_are_always_the_same_and_checks_are_not_learnt_from():
    first = tables.profile_of(space_named("edge-small"), RULES)
    tables.profile_of.func.cache_clear()
    again = tables.profile_of(space_named("edge-small"), RULES)
    assert [each.name for each in first.learning] == [each.name for each in again.learning]
    names = {each.name for each in first.checks}
    assert len(names) == 6
    assert not names & {each.name for each in first.learning}
    assert {each.graph.input_shape[0] for each in first.checks} == {1, 3}


def test_a_longer_profile_goes_on_with_a_shorter_one(nas, device, monkeypatch):
    monkeypatch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=100, checks=30))
    assert nas(*HOST, "--time", "40s")[0] == DONE
    first = len(device.timed)
    code, out, err = nas(*HOST, "--time", "10m", "--json")
    assert code == DONE, err
    assert json.loads(out)["certificates"]["edge-small"]["networks"] == 30
    again = set(device.timed[:first]) & set(device.timed[first:])
    assert again <= {"sentinel"}, "what was timed is not timed again"


def test_a_space_that_is_not_to_be_found_is_left_out_of_the_table(nas, device, tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_blocks.py").write_text("from searchspace.spaces.edge_small import RDP\nMINE = RDP\n")
    monkeypatch.chdir(tmp_path)
    assert nas(*HOST, "--space", "own_blocks:MINE")[0] == DONE
    (tmp_path / "own_blocks.py").unlink()
    monkeypatch.delitem(sys.modules, "own_blocks")
    code, out, err = nas(*HOST, "--json")
    assert code == DONE, err
    assert json.loads(out)["certificates"].keys() == {"edge-small"}
    assert "own_blocks:MINE is left out" in caplog.text
    refused(nas(*HOST, "--space", "own_blocks:MINE"), "own_blocks")


def test_a_table_foretells_networks_for_any_number_of_classes(nas, device, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "profile_of", partial(tables.profile_of, drawn=100, checks=6))
    code, _, err = nas(*HOST)
    assert code == DONE, err
    for classes in (3, 37, 300):
        spec = member(space_named("edge-small"), random_choice(random.Random(classes)), Task(3, classes))
        write_spec(spec, tmp_path / "any.yaml")
        code, out, err = nas("predict", "any.yaml", "--target", "host", "--json")
        assert code == DONE, err
        assert json.loads(out)["latency_ms"]["value"] == pytest.approx(network_ms(deploy_graph(spec), RULES), rel=0.1)


def test_what_was_measured_of_other_networks_is_kept_aside(nas, device, monkeypatch, caplog):
    assert nas(*HOST)[0] == DONE
    (samples,) = Path("cache").rglob("samples.jsonl")
    before = samples.read_bytes()
    # The space has changed: what checked it is gone.
    profile = tables.profile_of(space_named("edge-small"), RULES)
    changed = Profile(profile.learning, profile.checks[1:], RULES)
    monkeypatch.setattr(tables, "profile_of", lambda space, rules: changed)
    code, out, err = nas(*HOST, "--json")
    assert code == DONE, err
    assert json.loads(out)["certificates"]["edge-small"]["networks"] == 5
    assert (samples.parent / "other-networks-1-samples.jsonl").read_bytes() == before
    second = samples.read_bytes()
    monkeypatch.setattr(tables, "profile_of", lambda space, rules: Profile(changed.learning, changed.checks[1:], RULES))
    assert nas(*HOST)[0] == DONE
    assert (samples.parent / "other-networks-1-samples.jsonl").read_bytes() == before, "nothing is lost"
    assert (samples.parent / "other-networks-2-samples.jsonl").read_bytes() == second
    assert "the networks of edge-small are others now" in caplog.text


def test_a_lost_connection_is_not_remembered_as_a_way(nas, device):
    on = on_board(device)
    device.stop_after = 3
    assert nas(*on)[0] == BROKE
    assert not connection_path("my-board").exists()
