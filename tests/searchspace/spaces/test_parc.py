"""Which published networks `parc` holds, and how long its kernels are."""

import pytest

from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.parc import Parc
from searchspace.choosers import replay
from searchspace.references import reference
from searchspace.space import Task, gene_options, member
from searchspace.spaces import PARC, space_named

# The authors' code: inner over outer width, blocks in a frame, how it is joined with its input.
PUBLISHED = {"parcnet_s": (2, (2, 4, 3), "concat"), "parcnet_xs": (1, (2, 3, 2), "add")}


def genes_of(name):
    ratio, blocks, fusion = PUBLISHED[name]
    genes = {"resolution": 256, "stem.width": 16, "stem.kernel": 3, "head.width": 640}
    for index, width in enumerate((32, 64, 96, 128, 160), start=1):
        genes |= {f"stage{index}.width": width, f"stage{index}.kernel": 3, f"stage{index}.expand": 4}
    genes |= {"stage1.depth": 1, "stage2.depth": 3}
    for index, count in enumerate(blocks, start=3):
        own = {"blocks": count, "inner_ratio": ratio, "kernel": "global", "fusion": fusion}
        own |= {"position_embedding": True, "channel_attention": True}
        genes |= {f"stage{index}.parc.{gene}": answer for gene, answer in own.items()}
    return genes


@pytest.mark.parametrize("name", PUBLISHED)
def test_parcnet_is_a_member_at_256_pixels(name):
    spec = member(space_named("parc"), replay(genes_of(name)), Task(3, 1000))
    assert spec == reference(name)
    assert set(genes_of(name)) == set(gene_options(PARC)), "every gene has a say in it"


@pytest.mark.parametrize(
    ("resolution", "kernel", "expected"),
    # Half and a quarter of 20, 10, 5 and of 32, 16, 8, made odd; a single cell would mix nothing.
    [
        (160, "half", (11, 5, 3)),
        (160, "quarter", (5, 3, 3)),
        (256, "half", (17, 9, 5)),
        (256, "quarter", (9, 5, 3)),
        (256, "global", (None, None, None)),
    ],
)
def test_a_kernel_is_a_share_of_the_map_and_then_has_no_position_embedding(resolution, kernel, expected):
    genes = genes_of("parcnet_s") | {"resolution": resolution} | {f"stage{i}.parc.kernel": kernel for i in (3, 4, 5)}
    spec = member(PARC, replay(genes), Task(3, 10))
    frames = [stage[1] for stage in spec.stages[2:]]
    assert all(isinstance(frame, Parc) for frame in frames)
    assert tuple(frame.kernel for frame in frames) == expected
    assert {frame.position_embedding for frame in frames} == {kernel == "global"}
    assert all(isinstance(stage[0], InvertedResidual) and stage[0].stride == 2 for stage in spec.stages[1:])
