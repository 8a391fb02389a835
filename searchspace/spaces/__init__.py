"""The named spaces: which networks a search may propose."""

from searchspace.spaces.edge import EDGE
from searchspace.spaces.edge_small import EDGE_SMALL
from searchspace.spaces.mix import MIX
from searchspace.spaces.named import DEFAULT_SPACE, SPACES, space_named
from searchspace.spaces.parc import PARC
from searchspace.spaces.pbconv_layouts import PBCONV_LAYOUTS
from searchspace.spaces.rkp import RKP

__all__ = ["DEFAULT_SPACE", "EDGE", "EDGE_SMALL", "MIX", "PARC", "PBCONV_LAYOUTS", "RKP", "SPACES", "space_named"]
