"""What every member of a space promises, asked with random answers and with those of a published network."""

import random
from dataclasses import replace

import pytest
import torch

from searchspace.blocks.rk import Rkp
from searchspace.choosers import random_choice, recording, replay
from searchspace.deploy_module import DeployModule
from searchspace.network import block_graph, build_network, deploy, deploy_graph
from searchspace.references import reference
from searchspace.space import Task, largest_useful_dilation, member
from searchspace.spaces import RKP, space_named

TASK = Task(channels=3, classes=5)


def random_rkp(seed):
    return member(RKP, random_choice(random.Random(seed)), TASK)


def blocks_with_shapes(spec):
    shape = spec.input_shape
    for _, block in spec.blocks():
        yield shape, block
        shape = block_graph(shape, block).output_shape


def test_rkp_asks_for_the_same_genes_whatever_the_answers():
    orders = set()
    for seed in range(30):
        genes = {}
        member(RKP, recording(random_choice(random.Random(seed)), genes), TASK)
        orders.add(tuple(genes))
    assert len(orders) == 1
    assert len(orders.pop()) == 4 + 5 * 8


def test_no_kernel_of_rkp_has_cells_that_only_see_padding():
    reached, dilations = set(), set()
    for seed in range(300):
        spec = random_rkp(seed)
        deploy_graph(spec)
        for (_, height, width), block in blocks_with_shapes(spec):
            if isinstance(block, Rkp):
                extent = block.dilation * (block.kernel - 1) + 1
                assert extent <= 2 * min(height, width) - 1
                reached.add(extent == 2 * height - 1)
                dilations.add((block.kernel, block.dilation))
    assert reached == {False, True}
    assert dilations == {(kernel, dilation) for kernel in (3, 5, 7, 9) for dilation in (1, 2)}


@pytest.mark.parametrize(
    ("size", "kernel", "expected"),
    # 3 x 3 with dilation 3 reaches three cells to each side, as far as a map of four goes.
    [(4, 3, 3), (3, 3, 2), (4, 5, 1), (5, 5, 2), (2, 3, 1), (1, 3, 1)],
)
def test_largest_useful_dilation_by_hand(size, kernel, expected):
    assert largest_useful_dilation(size, kernel) == expected


def test_members_of_rkp_search_the_depthwise_reading_only():
    blocks = [block for seed in range(50) for _, block in random_rkp(seed).blocks() if isinstance(block, Rkp)]
    assert {block.variant for block in blocks} == {"dw"}
    assert {block.ppe for block in blocks} == {block.pointwise for block in blocks} == {False, True}
    assert {block.expand for block in blocks} == {1, 2, 3, 4}


def test_ppenet_l_with_depthwise_kernels_is_a_member_of_rkp():
    genes = {"resolution": 224, "stem.width": 32, "stem.stride": 2, "head.width": 0}
    rows = zip((3, 9, 3, 9, 9), (48, 72, 96, 156, 196), (2, 2, 2, 2, 1), strict=True)
    for index, (kernel, width, stride) in enumerate(rows, start=1):
        answers = {
            "rkp": True,
            "kernel": kernel,
            "dilation": 1,
            "expand": 2,
            "pointwise": index > 3,
            "ppe": True,
            "width": width,
            "stride": stride,
        }
        genes |= {f"stage{index}.{name}": answer for name, answer in answers.items()}
    spec = member(space_named("rkp"), replay(genes), TASK)
    published = reference("ppenet_l").map_blocks(
        lambda block: replace(block, variant="dw") if isinstance(block, Rkp) else block
    )
    assert spec == published


def at_resolution(resolution, choose):
    return lambda name, options: resolution if name == "resolution" else choose(name, options)


# Seeds whose members are small, and still have three RKP blocks, two of them with PPE, one dilated.
SMALL = [(32, 378), (32, 275), (48, 255), (64, 546), (96, 396), (224, 396)]


@pytest.mark.parametrize(("resolution", "seed"), SMALL)
def test_random_members_of_rkp_fold_to_what_they_compute(resolution, seed):
    spec = member(RKP, at_resolution(resolution, random_choice(random.Random(seed))), TASK)
    blocks = [block for _, block in spec.blocks() if isinstance(block, Rkp)]
    assert sum(block.ppe for block in blocks) >= 2
    assert any(block.dilation == 2 for block in blocks)
    images = torch.randn(2, 3, resolution, resolution, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    network = build_network(spec, seed=seed).double().train()
    with torch.no_grad():
        # Statistics of what reaches each norm, not those of a fresh one.
        network(images.flip(0, 2))
        expected = network.eval()(images)
        folded = DeployModule(deploy(network))(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-11)
