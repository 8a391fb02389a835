"""MixMobileNet beyond the contract: its blocks against the paper's appendix, its networks against the paper's tables.

The appendix is transcribed as it stands but for its slips, which `searchspace.blocks.gfae` lists.
"""

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.graph import GraphBuilder
from hardware.ops import AddConstant, ChannelNorm, Conv, Pool
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import CrossCovarianceAttention, Gfae, GfaeBlock, waves
from searchspace.blocks.gfae import emit as emit_gfae
from searchspace.blocks.lfae import Lfae, LfaeBlock
from searchspace.blocks.lfae import emit as emit_lfae
from searchspace.blocks.patch import NormDown, Patch
from searchspace.choosers import random_choice, recording, replay
from searchspace.deploy_module import DeployModule
from searchspace.layouts import with_random_layouts
from searchspace.network import Network, block_graph, build_network, deploy, deploy_graph
from searchspace.references import reference
from searchspace.space import Task, member
from searchspace.spaces import space_named
from searchspace.spec import ArchSpec, deploy_id

SIZES = [(6, 4), (7, 7), (5, 8), (4, 9), (1, 3), (1, 1)]


def drawn(shape, seed=2):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_drawn_weights(block):
    """The block in eval mode, none of its weights at what it starts with."""
    block = block.double().eval().requires_grad_(False)
    for index, parameter in enumerate(block.parameters()):
        parameter.copy_(0.4 * drawn(parameter.shape, seed=100 + index))
    return block


def matrix(weights, name):
    """A 1x1 convolution as the linear layer that the paper has."""
    return weights[f"{name}.weight"].flatten(1)


def appendix_mlp(weights, x):
    """norm, pw1, act, pw2 on (b, h, w, c)."""
    x = functional.layer_norm(x, x.shape[-1:], weights["mlp.norm.norm.weight"], weights["mlp.norm.norm.bias"], 1e-6)
    x = functional.linear(x, matrix(weights, "mlp.widen"), weights["mlp.widen.bias"])
    return functional.linear(functional.gelu(x), matrix(weights, "mlp.narrow"), weights["mlp.narrow.bias"])


