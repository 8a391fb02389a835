"""What the README says about blocks and spaces of one's own, done as it says."""

import importlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from nas.cli import main
from nas.exit_codes import DONE, WRONG_INPUT
from nas.problem import resolve
from nas.settings import StudySettings
from searchspace import registry
from searchspace.chain import ConvLayer, chain_family
from searchspace.choosers import random_choice
from searchspace.coverage import Layout, Rectangle
from searchspace.deploy_module import DeployModule
from searchspace.network import Network, build_network, deploy, deploy_graph
from searchspace.space import Task, gene_options, member
from searchspace.spaces import space_named
from searchspace.spec import SpecError, read_spec, write_spec

ROOT = Path(__file__).parents[2]
TASK = Task(channels=3, classes=10)


def readme_blocks(language, holding):
    """The code block of the README in a language that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if holding in block]
    return found


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder with the README's module, where nothing that is registered outlives the test."""
    (tmp_path / "my_blocks.py").write_text(readme_blocks("python", "chain_family"), encoding="utf-8")
    registry.families()
    forget_own_families(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_blocks", None)


def forget_own_families(monkeypatch):
    shipped = {family.name: family for family in registry.families() if family.train.__module__ != "searchspace.chain"}
    monkeypatch.setattr(registry, "_FAMILIES", shipped)
    monkeypatch.setattr(registry, "_BY_SPEC", {family.spec: family for family in shipped.values()})


@pytest.fixture
def own(own_folder):
    return importlib.import_module("my_blocks")


def plain(channels, block):
    """The README's block as plain torch: 1x1, depthwise, 1x1, each with a norm, the first two with ReLU."""
    half = block.width // 2
    rows = ((channels, half, 1, 1, 1), (half, half, block.kernel, block.stride, half), (half, block.width, 1, 1, 1))
    layers = []
    for before, after, kernel, stride, groups in rows:
        layers += [nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (8, 2), (6, 1)])
def test_both_forms_compute_what_the_layers_say(own, channels, stride):
    spec = own.Squeeze(8, stride, 3)
    block = registry.family_of(spec).train((channels, 7, 5), spec).double()
    expected = plain(channels, spec).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mine, other in zip(block.state_dict().values(), expected.state_dict().values(), strict=True):
            if mine.is_floating_point():
                other.copy_(mine.copy_(torch.rand(mine.shape, generator=generator, dtype=torch.float64) + 0.5))
        x = torch.randn(2, channels, 7, 5, generator=generator, dtype=torch.float64)
        wanted = expected.eval()(x) + (x if (channels, stride) == (8, 1) else 0)
        assert (block.eval()(x) - wanted).abs().max() < 1e-11
        # The block between plain ones, folded.
        space = own.MINE
        arch = replace(
            member(space, random_choice(random.Random(1)), TASK), input_shape=(channels, 7, 5), stages=((spec,),)
        )
        network = build_network(arch, seed=1).double().eval()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                for values in (part.weight, part.bias, part.running_mean, part.running_var):
                    values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
        assert (DeployModule(deploy(network))(x) - network(x)).abs().max() < 1e-11


def test_members_of_a_space_of_ones_own_emit_train_and_survive_a_file(own, tmp_path):
    space = space_named("my_blocks:MINE")
    assert space is own.MINE
    for seed in range(20):
        spec = member(space, random_choice(random.Random(seed)), TASK)
        write_spec(spec, tmp_path / "spec.yaml")
        assert read_spec(tmp_path / "spec.yaml") == spec
        assert deploy_graph(spec).output_shape == (10,)
    assert {type(block) for stage in spec.stages for block in stage} == {own.Squeeze}
    Network(spec)(torch.randn(2, *spec.input_shape)).sum().backward()


