"""`nas export` for real, on a tiny study: strangers run what it writes, and it is the network that was trained."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from evaluators.datasets import open_dataset
from hardware.isolated import Failed
from hardware.strict_yaml import ConfigError
from nas import export as exporting
from nas import export_formats
from nas.cli import main
from nas.exit_codes import BROKEN_CERTIFICATE, DONE, WRONG_INPUT
from nas.export import compared, set_aside
from nas.web.export_job import EXPORTED, read_state
from nas.web.export_job import LOCK as EXPORT_LOCK
from nas.web.export_job import run as run_export
from nas.web.runs import export_command
from searchspace.network import build_network
from searchspace.spec import read_spec

STUDY = """
target: rk3288
budget: 5ms
data: digits
data_limit: 200
trials: 2
iterations: 2
finalists: 1
layouts: 1
epochs: 12
genes:
  resolution: 32
  stem.width: 16
  stem.stride: 2
  stage*.depth: 2
  stage1.width: 16
  stage2.width: [24, 32]
  stage3.width: [24, 32]
  stage4.width: 48
  stage*.kernel: 3
  stage*.expand: 3
  head.width: 0
"""
FORMATS = ("onnx", "ncnn", "mnn", "torch")


def nas(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*map(str, words)])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    (folder / "tiny.yaml").write_text(STUDY)
    code, _, err = nas("search", folder / "tiny.yaml", "--study", "tiny", "--workers", "1", "--out", folder, "--quiet")
    assert code == DONE, err
    return folder


@pytest.fixture(scope="module")
def front(studies):
    return json.loads((studies / "tiny" / "front.json").read_text())["members"]


@pytest.fixture(scope="module")
def out(studies, tmp_path_factory):
    """The front in every format and in eight bits, however much that costs."""
    out = tmp_path_factory.mktemp("exported")
    words = ("--format", ",".join(FORMATS), "--int8", "--max-drop", "1", "--out", out)
    code, _, err = nas("export", "tiny", "--studies", studies, *words)
    assert code == DONE, err
    return out


@pytest.fixture(scope="module")
def member(front, out):
    return out / str(front[-1]["trial"])


@pytest.fixture(scope="module")
def manifest(member):
    return json.loads((member / "manifest.json").read_text())


@pytest.fixture(scope="module")
def images():
    return open_dataset("digits", seed=0, limit=200).at(32).val_x


@pytest.fixture(scope="module")
def trained(studies, front, images):
    """What the network as it was trained, with its branches, makes of the validation images."""
    models = studies / "tiny" / "models" / str(front[-1]["trial"])
    network = build_network(read_spec(models / "spec.yaml"), 7)
    network.load_state_dict(load_file(models / "weights.safetensors"))
    with torch.no_grad():
        return network.eval()(images).numpy()


def alone(folder, code, *words):
    """Runs code in a process that has nothing of ours; stdout, or the errors as this test's own."""
    forbid = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nas", "searchspace", "hardware", "evaluators"):
            raise ImportError(f"{name} is not to be had")
sys.meta_path.insert(0, Forbidden())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", forbid + code, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(printed):
    """Class and score, as an example prints them; MNN adds lines of its own."""
    ((best, score),) = re.findall(r"^(\S+) (-?\d+\.\d{3})$", printed, re.MULTILINE)
    return best, float(score)


# What is there


def test_every_member_of_the_front_is_a_folder_of_what_was_asked_for(front, out):
    assert sorted(path.name for path in out.iterdir()) == sorted(str(each["trial"]) for each in front)
    for each in front:
        assert {path.name for path in (out / str(each["trial"])).iterdir()} == {
            *("manifest.json", "spec.yaml", "sample.png", "preprocessing.py"),
            *("model.onnx", "model.int8.onnx", "example_onnx.py"),
            *("model.param", "model.bin", "example_ncnn.py"),
            *("model.mnn", "example_mnn.py"),
            *("model.pt2", "model.safetensors", "network.py", "network.json", "example_torch.py"),
        }


