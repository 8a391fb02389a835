"""Which published networks `edge` holds, and the rules by which its stages fit each other."""

import random

import pytest

from searchspace.blocks.conv import PlainConv
from searchspace.blocks.dbc import Dbc
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.lfae import Lfae
from searchspace.blocks.parc import Parc
from searchspace.blocks.patch import NormDown, Patch
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.blocks.rk import Rkp
from searchspace.choosers import random_choice, replay
from searchspace.network import block_graph
from searchspace.references import reference
from searchspace.space import Task, gene_options, member
from searchspace.spaces import EDGE, space_named

TASK = Task(3, 1000)


def with_genes(chosen):
    """The member with these genes and every other one at its first option."""
    genes = {name: options[0] for name, options in gene_options(EDGE).items()}
    assert chosen.keys() <= genes.keys()
    return member(EDGE, replay(genes | chosen), TASK)


# Seed 004, Table 2: the widths of the stem and of the first three stages.
RDPNET = {
    "rdpnet_x0_25_imagenet": (16, 16, 32, 64),
    "rdpnet_x0_5_imagenet": (32, 32, 64, 128),
    "rdpnet_x0_75_imagenet": (48, 48, 96, 192),
    "rdpnet_x1_0_imagenet": (64, 64, 128, 256),
    "rdpnet_x1_25_imagenet": (64, 80, 160, 320),
    "rdpnet_x1_5_imagenet": (64, 96, 192, 384),
}


@pytest.mark.parametrize("name", RDPNET)
def test_rdpnet_is_a_member_at_every_width(name):
    stem, *widths = RDPNET[name]
    genes = {"resolution": 224, "stem.family": "rep", "stem.width": stem, "stage1.depth": 0}
    # Stage 1 of the space is at half the size, where RDPNet has none.
    for index, (width, depth) in enumerate(zip((*widths, 1280), (1, 4, 14, 1), strict=True), start=2):
        own = {"family": "rdp", "width": width, "depth": depth}
        genes |= {f"stage{index}.{gene}": answer for gene, answer in own.items()}
    assert with_genes(genes) == reference(name)


@pytest.mark.parametrize(
    ("name", "ratio", "blocks", "fusion"), [("parcnet_s", 2, (2, 4, 3), "concat"), ("parcnet_xs", 1, (2, 3, 2), "add")]
)
def test_parcnet_is_a_member_at_256_pixels(name, ratio, blocks, fusion):
    genes = {"resolution": 256, "stem.family": "conv", "stem.width": 16, "stem.kernel": 3}
    genes |= {"head.width": 640, "head.activation": "silu"}
    for index, (width, depth) in enumerate(((32, 1), (64, 3)), start=1):
        own = {"family": "ir", "width": width, "depth": depth, "ir.kernel": 3, "ir.expand": 4}
        own |= {"ir.activation": "silu", "ir.squeeze_excite": False}
        genes |= {f"stage{index}.{gene}": answer for gene, answer in own.items()}
    for index, (width, count) in enumerate(zip((96, 128, 160), blocks, strict=True), start=3):
        own = {"blocks": count, "inner_ratio": ratio, "kernel": "global", "fusion": fusion}
        own |= {"position_embedding": True, "channel_attention": True}
        genes |= {f"stage{index}.parc.{gene}": answer for gene, answer in own.items()}
        genes |= {f"stage{index}.family": "parc", f"stage{index}.width": width}
    assert with_genes(genes) == reference(name)


MIXMOBILENET = {
    "mixmobilenet_xxs": ((24, 48, 88, 168), (2, 1, 5, 1), (4, 3, 3, 3)),
    "mixmobilenet_xs": ((32, 64, 100, 192), (3, 2, 4, 4), (4, 3, 3, 3)),
    "mixmobilenet_s": ((48, 96, 160, 304), (3, 2, 8, 2), (2, 3, 3.5, 4)),
}


