"""The whole way with an executor that answers at once: what is written, what is told, and what is not done twice."""

import csv
import hashlib
import json
import re
import shutil
import signal
from dataclasses import replace

import pytest

from evaluators.evaluator import Failure
from hardware.latency_table import Latency, Tier
from hardware.strict_yaml import ConfigError
from nas import driver
from nas.cli import main
from nas.commands import checked_settings, default_name
from nas.console import QuietObserver
from nas.driver import begin, check_same, run_study, study_record
from nas.exit_codes import BROKEN_CERTIFICATE, DONE, INTERRUPTED, WRONG_INPUT
from nas.members import certificate, read_front
from nas.report import page, summary, worth
from nas.run_record import read_run_record
from nas.settings import read_study_file, write_study_file
from nas.storage import driver_lock
from searchspace.spec import spec_id
from tests.nas.conftest import Stopped, StudyExecutor, share, trained

SEARCH = [
    "search",
    "--target",
    "rk3288",
    "--budget",
    "100ms",
    "--data-limit",
    "200",
    "--study",
    "mine",
    "--trials",
    "9",
]


@pytest.fixture(autouse=True)
def known_fastest(monkeypatch, fastest):
    """The budget is checked in tests/nas/test_study.py, and takes longer than all the rest here."""
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)


@pytest.fixture
def run(tmp_path, monkeypatch, changed):
    """A study of 9 candidates and 4 finalists in its folder, from wherever it is."""
    problem = changed(trials=9, finalists=4, study="mine")
    folder = tmp_path / "mine"

    def run(executor, own=problem, observer=None):
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        observer = observer or QuietObserver()
        begin(own.settings, folder, observer)
        return run_study(own, folder, observer)

    run.folder = folder
    run.problem = problem
    return run


def beaten(member, members):
    own = (member["accuracy"]["value"], member["latency_ms"]["value"])
    others = [(each["accuracy"]["value"], each["latency_ms"]["value"]) for each in members]
    return any(a >= own[0] and ms <= own[1] and (a, ms) != own for a, ms in others)


def test_the_front_holds_the_finalists_that_nobody_beats(run):
    executor = StudyExecutor()
    outcome = run(executor)
    assert len(executor.plans) == 4
    accuracies = {plan.trial: round(share(f"accuracy {spec_id(plan.spec)}"), 2) for plan in executor.plans}
    latencies = {plan.trial: run.problem.costs(plan.spec).latency.value_ms for plan in executor.plans}
    expected = [
        trial
        for trial in accuracies
        if not any(
            accuracies[other] >= accuracies[trial] and latencies[other] <= latencies[trial] and other != trial
            for other in accuracies
        )
    ]
    members = outcome.document["members"]
    assert [each["trial"] for each in members] == sorted(expected, key=latencies.__getitem__)
    assert {each["trial"]: each["accuracy"]["value"] for each in members} == {
        trial: accuracies[trial] for trial in expected
    }
    assert not any(beaten(each, members) for each in members)


def test_a_model_that_is_not_what_was_trained_beats_nobody_and_is_shown_last(run):
    first = run(StudyExecutor()).document["members"]
    shutil.rmtree(run.folder)

    def train(plan):
        broken = {"accuracy": 1.0, "onnxruntime": {"max_abs": 1.0, "max_rel": 0.5}}
        return trained(plan) | (broken if plan.trial == first[0]["trial"] else {})

    outcome = run(StudyExecutor(train))
    *sound, last = outcome.document["members"]
    assert last["trial"] == first[0]["trial"]
    assert last["certificate"]["kept"] is False
    assert outcome.certificate_broken
    assert [each["trial"] for each in first[1:]] == [each["trial"] for each in sound if each in first]
    assert not any(beaten(each, sound) for each in sound)


# The keys of face.md, and beside them three more: a measured latency takes the place of the predicted one, what the
# network would take unfused stands beside it, and there is accuracy on images that played no part in choosing.
TOP = {"study", "target", "budget_ms", "data", "seed", "created", "versions", "members"}
MEMBER = {
    "trial",
    "spec_id",
    "spec",
    "params",
    "macs",
    "peak_memory_bytes",
    "latency_ms",
    "proxy",
    "accuracy",
    "parity",
    "certificate",
    "files",
}