def test_the_manifest_has_what_the_study_knows_and_the_hash_of_every_file(front, member, manifest):
    own = front[-1]
    for name in ("trial", "spec_id", "params", "macs", "latency_ms", "accuracy", "test_accuracy", "certificate"):
        assert manifest[name] == own[name]
    assert (manifest["study"], manifest["target"], manifest["budget_ms"]) == ("tiny", "rk3288", 5)
    assert manifest["latency_ms"]["tier"] == "extrapolated"
    listed = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in member.iterdir()
        if path.name != "manifest.json"
    }
    assert manifest["files"] == listed
    assert {"onnxruntime", "ncnn", "MNN", "torch", "python", "edge-nas"} <= manifest["versions"].keys()
    assert manifest["classes"] == [str(digit) for digit in range(10)]
    data = open_dataset("digits", seed=0, limit=200)
    assert manifest["preprocessing"]["mean"] == list(data.mean)
    assert manifest["preprocessing"]["std"] == list(data.std)
    assert manifest["input"]["shape"] == ["batch", 1, 32, 32]


def test_each_format_was_compared_on_256_real_images(manifest):
    assert set(manifest["formats"]) == set(FORMATS)
    for entry in manifest["formats"].values():
        # The validation split of the digits has 249.
        assert entry["images"] == {"validation": 249, "training": 7}
        for parity in entry["parity"].values():
            assert parity["same"] is True
            assert 0 < parity["max_rel"] < 1e-4
            assert parity["top1_agreement"] == 1.0


# The files in the hands of a stranger

RUN_ONNX = """
import sys, numpy as np, onnxruntime
x = np.load(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {"image": x})[0])
"""
RUN_NCNN = """
import sys, numpy as np, ncnn
net = ncnn.Net()
net.opt.num_threads = 1
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
assert net.load_param(sys.argv[2]) == 0 and net.load_model(sys.argv[2].replace(".param", ".bin")) == 0
results = []
for image in np.load(sys.argv[1]):
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(image).clone())
    results.append(np.array(extractor.extract("out0")[1]))
np.save(sys.argv[3], np.stack(results))
"""
RUN_MNN = """
import sys, numpy as np, MNN
interpreter = MNN.Interpreter(sys.argv[2])
session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": 1})
entering = interpreter.getSessionInput(session)
results = []
for image in np.load(sys.argv[1])[:, None]:
    entering.copyFrom(MNN.Tensor(image.shape, MNN.Halide_Type_Float, image.copy(), MNN.Tensor_DimensionType_Caffe))
    interpreter.runSession(session)
    leaving = interpreter.getSessionOutput(session)
    empty = np.empty(leaving.getShape(), np.float32)
    copied = MNN.Tensor(empty.shape, MNN.Halide_Type_Float, empty, MNN.Tensor_DimensionType_Caffe)
    leaving.copyToHostTensor(copied)
    results.append(np.array(copied.getNumpyData())[0])
np.save(sys.argv[3], np.stack(results))
"""
RUN_TORCH = """
import sys, runpy, pathlib, numpy as np, torch
torch.set_num_threads(1)
x = torch.from_numpy(np.load(sys.argv[1]))
network = runpy.run_path(str(pathlib.Path(sys.argv[2]).with_name("network.py")))["load"]()
with torch.no_grad():
    program, source = torch.export.load(sys.argv[2]).module()(x).numpy(), network(x).numpy()
assert np.abs(program - source).max() < 1e-5 * np.abs(source).max()
np.save(sys.argv[3], source)
"""


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("model.onnx", RUN_ONNX),
        ("model.param", RUN_NCNN),
        ("model.mnn", RUN_MNN),
        ("model.pt2", RUN_TORCH),
    ],
)
def test_a_stranger_gets_what_the_trained_network_computes(member, images, trained, tmp_path, file, code):
    np.save(tmp_path / "images.npy", images.numpy())
    alone(tmp_path, code, tmp_path / "images.npy", member / file, tmp_path / "found.npy")
    found = np.load(tmp_path / "found.npy")
    # MNN without the hint that its example gives rounds more.
    assert np.abs(found - trained).max() <= (2e-3 if file == "model.mnn" else 1e-4) * np.abs(trained).max()
    assert (found.argmax(1) == trained.argmax(1)).mean() >= 0.99


def running(script):
    """Code that runs a script as Python does, its folder first on the path."""
    return f"import runpy; sys.path.insert(0, {str(script.parent)!r}); runpy.run_path({str(script)!r})"


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_names_the_class_of_an_image_as_it_stands(member, manifest, trained, tmp_path, name):
    copy = shutil.copytree(member, tmp_path / "elsewhere")
    best, score = said(alone(tmp_path, running(copy / f"example_{name}.py")))
    assert best == manifest["classes"][trained[0].argmax()]
    # The example resizes pixels of 8 bits, training resized numbers.
    assert score == pytest.approx(float(trained[0].max()), abs=0.02 * float(np.abs(trained).max()))
    own = [line for line in (copy / f"example_{name}.py").read_text().splitlines() if line.strip()]
    # The line that says what it is, and ten.
    assert len(own) <= 11


