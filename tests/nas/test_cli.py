"""The command line: what is wrong is said in one line with the exit code that scripts rely on, and nothing is left."""

import json
import re

import pytest

from nas.cli import main
from nas.exit_codes import BROKE, DONE, INFEASIBLE, INTERRUPTED, WRONG_INPUT

SEARCH = ["search", "--target", "rk3288", "--budget", "5ms", "--data-limit", "200"]


@pytest.fixture
def nas(tmp_path, capsys):
    """Runs a command in a folder of its own: exit code, stdout, stderr."""

    def run(*words):
        try:
            code = main([*map(str, words)])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(answer, *parts):
    """Exit code 2, nothing on stdout, and one line on stderr that holds all parts."""
    code, out, err = answer
    assert code == WRONG_INPUT, err
    assert out == ""
    assert err.count("\n") == 1, "one line"
    for part in parts:
        assert part in err


# Words


def test_help_and_version_are_answers_and_not_mistakes(nas):
    assert nas("--help")[0] == DONE
    assert nas("search", "--help")[0] == DONE
    code, out, _ = nas("--version")
    assert (code, out.split()[0]) == (DONE, "nas")


def test_no_command_shows_the_help_and_is_a_mistake(nas):
    code, out, _ = nas()
    assert code == WRONG_INPUT
    assert "usage: nas" in out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["serach"], ["unknown command 'serach'", "did you mean search?", "known:", "predict"]),
        (["search", "--budgt", "5ms"], ["unknown flag --budgt", "did you mean --budget?", "--data-limit"]),
        (["search", "--budg", "5ms"], ["unknown flag --budg"]),
        (["show", "x", "--trail", "1"], ["unknown flag --trail", "did you mean --trial?"]),
        (["resume", "x", "--seed", "1"], ["unknown flag --seed", "known:"]),
        (["search", "--trials", "many"], ["--trials", "many"]),
        (["search", "--budget"], ["--budget", "expected one argument"]),
        (["search", "a.yaml", "b.yaml"], ["b.yaml"]),
        (["show"], ["study"]),
        (["predict", "mobilenet_v2"], ["--target"]),
    ],
)
def test_words_that_are_not_known_are_named_with_those_that_are(nas, words, parts):
    refused(nas(*words), *parts)


# Settings


def with_flag(flag, value):
    words = list(SEARCH)
    if flag in words:
        words[words.index(flag) + 1] = value
        return words
    return [*words, flag, value]


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("--target", "rk3299", ["target", "'rk3299'", "did you mean 'rk3288'?", "host"]),
        ("--data", "digit", ["'digit'", "did you mean digits?", "fashion-mnist"]),
        ("--data", "", ["data set or folder"]),
        ("--data", "cifar10:/no/such/folder", ["/no/such/folder"]),
        ("--data-limit", "3", ["limit", "10 classes", "got 3"]),
        ("--data-limit", "0", ["data-limit", "greater than or equal to 1", "0"]),
        ("--space", "edge-smal", ["space", "did you mean 'edge-small'?"]),
        ("--sampler", "nsga", ["sampler", "'nsga2', 'nsga3', 'tpe', 'random', 'evolution' or 'surrogate'"]),
        ("--score", "dispersal", ["score", "did you mean 'dispersion'?", "macs"]),
        ("--backend", "cloud", ["backend", "'local', 'ray' or 'inline'"]),
        ("--trials", "0", ["trials", "greater than or equal to 1"]),
        ("--epochs", "-1", ["epochs"]),
        ("--layouts", "-1", ["layouts"]),
        ("--seed", "-1", ["seed"]),
        ("--threads", "3", ["threads", "1, 4", "got 3"]),
        ("--threads", "0", ["threads"]),
        ("--runtime", "tflite", ["runtime", "ncnn", "'tflite'"]),
        ("--time", "10", ["time", "a duration needs a unit", "'10'"]),
        ("--study", "../elsewhere", ["study", "'../elsewhere'"]),
        ("--storage", "mysql://nobody@127.0.0.1:1/x", ["storage", "cannot be opened"]),
        ("--ray-address", "127.0.0.1:1", ["ray-address", "no Ray cluster answers"]),
        ("--budget", "5", ["budget", "needs a unit", "5ms, 0.005s or 5000us", "'5'"]),
        ("--budget", "0ms", ["budget", "above zero", "'0ms'"]),
        ("--budget", "nanms", ["budget", "'nanms'"]),
        ("--budget", "infs", ["budget", "'infs'"]),
        ("--budget", "5parsecs", ["budget", "'5parsecs'"]),
        ("--budget", "5m", ["budget", "'5m'"]),
    ],
)
def test_settings_that_break_a_rule_are_named_and_leave_no_study_behind(nas, tmp_path, flag, value, parts):
    words = with_flag(flag, value)
    if flag == "--ray-address":
        words += ["--backend", "ray"]
    refused(nas(*words), *parts)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    # A storage and a cluster are opened when the study stands already.
    assert flag in ("--storage", "--ray-address") or left == []


