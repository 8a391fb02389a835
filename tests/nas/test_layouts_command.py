"""`nas layouts` from words to files, on networks that train in a moment."""

import json
import sys

import pytest
import torch
from torch import nn

from nas.cli import main
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.conv import PlainConv
from searchspace.blocks.rep import Rep
from searchspace.coverage import parse_layout
from searchspace.reparam import merge, with_pbconv
from searchspace.spec import ArchSpec, deploy_form, read_spec, write_spec

QUICK = ["--data-limit", "60", "--candidates", "2", "--iterations", "1"]
NETWORK = """
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )

pointwise = nn.Sequential(nn.Conv2d(1, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
wide = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
few = nn.Sequential(nn.Conv2d(1, 9, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
number = 3

def needs(width):
    return None

def gives_text():
    return "network"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "layouts_user_net.py").write_text(NETWORK)
    yield tmp_path
    sys.modules.pop("layouts_user_net", None)
    torch.set_num_threads(threads)


def test_a_spec_is_written_with_the_layout_that_won(folder, capsys):
    spec = ArchSpec((3, 16, 16), Rep(4, 2), ((PlainConv(4, kernel=3),),), Classifier(100))
    write_spec(spec, folder / "spec.yaml")
    words = ["layouts", "spec.yaml", *QUICK, "--epochs", "10", "--write", "out.yaml", "--json", "--quiet"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    written = read_spec(folder / "out.yaml")
    # The digits are grey and have ten classes.
    assert deploy_form(written) == ArchSpec((1, 16, 16), Rep(4, 2), ((PlainConv(4, kernel=3),),), Classifier(10))
    values = [each["dispersion"]["network"] for each in told["tried"]]
    best = told["tried"][values.index(max(values))]
    assert told["layouts"] == best["layouts"] == {"network": {"3": str(written.stem.layout)}}
    assert written.stages[0][0].layout == written.stem.layout
    # Two trainings of 32 images against ten of 60, and what building and folding takes on top.
    assert told["share_of_training"] >= 64 / 600


def test_a_module_of_ones_own_gets_a_file_that_with_pbconv_takes(folder, capsys):
    assert main(["layouts", "layouts_user_net:network", *QUICK, "--scope", "layer", "--write", "out.json"]) == 0
    said = capsys.readouterr()
    assert "of training for 100 epochs on 60 images" in " ".join(said.out.split())
    assert "layouts: 2 of 2, dispersion" in said.err
    layouts = {path: parse_layout(text) for path, text in json.loads((folder / "out.json").read_text()).items()}
    assert list(layouts) == ["0"]
    from layouts_user_net import network

    plain = network()
    merged = merge(with_pbconv(plain, lambda path, conv: layouts.get(path)).eval())
    assert isinstance(merged.get_submodule("0"), nn.Conv2d)
    assert [p.shape for p in merged.parameters()] == [p.shape for p in plain.parameters()]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["layouts_user_net:netwrk"], ["model", "'netwrk'", "did you mean 'network'?"]),
        (["no_such_module:network"], ["model", "no module 'no_such_module'"]),
        (["layouts_user_net:number"], ["model", "no network 'number'"]),
        (["layouts_user_net:needs"], ["model", "must need no arguments", "width"]),
        (["layouts_user_net:gives_text"], ["model", "nn.Module", "str"]),
        (["layouts_user_net:pointwise"], ["no square convolution larger than 1x1"]),
        (["layouts_user_net:wide"], ["does not take images of (1, 8, 8)"]),
        (["layouts_user_net:few"], ["must give 10 logits", "got (2, 9)"]),
        (["rdpnet_x0_25"], ["'rdpnet_x0_25'", "did you mean 'rdpnet_x0_25_cifar'?"]),
        (["layouts_user_net:network", "--candidates", "0"], ["candidates", "at least 1", "got 0"]),
        (["layouts_user_net:network", "--iterations", "-3"], ["iterations", "at least 1", "got -3"]),
        (["layouts_user_net:network", "--epochs", "0"], ["epochs", "at least 1", "got 0"]),
        (["layouts_user_net:network", "--threads", "0"], ["threads", "at least 1", "got 0"]),
        (["layouts_user_net:network", "--resolution", "0"], ["resolution", "at least 1", "got 0"]),
        (["layouts_user_net:network", "--scope", "block"], ["scope: network, stage, layer; got 'block'"]),
        (["layouts_user_net:network", "--score", "std"], ["score: dispersion, gain; got 'std'"]),
        (["layouts_user_net:network", "--write", "nowhere/out.json"], ["write", "nowhere is no folder"]),
        (["layouts_user_net:network", "--data", "digit"], ["did you mean digits?"]),
        (["rdpnet_x0_25_cifar", "--resolution", "64"], ["resolution", "32 pixels", "got 64"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_wrong_words_are_one_line_and_exit_two(words, parts, capsys):
    assert main(["layouts", *words, "--data-limit", "20"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    for part in parts:
        assert part in said.err