def test_the_front_is_written_with_the_keys_that_scripts_rely_on(run):
    run(StudyExecutor())
    document = json.loads((run.folder / "front.json").read_text())
    assert set(document) == TOP
    for each in document["members"]:
        assert set(each) == MEMBER | {"predicted_latency_ms", "unfused_latency_ms", "test_accuracy"}
        assert set(each["latency_ms"]) == set(each["predicted_latency_ms"]) == {"value", "low", "high", "tier", "table"}
        assert each["latency_ms"]["tier"] in ("measured", "calibrated", "extrapolated")
        assert set(each["accuracy"]) == {"value", "epochs", "split", "images"}
        assert set(each["parity"]) == {"max_abs", "max_rel"}
        assert set(each["certificate"]) == {"kept", "why"}
        assert each["certificate"]["kept"] is None
        assert {"score", "dispersion", "loss", "macs"} <= set(each["proxy"])
        assert set(each["files"]) == {"spec.yaml", "model.onnx", "weights.safetensors"}
        for file in each["files"].values():
            content = (run.folder / file["path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_the_table_and_the_manifests_say_what_the_front_says(run):
    document = run(StudyExecutor()).document
    with (run.folder / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [each["trial"] for each in document["members"]]
    for row, each in zip(rows, document["members"], strict=True):
        assert float(row["latency_ms"]) == each["latency_ms"]["value"]
        assert float(row["accuracy"]) == each["accuracy"]["value"]
        assert row["kept"] == ""
        assert int(row["macs"]) == each["macs"]
        manifest = json.loads((run.folder / "models" / row["trial"] / "manifest.json").read_text())
        assert manifest == {name: value for name, value in document.items() if name != "members"} | each


def test_a_finalist_that_fails_is_told_and_not_on_the_front(run):
    unlucky = []

    def train(plan):
        unlucky.append(plan.trial)
        if plan.trial == unlucky[0]:
            raise RuntimeError("it would not train")
        return trained(plan)

    outcome = run(StudyExecutor(train))
    assert outcome.failures == (f"finalist {unlucky[0]}: RuntimeError: it would not train",)
    assert unlucky[0] not in {each["trial"] for each in outcome.document["members"]}
    assert outcome.document["members"]


def test_nothing_is_trained_twice_whether_it_failed_or_not(run):
    failed = []

    def train(plan):
        if not failed or plan.trial in failed:
            failed.append(plan.trial)
            return Failure("no")
        return trained(plan)

    first = run(StudyExecutor(train))
    again = StudyExecutor()
    second = run(again)
    assert again.specs == []
    assert second.failures == first.failures == (f"finalist {failed[0]}: no",)
    assert second.document == first.document


def test_a_finalist_that_failed_for_want_of_a_file_is_tried_again(run):
    def train(plan):
        raise FileNotFoundError(2, "No such file or directory", "images")

    broken = run(StudyExecutor(train))
    assert len(broken.failures) == 4
    assert broken.document["members"] == []
    mended = StudyExecutor()
    assert len(run(mended).document["members"]) > 0
    assert len(mended.plans) == 4


def test_a_model_that_was_deleted_is_made_again(run):
    first = run(StudyExecutor())
    trial = first.document["members"][0]["trial"]
    (run.folder / "models" / str(trial) / "model.onnx").unlink()
    again = StudyExecutor()
    assert run(again).document == first.document
    assert [plan.trial for plan in again.plans] == [trial]


def test_a_run_that_ends_among_the_finalists_goes_on_there(run, tmp_path):
    with pytest.raises(Stopped):
        run(StudyExecutor(stop_after=9 + 8 + 2))
    rest = StudyExecutor()
    document = run(rest).document
    assert len(rest.plans) == 2
    assert rest.stints == []
    assert document["members"]
    assert not (run.folder / "front.json.partial").exists()


@pytest.mark.parametrize("stop_after", [3, 10])
def test_workers_are_given_up_and_the_study_let_go_however_a_run_ends(run, stop_after):
    executor = StudyExecutor(stop_after=stop_after)
    with pytest.raises(Stopped):
        run(executor)
    assert executor.closed
    with driver_lock(run.folder):
        pass


def test_other_epochs_are_another_training(run):
    run(StudyExecutor())
    other = StudyExecutor()
    longer = replace(run.problem, settings=run.problem.settings.model_copy(update={"epochs": 3}))
    write_study_file(run.folder, study_record(longer))
    run(other, longer)
    assert {plan.training.epochs for plan in other.plans} == {3}
    assert len(other.plans) == 4


def test_without_a_finalist_the_front_is_empty_and_says_so(run):
    def train(plan):
        return Failure("none of them")

    outcome = run(StudyExecutor(train))
    assert outcome.document["members"] == []
    assert len(outcome.failures) == 4
    assert not outcome.certificate_broken
    assert "no member" in worth(outcome.document)
    assert summary(outcome.document).startswith("0 networks for rk3288 within 100 ms")
    assert "No finalist was trained" in (run.folder / "report.html").read_text()


def test_a_report_shows_names_as_text_whatever_they_hold(run):
    outcome = run(StudyExecutor())
    name = "<script>alert('x')</script>&amp;"
    document = outcome.document | {"data": name, "study": name}
    record = read_run_record(run.folder) | {"failures": [name]}
    text = page(document, read_study_file(run.folder), record)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;amp;") >= 3


# Beginning


def test_a_study_keeps_what_it_was_resolved_to(run):
    run(StudyExecutor())
    record = read_study_file(run.folder)
    assert record.settings() == run.problem.settings
    assert record.target_sha256 == run.problem.target.sha256
    before = (run.folder / "study.yaml").read_bytes()
    run(StudyExecutor())
    assert (run.folder / "study.yaml").read_bytes() == before, "its day of birth stays"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_sha256": "0" * 64}, "the latency table of rk3288 has changed since it began"),
        ({"data_fingerprint": "0" * 64}, "the images of digits have changed since it began"),
    ],
)
def test_a_study_whose_ground_has_moved_does_not_go_on(run, change, message):
    record = study_record(run.problem).model_copy(update=change)
    with pytest.raises(ConfigError, match=message):
        check_same(record, run.problem)
    check_same(study_record(run.problem), run.problem)


# Certificates

PREDICTED = Latency(3.0, 2.4, 4.0, Tier.extrapolated, "board@0")


def measured(value):
    return Latency(value, value - 0.1, value + 0.1, Tier.measured, "host@0")


@pytest.mark.parametrize(
    ("latency", "difference", "kept", "words"),
    [
        (None, 1e-6, None, ["not measured", "extrapolated", "4 ms", "budget of 5 ms"]),
        (measured(4.9), 1e-6, True, ["measured 4.9 ms keeps the budget of 5 ms"]),
        (measured(5.0), 1e-6, True, ["keeps"]),
        (measured(5.01), 1e-6, False, ["measured 5.01 ms breaks the budget of 5 ms"]),
        (None, 1e-4, None, ["not measured"]),
        (None, 1.1e-4, False, ["differs from the trained one", "1.1e-04"]),
        (measured(4.9), float("inf"), False, ["differs from the trained one"]),
    ],
)
def test_a_certificate_promises_what_was_seen_and_no_more(latency, difference, kept, words):
    found = certificate(PREDICTED, latency, 5.0, difference)
    assert found.kept is kept
    assert all(word in found.why for word in words)


# By command


@pytest.fixture
def nas(tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def nas(executor, *words):
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        code = main([*words, "--out", str(tmp_path)])
        told = capsys.readouterr()
        return code, told.out, told.err

    yield nas
    signal.signal(signal.SIGTERM, before)


def test_json_is_the_front_and_nothing_else_on_stdout(nas, tmp_path):
    def train(plan):
        print("a library says hello")
        return trained(plan)

    code, out, err = nas(StudyExecutor(train), *SEARCH, "--json")
    assert code == DONE, err
    assert json.loads(out) == json.loads((tmp_path / "mine" / "front.json").read_text())
    assert "a library says hello" in err
    for command in (["resume", "mine"], ["show", "mine"]):
        code, again, err = nas(StudyExecutor(), *command, "--json")
        assert (code, json.loads(again)) == (DONE, json.loads(out)), err


def test_a_table_for_people_names_every_member_and_what_the_figures_are_worth(nas, tmp_path):
    code, out, err = nas(StudyExecutor(), *SEARCH)
    assert code == DONE, err
    document = read_front(tmp_path / "mine")
    for each in document["members"]:
        assert f"{each['params']:,}" in out
        assert each["latency_ms"]["tier"] in out
    assert worth(document) in out
    assert "at most 200 images" in out
    assert "search: " in err


def test_quiet_says_nothing_while_it_works(nas):
    code, _, err = nas(StudyExecutor(), *SEARCH, "--quiet")
    assert (code, err) == (DONE, "")


def test_one_member_is_shown_in_full_and_another_is_not_found(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    member = read_front(tmp_path / "mine")["members"][0]
    code, out, _ = nas(None, "show", "mine", "--trial", str(member["trial"]))
    assert code == DONE
    assert f"accuracy  {member['accuracy']['value']:.4f}" in out
    assert str(tmp_path / "mine" / member["files"]["model.onnx"]["path"]) in out
    code, out, _ = nas(None, "show", "mine", "--trial", str(member["trial"]), "--json")
    assert (code, json.loads(out)) == (DONE, member)
    code, out, err = nas(None, "show", "mine", "--trial", "999")
    assert (code, out) == (WRONG_INPUT, "")
    assert "999 is not on the front of mine; its members are" in err


def test_a_model_that_differs_from_its_training_is_exit_code_four(nas):
    def train(plan):
        return trained(plan) | {"onnxruntime": {"max_abs": 0.5, "max_rel": 0.25}}

    code, out, err = nas(StudyExecutor(train), *SEARCH)
    assert code == BROKEN_CERTIFICATE == 4
    assert "NO" in out
    assert "the exported model differs from the trained one by 2.5e-01" in err
    code, out, _ = nas(StudyExecutor(), "resume", "mine", "--json")
    assert code == BROKEN_CERTIFICATE
    assert {each["certificate"]["kept"] for each in json.loads(out)["members"]} == {False}


def test_ctrl_c_leaves_a_study_that_resume_finishes(nas, tmp_path):
    whole = nas(StudyExecutor(), *SEARCH, "--json")
    written = (tmp_path / "mine" / "front.json").read_text()
    (tmp_path / "mine").rename(tmp_path / "first")

    class Interrupted(StudyExecutor):
        def wait(self):
            if len(self.specs) > 8:
                raise KeyboardInterrupt
            return super().wait()

    code, out, err = nas(Interrupted(), *SEARCH)
    assert (code, out) == (INTERRUPTED, "")
    assert f"`nas resume {tmp_path / 'mine'}` goes on with it" in err
    code, out, err = nas(StudyExecutor(), "resume", "mine", "--json")
    assert code == DONE, err
    expected, found = json.loads(whole[1]), json.loads(out)
    assert found["members"] == expected["members"]
    assert json.loads(written)["members"] == expected["members"]


def test_resume_adds_as_many_trials_as_it_is_told(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    more = StudyExecutor()
    code, _, err = nas(more, "resume", "mine", "--trials", "3")
    assert code == DONE, err
    assert len(more.specs) - len(more.plans) - len(more.stints) == 3
    assert read_study_file(tmp_path / "mine").trials == 12
    code, _, err = nas(None, "resume", "mine", "--trials", "0")
    assert code == WRONG_INPUT
    assert "at least 1 more" in err


def test_the_same_command_again_is_the_same_study_and_another_is_another(nas, tmp_path):
    plain = [word for word in SEARCH if word not in ("--study", "mine")]
    nas(StudyExecutor(), *plain)
    again = StudyExecutor()
    assert nas(again, *plain)[0] == DONE
    assert again.specs == []
    other = StudyExecutor()
    assert nas(other, *plain, "--seed", "5")[0] == DONE
    assert len(other.specs) > 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rk3288-100ms-digits", "rk3288-100ms-digits-2"]


def test_a_named_study_with_other_settings_is_refused(nas):
    nas(StudyExecutor(), *SEARCH)
    code, out, err = nas(None, *SEARCH, "--seed", "5")
    assert (code, out) == (WRONG_INPUT, "")
    assert "study mine: exists with other settings (seed is 0 there)" in err


def test_a_study_that_another_process_drives_is_refused(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    with driver_lock(tmp_path / "mine"):
        for words in (["resume", "mine"], ["resume", "mine", "--trials", "2"], SEARCH):
            code, _, err = nas(StudyExecutor(), *words)
            assert code == WRONG_INPUT
            assert "one driver at a time" in err


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("study.yaml", b"study: [\n", 1),
        ("study.yaml", b"", 1),
        ("results.jsonl", b'{"arch": 1\n{}\n', 1),
    ],
)
def test_a_damaged_file_of_a_study_is_named_with_its_line(nas, tmp_path, file, content, line):
    nas(StudyExecutor(), *SEARCH)
    path = tmp_path / "mine" / file
    path.write_bytes(content)
    code, out, err = nas(StudyExecutor(), "resume", "mine")
    assert (code, out) == (WRONG_INPUT, "")
    assert f"{path}:{line}: " in err


def test_a_study_of_another_version_is_refused_or_says_so(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    path = tmp_path / "mine" / "study.yaml"
    own = path.read_text()
    version = re.search(r"torch: (.*)", own)[1]
    path.write_text(own.replace(f"torch: {version}", "torch: 1.2.3"))
    code, _, err = nas(StudyExecutor(), "resume", "mine")
    assert code == DONE
    assert f"other versions than when the study began: torch {version} (1.2.3 then); results may differ" in err
    assert "(1.2.3 then)" in (tmp_path / "mine" / "log.txt").read_text()
    for changed in (own + "novelty: 3\n", re.sub("(?m)^data_fingerprint: .*\n", "", own)):
        path.write_text(changed)
        code, out, err = nas(None, "resume", "mine")
        assert (code, out, err.count("\n")) == (WRONG_INPUT, "", 1)
        assert "a study that another version of nas began goes on with that version, or is begun anew here" in err
    path.write_text(own)
    assert "other versions" not in nas(StudyExecutor(), "resume", "mine")[2]


@pytest.mark.parametrize(
    ("content", "line"), [(b"", 1), (b'{\n"members": [\n', 3), (b"[]", 1), (b'{"study": 1}', 1), (b"\xff", 1)]
)
def test_a_damaged_front_is_named_and_made_again(nas, tmp_path, content, line):
    nas(StudyExecutor(), *SEARCH)
    path = tmp_path / "mine" / "front.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    code, out, err = nas(None, "show", "mine")
    assert (code, out) == (WRONG_INPUT, "")
    assert f"{path}:{line}: " in err
    assert nas(StudyExecutor(), "resume", "mine")[0] == DONE
    assert path.read_bytes() == whole


def test_a_study_without_a_front_says_how_to_get_one(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    (tmp_path / "mine" / "front.json").unlink()
    code, _, err = nas(None, "show", "mine")
    assert code == WRONG_INPUT
    assert f"study mine has no front yet; finish it with `nas resume {tmp_path / 'mine'}`" in err


def test_a_member_can_be_predicted_by_study_and_trial(nas, tmp_path):
    nas(StudyExecutor(), *SEARCH)
    member = read_front(tmp_path / "mine")["members"][0]
    code, out, err = nas(None, "predict", f"mine:{member['trial']}", "--target", "rk3288", "--json")
    assert code == DONE, err
    found = json.loads(out)
    for name in ("spec_id", "spec", "params", "macs", "peak_memory_bytes"):
        assert found[name] == member[name]
    assert found["latency_ms"]["value"] == pytest.approx(member["latency_ms"]["value"])
    code, _, err = nas(None, "predict", "mine:999", "--target", "rk3288")
    assert code == WRONG_INPUT
    assert "trial 999 of mine was not trained" in err


@pytest.mark.parametrize("folder", ["Zürich photos", "..hidden", "日本", "a" * 200, "-dash"])
def test_a_folder_of_images_may_be_called_anything(folder):
    draft = {"target": "rk3288", "budget": "5 ms", "data": f"/somewhere/{folder}"}
    name = default_name(draft)
    assert checked_settings(draft | {"study": name}).study == name
    assert name.startswith("rk3288-5-ms-")
