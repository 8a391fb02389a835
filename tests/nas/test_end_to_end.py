"""`nas search` for real, on a tiny setting: what it leaves behind, and that a stranger can use it."""

import contextlib
import csv
import html.parser
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from evaluators.datasets import open_dataset
from nas.cli import main
from nas.exit_codes import DONE, INTERRUPTED
from nas.settings import read_study_file
from nas.storage import open_study
from searchspace.network import build_network
from searchspace.spec import deploy_id, read_spec, spec_id

# Flags stand beside the file; its genes keep the networks small.
STUDY = """
target: rk3288
budget: 5ms
data: digits
data_limit: 200
trials: 500
iterations: 2
finalists: 1
layouts: 1
epochs: 1
genes:
  resolution: 32
  stem.width: [8, 16]
  stem.stride: 2
"""


def tiny(studies, *words):
    path = studies / "tiny.yaml"
    path.write_text(STUDY)
    return ["search", str(path), "--study", "tiny", "--workers", "1", "--out", str(studies), *words]


@dataclass(frozen=True)
class Done:
    folder: Path
    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


def nas(*words):
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, words)])
    signal.signal(signal.SIGTERM, before)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    studies = tmp_path_factory.mktemp("studies")
    code, out, err = nas(*tiny(studies, "--trials", "3", "--json"))
    return Done(studies / "tiny", code, out, err)


@pytest.fixture(scope="module")
def validation():
    return open_dataset("digits", seed=0, limit=200)


def test_it_ends_well_and_prints_its_front_and_nothing_else(done):
    assert done.code == DONE, done.err
    assert done.document == json.loads((done.folder / "front.json").read_text())
    assert done.document["study"] == "tiny"
    assert done.document["target"] == "rk3288"
    assert done.document["budget_ms"] == 5
    assert len(done.document["members"]) == 1


def test_it_leaves_the_folder_that_is_promised(done):
    (member,) = done.document["members"]
    files = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    model = f"models/{member['trial']}/"
    kept = {
        "study.yaml",
        "journal.log",
        "results.jsonl",
        "front.json",
        "front.csv",
        "run.json",
        "report.html",
        "driver.lock",
        "log.txt",
    }
    assert files == kept | {
        model + name for name in ("spec.yaml", "model.onnx", "weights.safetensors", "manifest.json")
    }
    assert read_study_file(done.folder).trials == 3
    assert len(open_study(done.folder, "tiny", None).trials) == 3
    with (done.folder / "front.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["accuracy"]) == member["accuracy"]["value"]


def test_every_candidate_was_looked_at_once_and_one_was_trained(done):
    lines = [json.loads(line) for line in (done.folder / "results.jsonl").read_text().splitlines()]
    assert [line["fidelity"] for line in lines] == ["early"] * 3 + ["trained-1-epochs-1-layouts"]
    assert len({line["arch"] for line in lines[:3]}) == 3
    assert lines[3]["arch"] in {line["arch"] for line in lines[:3]}
    for trial, line in zip(open_study(done.folder, "tiny", None).trials, lines, strict=False):
        assert trial.user_attrs["arch"] == line["arch"]


def test_the_member_keeps_the_budget_with_its_whole_interval(done):
    (member,) = done.document["members"]
    latency = member["latency_ms"]
    assert 0 < latency["low"] <= latency["value"] <= latency["high"] <= 5
    assert latency["tier"] == "extrapolated"
    assert latency["table"].startswith("rk3288/ncnn-20211208/1t/fp32@")
    assert member["certificate"]["kept"] is None
    spec = read_spec(done.folder / "models" / str(member["trial"]) / "spec.yaml")
    assert spec_id(spec) == member["spec_id"]
    assert deploy_id(spec) in (done.folder / "results.jsonl").read_text()
    assert spec.input_shape == (1, 32, 32)
    assert (spec.stem.width, spec.stem.stride) in ((8, 2), (16, 2)), "the genes that were held"
    assert spec.head.classes == 10


def test_the_model_runs_in_a_plain_session_and_is_the_network_that_was_trained(done, validation):
    (member,) = done.document["members"]
    folder = done.folder / "models" / str(member["trial"])
    spec = read_spec(folder / "spec.yaml")
    assert any(getattr(block, "layout", None) is not None for _, block in spec.blocks()), "it trained with branches"
    network = build_network(spec, seed=99)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    splits = validation.at(spec.input_shape[1])
    with torch.no_grad():
        trained = network.eval()(splits.val_x).numpy()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: splits.val_x.numpy()})
    assert (result.argmax(1) == trained.argmax(1)).all()
    difference = np.abs(result - trained).max()
    assert difference <= 1e-4 * np.abs(trained).max()
    assert difference == pytest.approx(member["parity"]["max_abs"], rel=0.5, abs=1e-6)
    right = (trained.argmax(1) == splits.val_y.numpy()).mean()
    assert member["accuracy"] == {
        "value": pytest.approx(right),
        "epochs": 1,
        "split": "validation",
        "images": len(splits.val_y),
    }


