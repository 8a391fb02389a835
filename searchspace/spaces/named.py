"""Which spaces there are, by name."""

from hardware.strict_yaml import nearest
from searchspace.registry import load_families
from searchspace.space import Space
from searchspace.spaces.edge import EDGE
from searchspace.spaces.edge_small import EDGE_SMALL, RDP
from searchspace.spaces.mix import MIX
from searchspace.spaces.parc import PARC
from searchspace.spaces.pbconv_layouts import PBCONV_LAYOUTS
from searchspace.spaces.rkp import RKP
from searchspace.spec import SpecError

SPACES = {space.name: space for space in (EDGE_SMALL, EDGE, RDP, PARC, MIX, RKP, PBCONV_LAYOUTS)}
DEFAULT_SPACE = EDGE_SMALL.name


def space_named(name: str) -> Space:
    """The space called `name`, or for MODULE:NAME the one that a module of the user's calls so.

    Importing the module registers its families. Workers need nothing more: Python imports the module there too, when
    the first of its blocks arrives.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    if ":" in name:
        return _own_space(name)
    if name not in SPACES:
        raise SpecError(f"space: unknown space {name!r}; {nearest(name, list(SPACES))}")
    return SPACES[name]


def _own_space(name: str) -> Space:
    module_name, _, attribute = name.partition(":")
    try:
        module = load_families(module_name)
    except ValueError as error:
        raise SpecError(f"space: {error}") from error
    own = {key: value for key, value in vars(module).items() if isinstance(value, Space)}
    if attribute not in own:
        raise SpecError(f"space: {module_name} has no space {attribute!r}; {nearest(attribute, list(own))}")
    return own[attribute]