def test_a_negative_budget_is_refused_however_it_is_written(nas):
    refused(nas("search", "--target", "rk3288", "--budget=-5ms"), "above zero", "'-5ms'")
    refused(nas("search", "--target", "rk3288", "--budget", "-5ms"), "--budget")


@pytest.mark.parametrize("missing", ["target", "budget"])
def test_what_a_search_needs_is_asked_for(nas, missing):
    words = [
        word for pair in zip(SEARCH[1::2], SEARCH[2::2], strict=True) if pair[0] != f"--{missing}" for word in pair
    ]
    refused(nas("search", *words), f"{missing}: needed to search; give --{missing}")


# Study files


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("target: rk3288\nbudgte: 5ms\n", 2, ["budgte: unknown key; did you mean 'budget'?"]),
        ("target: rk3288\nbudget: 5\n", 2, ["budget: a latency needs a unit", "'5'"]),
        ("target: rk3288\n\nbudget: 5ms\ntrials: few\n", 4, ["trials", "'few'"]),
        ("target: rk3288\nbudget: [\n", 2, ["not valid YAML"]),
        ("- target\n", 1, ["a mapping"]),
        ("", 1, ["a mapping", "empty"]),
        ("target: rk3288\ntarget: host\n", 2, ["only once"]),
    ],
)
def test_mistakes_in_a_study_file_are_named_with_file_and_line(nas, tmp_path, text, line, parts):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(nas("search", path), f"{path}:{line}: ", *parts)


def test_a_study_file_that_is_not_there_is_named(nas):
    refused(nas("search", "gone.yaml"), "gone.yaml")


