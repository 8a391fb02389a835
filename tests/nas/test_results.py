"""The findings of a study: what was finished survives, damage is named, NaN never gets in."""

import json
import re

import pytest

from evaluators.evaluator import Failure
from hardware.strict_yaml import ConfigError
from nas.results import Key, ResultStore

FIRST, SECOND, THIRD = Key("aaaa", "early"), Key("aaaa", "trained"), Key("bbbb", "early")
VALUES = {"dispersion": 0.1, "loss": 1 / 3, "seconds": 1e-300}
NESTED = {"accuracy": 0.5, "layouts_tried": [{"spec_id": "x", "dispersion": 0.25}, {"failure": "ünï\nline"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


@pytest.fixture
def three(path):
    store = ResultStore(path)
    store.add(FIRST, VALUES)
    store.add(SECOND, NESTED)
    store.add(THIRD, Failure("it would not\ntrain \u2028 \x85 at all"))
    return store


def known(store):
    return [store.get(key) for key in (FIRST, SECOND, THIRD)]


def test_findings_survive_the_file_to_the_digit(path, three):
    assert (
        known(ResultStore(path)) == known(three) == [VALUES, NESTED, Failure("it would not\ntrain \u2028 \x85 at all")]
    )


def test_the_same_architecture_at_another_fidelity_is_another_finding(three):
    assert three.get(FIRST) != three.get(SECOND)
    assert three.get(Key("bbbb", "trained")) is None


def test_a_later_finding_takes_the_place_of_an_earlier_one(path, three):
    three.add(FIRST, {"dispersion": 9.0})
    assert three.get(FIRST) == {"dispersion": 9.0}
    assert known(ResultStore(path)) == known(three)


def test_every_finding_is_on_disk_before_the_next(path):
    store = ResultStore(path)
    for number in range(5):
        store.add(Key(str(number), "early"), VALUES)
        assert len(path.read_text().splitlines()) == number + 1


def test_a_last_line_that_was_cut_anywhere_costs_that_line_alone(path, three):
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        store = ResultStore(path)
        assert known(store) == [VALUES, NESTED, None]
        assert path.read_bytes() == whole[:start]
        store.add(THIRD, VALUES)
        assert known(ResultStore(path)) == [VALUES, NESTED, VALUES]


@pytest.mark.parametrize(
    "line",
    [
        b'{"arch": "aaaa", "fidelity": "tra',
        b"",
        b"\x00\x00\x00\x00",
        b"\xff\xfe",
        b"[1]",
        b"7",
        b'{"arch": "aaaa", "fidelity": "early"}',
        b'{"arch": "aaaa", "values": {}}',
        b'{"arch": "aaaa", "fidelity": "early", "values": {"dispersion": NaN}}',
        b'{"arch": "aaaa", "fidelity": "early", "values": {"dispersion": -Infinity}}',
        b'{"arch": "aaaa", "fidelity": "early", "values": 3}',
        b'{"arch": ["aaaa"], "fidelity": "early", "values": {}}',
        b'{"arch": "aaaa", "fidelity": "early", "failure": 3}',
    ],
)
def test_a_damaged_line_in_the_middle_is_named(path, three, line):
    lines = path.read_bytes().splitlines()
    lines[1] = line
    damaged = b"\n".join(lines) + b"\n"
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}:2: "):
        ResultStore(path)
    assert path.read_bytes() == damaged, "reading does not make damage worse"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_neither_written_nor_known(path, three, value):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        three.add(Key("cccc", "early"), {"loss": value})
    assert path.read_bytes() == before
    assert three.get(Key("cccc", "early")) is None


def test_a_finding_that_cannot_be_written_is_not_known(path, three, monkeypatch):
    # A full disk: what is only in memory would be gone with the next run.
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nas.results.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        three.add(Key("cccc", "early"), VALUES)
    assert three.get(Key("cccc", "early")) is None
    assert known(three) == known(ResultStore(path))


def test_a_new_store_is_empty_and_makes_no_file(path):
    assert ResultStore(path).get(FIRST) is None
    assert not path.exists()


def test_lines_are_plain_json_for_other_programs(path, three):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert lines[0] == {"arch": "aaaa", "fidelity": "early", "values": VALUES}
    assert lines[2]["failure"].startswith("it would not")