@pytest.mark.parametrize("name", MIXMOBILENET)
def test_mixmobilenet_is_a_member(name):
    widths, depths, expansions = MIXMOBILENET[name]
    genes = {"resolution": 256, "stem.family": "patch", "stem.width": widths[0], "head.norm": True}
    rows = zip(widths, depths, expansions, (3, 5, 7, 9), strict=True)
    for index, (width, depth, expand, kernel) in enumerate(rows, start=2):
        own = {"divisions": 4, "squeeze_excite": True, "kernel": kernel, "expand": expand}
        own |= {"attention": True} if index > 2 else {}
        genes |= {f"stage{index}.mmb.{gene}": answer for gene, answer in own.items()}
        genes |= {f"stage{index}.family": "mmb", f"stage{index}.depth": depth}
        # The first stage keeps the stem's width, so its own gene is not read.
        genes |= {f"stage{index}.width": width} if index > 2 else {}
    assert with_genes(genes) == reference(name)


@pytest.fixture(scope="module")
def members():
    return [member(EDGE, random_choice(random.Random(seed)), TASK) for seed in range(300)]


def stages_with_shapes(spec):
    """Each stage by how often the size was halved behind it, with the shapes before and behind its blocks."""
    shape = block_graph(spec.input_shape, spec.stem).output_shape
    for stage in spec.stages:
        shapes = [shape]
        for block in stage:
            shape = block_graph(shape, block).output_shape
            shapes.append(shape)
        yield (spec.input_shape[1] // shape[1]).bit_length() - 1, stage, shapes


def test_there_is_one_stage_at_a_quarter_and_at_each_smaller_size_and_perhaps_one_at_a_half(members):
    reached = set()
    for spec in members:
        halved = [index for index, _, shapes in stages_with_shapes(spec)]
        assert [shapes[-1][1] for _, _, shapes in stages_with_shapes(spec)] == [
            spec.input_shape[1] >> i for i in halved
        ]
        assert halved[-4:] == [2, 3, 4, 5]
        assert halved[:-4] in ([], [1])
        reached.add((type(spec.stem), len(halved)))
    assert reached == {(Rep, 4), (Rep, 5), (PlainConv, 4), (PlainConv, 5), (Dbc, 4), (Dbc, 5), (Patch, 4)}


# 9.3, rule 5: the blocks of a stage, its first one being the transition.
TRANSITION = {Rkp: Dbc, Lfae: NormDown, Parc: InvertedResidual, Rdp: Rdp, InvertedResidual: InvertedResidual}


def test_the_family_of_a_stage_decides_its_transition(members):
    reached = set()
    for spec in members:
        for index, stage, shapes in stages_with_shapes(spec):
            family = type(next((block for block in stage if isinstance(block, (Rkp, Lfae, Parc))), stage[0]))
            kept_by_stem = isinstance(spec.stem, Patch) and index == 2
            body = stage
            if not (family is Lfae and kept_by_stem):
                assert type(stage[0]) is TRANSITION[family]
                assert shapes[1][1] == shapes[-1][1], "the map becomes smaller in the first block alone"
                body = stage[1:]
            assert {type(block) for block in body} <= {family, Gfae}
            if family is Lfae:
                assert [type(block) for block in body].count(Gfae) <= (index > 2)
                assert type(body[0]) is Lfae
            if family is Parc:
                assert index >= 3, "from an eighth of the size on"
                assert stage[0].stride == 2
                assert len(body) == 1
            reached.add((index, family))
    families = {Rdp, InvertedResidual}
    wanted = {1: families, 2: families | {Rkp, Lfae}} | {index: set(TRANSITION) for index in (3, 4, 5)}
    assert reached == {(index, family) for index, allowed in wanted.items() for family in allowed}


def test_circular_kernels_are_learnt_at_the_length_of_their_map_in_an_image_of_256(members):
    reached = set()
    for spec in members:
        for index, stage, shapes in stages_with_shapes(spec):
            for block in stage:
                if isinstance(block, Parc):
                    share = (block.kernel or 0) / shapes[-1][1]
                    assert block.base == (256 >> index if block.kernel is None else None)
                    assert share == 0 or block.kernel % 2 == 1
                    reached.add((block.kernel is None, block.position_embedding))
    assert reached == {(True, True), (True, False), (False, False)}


def test_the_space_goes_by_its_name():
    assert space_named("edge") is EDGE
    assert len(gene_options(EDGE)) == 99