def test_flags_override_the_file(nas, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: rk3288\nbudget: 5ms\nspace: nonsense\ndata_limit: 200\n")
    refused(nas("search", path), "space", "'nonsense'")
    code, _, err = nas("search", path, "--space", "edge-small", "--budget", "1us")
    assert code == INFEASIBLE, err


@pytest.mark.parametrize("genes", ["stem.widht: 8", "stem.width: 9", "stage*.kernel: [3, 4]"])
def test_genes_that_a_space_does_not_have_are_refused(nas, tmp_path, genes):
    path = tmp_path / "mine.yaml"
    path.write_text(f"target: rk3288\nbudget: 5ms\ndata_limit: 200\ngenes:\n  {genes}\n")
    refused(nas("search", path), f"genes.{genes.partition(':')[0]}")


# Budgets


def test_a_budget_that_nothing_meets_names_the_fastest_member_and_leaves_nothing(nas, tmp_path):
    code, out, err = nas(*with_flag("--budget", "50us"))
    assert code == INFEASIBLE == 3
    assert out == ""
    assert re.search(
        r"the fastest member of the space \([0-9a-f]{12}, input 32 px\) is expected to take 0\.\d+ ms", err
    )
    assert err.count("\n") == 1
    assert list(tmp_path.rglob("*")) == []


def test_a_budget_is_refused_for_json_as_well_with_nothing_on_stdout(nas):
    code, out, _ = nas(*with_flag("--budget", "50us"), "--json")
    assert (code, out) == (INFEASIBLE, "")


# Studies


def test_a_study_that_is_not_there_is_named_with_those_that_are(nas, tmp_path):
    refused(nas("show", "mine"), "no study 'mine'", "there are none in studies")
    (tmp_path / "studies" / "other").mkdir(parents=True)
    (tmp_path / "studies" / "other" / "study.yaml").write_text("")
    for command in ("show", "resume"):
        refused(nas(command, "mine"), "no study 'mine'", "known in studies: other")


# Networks


def test_a_prediction_is_one_json_object_with_a_line_per_kernel(nas):
    code, out, err = nas("predict", "mobilenet_v2", "--target", "rk3288", "--json")
    assert code == DONE, err
    found = json.loads(out)
    assert {
        "spec_id",
        "spec",
        "params",
        "macs",
        "peak_memory_bytes",
        "receptive_field",
        "latency_ms",
        "kernels",
    } == set(found)
    assert set(found["latency_ms"]) == {"value", "low", "high", "tier", "table"}
    # torchvision's figure; Tencent's own measurement of this network on this board is in the published table.
    assert round(found["macs"] / 1e6) == 301
    total = sum(kernel["latency_ms"] for kernel in found["kernels"])
    assert found["latency_ms"]["value"] == pytest.approx(total)
    assert all(kernel["latency_ms"] > 0 for kernel in found["kernels"])


def test_a_prediction_for_people_has_the_same_figures(nas):
    found = json.loads(nas("predict", "mobilenet_v2", "--target", "rk3288", "--json")[1])
    code, out, _ = nas("predict", "mobilenet_v2", "--target", "rk3288")
    assert code == DONE
    assert f"{found['macs']:,}" in out
    assert f"{found['latency_ms']['value']:.3f} ms" in out
    assert found["spec_id"] in out


SPEC = """
input_shape: [3, 16, 16]
stem: {family: rep, width: 8, stride: 2}
stages:
- - {family: rdp, width: 8}
head: {family: classifier, classes: 10}
"""


def test_a_spec_file_is_predicted(nas, tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    found = json.loads(nas("predict", "spec.yaml", "--target", "rk3288", "--json")[1])
    assert found["macs"] == 8 * 8 * 8 * (27 + 9 + 8) + 80


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("width: 8, stride", "widht: 8, stride"), ["spec.yaml", "spec.stem: unknown key 'widht'"]),
        (("family: rep", "family: reb"), ["spec.yaml", "did you mean"]),
        (("head:", "{head:"), ["spec.yaml"]),
        (("[3, 16, 16]", "[3, 16]"), ["spec.yaml", "spec.input_shape"]),
    ],
)
def test_a_damaged_spec_file_is_named(nas, tmp_path, change, parts):
    (tmp_path / "spec.yaml").write_text(SPEC.replace(*change))
    refused(nas("predict", "spec.yaml", "--target", "rk3288"), *parts)


@pytest.mark.parametrize("command", ["predict", "measure"])
def test_blocks_that_do_not_fit_are_the_writers_mistake(nas, tmp_path, command):
    block = "- - {family: conv, width: 8, max_pool: 2}\n" * 4
    (tmp_path / "spec.yaml").write_text(SPEC.replace("- - {family: rdp, width: 8}\n", block))
    target = {"predict": "rk3288", "measure": "host"}[command]
    refused(nas(command, "spec.yaml", "--target", target), "an input of at least 2")


def test_what_names_no_network_is_refused_with_the_nearest_name(nas):
    refused(nas("predict", "mobilenet_v3", "--target", "rk3288"), "'mobilenet_v3'", "did you mean 'mobilenet_v2'?")
    refused(nas("predict", "nothing:3", "--target", "rk3288"), "no study 'nothing'")


def test_a_device_that_no_way_leads_to_cannot_be_measured(nas):
    refused(nas("measure", "mobilenet_v2", "--target", "rk3288"), "rk3288 cannot be measured from here", "nas predict")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 50])
