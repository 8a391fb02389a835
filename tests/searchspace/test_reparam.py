"""PBConv in networks that are not ours: a plain ResNet-18, and a small one with every kind of convolution."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evaluators.dispersion import dispersion
from searchspace.blocks.rep import Rep, RepBlock
from searchspace.coverage import Layout, Rectangle, generate_layout, parse_layout
from searchspace.reparam import NormPlace, PBConv, keep_drawn, merge, merged_kernels, with_pbconv
from tests.searchspace.plain_resnet import ResNet18

FIGURE_5 = parse_layout("K3:0.0.3.1-0.1.3.1-0.2.3.1-1.0.1.3")
LAYOUTS = {
    2: parse_layout("K2:0.0.1.2-0.0.2.1-1.1.1.1"),
    3: parse_layout("K3:0.0.2.2-0.1.1.2-1.0.2.3"),
    4: parse_layout("K4:0.0.3.4-1.1.2.2-3.0.1.4"),
    5: parse_layout("K5:0.0.5.2-0.2.5.3-2.2.1.1"),
    7: generate_layout(7, random.Random(0), 6),
}


class Kinds(nn.Module):
    """One convolution of each kind, some with a norm of an unusual kind behind it, some with none."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.bare = nn.Conv2d(8, 8, 3, padding=2, bias=False)
        self.even = nn.Sequential(nn.Conv2d(8, 12, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(12, eps=1e-3))
        self.dilated = nn.Conv2d(12, 12, 3, stride=2, padding=3, dilation=2, groups=3)
        self.dilated_norm = nn.BatchNorm2d(12, momentum=None)
        self.depthwise = nn.Conv2d(12, 12, 5, padding=(1, 2), dilation=(1, 2), groups=12, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(12, affine=False)
        self.same = nn.Conv2d(12, 6, 3, padding="same", dilation=2, bias=False)
        self.group_norm = nn.GroupNorm(2, 6)
        self.valid = nn.Conv2d(6, 6, 2, padding="valid", bias=False)
        self.valid_norm = nn.BatchNorm2d(6, momentum=0.3)
        self.oblong = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.point = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = torch.relu(self.bare(torch.relu(self.plain(x))))
        x = self.dilated_norm(self.dilated(torch.relu(self.even(x))))
        x = torch.relu(x + self.depthwise_norm(self.depthwise(nn.functional.pad(x, (2, 2, 1, 1)))))
        x = self.group_norm(self.same(x))
        x = self.valid_norm(self.valid(x))
        return self.point(torch.relu(self.oblong(x))).mean((2, 3))


# How to build each, how many of its convolutions carry a layout, and a shape of image.
NETS = {"resnet18": (lambda: ResNet18(8, 5), 17, (3, 40, 36)), "kinds": (Kinds, 7, (3, 21, 18))}


def build(name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomise(NETS[name][0]().to(dtype), 4).eval()


def randomise(module, seed):
    """Norms as after training, one variance close to zero, a scale of zero and a negative one among them."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.running_mean.shape
            part.running_mean.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
            part.running_var.copy_(torch.rand(size, generator=generator, dtype=torch.float64) + 0.1)
            part.running_var[0] = 1e-7
            if part.affine:
                part.weight.data.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
                part.weight.data[0] *= part.eps**0.5
                part.weight.data[1] = 0
                part.bias.data.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
    return module


def images(name, count=4, dtype=torch.float64):
    return torch.randn(count, *NETS[name][2], generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def train(module, x, steps):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    labels = torch.arange(len(x)) % 5
    module.train()
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


both = pytest.mark.parametrize("name", NETS)


@both
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_before_training_the_network_computes_exactly_the_same(name, mode):
    net = build(name).train(mode == "train")
    state, x = copy.deepcopy(net.state_dict()), images(name)
    branched = with_pbconv(net, LAYOUTS)
    assert sum(isinstance(part, PBConv) for part in branched.modules()) == NETS[name][1]
    assert {part.training for part in branched.modules()} == {mode == "train"}
    with torch.no_grad():
        assert torch.equal(branched(x), net(x))
    # The given network was not touched (its own forward moves its statistics in train mode).
    assert not any(isinstance(part, PBConv) for part in net.modules())
    if mode == "eval":
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_weights_that_existed_are_kept():
    net = build("resnet18")
    branched = with_pbconv(net, LAYOUTS)
    block = branched.get_submodule("layer2.0.conv1").branched
    assert torch.equal(block.conv.weight, net.layer2[0].conv1.weight)
    assert torch.equal(block.norm.running_var, net.layer2[0].bn1.running_var)
    assert isinstance(branched.get_submodule("layer2.0.bn1"), NormPlace)
    assert isinstance(branched.get_submodule("layer2.0.downsample.0"), nn.Conv2d)


def test_branches_that_are_drawn_take_part_and_follow_from_the_seed():
    net, x = build("resnet18"), images("resnet18")
    before = torch.get_rng_state()
    drawn = [with_pbconv(net, LAYOUTS, start=keep_drawn, seed=seed).eval()(x).detach() for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1])
    for other in (drawn[2], net(x)):
        assert (drawn[0] - other).abs().max() > 1e-3


@both
def test_every_branch_learns_within_three_steps(name):
    branched, x = with_pbconv(build(name), LAYOUTS), images(name, 8)
    parameters = {
        key: (value, value.detach().clone()) for key, value in branched.named_parameters() if ".branches." in key
    }
    assert len(parameters) > 40
    train(branched, x, 1)
    # What stands behind a norm of scale zero gets no gradient yet; everything else does.
    still = {key for key, (value, _) in parameters.items() if not value.grad.any()}
    behind_norm = {f"{path}.conv.weight" for path, part in branched.named_modules() if getattr(part, "norm", None)}
    assert still == behind_norm & parameters.keys()
    train(branched, x, 2)
    for key, (value, start) in parameters.items():
        assert not torch.equal(value, start), key


@both
def test_training_goes_on_from_where_the_network_was(name):
    net, x = build(name), images(name, 8)
    losses = train(with_pbconv(net, LAYOUTS), x, 6)
    assert losses[0] == pytest.approx(train(copy.deepcopy(net), x, 1)[0], rel=1e-12)
    assert losses[-1] < losses[0]


@both
@pytest.mark.parametrize("start", ["trained", "drawn"])
def test_the_merged_network_computes_the_same(name, start):
    x = images(name)
    branched = with_pbconv(build(name), LAYOUTS, start=keep_drawn)
    if start == "trained":
        train(branched, x, 3)
    randomise(branched, 11).eval()
    with torch.no_grad():
        expected, merged = branched(x), merge(branched)
        assert expected.std() > 1e-3
        assert (merged(x) - expected).abs().max() < 1e-11
        single, single_x = copy.deepcopy(branched).float(), x.float()
        expected = single(single_x)
        assert (merge(single)(single_x) - expected).abs().max() < 1e-5 * expected.abs().max()


@both
def test_the_merged_network_is_the_original_but_for_its_values(name):
    net, x = build(name), images(name)
    branched = randomise(with_pbconv(net, LAYOUTS, start=keep_drawn), 11)
    merged = merge(branched)
    assert [(path, type(part)) for path, part in merged.named_modules()] == [
        (path, type(part)) for path, part in net.named_modules()
    ]
    assert [repr(part) for part in merged.modules()] == [repr(part) for part in net.modules()]
    assert any(isinstance(part, PBConv) for part in branched.modules())
    fresh = NETS[name][0]().double().eval()
    fresh.load_state_dict(merged.state_dict())
    flops = []
    for module in (net, fresh):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            y = module(x)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0
    with torch.no_grad():
        assert (y - branched(x)).abs().max() < 1e-11


@both
def test_merged_at_once_nothing_has_changed(name):
    net, x = build(name), images(name)
    with torch.no_grad():
        assert (merge(with_pbconv(net, LAYOUTS))(x) - net(x)).abs().max() < 1e-11


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 4])
def test_same_padding_of_an_even_kernel_is_one_sided(kernel, dilation):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation).double()
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    branched = with_pbconv(net, LAYOUTS, start=keep_drawn)
    assert isinstance(branched, PBConv)
    merged = merge(branched)
    assert merged.padding == "same"
    with torch.no_grad():
        assert branched(x).shape == (2, 4, 7, 8)
        assert (merged(x) - branched(x)).abs().max() < 1e-12
        assert (net(x) - branched(x)).abs().max() > 0.1


def test_branch_norms_are_like_the_hosts():
    branched = with_pbconv(build("kinds"), LAYOUTS)
    for path, eps, momentum in (("even.0", 1e-3, 0.1), ("dilated", 1e-5, None), ("valid", 1e-5, 0.3)):
        for branch in branched.get_submodule(path).branched.branches:
            assert (branch.norm.eps, branch.norm.momentum, branch.conv.bias) == (eps, momentum, None)
    # None where the host has none; a bias only beside a bias.
    for path, bias in (("plain", True), ("bare", False), ("same", False)):
        for branch in branched.get_submodule(path).branched.branches:
            assert branch.norm is None
            assert (branch.conv.bias is not None) == bias


def test_branches_are_made_in_the_precision_and_on_the_device_of_their_convolution():
    half = with_pbconv(build("kinds", torch.bfloat16), LAYOUTS)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        net = Kinds()
    branched = with_pbconv(net, LAYOUTS)
    assert {parameter.device.type for parameter in branched.parameters()} == {"meta"}


def test_frozen_parts_stay_frozen():
    net = build("resnet18").train()
    net.layer1.eval().requires_grad_(False)
    net.layer2[0].bn1.eval()
    branched = with_pbconv(net, LAYOUTS)
    assert not any(parameter.requires_grad for parameter in branched.layer1.parameters())
    assert not any(part.training for part in branched.layer1.modules())
    mixed = branched.layer2[0].conv1.branched
    assert (mixed.conv.training, mixed.norm.training) == (True, False)
    merged = merge(branched)
    assert [parameter.requires_grad for parameter in merged.parameters()] == [
        parameter.requires_grad for parameter in net.parameters()
    ]
    assert [part.training for part in merged.modules()] == [part.training for part in net.modules()]


def test_a_function_chooses_layouts_by_path():
    def choose(path, conv):
        assert conv.kernel_size in ((3, 3), (7, 7))
        return {"layer1.0.conv2": LAYOUTS[3], "layer4.1.conv1": FIGURE_5}.get(path)

    branched = with_pbconv(build("resnet18"), choose)
    found = {path: len(part.branched.branches) for path, part in branched.named_modules() if isinstance(part, PBConv)}
    assert found == {"layer1.0.conv2": 3, "layer4.1.conv1": 4}


def test_two_branched_networks_inside_a_larger_one_merge():
    first, second = (with_pbconv(build("resnet18"), LAYOUTS, start=keep_drawn, seed=seed) for seed in (1, 2))
    whole = pickle.loads(pickle.dumps(nn.ModuleDict({"first": first, "more": nn.Sequential(second)})))
    randomise(whole, 11)
    merged, x = merge(whole), images("resnet18")
    with torch.no_grad():
        assert (merged["first"](x) - whole["first"](x)).abs().max() < 1e-11
        assert (merged["more"](x) - whole["more"](x)).abs().max() < 1e-11


def test_the_original_state_still_loads_after_a_change_of_mind():
    net, x = build("resnet18"), images("resnet18")
    merged = merge(with_pbconv(net, LAYOUTS, start=keep_drawn))
    merged.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(merged(x), net(x))


def test_dispersion_is_taken_on_the_merged_kernels():
    branched = randomise(with_pbconv(build("resnet18"), {3: FIGURE_5}, start=keep_drawn), 11)
    merged = merge(branched)
    convs = [part for part in merged.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert len(list(merged_kernels(branched))) == len(convs) == 16
    expected = dispersion(conv.weight.detach() for conv in convs)
    assert dispersion(weight for _, weight in merged_kernels(branched)) == expected


def vgg16():
    layers, channels = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def diverse_branch_extra(channels, width, k):
    """Parameters that a Diverse Branch Block adds to a dense convolution with batch norm, as in its authors' code."""
    point = channels * width + 2 * width
    point_then_kernel = channels**2 + 2 * channels + k * k * channels * width + 2 * width
    point_then_average = channels * width + 2 * width + 2 * width
    return point + point_then_kernel + point_then_average


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# architectures: the base, DBB, and PBConv at the 5 % quantile, the mean and the 95 % quantile of generated layouts, in
# millions. "PBConv uses from 85% to 130% of the parameters of DBB" (seed 001, section 5.6).
@pytest.mark.parametrize(
    ("make", "base", "diverse", "expected"),
    [(vgg16, 14.7, 34.3, (29.5, 35.2, 42.6)), (ResNet18, 11.7, 26.3, (22.7, 27.0, 32.5))],
)
def test_training_parameters_against_diverse_branch_blocks(make, base, diverse, expected):
    with torch.device("meta"):
        net = make()
    kernels = [part for part in net.modules() if isinstance(part, nn.Conv2d) and part.kernel_size[0] > 1]
    extra = sum(diverse_branch_extra(part.in_channels, part.out_channels, part.kernel_size[0]) for part in kernels)
    counted = parameters(net) + extra
    assert (round(parameters(net) / 1e6, 1), round(counted / 1e6, 1)) == (base, diverse)

    carriers = [part for part in kernels if part.kernel_size == (3, 3)]
    cells = sum(part.in_channels * part.out_channels for part in carriers)
    norms = sum(2 * part.out_channels for part in carriers)

    def with_layout(layout):
        area = sum(rectangle.height * rectangle.width for rectangle in layout.rectangles)
        return parameters(net) + area * cells + len(layout.rectangles) * norms

    rng = random.Random(1)
    drawn = [generate_layout(3, rng) for _ in range(4000)]
    for layout in (FIGURE_5, drawn[0]):
        assert parameters(with_pbconv(net, {3: layout})) == with_layout(layout)
    counts = np.array([with_layout(layout) for layout in drawn])
    found = (np.quantile(counts, 0.05), counts.mean(), np.quantile(counts, 0.95))
    assert np.array(found) / 1e6 == pytest.approx(expected, abs=0.1)
    assert np.array(found) / counted == pytest.approx((0.86, 1.03, 1.24), abs=0.01)


# Refusals


def test_a_network_without_a_fitting_convolution_is_refused():
    with pytest.raises(ValueError, match=r"at least one convolution must get a layout; square kernels here: 3x3, 7x7"):
        with_pbconv(build("resnet18"), {5: LAYOUTS[5]})
    with pytest.raises(ValueError, match="square kernels here: none"):
        with_pbconv(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, (1, 3)), nn.Linear(4, 4)), LAYOUTS)
    with pytest.raises(ValueError, match="square kernels here: 3x3, 7x7"):
        with_pbconv(build("resnet18"), lambda path, conv: None)


def test_a_layout_of_another_size_is_refused():
    with pytest.raises(ValueError, match="got one for 3 that is for 5"):
        with_pbconv(build("resnet18"), {3: LAYOUTS[5]})
    with pytest.raises(ValueError, match="convolution 'conv1' is 7x7, got a layout for another size: K3:"):
        with_pbconv(build("resnet18"), lambda path, conv: FIGURE_5)


def test_a_convolution_that_is_used_twice_is_refused_and_can_be_left_out():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="convolution '0' or its weight is used 2 times"):
        with_pbconv(net, LAYOUTS)
    branched = with_pbconv(net, lambda path, conv: FIGURE_5 if path == "3" else None)
    assert branched[0] is branched[2]


