"""`nas train`: the same end however often it is ended, and one line for whatever cannot be trained."""

import json
import signal

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from evaluators.accuracy import accuracy
from evaluators.checkpoints import load_checkpoint
from nas import train_command
from nas.cli import main
from nas.contenders import training_of
from nas.executors.executor import Finished
from nas.executors.inline import InlineExecutor
from nas.exit_codes import BROKE, DONE, INTERRUPTED, WRONG_INPUT
from nas.long_training import Pace
from nas.problem import DataKey, dataset
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.spec import ArchSpec, read_spec, spec_id, write_spec

SPEC = ArchSpec((1, 16, 16), Rep(8, 2), ((Rdp(16, 2),),), Classifier(10))


class Here(InlineExecutor):
    """Trains in this process; the job that `stop_at` counts is ended by Ctrl-C."""

    stop_at = None
    labels = ()

    def __init__(self, workers):
        super().__init__()

    def submit(self, job):
        Here.labels += (job.label,)
        return super().submit(job)

    def wait(self) -> Finished:
        if Here.stop_at is not None and len(Here.labels) == Here.stop_at:
            raise KeyboardInterrupt
        return super().wait()


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command on a small spec file; says its exit code and both outputs."""
    monkeypatch.setattr(train_command, "ProcessExecutor", Here)
    monkeypatch.chdir(tmp_path)
    write_spec(SPEC, tmp_path / "net.yaml")
    before = signal.getsignal(signal.SIGTERM)

    def train(*words, stop_at=None):
        Here.stop_at, Here.labels = stop_at, ()
        flags = [] if "--data" in words else ["--data-limit", "200"]
        code = main(["train", "net.yaml", *flags, *words])
        return code, *capsys.readouterr()

    yield train
    signal.signal(signal.SIGTERM, before)


def digest(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_it_leaves_a_model_that_is_the_network_that_was_trained(train, tmp_path):
    code, out, err = train("--epochs", "3", "--json", "--out", "out", "--target", "rk3288")
    assert code == DONE, err
    document = json.loads(out)
    model = tmp_path / "out" / "model"
    assert json.loads((model / "manifest.json").read_text()) == document
    assert sorted(path.name for path in model.iterdir()) == [
        "manifest.json", "model.onnx", "spec.yaml", "weights.safetensors",
    ]  # fmt: skip
    data = dataset(DataKey("digits", 0, 200))
    splits = data.at(16)
    network = build_network(read_spec(model / "spec.yaml"), 0)
    network.load_state_dict(load_file(model / "weights.safetensors"))
    reached = accuracy(network, splits.val_x, splits.val_y)
    assert document["accuracy"]["value"] == reached.value
    assert document["accuracy"]["calibration_error"] == reached.calibration_error
    assert document["latency_ms"]["tier"] == "extrapolated"
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {session.get_inputs()[0].name: splits.val_x.numpy()})
    assert np.mean(answers.argmax(1) == splits.val_y.numpy()) == reached.value
    assert document["spec_id"] == spec_id(SPEC)


def test_a_training_that_is_ended_twice_ends_as_the_one_that_was_not(train, tmp_path):
    assert train("--epochs", "4", "--out", "whole", "--quiet")[0] == DONE
    every = ("--epochs", "4", "--out", "parts", "--checkpoint-every", "1")
    code, _, err = train(*every, stop_at=2)
    assert code == INTERRUPTED
    assert "the same command goes on with it" in err
    assert train(*every, stop_at=2)[0] == INTERRUPTED
    code, _, err = train(*every)
    assert code == DONE
    assert Here.labels == ("training to epoch 3", "training to epoch 4", "export")
    assert "epoch 3 of 4: loss" in err
    assert digest(tmp_path / "parts" / "model") == digest(tmp_path / "whole" / "model")
    assert train(*every)[0] == DONE
    assert Here.labels == (), "what is finished is only told again"


def test_a_checkpoint_can_be_gone_on_with_by_whoever_has_the_plan(train, tmp_path, monkeypatch):
    plans = []
    original = train_command.train_to_the_end
    monkeypatch.setattr(
        train_command, "train_to_the_end", lambda plan, *rest: plans.append(plan) or original(plan, *rest)
    )
    train("--epochs", "3", "--out", "out", "--checkpoint-every", "2", stop_at=2)
    splits = dataset(plans[0].data).at(16)
    training = training_of(plans[0], SPEC, splits)
    load_checkpoint(training, tmp_path / "out" / "checkpoint.pt")
    assert training.epochs_done == 2


def test_the_recipe_can_be_changed_by_a_file(train, tmp_path):
    (tmp_path / "recipe.yaml").write_text("optimizer: sgd\nlearning_rate: 0.1\naverage_share: 0.05\n")
    code, out, err = train("--epochs", "1", "--recipe", "recipe.yaml", "--json")
    assert code == DONE, err
    recipe = json.loads(out)["recipe"]
    assert (recipe["optimizer"], recipe["learning_rate"], recipe["batch_size"]) == ("sgd", 0.1, 64)
    assert (tmp_path / "trained" / "net.yaml-1-epochs" / "model").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs: at least 1, got 0"),
        (["--epochs", "1", "--checkpoint-every", "0"], "checkpoint-every: at least 1, got 0"),
        (["--epochs", "1", "--seed", "-1"], "seed: 0 or more, got -1"),
        (["--epochs", "1", "--data", "nosuch"], "no data set or folder is called 'nosuch'"),
        (["--epochs", "1", "--target", "nosuch"], "nosuch"),
        (["--epochs", "1", "--threads", "2"], "give --target as well"),
        (["--epochs", "1", "--recipe", "gone.yaml"], "gone.yaml: a readable file is needed"),
        (["--epochs", "1", "--recipe", "bad.yaml"], "momentum must be from 0 to below 1, got 2.0"),
        (["--epochs", "1", "--recipe", "odd.yaml"], "odd.yaml"),
        (["--epochs", "1", "--out", "full"], "out: full is not empty and holds no training"),
        (["--epochs", "1", "--out", "net.yaml"], "out: net.yaml is not empty and holds no training"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(train, tmp_path, words, message):
    (tmp_path / "bad.yaml").write_text("momentum: 2.0\n")
    (tmp_path / "odd.yaml").write_text("lerning_rate: 0.1\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    code, out, err = train(*words)
    assert code == WRONG_INPUT
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "trained").exists()


def test_another_training_in_the_same_folder_is_refused(train):
    train("--epochs", "2", "--out", "out", stop_at=1)
    code, _, err = train("--epochs", "3", "--out", "out")
    assert code == WRONG_INPUT
    assert "out: out holds another training (epochs is 2 there); give another --out" in err


def test_a_network_that_diverges_is_told_with_its_name(train, tmp_path):
    (tmp_path / "steep.yaml").write_text("learning_rate: 1.0e+30\n")
    code, _, err = train("--epochs", "1", "--recipe", "steep.yaml")
    assert code == BROKE
    assert err.startswith(f"nas: {spec_id(SPEC)} cannot be trained: TrainingDiverged: the loss became nan")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("pace", "done", "taken_s", "until"),
    [
        (Pace(5), 0, 0.0, 5),
        (Pace(5), 7, 1.0, 10),
        (Pace(None, 60), 0, 0.0, 1),
        (Pace(None, 60), 1, 2.0, 31),
        (Pace(None, 60), 3, 1000.0, 4),
    ],
)
def test_checkpoints_come_after_so_many_epochs_or_about_so_many_seconds(pace, done, taken_s, until):
    assert pace.until(done, taken_s) == until


def test_torch_is_left_as_it_was(train):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train("--epochs", "1")
    assert torch.equal(torch.rand(2), expected)