def test_a_damaged_model_is_named(nas, tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    refused(nas("measure", "broken.onnx", "--target", "host"), "broken.onnx")


def test_a_model_that_is_not_there_is_named(nas):
    refused(nas("measure", "gone.onnx", "--target", "host"), "gone.onnx: no such file")


def test_a_measurement_is_one_json_object(nas, tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    code, out, err = nas("measure", "spec.yaml", "--target", "host", "--json")
    assert code == DONE, err
    found = json.loads(out)
    assert found["tier"] == "measured"
    assert 0 < found["latency_ms"]["median"] <= found["latency_ms"]["p90"]
    assert found["runs"] >= 50


# Targets


def test_targets_are_listed_with_their_tier_and_error(nas):
    code, out, err = nas("targets", "--json")
    assert code == DONE, err
    rows = json.loads(out)["targets"]
    boards = [row for row in rows if row["name"] == "rk3288"]
    assert [row["threads"] for row in boards] == [1, 4]
    assert {row["tier"] for row in boards} == {"calibrated"}
    assert [row["networks"] for row in boards] == [25, 25]
    assert boards[0]["leave_one_out_mape_percent"] <= 6
    assert boards[1]["leave_one_out_mape_percent"] <= 10
    assert {row["name"] for row in rows} >= {"rk3399-a72", "rk3399-a53", "raspberrypi4", "raspberrypi3"}
    totals = json.loads(out)["published_totals"]
    assert all(row["leave_one_out_mape_percent"] >= 10 for row in totals if row["threads"] == 1)
    assert "raspberrypi5" in {row["name"] for row in totals}
    assert {row["tier"] for row in rows if row["name"] == "host"} == {"measured"}
    code, out, _ = nas("targets", "rk3288")
    assert code == DONE
    assert "Rockchip RK3288" in out
    assert "1d0b78f9b663e4a66596ac83099fa84037a53372" in out, "where its figures come from"


def test_an_unknown_target_is_refused_by_every_command_that_takes_one(nas):
    for words in (["targets", "rk3299"], ["predict", "resnet18", "--target", "rk3299"], ["calibrate", "rk3299"]):
        refused(nas(*words), "'rk3299'", "did you mean 'rk3288'?")


def test_a_calibration_is_derived_again_as_it_was_shipped(nas):
    code, out, err = nas("calibrate", "rk3288")
    assert code == DONE, err
    assert "as derived" in out
    found = json.loads(nas("calibrate", "rk3288", "--json")[1])
    assert found["as_derived"] is True
    assert [(report["target"], report["threads"]) for report in found["reports"]] == [("rk3288", 1), ("rk3288", 4)]


def test_without_what_counting_needs_the_command_says_what_is_missing_and_what_still_works(nas, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refused(nas("count", "--check", "3"), "Debian's armhf Python", "--fetch", "the shipped counts", "work without")
    refused(nas("count", "--check", "0"), "at least 1")


def test_a_measured_target_has_nothing_to_derive(nas):
    refused(nas("calibrate", "host"), "host is measured and not calibrated")


# What breaks


def test_what_breaks_is_exit_code_one_with_a_traceback_only_when_asked_for(nas, monkeypatch):
    def broken(*_):
        raise RuntimeError("the roof is gone")

    monkeypatch.setattr("nas.device_commands.load_target", broken)
    code, out, err = nas("targets", "rk3288")
    assert (code, out) == (BROKE, "")
    assert err == "nas: RuntimeError: the roof is gone (the traceback shows with --debug)\n"
    with pytest.raises(RuntimeError, match="the roof is gone"):
        main(["targets", "rk3288", "--debug"])


def test_ctrl_c_is_not_a_failure_of_the_program(nas, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.device_commands.load_target", interrupted)
    code, _, err = nas("targets", "rk3288")
    assert code == INTERRUPTED == 130
    assert "Traceback" not in err


def test_a_reader_that_went_away_is_not_a_failure_either(nas, monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr("nas.device_commands.load_target", broken)
    assert nas("targets", "rk3288")[0] == DONE
