"""What ParC promises beyond the contract: where it is blind to position, and that its size is not fixed in training."""

from dataclasses import replace

import pytest
import torch

from hardware.graph import GraphBuilder
from searchspace.blocks.parc import Parc, ParcFrame, block_specs, emit
from searchspace.blocks.parc_block import ParcBlock, ParcBlockSpec
from searchspace.network import block_graph

BLOCK = ParcBlockSpec(ffn_width=8, kernel=None, position_embedding=False, channel_attention=True, base=4, dropout=0.1)
SHAPE = (4, 5, 6)


def eval_block(spec):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ParcBlock(SHAPE, spec).double().eval()


def image():
    return torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, 2), (4, 5)])
def test_without_embeddings_a_shifted_map_gives_the_shifted_result(shift):
    block, x = eval_block(BLOCK), image()
    with torch.no_grad():
        moved = block(x.roll(shift, (2, 3)))
        torch.testing.assert_close(moved, block(x).roll(shift, (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "spec",
    [replace(BLOCK, position_embedding=True), replace(BLOCK, kernel=3, base=None)],
    ids=["embedding", "zero padding"],
)
@pytest.mark.parametrize("shift", [(1, 0), (0, 1)])
def test_embeddings_and_zero_padding_tell_positions_apart(spec, shift):
    block, x = eval_block(spec), image()
    with torch.no_grad():
        difference = block(x.roll(shift, (2, 3))) - block(x).roll(shift, (2, 3))
    assert difference.abs().max() > 0.01


def test_one_pixel_reaches_every_position():
    block = eval_block(BLOCK)
    x = image().requires_grad_()
    (gradient,) = torch.autograd.grad(block.positions(x)[0, :, 2, 3].sum(), x)
    assert (gradient[0] != 0).all()


def test_only_the_first_block_of_a_frame_has_embeddings():
    assert [block.position_embedding for block in block_specs(Parc(8, 8, depth=3))] == [True, False, False]


def test_weights_learnt_at_one_size_run_and_fold_at_another():
    spec = Parc(6, 8, base=4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        square, wide = ParcFrame((6, 4, 4), spec).double().eval(), ParcFrame((6, 3, 7), spec).double().eval()
    wide.load_state_dict(square.state_dict())
    x = torch.randn(2, 6, 3, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(square(x), wide(x))
    assert wide.folded()["block0.positions.rows"].constant.shape == (8, 3, 1)
    assert square.folded()["block0.positions.rows"].constant.shape == (8, 4, 1)


def test_the_base_length_costs_nothing_on_the_device():
    shapes = {block_graph((6, 5, 7), Parc(6, 8, base=base)).fingerprint() for base in (None, 2, 32)}
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"inner_width": 7}, "inner_width must be even"),
        ({"fusion": "sum"}, "unknown fusion 'sum'; known: concat, add"),
        ({"kernel": 3}, "belong to circular kernels, got kernel=3"),
        ({"kernel": 3, "position_embedding": False, "base": 4}, "belong to circular kernels"),
        ({"kernel": 4, "position_embedding": False}, "kernel must be odd"),
        ({"dropout": 1.0}, "from 0 to below 1, got 1.0"),
        ({"base": 0}, "base must be above 0"),
    ],
)
def test_genes_that_do_not_fit_are_refused(genes, message):
    with pytest.raises(ValueError, match=message):
        Parc(**{"width": 8, "inner_width": 8} | genes)


def test_a_frame_that_adds_its_input_keeps_the_width():
    spec = Parc(8, 8, fusion="add")
    with pytest.raises(ValueError, match="keeps the width, got 6 -> 8"):
        ParcFrame((6, 4, 4), spec)
    graph = GraphBuilder((6, 4, 4))
    with pytest.raises(ValueError, match="keeps the width, got 6 -> 8"):
        emit(graph, graph.input, spec)
