"""The pages of the commands: they say what the help says, today."""

import contextlib
import io
import re

import pytest

from nas.cli import main
from nas.command_pages import PAGES, command_pages
from nas.exit_codes import DONE

COMMANDS = re.findall(r"^## nas (\S+)$", PAGES.read_text(encoding="utf-8"), re.MULTILINE)


def test_they_are_what_the_commands_say_today():
    assert PAGES.read_text(encoding="utf-8") == command_pages(), "run `python -m nas.command_pages`"


def help_of(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == DONE
    return out.getvalue()


def test_there_is_one_for_each_command_of_the_help():
    listed = re.findall(r"^    (\S+)  ", help_of(), re.MULTILINE)
    assert {"search", "export", "report"} <= set(listed)
    assert [name for name in listed if name not in COMMANDS] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_flag_of_its_command_and_no_other(name):
    page = PAGES.read_text(encoding="utf-8").partition(f"## nas {name}\n")[2].partition("\n## ")[0]
    flags = set(re.findall(r"^  (--[a-z0-9-]+)", help_of(name), re.MULTILINE))
    assert set(re.findall(r"^\| `(--[a-z0-9-]+)", page, re.MULTILINE)) == flags
