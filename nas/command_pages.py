"""COMMANDS.md: a page for each command, made of what its help says. `python -m nas.command_pages` writes it."""

import argparse
from pathlib import Path

from nas.cli import build_parser

PAGES = Path(__file__).parents[1] / "COMMANDS.md"

_HEAD = """# Commands

Made from the commands' own help by `python -m nas.command_pages`; a test fails when it is stale. Exit codes: 0 done,
1 something broke, 2 wrong input, 3 no network keeps the budget, 4 finished with something that failed its check, 130
interrupted.
"""


def command_pages() -> str:
    """The whole of COMMANDS.md."""
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return "\n".join([_HEAD, *(_page(name, parser) for name, parser in commands.choices.items())])


def _page(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [each for each in parser._actions if not isinstance(each, argparse._HelpAction)]
    words = [each for each in actions if not each.option_strings]
    usage = " ".join(["nas", name, *map(_word, words), "[flags]"])
    rows = [f"| `{_cell(_word(each))}` | {_cell(each.help or '')} |" for each in [*words, *_flags(actions)]]
    about = f"{parser.description}."
    about = about[0].upper() + about[1:]
    return "\n".join([f"## nas {name}", about, "", f"`{usage}`", "", "| | |", "|---|---|", *rows, ""])


def _flags(actions: list[argparse.Action]) -> list[argparse.Action]:
    return [each for each in actions if each.option_strings]


def _word(action: argparse.Action) -> str:
    metavar = str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    if not action.option_strings:
        return f"[{metavar}]" if action.nargs == "?" else metavar
    flag = ", ".join(action.option_strings)
    if action.nargs == 0:
        return flag
    values = f"{metavar} ..." if action.nargs == "+" else metavar
    return f"{flag} {values}" + (" (needed)" if action.required else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%")


if __name__ == "__main__":
    PAGES.write_text(command_pages(), encoding="utf-8")