def test_the_example_takes_an_image_of_ones_own(member, tmp_path):
    from PIL import Image

    # The same digit in the middle of a wide picture in colour: the middle square counts.
    wide = Image.new("RGB", (24, 8), (255, 255, 255))
    with Image.open(member / "sample.png") as digit:
        assert digit.size == (8, 8)
        wide.paste(digit.convert("RGB"), (8, 0))
    wide.save(tmp_path / "wide.png")
    script = running(member / "example_onnx.py")
    as_it_is = said(alone(tmp_path, script))
    own = alone(tmp_path, f"sys.argv = ['example_onnx.py', {str(tmp_path / 'wide.png')!r}]\n{script}")
    assert said(own) == as_it_is
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    other = alone(tmp_path, f"sys.argv = ['example_onnx.py', {str(tmp_path / 'black.png')!r}]\n{script}")
    assert said(other) != as_it_is


# Options


def test_only_the_trials_asked_for_are_written_and_any_that_was_trained_may_be(studies, tmp_path):
    studies = shutil.copytree(studies, tmp_path / "studies")
    document = json.loads((studies / "tiny" / "front.json").read_text())
    others = [int(path.name) for path in (studies / "tiny" / "models").iterdir()]
    # As if another had beaten it.
    document["members"] = [each for each in document["members"] if each["trial"] != others[0]]
    (studies / "tiny" / "front.json").write_text(json.dumps(document))
    code, told, err = nas(
        "export", "tiny", "--studies", studies, "--trial", others[0], "--json", "--out", tmp_path / "new" / "place"
    )
    assert code == DONE, err
    assert [each["trial"] for each in json.loads(told)["members"]] == [others[0]]
    assert [path.name for path in (tmp_path / "new" / "place").iterdir()] == [str(others[0])]
    assert "model.mnn" not in {path.name for path in (tmp_path / "new" / "place" / str(others[0])).iterdir()}


def test_a_fixed_batch_is_in_the_model_and_its_example_feeds_it(studies, front, tmp_path, trained):
    words = ("--trial", front[-1]["trial"], "--format", "onnx,torch", "--batch", "5", "--out", tmp_path)
    assert nas("export", studies / "tiny", *words)[0] == DONE
    folder = tmp_path / str(front[-1]["trial"])
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [5, 1, 32, 32]
    script = running(folder / "example_onnx.py")
    assert said(alone(tmp_path, script))[0] == str(trained[0].argmax())
    assert ".repeat(5, 0)" in (folder / "example_torch.py").read_text()
    entry = json.loads((folder / "manifest.json").read_text())["formats"]["onnx"]
    assert sum(entry["images"].values()) == 260, "whole batches, and at least 256"


def test_the_onnx_file_says_what_it_needs(member, manifest):
    said = {entry.key: entry.value for entry in onnx.load(member / "model.onnx").metadata_props}
    assert json.loads(said["classes"]) == manifest["classes"]
    assert json.loads(said["mean"]) == manifest["preprocessing"]["mean"]
    assert said == {entry.key: entry.value for entry in onnx.load(member / "model.int8.onnx").metadata_props}


# Eight bits


def right(session, images, labels):
    return (session.run(None, {"image": images})[0].argmax(1) == labels).mean()


def test_eight_bits_are_eight_bits_and_their_accuracy_is_told(member, manifest, images):
    labels = open_dataset("digits", seed=0, limit=200).at(32).val_y.numpy()
    model = onnx.load(member / "model.int8.onnx")
    weights = {entry.name: entry.data_type for entry in model.graph.initializer if entry.name.endswith("quantized")}
    assert onnx.TensorProto.INT8 in weights.values()
    scales = [entry for entry in model.graph.initializer if entry.name.endswith("weight_scale")]
    assert any(len(entry.dims) == 1 and entry.dims[0] > 1 for entry in scales), "one for each channel"
    for file, name in (("model.onnx", "accuracy_before"), ("model.int8.onnx", "accuracy_after")):
        session = onnxruntime.InferenceSession(member / file, providers=["CPUExecutionProvider"])
        assert right(session, images.numpy(), labels) == pytest.approx(manifest["int8"][name])