def test_padding_with_other_than_zeros_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match=r"convolution '0' must pad with zeros, .* got 'reflect'"):
        with_pbconv(net, LAYOUTS)


def test_a_second_time_is_refused():
    branched = with_pbconv(build("resnet18"), LAYOUTS)
    with pytest.raises(ValueError, match="re-parameterized already, at 'conv1'; merge it first"):
        with_pbconv(branched, LAYOUTS)
    assert with_pbconv(merge(branched), LAYOUTS)
    with pytest.raises(ValueError, match=r"parallel branches of its own, at '0\.conv'"):
        with_pbconv(nn.Sequential(RepBlock((3, 8, 8), Rep(4)), nn.Conv2d(4, 4, 3)), LAYOUTS)


def test_merging_nothing_or_half_is_refused():
    with pytest.raises(ValueError, match="nothing to merge"):
        merge(build("resnet18"))
    branched = with_pbconv(build("resnet18"), LAYOUTS)
    with pytest.raises(ValueError, match="must be merged together"):
        merge(branched.conv1)
    with pytest.raises(ValueError, match="must be merged together"):
        merge(nn.Sequential(branched.bn1, branched.layer1))
    assert type(merge(branched.layer1)[0].bn1) is nn.BatchNorm2d


def test_every_rectangle_of_a_kernel_merges_to_its_place():
    # 35 rectangles at once, each with its own crop, beside a strided dilated grouped host without norm.
    rectangles = tuple(
        Rectangle(row, column, height, width)
        for row in range(3)
        for column in range(3)
        for height in range(1, 4 - row)
        for width in range(1, 4 - column)
        if (height, width) != (3, 3)
    )
    layout = Layout(3, rectangles)
    for padding in (0, 1, 3):
        net = nn.Conv2d(4, 6, 3, stride=2, padding=padding, dilation=2, groups=2).double()
        branched = with_pbconv(net, {3: layout}, start=keep_drawn)
        x = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert (merge(branched)(x) - branched(x)).abs().max() < 1e-12
    assert len(rectangles) == 35
