"""Which spaces there are, by name."""

from hardware.strict_yaml import nearest
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
    """The space called `name`.

    Raises:
        SpecError: there is none; the message lists the known ones.
    """
    if name not in SPACES:
        raise SpecError(f"space: unknown space {name!r}; {nearest(name, list(SPACES))}")
    return SPACES[name]
