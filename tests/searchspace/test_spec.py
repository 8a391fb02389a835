"""The description of a network: its file, its ids, and what is wrong with a file that describes none."""

import copy
import hashlib
import json
import re
from dataclasses import replace

import pytest
import yaml

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import parse_layout
from searchspace.network import deploy_graph
from searchspace.spec import (
    ArchSpec,
    SpecError,
    deploy_form,
    deploy_id,
    read_spec,
    spec_from_dict,
    spec_id,
    spec_to_dict,
    write_spec,
)

WIDE = parse_layout("K5:0.0.5.3-0.2.5.3")

SPEC = ArchSpec(
    (3, 32, 32),
    Rep(16, 2),
    (
        (Rdp(16),),
        (InvertedResidual(24, 2, 5, 2.5, True, "hardswish", WIDE), Rdp(24), Rdp(24)),
        (),
    ),
    Classifier(10, 128),
)

# As a person would write it: what is at its default is left out.
TEXT = """
input_shape: [3, 32, 32]
stem: {family: rep, width: 16, stride: 2}
stages:
- - {family: rdp, width: 16}
- - family: ir
    width: 24
    stride: 2
    kernel: 5
    expand: 2.5
    squeeze_excite: true
    activation: hardswish
    layout: K5:0.0.5.3-0.2.5.3
  - {family: rdp, width: 24, repeat: 2}
- []
head: {family: classifier, classes: 10, width: 128}
"""


def written(**changes):
    """TEXT as data, with some of its keys changed; a value of `...` takes the key away."""
    data = yaml.safe_load(TEXT)
    for path, value in changes.items():
        place, keys = data, [int(key) if key.isdigit() else key for key in path.split("__")]
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
    return data


def test_what_a_person_writes_is_the_network():
    assert spec_from_dict(written()) == SPEC


def test_a_network_survives_its_file(tmp_path):
    write_spec(SPEC, tmp_path / "spec.yaml")
    assert read_spec(tmp_path / "spec.yaml") == SPEC
    assert json.loads(json.dumps(spec_to_dict(SPEC))) == spec_to_dict(SPEC)


def test_equal_neighbours_are_one_row_with_a_repeat_and_others_are_not():
    rdp = {"family": "rdp", "width": 24, "stride": 1, "shuffle_groups": 4, "layout": None}
    rows = spec_to_dict(replace(SPEC, stages=((Rdp(24), Rdp(24), Rdp(24), Rdp(24, 2), Rdp(24)),)))["stages"][0]
    assert rows == [rdp | {"repeat": 3}, rdp | {"stride": 2}, rdp]


def test_paths_name_the_blocks_in_running_order():
    paths = [path for path, _ in SPEC.blocks()]
    assert paths == ["stem", "stages.0.0", "stages.1.0", "stages.1.1", "stages.1.2", "head"]


# Ids


def test_ids_never_change():
    # Studies and models that people keep go by these; a change here loses all of them.
    assert spec_id(SPEC) == "8c891e80451c"
    assert deploy_id(SPEC) == "05ff468de44a"


def test_an_id_is_the_hash_of_what_was_chosen():
    chosen = [
        [3, 32, 32],
        {"family": "rep", "stride": 2, "width": 16},
        [
            [{"family": "rdp", "width": 16}],
            [
                {
                    "activation": "hardswish",
                    "expand": 2.5,
                    "family": "ir",
                    "kernel": 5,
                    "layout": "K5:0.0.5.3-0.2.5.3",
                    "squeeze_excite": True,
                    "stride": 2,
                    "width": 24,
                },
                {"family": "rdp", "width": 24},
                {"family": "rdp", "width": 24},
            ],
            [],
        ],
        {"classes": 10, "family": "classifier", "width": 128},
    ]
    assert spec_id(SPEC) == hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:12]


def test_train_genes_change_the_networks_name_and_not_its_deploy_architectures():
    layout = parse_layout("K3:0.0.3.2-0.1.3.2")
    for changed in (
        replace(SPEC, stem=Rep(16, 2, layout)),
        replace(SPEC, stages=((Rdp(16, shuffle_groups=2),), *SPEC.stages[1:])),
        replace(SPEC, stages=((Rdp(16, layout=layout),), *SPEC.stages[1:])),
    ):
        assert spec_id(changed) != spec_id(SPEC)
        assert deploy_id(changed) == deploy_id(SPEC)
        assert deploy_form(changed) == deploy_form(SPEC)
        assert deploy_graph(changed).fingerprint() == deploy_graph(SPEC).fingerprint()
    assert deploy_id(SPEC) == spec_id(deploy_form(SPEC)) != spec_id(SPEC)


def test_everything_else_changes_both_names():
    for changed in (
        replace(SPEC, input_shape=(3, 32, 33)),
        replace(SPEC, stem=Rep(24, 2)),
        replace(SPEC, head=Classifier(10, 128, "hardswish")),
        replace(SPEC, stages=SPEC.stages[:-1]),
        replace(SPEC, stages=((Rdp(16), Rdp(16)), *SPEC.stages[1:])),
        replace(SPEC, stages=((Rdp(16), SPEC.stages[1][0]), SPEC.stages[1][1:], ())),
    ):
        assert spec_id(changed) != spec_id(SPEC)
        assert deploy_id(changed) != deploy_id(SPEC)