def test_eight_bits_that_cost_too_much_are_left_out(studies, front, tmp_path, monkeypatch):
    def broken(float_file, int8_file, images, method):
        model = onnx.load(float_file)
        for weight in model.graph.initializer:
            if weight.name.endswith("weight"):
                zeros = np.zeros(tuple(weight.dims), np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(zeros, weight.name))
        onnx.save(model, int8_file)
        return int8_file

    monkeypatch.setattr(exporting, "quantize", broken)
    trial = front[-1]["trial"]
    code, _, err = nas("export", studies / "tiny", "--trial", trial, "--int8", "--out", tmp_path)
    assert code == BROKEN_CERTIFICATE
    assert f"trial {trial}: int8: accuracy falls from" in err
    assert "by more than --max-drop 0.01" in err
    assert not (tmp_path / str(trial) / "model.int8.onnx").exists()
    assert (tmp_path / str(trial) / "model.onnx").exists()
    told = json.loads((tmp_path / str(trial) / "manifest.json").read_text())["int8"]
    assert told["accuracy_before"] - told["accuracy_after"] > 0.01
    assert "files" not in told


# What goes wrong


def test_a_format_that_computes_something_else_is_left_out_and_the_others_stay(studies, front, tmp_path, monkeypatch):
    def write(subjects):
        for _, folder in subjects:
            (folder / "model.param").write_text("7767517\n1 1\nInput in0 0 1 in0 0=32 1=32 2=1\n")
            (folder / "model.bin").write_bytes(b"")
        return [None] * len(subjects)

    ncnn = export_formats.FORMATS["ncnn"]
    monkeypatch.setitem(
        export_formats.FORMATS,
        "ncnn",
        export_formats.Format(ncnn.name, ncnn.module, ncnn.library, ncnn.files, ncnn.checked, write, ncnn.run),
    )
    trial = front[-1]["trial"]
    code, out, err = nas(
        "export", studies / "tiny", "--trial", trial, "--format", "ncnn,onnx", "--json", "--out", tmp_path
    )
    assert code == BROKEN_CERTIFICATE
    assert f"trial {trial}: ncnn: model.param: " in err
    names = {path.name for path in (tmp_path / str(trial)).iterdir()}
    assert names == {"manifest.json", "spec.yaml", "sample.png", "preprocessing.py", "model.onnx", "example_onnx.py"}
    (told,) = json.loads(out)["members"]
    assert "refused" in told["formats"]["ncnn"]


def test_a_member_that_no_format_can_hold_leaves_no_folder(studies, front, tmp_path, monkeypatch):
    mnn = export_formats.FORMATS["mnn"]

    def write(subjects):
        return [Failed("gelu 'stages.0.0.act': cannot be held") for _ in subjects]

    monkeypatch.setitem(
        export_formats.FORMATS,
        "mnn",
        export_formats.Format(mnn.name, mnn.module, mnn.library, mnn.files, mnn.checked, write, mnn.run),
    )
    code, _, err = nas("export", studies / "tiny", "--format", "mnn", "--out", tmp_path / "new")
    assert code == BROKEN_CERTIFICATE
    assert "mnn: gelu 'stages.0.0.act': cannot be held" in err
    assert not list((tmp_path / "new").iterdir())


def test_a_run_that_breaks_leaves_nothing_half_written(studies, tmp_path, monkeypatch):
    def broken(data, path):
        raise OSError("the disk is full")

    monkeypatch.setattr(exporting, "_write_sample", broken)
    code, _, err = nas("export", studies / "tiny", "--out", tmp_path / "new")
    assert (code, "the disk is full" in err) == (1, True)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nothing"], ["no study 'nothing'", "tiny"]),
        (["tiny", "--trial", "99"], ["trial: 99 of tiny has no trained model", "those that have: "]),
        (["tiny", "--format", "onxn"], ["unknown format 'onxn'", "did you mean 'onnx'?", "ncnn, mnn, torch"]),
        (["tiny", "--format", ","], ["format: at least one", "known: onnx"]),
        (["tiny", "--batch", "0"], ["batch: at least 1", "got 0"]),
        (["tiny", "--max-drop", "2"], ["max-drop", "got 2"]),
        (["tiny", "--format", "mnn", "--int8"], ["int8", "add onnx to --format"]),
        (["tiny", "--front", "--trial", "1"], ["not allowed with"]),
        (["tiny", "--trial"], ["expected at least one argument"]),
    ],
)
def test_wrong_words_are_named_with_those_that_are_known(studies, tmp_path, words, parts):
    code, out, err = nas("export", *words, "--studies", studies, "--out", tmp_path / "new")
    assert (code, out) == (WRONG_INPUT, "")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_written_into_by_force_only(studies, front, tmp_path):
    mine, old = tmp_path / "mine.txt", tmp_path / str(front[-1]["trial"])
    mine.write_text("keep this")
    old.mkdir()
    (old / "stale").write_text("from before")
    words = ("export", studies / "tiny", "--trial", front[-1]["trial"], "--out", tmp_path)
    code, _, err = nas(*words)
    assert (code, "is not empty" in err, "--force" in err) == (WRONG_INPUT, True, True)
    assert (old / "stale").exists()
    assert nas(*words, "--force")[0] == DONE
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([old.name, "mine.txt"])
    assert mine.read_text() == "keep this"
    assert not (old / "stale").exists()