def test_layouts_sit_on_the_convolution_that_has_them():
    rows = (ConvLayer(4, 3, layout=Layout(3, (Rectangle(0, 0, 2, 3), Rectangle(2, 0, 1, 3)))), ConvLayer(4, 3))
    block = chain_family("unregistered", object, lambda channels, spec: rows).train((4, 5, 5), None)
    # 4 x 4 kernels of 9, and two batch norms; two branches of 6 and 3 cells, each with its norm.
    assert sum(each.numel() for each in block.parameters()) == 2 * (16 * 9 + 8) + 16 * (6 + 3) + 2 * 8


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"kernel": 4}, "kernel"),
        ({"width": 0}, "width must be above 0"),
        ({"groups": 0}, "groups must be above 0"),
        ({"activation": "rleu"}, "unknown activation"),
    ],
)
def test_layers_that_cannot_be_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        ConvLayer(**{"width": 4} | layer)


def test_a_block_without_layers_is_refused():
    family = chain_family("empty", object, lambda channels, spec: ())
    with pytest.raises(ValueError, match="has one layer or more"):
        family.train((4, 5, 5), None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_blocs:MINE", "there is no module 'my_blocs'; put my_blocs.py into the folder where you work"),
        ("my_blocks:MIEN", "my_blocks has no space 'MIEN'; did you mean 'MINE'"),
        ("my_blocks:Squeeze", "my_blocks has no space 'Squeeze'"),
    ],
)
def test_a_space_that_is_not_there_is_named(own_folder, name, message):
    with pytest.raises(SpecError, match=message):
        space_named(name)


def test_what_a_module_of_ones_own_lacks_is_not_taken_for_the_module(own_folder):
    (own_folder / "lacking.py").write_text("import no_such_library", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        space_named("lacking:MINE")


def test_a_spec_file_with_a_block_of_ones_own_needs_the_module(own_folder, capsys):
    code = (
        "import random; from searchspace.spaces import space_named; from searchspace.space import *;"
        "from searchspace.choosers import random_choice; from searchspace.spec import *;"
        "from pathlib import Path; write_spec(member(space_named('my_blocks:MINE'),"
        "random_choice(random.Random(1)), Task(3, 10)), Path('spec.yaml'))"
    )
    run_here(own_folder, "-c", code)
    assert main(["predict", "spec.yaml", "--target", "rk3288"]) == WRONG_INPUT
    assert "unknown block family 'squeeze'" in capsys.readouterr().err
    assert main(["predict", "spec.yaml", "--target", "rk3288", "--families", "my_blocs"]) == WRONG_INPUT
    assert "import: there is no module 'my_blocs'" in capsys.readouterr().err
    assert main(["predict", "spec.yaml", "--target", "rk3288", "--families", "my_blocks", "--json"]) == DONE


def run_here(folder, *words):
    """Python in a folder, without the folder on its path but for what it adds itself."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == DONE, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_search_goes_through_a_space_of_ones_own_in_processes_of_its_own(own_folder, monkeypatch, capsys):
    command = readme_blocks("sh", "my_blocks:MINE").split()
    assert command[0] == "nas"
    # The console script has its own folder on the path, and not the one where it is called.
    script = "import sys; sys.path.remove(''); from nas.cli import main; sys.exit(main(sys.argv[1:]))"
    small = "--data-limit 60 --trials 3 --iterations 1 --finalists 1 --epochs 1 --workers 2 --study own --json"
    found = json.loads(run_here(own_folder, "-c", script, *command[1:], *small.split()))
    (only,) = found["members"]
    assert {row["family"] for stage in only["spec"]["stages"] for row in stage} == {"squeeze"}
    # Neither of these is told the module.
    assert "my_blocks" not in sys.modules
    assert main(["show", "own", "--trial", str(only["trial"])]) == DONE
    capsys.readouterr()
    del sys.modules["my_blocks"]
    forget_own_families(monkeypatch)
    assert main(["predict", f"own:{only['trial']}", "--target", "rk3288", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["spec_id"] == only["spec_id"]


def test_a_narrowed_space_of_the_readme_is_one():
    study = yaml.safe_load(readme_blocks("yaml", "genes:"))
    space = resolve(StudySettings(study="narrowed", **study)).space
    options = gene_options(space)
    assert options["resolution"] == (32, 48)
    assert {options[f"stage{number}.family"] for number in range(1, 5)} == {("rdp",)}
    every = gene_options(space_named("edge-small"))
    held = {name for name in every if options[name] != every[name]}
    assert held == {"resolution", *(f"stage{number}.family" for number in range(1, 5))}