def test_equal_networks_have_equal_names_however_their_numbers_were_written():
    whole, point = (ArchSpec((1, 8, 8), Rep(8), ((InvertedResidual(8, expand=e),),), Classifier(2)) for e in (6, 6.0))
    assert whole == point
    assert spec_id(whole) == spec_id(point)
    assert spec_to_dict(whole) == spec_to_dict(point)
    assert yaml.safe_dump(spec_to_dict(whole)) == yaml.safe_dump(spec_to_dict(point))


# Mistakes

MISTAKES = [
    ({"stem__widht": 16}, "spec.stem: unknown key 'widht'; did you mean 'width'?"),
    ({"stages__1__0__kernal": 5}, "spec.stages[1][0]: unknown key 'kernal'; did you mean 'kernel'?"),
    ({"heads": {}}, "spec: unknown key 'heads'; did you mean 'head'?"),
    ({"head": ...}, "spec: the key 'head' is missing"),
    ({"stem__width": ...}, "spec.stem: the key 'width' is missing"),
    ({"stem__family": ...}, "spec.stem: a block with its `family`"),
    ({"stem": [1]}, "spec.stem: a block with its `family`, got [1]"),
    ({"stem__family": "repp"}, "spec.stem.family: unknown block family 'repp'; did you mean 'rep'?"),
    ({"stem__family": 3}, "spec.stem: a block with its `family`"),
    ({"stem__width": "16"}, "spec.stem.width: must be int, got '16'"),
    ({"stem__width": 16.0}, "spec.stem.width: must be int, got 16.0"),
    ({"stem__width": True}, "spec.stem.width: must be int, got True"),
    ({"stem__width": None}, "spec.stem.width: must be int, got None"),
    ({"stem__width": 0}, "spec.stem: width must be above 0, got 0"),
    ({"stem__width": -8}, "spec.stem: width must be above 0, got -8"),
    ({"stages__1__0__expand": True}, "spec.stages[1][0].expand: must be float, got True"),
    ({"stages__1__0__expand": float("nan")}, "spec.stages[1][0]: expand must be above 0, got nan"),
    ({"stages__1__0__expand": float("inf")}, "spec.stages[1][0]: expand must be finite, got inf"),
    ({"stages__1__0__kernel": 4}, "spec.stages[1][0]: kernel must be odd, got 4; the nearest are 3 and 5"),
    ({"stages__1__0__squeeze_excite": 1}, "spec.stages[1][0].squeeze_excite: must be bool, got 1"),
    ({"stages__1__0__activation": "swish"}, "spec.stages[1][0]: unknown activation 'swish'"),
    ({"stages__1__0__layout": "K5"}, "spec.stages[1][0].layout: a layout must read"),
    ({"stages__1__0__layout": 5}, "spec.stages[1][0].layout: must be Layout or nothing, got 5"),
    ({"stages": {}}, "spec.stages: a list of lists of blocks, got {}"),
    ({"stages__0": {"family": "rdp"}}, "spec.stages[0]: a list of blocks, got"),
    ({"stages__0__0": "rdp"}, "spec.stages[0][0]: a block with its `family`, got 'rdp'"),
    ({"stages__0__0__repeat": 0}, "spec.stages[0][0].repeat: a whole number from 1 to 1000, got 0"),
    ({"stages__0__0__repeat": 1001}, "spec.stages[0][0].repeat: a whole number from 1 to 1000, got 1001"),
    ({"stages__0__0__repeat": True}, "spec.stages[0][0].repeat: a whole number from 1 to 1000, got True"),
    ({"stages__0__0__repeat": "2"}, "spec.stages[0][0].repeat: a whole number from 1 to 1000, got '2'"),
    ({"stem__repeat": 2}, "spec.stem: only blocks of a stage can repeat"),
    ({"head__repeat": 1}, "spec.head: only blocks of a stage can repeat"),
    ({"input_shape": [3, 32]}, "spec.input_shape: three positive whole numbers (channels, height, width), got [3, 32]"),
    ({"input_shape": [3, 32, 0]}, "spec.input_shape: three positive whole numbers"),
    ({"input_shape": [3, 32, 32.0]}, "spec.input_shape: three positive whole numbers"),
    ({"input_shape": [True, 32, 32]}, "spec.input_shape: three positive whole numbers"),
    ({"input_shape": "3x32x32"}, "spec.input_shape: three positive whole numbers"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_place_the_rule_and_the_value(changes, message):
    with pytest.raises(SpecError) as caught:
        spec_from_dict(written(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("data", [None, [], "spec", 3, {}])
def test_what_is_no_description_at_all_is_refused(data):
    with pytest.raises(SpecError):
        spec_from_dict(data)


def test_reading_leaves_what_was_given_as_it_was():
    data = written()
    before = copy.deepcopy(data)
    spec_from_dict(data)
    assert data == before


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a: [", b"- 1", b"stem: *nowhere", b"!!python/object:os.system {}", b"[" * 5000]
)
def test_a_file_that_holds_no_description_is_named(tmp_path, content):
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=f"^{re.escape(str(path))}: ") as caught:
        read_spec(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=re.escape(str(tmp_path / "spec.yaml"))):
        read_spec(tmp_path / "spec.yaml")


def test_an_expansion_to_less_than_one_channel_keeps_one():
    spec = ArchSpec((1, 8, 8), Rep(8), ((InvertedResidual(8, expand=0.01),),), Classifier(2))
    (depthwise,) = [node for node in deploy_graph(spec).nodes if node.name.endswith("depthwise")]
    assert depthwise.shape[0] == 1
