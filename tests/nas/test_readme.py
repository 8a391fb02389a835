"""What the README says can be typed, typed; the families that its table lists, held against what there is."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from nas.cli import build_parser, main
from nas.exit_codes import DONE
from searchspace.registry import families

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    """Every `nas` line in the README's blocks for the shell, without its comment."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            found = re.search(r"(?:^|&& )(?:\.venv/bin/)?nas (.*)$", line)
            if found:
                yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)[:60]) for words in commands()])
def test_every_command_of_the_readme_is_one(words):
    build_parser().parse_args(words)


def test_the_table_of_families_names_those_of_the_papers():
    listed = set(
        re.findall(r"`(\w+)`", README[README.index("## Block families") : README.index("## Your own network")])
    )
    of_papers = {"rdp", "rep", "parc", "lfae", "gfae", "patch", "norm_down", "dbc", "rkp", "ppe"}
    assert of_papers <= listed
    assert of_papers <= {family.name for family in families()}


def test_a_folder_of_ones_own_images_is_searched_as_the_readme_says(tmp_path, capsys):
    (words,) = [words for words in commands() if "--data" in words and words[words.index("--data") + 1] == "FOLDER"]
    rng = np.random.default_rng(0)
    for index, name in enumerate(("left", "right")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 60, (12, 12, 3), np.uint8)
            pixels[:, 6 * index : 6 * index + 6] += 150
            Image.fromarray(pixels).save(folder / f"{number}.png")
    words[words.index("FOLDER")] = str(tmp_path / "images")
    genes = {"resolution": 32, "stage*.depth": 2, "head.width": 0}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"genes": genes}))
    few = ["--trials", "2", "--iterations", "1", "--finalists", "1", "--epochs", "1", "--workers", "1", "--quiet"]
    assert main([words[0], str(tmp_path / "small.yaml"), *words[1:], *few, "--out", str(tmp_path / "studies")]) == DONE
    assert "accuracy" in capsys.readouterr().out
