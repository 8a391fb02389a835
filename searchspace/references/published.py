"""Published networks by name."""

from pathlib import Path

from hardware.strict_yaml import nearest
from searchspace.spec import ArchSpec, SpecError, read_spec

FOLDER = Path(__file__).parent


def reference_names() -> tuple[str, ...]:
    """Every published network there is a spec of, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def reference(name: str) -> ArchSpec:
    """The published network called `name`, with the classes and the resolution that it was published with.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    known = reference_names()
    if name not in known:
        raise SpecError(f"unknown reference {name!r}; {nearest(name, list(known))}")
    return read_spec(FOLDER / f"{name}.yaml")