def appendix_lfae(weights, x, divisions):
    """LFAEncoder.forward, with FasterNet's `split_cat` and the usual squeeze-and-excite."""
    shortcut, channels = x, x.shape[1]
    x = functional.conv2d(x, weights["depthwise.conv.weight"], weights["depthwise.conv.bias"], 1, 1, 1, channels)
    x = x + shortcut
    kernel = weights["partial.conv.weight"]
    first, rest = torch.split(x, [channels // divisions, channels - channels // divisions], dim=1)
    x = torch.cat([functional.conv2d(first, kernel, None, 1, kernel.shape[-1] // 2), rest], 1)
    x = appendix_mlp(weights, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = shortcut + x
    if "squeeze_excite.squeeze.weight" not in weights:
        return x
    gate = functional.linear(x.mean((2, 3)), matrix(weights, "squeeze_excite.squeeze")).relu()
    gate = functional.linear(gate, matrix(weights, "squeeze_excite.excite")).sigmoid()
    return x * gate[:, :, None, None]


def appendix_gfae(weights, x, heads, keep=None):
    """GFAEncoder.forward; keep (b, heads, d, d) is false where a key is dropped."""
    shortcut, channels = x, x.shape[1]
    x = functional.conv2d(x, weights["depthwise.conv.weight"], weights["depthwise.conv.bias"], 1, 1, 1, channels)
    pooled = functional.avg_pool2d(x + shortcut, 2, 2, ceil_mode=True)
    b, c, h, w = pooled.shape
    x = pooled.reshape(b, c, h * w).permute(0, 2, 1)
    norm = (weights["attention.norm.norm.weight"], weights["attention.norm.norm.bias"], 1e-6)
    x = functional.layer_norm(x, (c,), *norm)
    name = "attention.query_key_value"
    qkv = functional.linear(x, matrix(weights, name), weights[f"{name}.bias"])
    qkv = qkv.reshape(b, h * w, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q = functional.normalize(qkv[0].transpose(-2, -1), dim=-1)
    k = functional.normalize(qkv[1].transpose(-2, -1), dim=-1)
    v = qkv[2].transpose(-2, -1)
    attn = (q @ k.transpose(-2, -1)) * weights["attention.temperature"]
    if keep is not None:
        attn = attn + (~keep).double() * -1e12
    attn = attn.softmax(dim=-1)
    x = (attn @ v).permute(0, 3, 1, 2).reshape(b, h * w, c)
    x = functional.linear(x, matrix(weights, "attention.project"), weights["attention.project.bias"])
    x = pooled + x.permute(0, 2, 1).reshape(b, c, h, w)
    x = functional.conv_transpose2d(x, weights["enlarge.weight"], weights["enlarge.bias"], 2)
    x = x[:, :, : shortcut.shape[2], : shortcut.shape[3]]
    return shortcut + appendix_mlp(weights, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [Lfae(), Lfae(5, divisions=8, expand=2.5), Lfae(9, 2, 1, squeeze_excite=False)])
def test_lfae_is_that_of_the_appendix(spec, size):
    block, x = with_drawn_weights(LfaeBlock((18, *size), spec)), drawn((2, 18, *size))
    expected = appendix_lfae(block.state_dict(), x, spec.divisions)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [Gfae(), Gfae(heads=2, expand=3.5), Gfae(heads=1, expand=1)])
def test_gfae_is_that_of_the_appendix(spec, size):
    block, x = with_drawn_weights(GfaeBlock((12, *size), spec)), drawn((2, 12, *size))
    expected = appendix_gfae(block.state_dict(), x, spec.heads)
    # The unit length has another epsilon than torch's `normalize`: 1e-6 beside a sum of squares that is about one.
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-4)
    assert (expected - x).abs().max() > 0.1


def test_attention_between_channels_by_einsum():
    channels, heads, width = 6, 2, 3
    block, x = with_drawn_weights(CrossCovarianceAttention(channels, heads, 0.2)), drawn((2, channels, 3, 5))
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    normed = torch.einsum("bcij,c->bcij", normed, block.norm.norm.weight) + block.norm.norm.bias[:, None, None]
    weight, bias = block.query_key_value.weight[:, :, 0, 0], block.query_key_value.bias
    query, key, value = (
        torch.einsum("hdc,bcij->bhdij", part.reshape(heads, width, channels), normed)
        + shift.reshape(heads, width, 1, 1)
        for part, shift in zip(weight.chunk(3), bias.chunk(3), strict=True)
    )
    lengths = [(torch.einsum("bhdij,bhdij->bhd", part, part) + 1e-6).sqrt() for part in (query, key)]
    scores = torch.einsum("bhdij,bheij,bhd,bhe->bhde", query, key, *(1 / length for length in lengths))
    powers = (scores * block.temperature).exp()
    mixed = torch.einsum("bhde,bhd,bheij->bhdij", powers, 1 / powers.sum(-1), value).reshape(2, channels, 3, 5)
    expected = torch.einsum("oc,bcij->boij", block.project.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(block(x), expected + block.project.bias[:, None, None], rtol=0, atol=1e-12)


def test_drop_key_is_that_of_the_appendix_and_acts_in_training_alone():
    spec, x = Gfae(heads=2, drop_key=0.4), drawn((3, 12, 4, 6))
    block = with_drawn_weights(GfaeBlock((12, 4, 6), spec))
    weights = block.state_dict()
    other = GfaeBlock((12, 4, 6), replace(spec, drop_key=0)).double().eval()
    other.load_state_dict(weights)
    torch.testing.assert_close(block(x), other(x), rtol=0, atol=0)
    torch.testing.assert_close(block(x), other.train()(x), rtol=0, atol=0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trained = block.train()(x)
        torch.manual_seed(5)
        keep = torch.rand(3, 2, 6, 6, dtype=torch.float64) >= 0.4
    assert keep.any(-1).all(), "where every key is dropped, the appendix rounds and we do not"
    torch.testing.assert_close(trained, appendix_gfae(weights, x, 2, keep), rtol=0, atol=1e-4)
    assert (trained - block.eval()(x)).abs().max() > 1e-2


def test_dropping_every_key_of_a_row_leaves_numbers():
    block = CrossCovarianceAttention(4, 4, 0.9)
    x = torch.randn(8, 4, 3, 3, requires_grad=True)
    y = block(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_dropped_paths_act_in_training_alone():
    for block in (LfaeBlock((8, 4, 4), Lfae(drop_path=0.9)), GfaeBlock((8, 4, 4), Gfae(drop_path=0.9, drop_key=0))):
        with_drawn_weights(block)
        x = drawn((64, 8, 4, 4))
        plain, trained = block(x), block.train()(x)
        assert not torch.allclose(plain, trained)
        torch.testing.assert_close(block.eval()(x), plain, rtol=0, atol=0)


def nodes_of(shape, spec, kind):
    return [node for node in block_graph(shape, spec).nodes if isinstance(node.op, kind)]


def test_at_even_sizes_convolution_and_pool_are_one_operation_and_at_odd_sizes_two():
    (first, *_) = nodes_of((8, 6, 4), Gfae(), Conv)
    assert first.op == Conv(8, (4, 4), 2, (1, 1), groups=8)
    assert not nodes_of((8, 6, 4), Gfae(), Pool)
    for size in [(7, 7), (6, 7), (7, 6)]:
        (first, *_), (pool,) = nodes_of((8, *size), Gfae(), Conv), nodes_of((8, *size), Gfae(), Pool)
        assert first.op == Conv(8, (3, 3), 1, (1, 1), groups=8)
        assert pool.shape == (8, -(-size[0] // 2), -(-size[1] // 2))


def test_only_the_stem_keeps_the_scale_of_its_norm():
    spec = ArchSpec((3, 32, 32), Patch(8), ((Lfae(), Gfae()), (NormDown(12), Lfae())), Classifier(5, norm=True))
    norms = {node.name: node.op.affine for node in deploy_graph(spec).nodes if isinstance(node.op, ChannelNorm)}
    assert [name for name, affine in norms.items() if affine] == ["stem.norm"]
    assert len(norms) == 7


def test_waves_of_a_position_do_not_depend_on_the_image():
    encoding = waves(5, 7)
    assert encoding.shape == (64, 5, 7)
    assert (encoding[:32] == encoding[:32, :, :1]).all()
    assert (encoding[32:] == encoding[32:, :1]).all()
    # The fastest wave ends at 2 pi, the fourth turns a tenth as fast: 10000 ** (4 / 16).
    assert float(encoding[0, 4, 0]) == pytest.approx(0, abs=1e-12)
    assert float(encoding[4, 1, 0]) == pytest.approx(torch.tensor(2 * torch.pi * 2 / 5 / 10).sin().item())
    positions = encoding.flatten(1).T
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1


def test_a_position_encoding_is_learnt_at_one_size_and_folds_at_another():
    spec = Gfae(heads=2, position_encoding=True)
    square, wide = (with_drawn_weights(GfaeBlock((6, *size), spec)) for size in [(4, 4), (3, 7)])
    x = drawn((2, 6, 3, 7))
    torch.testing.assert_close(square(x), wide(x))
    assert wide.folded()["position"].constant.shape == (6, 2, 4)
    assert [node.shape for node in nodes_of((6, 3, 7), spec, AddConstant)] == [(6, 2, 4)]
    plain, encoded = (
        sum(parameter.numel() for parameter in GfaeBlock((6, 4, 4), replace(spec, position_encoding=on)).parameters())
        for on in (False, True)
    )
    assert encoded - plain == 65 * 6


@pytest.mark.parametrize(
    ("block", "genes", "message"),
    [
        (Lfae, {"kernel": 4}, "kernel must be odd, got 4"),
        (Lfae, {"divisions": 1}, "divisions must be at least 2"),
        (Lfae, {"expand": 0}, "expand must be above 0"),
        (Lfae, {"drop_path": 1.0}, "drop_path must be from 0 to below 1, got 1.0"),
        (Gfae, {"heads": 0}, "heads must be above 0"),
        (Gfae, {"drop_key": -0.1}, "drop_key must be from 0 to below 1, got -0.1"),
    ],
)
def test_genes_that_do_not_fit_are_refused(block, genes, message):
    with pytest.raises(ValueError, match=message):
        block(**genes)


@pytest.mark.parametrize(
    ("block", "emit", "spec", "message"),
    [
        (LfaeBlock, emit_lfae, Lfae(divisions=8), "divisions must be at most the channels, got 8 for 6 channels"),
        (LfaeBlock, emit_lfae, Lfae(expand=0.1), "expand must leave at least one channel, got 0.1 for 6 channels"),
        (GfaeBlock, emit_gfae, Gfae(heads=4), "heads must divide the channels, got 4 heads for 6 channels"),
    ],
)
def test_blocks_that_do_not_fit_what_enters_are_refused_in_both_forms(block, emit, spec, message):
    with pytest.raises(ValueError, match=message):
        block((6, 4, 4), spec)
    graph = GraphBuilder((6, 4, 4))
    with pytest.raises(ValueError, match=message):
        emit(graph, graph.input, spec)


WIDTHS = {"xxs": (24, 48, 88, 168), "xs": (32, 64, 100, 192), "s": (48, 96, 160, 304)}
FITTED_EXPANSIONS = {"xxs": (4, 3, 3, 3), "xs": (4, 3, 3, 3), "s": (2, 3, 3.5, 4)}
LOCAL_BLOCKS = {"xxs": (2, 1, 5, 1), "xs": (3, 2, 4, 4), "s": (3, 2, 8, 2)}
FOURS = (4, 4, 4, 4)


def mixmobilenet(variant, expansions=None, local=None, attention=(0, 1, 1, 1), kernels=(3, 5, 7, 9), excite=True):
    """Table 1 with one width, expansion, number of local and of global blocks, and kernel for each stage."""
    stages = []
    per_stage = zip(
        WIDTHS[variant],
        expansions or FITTED_EXPANSIONS[variant],
        local or LOCAL_BLOCKS[variant],
        attention,
        kernels,
        strict=True,
    )
    for index, (width, expand, local_blocks, global_blocks, kernel) in enumerate(per_stage):
        step = (NormDown(width),) if index else ()
        blocks = (Lfae(kernel, expand=expand, squeeze_excite=excite),) * local_blocks
        stages.append((*step, *blocks, *(Gfae(expand=expand),) * global_blocks))
    stem, head = Patch(WIDTHS[variant][0]), Classifier(1000, norm=True)
    return ArchSpec((3, 256, 256), stem, tuple(stages), head)


def train_form_counts(spec):
    """Parameters and multiply-adds of the train form, by torch's own counter and without computing anything."""
    with torch.device("meta"):
        network = Network(spec).eval()
        image = torch.zeros(1, *spec.input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


# Millions of parameters, billions of multiply-adds. The second pair is what the paper prints.
PUBLISHED = {
    "XXS": (mixmobilenet("xxs"), (1.505, 0.240), (1.5, 0.2)),
    "XS": (mixmobilenet("xs"), (3.157, 0.476), (3.2, 0.5)),
    "S": (mixmobilenet("s"), (7.323, 1.219), (7.3, 1.2)),
    "S at 224": (replace(mixmobilenet("s"), input_shape=(3, 224, 224)), (7.323, 0.936), (7.3, 0.9)),
    "Table 8, item 3": (mixmobilenet("s", FOURS, kernels=(9,) * 4, excite=False), (8.091, 1.746), (8.1, 1.8)),
    "Table 8, item 4": (mixmobilenet("s", FOURS, excite=False), (7.586, 1.448), (7.6, 1.4)),
    "Table 8, item 5": (mixmobilenet("s", excite=False), (7.271, 1.219), (7.3, 1.2)),
    "Table 9, item 3": (mixmobilenet("s", local=(2, 2, 8, 2), attention=(1,) * 4), (7.340, 1.234), (7.4, 1.3)),
    "XXS, expansions as in the appendix": (mixmobilenet("xxs", FOURS), (1.721, 0.280), None),
    "XS, expansions as in the appendix": (mixmobilenet("xs", FOURS), (3.652, 0.550), None),
    "S, expansions as in the appendix": (mixmobilenet("s", FOURS), (7.638, 1.448), None),
}


@pytest.mark.parametrize(("spec", "counts", "printed"), PUBLISHED.values(), ids=PUBLISHED)
def test_parameters_and_macs_of_the_train_form(spec, counts, printed):
    params, macs = train_form_counts(spec)
    assert (round(params / 1e6, 3), round(macs / 1e9, 3)) == counts
    if printed is not None:
        # No expansions bring every row closer; the digits that are printed leave 0.05 open.
        assert params / 1e6 == pytest.approx(printed[0], rel=0.015)
        assert macs / 1e9 == pytest.approx(printed[1], rel=0.04, abs=0.07)


@pytest.mark.parametrize("name", ["XXS", "XS", "S", "S at 224"])
def test_the_deploy_form_saves_what_its_folds_say(name):
    spec = PUBLISHED[name][0]
    params, macs = train_form_counts(spec)
    deployed = cost(deploy_graph(spec))
    # 4x4 on a quarter of the positions in the place of 3x3 on all of them, where a map is of even size.
    saved = 0
    for stage, width in enumerate([block.width for _, block in spec.blocks() if isinstance(block, Patch | NormDown)]):
        size = spec.input_shape[1] // 4 // 2**stage
        saved += (9 - 16 // 4) * width * size**2 * (stage > 0 and size % 2 == 0)
    assert macs - deployed.macs == saved
    assert saved > 0
    assert abs(params - deployed.params) < 0.001 * params


@pytest.mark.parametrize("variant", WIDTHS)
def test_the_references_are_these_networks(variant):
    assert reference(f"mixmobilenet_{variant}") == mixmobilenet(variant)


def test_a_whole_network_with_layouts_folds_at_an_odd_size():
    stages = ((Lfae(3), Lfae(5)), (NormDown(12), Lfae(7, drop_path=0.1), Gfae()), (NormDown(16), Lfae(9, 8, 1.5)))
    plain = ArchSpec((3, 60, 44), Patch(8), stages, Classifier(5, norm=True))
    spec = with_random_layouts(plain, random.Random(3))
    assert deploy_id(spec) == deploy_id(plain)
    assert spec != plain
    network = with_drawn_weights(build_network(spec, seed=1))
    x = drawn((2, 3, 60, 44))
    expected = network(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(DeployModule(deploy(network))(x), expected, rtol=0, atol=1e-11)


def genes_of(variant):
    genes = {"resolution": 256, "stem.width": WIDTHS[variant][0]}
    per_stage = zip(LOCAL_BLOCKS[variant], (3, 5, 7, 9), FITTED_EXPANSIONS[variant], WIDTHS[variant], strict=True)
    for index, (depth, kernel, expand, width) in enumerate(per_stage, 1):
        own = {"depth": depth, "kernel": kernel, "divisions": 4, "expand": expand, "squeeze_excite": True}
        own |= {} if index == 1 else {"width": width, "attention": True}
        genes |= {f"stage{index}.{name}": gene for name, gene in own.items()}
    return genes


@pytest.mark.parametrize("variant", WIDTHS)
def test_the_references_are_members_of_the_space(variant):
    assert member(space_named("mix"), replay(genes_of(variant)), Task(3, 1000)) == mixmobilenet(variant)


def test_the_space_asks_for_the_same_genes_whatever_the_answers():
    asked = set()
    for seed in range(20):
        genes = {}
        member(space_named("mix"), recording(random_choice(random.Random(seed)), genes), Task(3, 10))
        asked.add(tuple(genes))
    assert len(asked) == 1


@pytest.mark.parametrize("seed", range(3))
def test_random_members_of_the_space_fold_and_keep_to_useful_kernels(seed):
    spec = member(space_named("mix"), random_choice(random.Random(seed)), Task(1, 7))
    size = spec.input_shape[1] // 4
    for stage, blocks in enumerate(spec.stages):
        kernels = [block.kernel for block in blocks if isinstance(block, Lfae)]
        assert max(kernels) <= 2 * (size // 2**stage) - 1
    network = with_drawn_weights(build_network(replace(spec, input_shape=(1, 36, 44)), seed=1))
    x = drawn((2, 1, 36, 44))
    expected = network(x)
    difference = (DeployModule(deploy(network))(x) - expected).abs().max()
    assert expected.std() > 1e-3
    assert difference < 1e-11 * expected.abs().max()