def test_the_model_says_how_images_must_be_given_to_it(done, validation):
    (member,) = done.document["members"]
    model = onnx.load(done.folder / "models" / str(member["trial"]) / "model.onnx")
    onnx.checker.check_model(model)
    assert {"Conv"} <= {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}, "everything is folded"
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["mean"]) == list(validation.mean)
    assert json.loads(said["std"]) == list(validation.std)
    assert json.loads(said["classes"]) == list(validation.class_names)
    assert said["spec_id"] == member["spec_id"]


def test_layouts_were_tried_and_the_one_that_dispersed_most_was_trained(done):
    (member,) = done.document["members"]
    finding = json.loads((done.folder / "results.jsonl").read_text().splitlines()[-1])["values"]
    tried = {each["spec_id"]: each["dispersion"] for each in finding["layouts_tried"]}
    assert len(tried) == 1
    assert max(tried, key=tried.get) == member["spec_id"]


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line"):
            self.open.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_needs_nothing_beside_itself_and_names_every_member(done):
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|url\(|@import|<link|<script", text)
    page = Page()
    page.feed(re.sub(r"<line([^>]*)/>", r"<line\1>", text))
    assert page.open == [], "every element is closed"
    assert not [found for found in page.attributes if found[1] in ("href", "src", "data", "action")]
    words = " ".join(page.text)
    for member in done.document["members"]:
        assert f"trial {member['trial']}: {member['accuracy']['value']:.3f}" in words
        assert f"{member['params']:,}" in words
    assert "Nobody has measured them" in words


def test_running_it_again_changes_nothing_that_was_found(done, tmp_path):
    shutil.copytree(done.folder, tmp_path / "tiny")
    code, out, err = nas(*tiny(tmp_path, "--trials", "3", "--json"))
    assert code == DONE, err
    assert json.loads(out) == done.document
    for name in ("results.jsonl", "study.yaml", "front.csv"):
        assert (tmp_path / "tiny" / name).read_bytes() == (done.folder / name).read_bytes()
    assert len(open_study(tmp_path / "tiny", "tiny", None).trials) == 3


@pytest.mark.slow
def test_two_workers_find_what_one_finds(done, tmp_path):
    code, out, err = nas(*tiny(tmp_path, "--trials", "3", "--json", "--workers", "2"))
    assert code == DONE, err

    def found(document):
        members = json.loads(json.dumps(document["members"]))
        for member in members:
            del member["proxy"]["seconds"]
        return members

    assert found(json.loads(out)) == found(done.document)


def search_in_another_process(studies):
    return subprocess.Popen(
        [sys.executable, "-m", "nas", *tiny(studies, "--trials", "12")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Shells have what they start in the background ignore Ctrl-C, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_search_that_is_stopped_is_finished_by_resume(tmp_path, stop):
    with search_in_another_process(tmp_path) as running:
        # The first line comes with the first candidate that was looked at.
        assert running.stderr.readline().startswith("search: 1 of 12 candidates")
        if stop == signal.SIGINT:
            os.killpg(running.pid, stop)  # a terminal tells every process of the group
        else:
            running.send_signal(stop)
        rest = running.stderr.read()
    if stop == signal.SIGKILL:
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == INTERRUPTED
        assert f"`nas resume {tmp_path / 'tiny'}` goes on with it" in rest
        assert "Traceback" not in rest
    lines = (tmp_path / "tiny" / "results.jsonl").read_text().splitlines()
    assert 1 <= len(lines) < 12
    code, out, err = nas("resume", "tiny", "--json", "--out", tmp_path)
    assert code == DONE, err
    assert len(json.loads(out)["members"]) == 1
    assert len(open_study(tmp_path / "tiny", "tiny", None).trials) == 12
    assert (tmp_path / "tiny" / "results.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert len((tmp_path / "tiny" / "results.jsonl").read_text().splitlines()) == 13
