from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from hardware.strict_yaml import ConfigError, load_yaml, parse_yaml

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Stage(BaseModel):
    model_config = _STRICT

    width: int
    kernel: tuple[int, int] = (3, 3)

    @field_validator("width")
    @classmethod
    def _is_multiple_of_8(cls, width: int) -> int:
        if width % 8:
            raise ValueError(f"must be a multiple of 8, got {width}; the nearest is {round(width / 8) * 8}")
        return width


class Study(BaseModel):
    model_config = _STRICT

    name: str
    rate: float = 0.1
    stages: list[Stage] = []
    by_threads: dict[int, Stage] = {}
    head: Stage | None = None


def _message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Study, name="study.yaml")
    return str(caught.value)


def test_a_correct_text_becomes_the_model() -> None:
    text = "name: a\nrate: 1\nstages:\n  - {width: 8, kernel: [5, 3]}\nby_threads: {4: {width: 16}}\n"
    assert parse_yaml(text, Study) == Study(
        name="a", rate=1.0, stages=[Stage(width=8, kernel=(5, 3))], by_threads={4: Stage(width=16)}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nrat: 1", "study.yaml:2: rat: unknown key; did you mean 'rate'? known: by_threads, head, name, rate"),
        (
            "name: a\nstages:\n- width: 8\n- width: 8\n  kernl: [1, 1]",
            "study.yaml:5: stages.1.kernl: unknown key; did you",
        ),
        ("name: a\nhead:\n  width: 8\n  zzz: 1", "study.yaml:4: head.zzz: unknown key; known: kernel, width"),
        (
            "name: a\nby_threads:\n  4:\n    wdth: 8\n    width: 8",
            "study.yaml:4: by_threads.4.wdth: unknown key; did you",
        ),
        ("rate: 1", "study.yaml:1: name: a value is required, got none; add the key"),
        ("name: a\nstages:\n- kernel: [1, 1]", "study.yaml:3: stages.0.width: a value is required"),
        (
            "name: a\nrate: fast",
            "study.yaml:2: rate: must be a valid number, got 'fast'; write a number without a unit",
        ),
        ("name: a\nrate: 1e-3", "study.yaml:2: rate: must be a valid number, got '1e-3'; write 0.001"),
        ('name: a\nhead: {width: "8"}', "study.yaml:2: head.width: must be a valid integer, got '8'; write 8, without"),
        ("name: no", "study.yaml:1: name: must be a valid string, got False; YAML reads yes, no"),
        ("name: 3", "study.yaml:1: name: must be a valid string, got 3; put it in quotes"),
        ("name: a\nhead:\n  width: 12", "study.yaml:3: head.width: must be a multiple of 8, got 12; the nearest is 16"),
        ("name: a\n\nrate: 1\nname: b", "study.yaml:4: name: a key may stand only once, got it in line 1 too"),
        ("name: a\nhead: {width: 8, width: 8}", "study.yaml:2: head.width: a key may stand only once"),
        ("name: a\nhead: &h {width: 8}\nby_threads: {1: *h}", "aliases (*name) are not allowed"),
        ("name: a\nhead:\n  <<: {width: 8}", "study.yaml:3: head.<<: a key must be a word or a whole number, got '<<'"),
        ("name: a\non: 1", "study.yaml:2: on: a key must be a word or a whole number, got 'on'; put it in quotes"),
        ("name: [a", "study.yaml:1: not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []", "study.yaml:1: not valid YAML, could not determine a constructor"),
        ("- a", "study.yaml:1: a mapping of keys to values is needed at the top, got a list"),
        ("", "study.yaml:1: a mapping of keys to values is needed at the top, got an empty file"),
        ("name: a\n---\nname: b", "study.yaml:2: not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_rule_and_value(text: str, message: str) -> None:
    assert message in _message(text)


def test_each_mistake_has_a_line_of_its_own_and_unknown_keys_come_first() -> None:
    lines = _message("naem: a\nrate: x\nhead: {}").splitlines()
    assert "naem: unknown key" in lines[0]
    assert [int(line.split(":")[1]) for line in lines] == [1, 1, 2, 3]


def test_a_long_value_is_cut_short_in_the_message() -> None:
    assert len(_message(f"name: a\nrate: {'x' * 1000}")) < 200


def test_a_file_is_loaded_and_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nrate: -1.5\n")
    assert load_yaml(path, Study).rate == -1.5
    path.write_text("name: a\nrate: null\n")
    with pytest.raises(ConfigError, match=f"^{path}:2: rate: must be a valid number, got None"):
        load_yaml(path, Study)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the path"):
        load_yaml(tmp_path / "none.yaml", Study)