def test_weights_that_have_changed_since_are_not_exported(studies, front, tmp_path):
    copy = shutil.copytree(studies, tmp_path / "studies")
    weights = copy / "tiny" / "models" / str(front[0]["trial"]) / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    code, _, err = nas("export", copy / "tiny", "--out", tmp_path / "new")
    assert code == WRONG_INPUT
    assert "not what the study certified" in err
    assert not (tmp_path / "new").exists()


# From the dashboard: the same, in the study's folder


def test_the_dashboards_export_is_what_the_command_writes(studies, front, tmp_path):
    study = shutil.copytree(studies, tmp_path / "studies") / "tiny"
    words = ("--format", "onnx", "--out", tmp_path / "by_command")
    assert nas("export", study, *words)[0] == DONE
    done = subprocess.run(export_command(study, ["onnx"], int8=False), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for each in front:
        own, other = study / EXPORTED / str(each["trial"]), tmp_path / "by_command" / str(each["trial"])
        assert json.loads((own / "manifest.json").read_text()) == json.loads((other / "manifest.json").read_text())
    state = read_state(study)
    assert (state.formats, state.members, state.problems, state.failure) == (("onnx",), len(front), (), None)
    assert state.ended >= state.began
    assert "export done" in (study / "log.txt").read_text()


def test_an_export_that_fails_leaves_the_one_before_and_says_why(studies, front, tmp_path):
    study = shutil.copytree(studies, tmp_path / "studies") / "tiny"
    earlier = study / EXPORTED / "1"
    earlier.mkdir(parents=True)
    (earlier / "kept").write_text("from before")
    weights = study / "models" / str(front[0]["trial"]) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    state = run_export(study, "onnx", int8=False)
    assert "not what the study certified" in state.failure
    assert read_state(study) == state
    assert (earlier / "kept").read_text() == "from before"
    assert sorted(path.name for path in study.glob(".*")) == []


def test_a_study_is_exported_once_at_a_time(studies, tmp_path):
    study = shutil.copytree(studies, tmp_path / "studies") / "tiny"
    with (study / EXPORT_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="being exported already"):
            run_export(study, "onnx", int8=False)
    assert read_state(study) is None
    assert not (study / EXPORTED).exists()


# Comparing


def test_differences_are_counted_against_the_largest_trained_output():
    expected = np.array([[4.0, -8.0], [1.0, 0.0]])
    moved = expected + np.array([[0.0, 0.0], [-0.5, 0.75]])
    found = compared(expected, moved)
    assert (found["max_abs"], found["max_rel"], found["top1_agreement"]) == (0.75, 0.75 / 8, 0.5)
    assert not found["same"]
    assert "9.4e-02" in found["why"]
    assert compared(expected, expected + 8e-4)["same"]
    assert not compared(expected, expected + 8.1e-4)["same"]


@pytest.mark.parametrize("wrong", [Failed("crashed"), np.full((2, 2), np.nan), np.zeros((2, 3))])
def test_what_cannot_be_compared_is_not_the_same(wrong):
    found = compared(np.ones((2, 2)), wrong)
    assert found["same"] is False
    assert found["why"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("error", [None, OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("was_there", [True, False])
def test_a_folder_that_is_replaced_is_whole_however_that_ends(tmp_path, error, was_there):
    final, new = tmp_path / "7", tmp_path / "new"
    for folder in [new, *([final] if was_there else [])]:
        folder.mkdir()
        (folder / "model.onnx").write_text(folder.name)
    with contextlib.nullcontext() if error is None else pytest.raises(type(error)), set_aside(final):
        assert not final.exists()
        if error is not None:
            raise error
        new.replace(final)
    names = {"7": "new"} if error is None else {"7": "7", "new": "new"} if was_there else {"new": "new"}
    assert {path.name: (path / "model.onnx").read_text() for path in tmp_path.iterdir()} == names
