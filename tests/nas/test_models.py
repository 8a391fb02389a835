"""`nas models` as a person and as a script see it."""

import json
import re

import pytest

from nas import console
from nas.cli import main
from nas.models import chosen_genes
from searchspace.blocks.rdp import Rdp
from searchspace.references import reference_names


@pytest.fixture
def terminal(monkeypatch):
    """Sets how wide the terminal is."""

    def of(columns):
        monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")

    return of


def seen(capsys):
    """The lines on stdout as a terminal shows them."""
    return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "parcnet_s"], ["models", "resnet50"], ["models", "ppenet_l"]]
)
def test_everything_fits_a_terminal_of_80_columns(terminal, capsys, arguments):
    terminal(80)
    assert main(arguments) == 0
    lines = seen(capsys)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 140])
def test_there_is_a_line_for_each_network_in_each_table(terminal, capsys, columns):
    terminal(columns)
    main(["models"])
    lines = seen(capsys)
    for name in reference_names():
        assert len([line for line in lines if line.split()[:1] == [name]]) == (2 if columns == 80 else 1)


def test_a_line_has_both_sides(capsys):
    main(["models"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("parcnet_s ")]
    # Published, deviation and verdict; trained and deployed parameters and multiply-adds; accuracy.
    assert line.split() == [
        "parcnet_s",
        *("5.0M", "+0.7", "3.5G", "-0.5", "profiler", "exact"),
        *("5.037", "1657.3", "5.023", "1657.3", "78.6", "ImageNet"),
    ]


def test_one_network_tells_its_reason_and_its_blocks(capsys):
    assert main(["models", "ppenet_l"]) == 0
    out = capsys.readouterr().out
    assert "3, 9, 3, 9, 9 are the one of 1024 draws" in out
    assert "PPENet, Table 1: unexplained" in out
    (block,) = [line for line in out.splitlines() if line.startswith("stages.1.0 ")]
    assert block.split()[1:3] == ["rkp", "48x56x56"]
    assert block.split()[-2:] == ["kernel=9", "variant=dense"]


def test_json_is_one_object_with_everything(capsys):
    assert main(["models", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in document["models"]] == list(reference_names())
    each = next(each for each in document["models"] if each["name"] == "ppenet_s")
    assert set(each) == {"name", "spec_id", "spec", "verdict", "train", "deploy", "published", "blocks"}
    assert each["verdict"] == "unexplained"
    (row,) = each["published"]
    assert row["params"] == 2_400_000
    assert row["flops"] is None
    assert (row["form"], row["classes"], row["resolution"]) == ("train", 5, 224)
    assert row["accuracy"] == [{"data": "Flowers", "top1": 85.4, "trained_with": None}]
    assert row["own"]["train"] == each["train"]
    assert row["params_deviation_percent"] == pytest.approx(100 * (each["train"]["params"] / 2.4e6 - 1))
    assert sum(block["deploy"]["macs"] for block in each["blocks"]) == each["deploy"]["macs"]


def test_json_of_one_network_is_that_network(capsys):
    assert main(["models", "resnet18", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"] == {"params": 11_689_512, "macs": 1_814_073_344}


def test_an_unknown_name_is_wrong_input_and_suggests_the_nearest(capsys):
    assert main(["models", "rdpnet_x1_cifar"]) == 2
    assert "did you mean 'rdpnet_x1_" in capsys.readouterr().err


def test_genes_at_their_default_are_left_out():
    assert chosen_genes(Rdp(16, 1, 4)) == {"width": 16}
    assert chosen_genes(Rdp(16, 2)) == {"width": 16, "stride": 2}
