"""Published networks by name."""

from difflib import get_close_matches
from pathlib import Path

from searchspace.spec import ArchSpec, read_spec

FOLDER = Path(__file__).parent


def reference_names() -> tuple[str, ...]:
    """Every published network there is a spec of, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def reference(name: str) -> ArchSpec:
    """The published network called `name`, with the classes and the resolution that it was published with.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    known = reference_names()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown reference {name!r}, known: {', '.join(known)}{hint}")
    return read_spec(FOLDER / f"{name}.yaml")
