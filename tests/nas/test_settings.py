"""What a study was asked to do survives its file, and every mistake in it is named with its line."""

import re

import pytest
import yaml
from pydantic import ValidationError

from hardware.strict_yaml import ConfigError, load_yaml
from nas.settings import (
    STUDY_FILE,
    StudyDraft,
    StudyFile,
    StudySettings,
    read_study_file,
    versions,
    write_study_file,
)

# Nothing at its default, and texts that YAML would take for something else.
EVERYTHING = {
    "study": "2026-11-20",
    "target": "null",
    "budget": "0.0050 s",
    "data": "cifar10:/data/with spaces/ünï: code #1",
    "data_limit": 123,
    "space": "no",
    "genes": {"stem.width": 16, "stage*.kernel": [3, 5], "stage1.squeeze_excite": False, "stage?.family": ["ir"]},
    "sampler": "tpe",
    "start": "fastest",
    "evaluation_time": "3m",
    "score": "1e3",
    "trials": 7,
    "time": "90s",
    "trust": 30,
    "trust_epochs": 6,
    "iterations": 3,
    "contenders": 7,
    "finalists": 2,
    "training_time": "80s",
    "layouts": 5,
    "layout_scope": "stage",
    "layout_score": "gain",
    "epochs": 5,
    "seed": 2**31 - 1,
    "threads": 4,
    "runtime": "~",
    "storage": "sqlite:////tmp/a b.db?x=1",
    "workers": 9,
    "window": 20,
    "backend": "ray",
    "ray_address": "10.0.0.1:6379",
    "cpus_per_trial": 2.0,
    "gpus_per_trial": 0.5,
}

RECORD = {
    "created": "2026-11-20T05:00:00+00:00",
    "target_sha256": "0" * 64,
    "data_fingerprint": "1e10",
    "versions": {"python": "3.11", "numpy": "2.0"},
}

LEAST = {"study": "a", "target": "rk3288", "budget": "5ms"}


def test_the_example_leaves_no_setting_out():
    assert EVERYTHING.keys() == StudySettings.model_fields.keys()
    defaults = StudySettings(**LEAST).model_dump()
    assert all(EVERYTHING[name] != defaults[name] for name in EVERYTHING)


@pytest.mark.parametrize("values", [EVERYTHING, LEAST], ids=["everything", "least"])
def test_a_study_survives_its_file(tmp_path, values):
    study = StudyFile(**values, **RECORD)
    write_study_file(tmp_path, study)
    read = read_study_file(tmp_path)
    assert read == study
    assert read.settings() == StudySettings(**values)
    # True == 1 in Python, so equality alone would not tell a gene that is off from one that is zero.
    assert repr(read) == repr(study)
    assert [path.name for path in tmp_path.iterdir()] == [STUDY_FILE], "nothing half-written stays behind"


def test_a_draft_may_give_any_setting_and_keeps_what_it_was_given(tmp_path):
    path = tmp_path / "draft.yaml"
    for name, value in EVERYTHING.items():
        path.write_text(yaml.safe_dump({name: value}))
        assert load_yaml(path, StudyDraft).model_dump(exclude_none=True) == {name: value}


# A study file with one line broken: how, at which line, and what the message must say beside it.
BROKEN = [
    ("budgets: 5ms", 3, "budgets: unknown key; did you mean 'budget'?"),
    ("budget: 5", 3, "budget: a latency needs a unit and is above zero, such as 5ms, 0.005s or 5000us; got '5'"),
    ("budget: -5ms", 3, "got '-5ms'"),
    ("budget: .nan", 3, "got 'nan'"),
    ("budget: [5ms]", 3, "got \"['5ms']\""),
    ("budget: 5ms\ntrials: many", 4, "trials: must be a valid integer, got 'many'"),
    ("budget: 5ms\ntrials: 0", 4, "trials: must be greater than or equal to 1, got 0"),
    ("budget: 5ms\ntrials: 10.5", 4, "trials: must be a valid integer"),
    ("budget: 5ms\ntrials: true", 4, "trials: must be a valid integer, got True"),
    ("budget: 5ms\nseed: -1", 4, "seed: must be greater than or equal to 0, got -1"),
    ("budget: 5ms\nseed: 2147483648", 4, "seed: must be less than 2147483648"),
    (
        "budget: 5ms\nsampler: nsga",
        4,
        "sampler: must be 'nsga2', 'nsga3', 'tpe', 'random', 'evolution' or 'surrogate', got 'nsga'",
    ),
    ("budget: 5ms\nbackend: cloud", 4, "backend: must be 'local', 'ray' or 'inline', got 'cloud'"),
    ("budget: 5ms\ntime: 10", 4, "a duration needs a unit"),
    ("budget: 5ms\nbudget: 6ms", 4, "budget: a key may stand only once, got it in line 3 too"),
    ("budget: &b 5ms\nscore: *b", 3, "aliases"),
    ("budget: 5ms\ndata: no", 4, "YAML reads yes, no, on and off as true and false"),
    ("budget: 5ms\nlayouts: -1", 4, "layouts: must be greater than or equal to 0, got -1"),
    ("budget: 5ms\ngenes: [3]", 4, "genes: must be"),
    ("budget: 5ms\ngenes:\n  stem.width: {a: 1}", 5, "genes.stem.width: must be"),
    ("budget: '5ms", 3, "not valid YAML"),
]


@pytest.mark.parametrize(("text", "line", "message"), BROKEN)
def test_mistakes_are_named_with_file_and_line(tmp_path, text, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"study: a\ntarget: rk3288\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, StudyDraft)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{path}:{line}: ")
    assert message in first


def test_every_single_damage_to_a_study_file_is_noticed_or_harmless(tmp_path):
    # Cut after every character: what is left is refused with file and line, or nothing but the end is missing.
    study = StudyFile(**EVERYTHING, **RECORD)
    write_study_file(tmp_path, study)
    path = tmp_path / STUDY_FILE
    text = path.read_text(encoding="utf-8")
    for end in range(len(text) - 1):
        path.write_text(text[:end], encoding="utf-8")
        message = "" if is_whole(tmp_path, study) else error_of(tmp_path)
        assert not message or re.match(rf"{re.escape(str(path))}:\d+: ", message)


def is_whole(folder, study):
    try:
        return read_study_file(folder).settings() == study.settings()
    except ConfigError:
        return False


def error_of(folder):
    with pytest.raises(ConfigError) as caught:
        read_study_file(folder)
    return str(caught.value)


def test_a_missing_study_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"{re.escape(str(tmp_path / STUDY_FILE))}: a readable file is needed"):
        read_study_file(tmp_path)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "-a", "a" * 101, "a b", "ä", "a\n"])
def test_a_study_name_that_is_no_plain_file_name_is_refused(name):
    with pytest.raises(ValidationError):
        StudySettings(**(LEAST | {"study": name}))


def test_quantities_are_kept_as_written_and_read_as_numbers():
    settings = StudySettings(**(LEAST | {"budget": "5000us", "time": "1.5h"}))
    assert (settings.budget, settings.budget_ms) == ("5000us", 5.0)
    assert (settings.time, settings.time_s) == ("1.5h", 5400.0)
    assert StudySettings(**LEAST).time_s is None


def test_versions_name_what_results_depend_on():
    import torch

    assert versions()["torch"] == torch.__version__
    assert {"python", "edge-nas", "optuna", "onnx", "onnxruntime", "numpy"} <= versions().keys()
