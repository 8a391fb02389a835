"""The genes of a ParC-Net frame, as the spaces `parc` and `edge` ask for them."""

from searchspace.blocks.parc import FUSIONS, Parc
from searchspace.part import Answer, Question
from searchspace.space import largest_useful_kernel

_BLOCKS = Question("parc.blocks", (1, 2, 3, 4, 5, 6), only_adds=True)
_INNER_RATIO = Question("parc.inner_ratio", (1, 1.5, 2))
_KERNEL = Question("parc.kernel", ("global", "half", "quarter"))
_POSITION_EMBEDDING = Question("parc.position_embedding", (False, True), only_adds=True)
_CHANNEL_ATTENTION = Question("parc.channel_attention", (False, True), only_adds=True)
_FUSION = Question("parc.fusion", FUSIONS)

FRAME_QUESTIONS = (_BLOCKS, _INNER_RATIO, _KERNEL, _POSITION_EMBEDDING, _CHANNEL_ATTENTION, _FUSION)

# A kernel by its share of the map (seed 002, the ablations BK 1/2 and BK 1/4).
_SHARES = {"half": 2, "quarter": 4}


def frame(answer: Answer, width: int, size: int, base: int) -> Parc:
    """A frame on a map of `size` that keeps the width; circular kernels are learnt at the length `base`.

    A zero-padded kernel has no position embedding, so that its gene is read for the circular ones alone.
    """
    share = answer(_KERNEL)
    circular = share == "global"
    return Parc(
        width,
        inner_width=_even(width * answer(_INNER_RATIO)),
        depth=answer(_BLOCKS),
        kernel=None if circular else _odd_share(size, _SHARES[share]),
        position_embedding=circular and answer(_POSITION_EMBEDDING),
        channel_attention=answer(_CHANNEL_ATTENTION),
        fusion=answer(_FUSION),
        base=base if circular else None,
    )


def _even(width: float) -> int:
    return 2 * round(width / 2)


def _odd_share(size: int, divisor: int) -> int:
    """The length made odd and at least 3, since a kernel of one cell mixes nothing."""
    return min(max(3, size // divisor | 1), largest_useful_kernel(size))
