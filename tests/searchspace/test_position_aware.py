"""ParC and PPE in networks that are not ours: a plain ResNet-18, and single convolutions of each kind."""

import copy

import pytest
import torch
from torch import nn

from searchspace.blocks.ppe import PpeConv
from searchspace.coverage import parse_layout
from searchspace.position_aware import (
    MergedParc,
    MergedPpe,
    MovedNorm,
    PluggedParc,
    PluggedPpe,
    merge_at,
    replaceable,
    with_parc,
    with_ppe,
)
from searchspace.reparam import merge, with_pbconv
from tests.searchspace.plain_resnet import ResNet18


def resnet18():
    return ResNet18(width=8, classes=5)


# Maps of 18 x 22, 9 x 11, 5 x 6 and 3 x 3.
SHAPE = (3, 70, 86)
LAYOUT = parse_layout("K3:0.0.3.1-0.1.3.2")
PATHS = ("layer3.1.conv1", "layer3.1.conv2", "layer4.1.conv2")


def drawn(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomise(make().double(), 4).eval()


def randomise(module, seed):
    """Norms as after training, one variance close to zero, and whatever is constant drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                size = part.running_mean.shape
                part.running_mean.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
                part.running_var.copy_(torch.rand(size, generator=generator, dtype=torch.float64) + 0.1)
                part.running_var[0] = 1e-7
                part.weight.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
                part.weight[0] *= part.eps**0.5
                part.bias.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
        for parameter in module.parameters():
            if (parameter == parameter.flatten()[0]).all():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return module


def train(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for seed in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(drawn(4, *SHAPE, seed=seed)), torch.arange(4)).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [SHAPE, (3, 96, 70)], ids=["the same size", "another size"])
@pytest.mark.parametrize("plug", [with_parc, with_ppe])
def test_a_trained_network_merges_into_plain_operations(plug, shape):
    net = built(resnet18)
    plugged = plug(net, PATHS, drawn(1, *SHAPE))
    train(plugged.train())
    randomise(plugged, 7).eval()
    x = drawn(3, *shape)
    merged = merge_at(plugged, x[:1])
    with torch.no_grad():
        expected = plugged(x)
        assert expected.std() > 1e-3
        assert (merged(x) - expected).abs().max() < 1e-11
        single, single_x = copy.deepcopy(plugged).float(), x.float()
        expected = single(single_x)
        difference = merge_at(single, single_x)(single_x) - expected
        assert difference.abs().max() < 1e-5 * expected.abs().max()
    kinds = {type(part) for part in merged.modules()}
    assert not kinds & {PluggedParc, PluggedPpe, MovedNorm}
    assert sum(isinstance(part, MergedParc | MergedPpe) for part in merged.modules()) == len(PATHS)
    assert type(merged.layer3[1].bn1) is nn.Identity
    assert type(merged.layer3[0].bn1) is nn.BatchNorm2d


KINDS = {
    "dense": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False),
    "grouped": lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
    "oblong": lambda: nn.Conv2d(4, 4, (1, 5), padding=(0, 2)),
    "even": lambda: nn.Conv2d(4, 6, 4, padding="same", bias=False),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("plug", [with_parc, with_ppe])
@pytest.mark.parametrize("size", [(7, 4), (1, 6), (2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_convolution_merges(kind, size, plug):
    net = built(KINDS[kind])
    x = drawn(2, net.in_channels, *size)
    plugged = randomise(plug(net, [""], x), 7)
    with torch.no_grad():
        expected = plugged(x)
        assert expected.shape == net(x).shape
        assert (expected - net(x)).abs().max() > 0.01
        assert (merge_at(plugged, x)(x) - expected).abs().max() < 1e-11


@pytest.mark.parametrize("kind", ["dense", "depthwise", "grouped"])
def test_parc_starts_as_the_convolution_on_maps_that_vary_along_its_axis_alone(kind):
    net = built(KINDS[kind])
    if kind == "dense":
        # What goes from one half of the channels to the other has no place in ParC.
        net.weight.data[:4, 3:] = net.weight.data[4:, :3] = 0
    net.padding_mode = "circular"
    net = nn.Sequential(net, nn.BatchNorm2d(net.out_channels)).double().eval()
    channels, half = net[0].in_channels, net[0].out_channels // 2
    rows, columns = drawn(2, channels, 7, 1).expand(-1, -1, -1, 5), drawn(2, channels, 1, 7).expand(-1, -1, 6, -1)
    with torch.no_grad():
        for x, kept in ((rows, slice(None, half)), (columns, slice(half, None))):
            plugged = with_parc(net, ["0"], x)
            assert (plugged(x)[:, kept] - net(x)[:, kept]).abs().max() < 1e-12


def test_ppe_starts_as_the_network_itself_and_learns():
    net, x = built(resnet18), drawn(4, *SHAPE)
    plugged = with_ppe(net, PATHS, x)
    with torch.no_grad():
        assert (plugged(x) - net(x)).abs().max() < 1e-11
    train(plugged)
    for path in PATHS:
        part = plugged.get_submodule(path)
        assert all(parameter.any() for parameter in part.fresh_parameters())


def test_depthwise_ppe_is_ppenets():
    ours = randomise(PpeConv((6, 5, 8), None).double(), 1).eval()
    net = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)).double().eval()
    x = drawn(2, 6, 5, 8)
    plugged = with_ppe(net, ["0"], x)
    part = plugged[0]
    part.weight, part.refocused = ours.positioned.conv.weight, ours.refocused.weight
    part.refocus, part.scale, part.norm = ours.refocus.weight, ours.scale, ours.norm
    with torch.no_grad():
        assert (torch.relu(plugged(x)) - ours(x)).abs().max() < 1e-12


def test_what_is_not_replaced_is_kept():
    net, x = built(resnet18), drawn(1, *SHAPE)
    before = torch.get_rng_state()
    plugged = with_parc(net, PATHS, x)
    assert torch.equal(before, torch.get_rng_state())
    state = plugged.state_dict()
    norms = {path.replace("conv", "bn") for path in PATHS}
    for name, value in net.state_dict().items():
        owner = name.rpartition(".")[0]
        if owner in norms:
            name = f"{owner.replace('bn', 'conv')}.norm.{name.rpartition('.')[2]}"
        if owner not in PATHS:
            assert torch.equal(state[name], value), name
    assert not any(isinstance(part, PluggedParc) for part in net.modules())
    # Two halves of half the channels each way, as long as the map, with embeddings and biases.
    part = plugged.get_submodule("layer3.1.conv1").ring
    assert part.along_height.weight.shape == (16, 16, 5)
    assert part.along_width.weight.shape == (16, 16, 6)
    assert part.along_width.embedding.shape == (16, 6)
    assert with_parc(net, PATHS, x, position_embedding=False).layer4[1].conv2.ring.along_width.embedding is None


def test_parc_sees_the_whole_map():
    net = built(lambda: nn.Conv2d(4, 4, 3, padding=1))
    x = drawn(1, 4, 9, 8)
    plugged = randomise(with_parc(net, [""], x), 7)
    with torch.no_grad():
        for parameter in plugged.parameters():
            parameter.copy_(drawn(*parameter.shape))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(plugged(x)[0, :, 2, 3].sum(), x)
    assert (gradient[0, :2, :, 3] != 0).all()
    assert (gradient[0, 2:, 2, :] != 0).all()


def test_frozen_parts_stay_frozen():
    net = built(resnet18).train()
    net.layer3.eval().requires_grad_(False)
    for plug in (with_parc, with_ppe):
        plugged = plug(net, PATHS, drawn(1, *SHAPE))
        assert not any(parameter.requires_grad for parameter in plugged.layer3.parameters())
        assert not any(part.training for part in plugged.layer3[1].conv1.modules())
        assert all(parameter.requires_grad for parameter in plugged.layer4.parameters())


def test_all_three_plugins_in_one_network():
    net, x = built(resnet18), drawn(2, *SHAPE)
    branched = with_pbconv(net, lambda path, conv: LAYOUT if path == "layer1.0.conv1" else None)
    mixed = with_ppe(with_parc(branched, ["layer4.1.conv1"], x), ["layer2.1.conv1"], x)
    randomise(mixed, 7)
    with torch.no_grad():
        assert (merge(merge_at(mixed, x))(x) - mixed(x)).abs().max() < 1e-11
        assert (merge_at(merge(mixed), x)(x) - mixed(x)).abs().max() < 1e-11
    # Nothing inside of them is a convolution that the other call could take.
    again = with_pbconv(with_ppe(net, ["layer2.1.conv1"], x), {3: LAYOUT})
    with torch.no_grad():
        assert (again(x) - net(x)).abs().max() < 1e-11
    with pytest.raises(ValueError, match="a part of one that is re-parameterized already"):
        with_parc(mixed, ["layer1.0.conv1.branched.conv"], x)


def test_replaceable_tells_paths_and_sizes():
    found = replaceable(built(resnet18), drawn(1, *SHAPE))
    assert len(found) == 13
    assert found["layer1.0.conv1"] == (18, 22)
    assert found["layer3.1.conv2"] == (5, 6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.idle = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.norm = nn.MaxPool2d(2), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.pool(self.conv(x))))


@pytest.mark.parametrize(
    ("net", "path", "message"),
    [
        (resnet18(), "layer2.0.conv1", r"its stride must be 1, got \(2, 2\)"),
        (resnet18(), "layer2.0.downsample.0", "its stride must be 1"),
        (resnet18(), "layer2.0", "'layer2.0' is no plain convolution; can be replaced: layer1.0.conv1, layer1.0.conv2"),
        (nn.Conv2d(4, 4, 1), "", "looks at one position"),
        (nn.Conv2d(4, 4, 3), "", r"keep the size of its map, got \(9, 9\) -> \(7, 7\)"),
        (Twice(), "conv", "used 2 times"),
        (Twice(), "idle", "one size of map, got none"),
    ],
)
def test_what_cannot_be_replaced_is_refused(net, path, message):
    x = torch.zeros(1, 3, 64, 64) if isinstance(net, ResNet18) else torch.zeros(1, 4, 9, 9)
    for plug in (with_parc, with_ppe):
        with pytest.raises(ValueError, match=message):
            plug(net, [path], x)


def test_what_one_of_them_cannot_replace_is_refused():
    x = torch.zeros(1, 6, 9, 9)
    with pytest.raises(ValueError, match="even number of channels, since each half has its own axis, got 5"):
        with_parc(nn.Conv2d(6, 5, 3, padding=1), [""], x)
    with pytest.raises(ValueError, match="one group or an even number of them, since each half has its own, got 3"):
        with_parc(nn.Conv2d(6, 6, 3, padding=1, groups=3), [""], x)
    with pytest.raises(ValueError, match="PPE pads with zeros, got 'reflect'"):
        with_ppe(nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), [""], x)
    with pytest.raises(ValueError, match="at least one convolution"):
        with_parc(nn.Conv2d(6, 6, 3, padding=1), [], x)


def test_merging_nothing_or_half_or_for_another_size_is_refused():
    net, x = built(resnet18), drawn(1, *SHAPE)
    with pytest.raises(ValueError, match="neither ParC nor PPE"):
        merge_at(net, x)
    plugged = with_parc(net, ["layer3.1.conv1"], x)
    inner = plugged.layer3[1]
    with pytest.raises(ValueError, match="must be merged together"):
        merge_at(inner.conv1, drawn(1, 32, 5, 6))
    with pytest.raises(ValueError, match="fits maps that are 5 long along dimension 2, got"):
        merge_at(plugged, x)(drawn(1, 3, 128, 86))


class Chosen(nn.Module):
    """Runs one part on the map, on the map and its half, or not at all."""

    def __init__(self, part):
        super().__init__()
        self.part, self.times = part, 1

    def forward(self, x):
        for step in range(self.times):
            x = self.part(x[:, :, step:])
        return x


def test_what_the_example_shows_at_no_size_or_at_two_is_not_merged():
    x = drawn(1, 4, 6, 5)
    for plug in (with_parc, with_ppe):
        chosen = Chosen(plug(nn.Conv2d(4, 4, 3, padding=1).double(), [""], x))
        chosen.times = 0
        with pytest.raises(ValueError, match="'part' must see one size of map to be merged, got none"):
            merge_at(chosen, x)
        chosen.times = 2
        with pytest.raises(ValueError, match="'part' must see one size of map to be merged, got 5x5, 6x5"):
            merge_at(chosen, x)
