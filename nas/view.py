"""What every command is told: where studies are kept, and how a person wants to hear of them."""

from dataclasses import dataclass
from pathlib import Path

from hardware.strict_yaml import ConfigError
from nas.settings import STUDY_FILE


@dataclass(frozen=True, slots=True)
class View:
    """Where studies are kept and how a person wants to be told."""

    studies: Path
    json: bool
    quiet: bool


def study_folder(name: str, view: View) -> Path:
    """The folder of a study given by name or path.

    Raises:
        ConfigError: there is no such study; the message lists those that are there.
    """
    for folder in (view.studies / name, Path(name)):
        if (folder / STUDY_FILE).exists():
            return folder
    known = sorted(path.parent.name for path in view.studies.glob(f"*/{STUDY_FILE}"))
    listed = f"known in {view.studies}: {', '.join(known)}" if known else f"there are none in {view.studies}"
    raise ConfigError(f"study: no study {name!r}; {listed}; one elsewhere is given by its folder")
