"""Which batch norm belongs to which convolution, in networks that torch.fx can follow and in some that it cannot."""

import pytest
import torch
from torch import nn

from searchspace.conv_sites import conv_sites


def pairs(module):
    return {site.path: site.norm_path for site in conv_sites(module)}


def conv(channels=4):
    return nn.Conv2d(channels, 4, 3, padding=1)


class Parts(nn.Module):
    """A network whose parts are attributes and whose forward is a function of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = forward

    def forward(self, x):
        return self.function(self.parts, x)


def test_the_only_reader_counts_and_not_the_order_of_attributes():
    # Written in the order of a trap: `norm` follows `second` here, and reads `first` in the forward.
    parts = {"first": conv(), "second": conv(), "norm": nn.BatchNorm2d(4), "last": nn.BatchNorm2d(4)}
    found = pairs(Parts(lambda p, x: p["last"](p["second"](p["norm"](p["first"](x)).relu())), **parts))
    assert found == {"parts.first": "parts.norm", "parts.second": "parts.last"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda p, x: p["norm"](y := p["conv"](x)) + y,
        lambda p, x: (p["norm"](y := p["conv"](x)), y),
        lambda p, x: p["norm"](p["conv"](x).relu()),
        lambda p, x: p["norm"](p["conv"](x)) + p["norm"](x),
        lambda p, x: p["norm"](y := p["conv"](x)) * p["norm"](y),
        lambda p, x: p["norm"](p["conv"](x) if x.shape[0] else x),
    ],
    ids=["read twice", "returned too", "read behind relu", "norm reads two", "norm reads twice", "size decides"],
)
def test_a_norm_that_is_not_the_only_reader_of_its_only_source_is_no_pair(forward):
    assert pairs(Parts(forward, conv=conv(), norm=nn.BatchNorm2d(4))) == {"parts.conv": None}


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.Identity()]
)
def test_only_batch_norms_with_statistics_are_pairs(norm):
    assert pairs(nn.Sequential(conv(), norm)) == {"0": None}


def test_both_modes_are_followed():
    class Modes(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.conv, self.norm, self.function = conv(), nn.BatchNorm2d(4), function

        def forward(self, x):
            return self.function(self, x)

    def reads_more_in_training(self, x):
        y = self.conv(x)
        return self.norm(y) + y if self.training else self.norm(y)

    def norm_reads_other_things_in_training(self, x):
        return self.norm(x) if self.training else self.norm(self.conv(x))

    for mode in (True, False):
        for function in (reads_more_in_training, norm_reads_other_things_in_training):
            assert pairs(Modes(function).train(mode)) == {"conv": None}
        assert pairs(Modes(lambda self, x: self.norm(self.conv(x))).train(mode)) == {"conv": "norm"}


def test_a_norm_that_is_known_under_two_names_stays_where_it_is():
    norm = nn.BatchNorm2d(4)
    parts = {"conv": conv(), "norm": norm, "alias": norm}
    assert pairs(Parts(lambda p, x: p["norm"](p["conv"](x)), **parts)) == {"parts.conv": None}


def test_a_forward_that_was_replaced_on_the_object_is_not_taken_for_that_of_its_class():
    net = nn.Sequential(conv(), nn.BatchNorm2d(4))
    net.forward = lambda x: net[0](net[1](x))
    assert pairs(net) == {"0": None}


def test_optional_arguments_are_followed_at_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def forward(self, x, return_features=False, mask=None, scales=(1.0, 2.0)):
            y = self.norm(self.conv(x))
            return [y] if return_features else y if mask is None else y * mask * scales[0]

    assert pairs(Optional()) == {"conv": "norm"}


class Untraceable(nn.Module):
    """Branches on a value, which torch.fx cannot follow."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.body(x))) if x.sum() > 0 else x


def test_children_of_what_cannot_be_followed_are_followed_alone():
    inner = Parts(lambda p, x: p["norm"](p["conv"](x)), conv=conv(), norm=nn.BatchNorm2d(4))
    found = pairs(Untraceable(nn.Sequential(inner, nn.ReLU())))
    # Its own pair was not seen, and stays unpaired.
    assert found == {"body.0.parts.conv": "body.0.parts.norm", "conv": None}


def test_the_order_of_a_sequential_is_known_without_following():
    # One activation in two places: without it, `norm` would seem to follow the second convolution.
    relu = nn.ReLU()
    body = nn.Sequential(conv(), nn.BatchNorm2d(4), relu, conv(), relu, nn.BatchNorm2d(4), Untraceable(nn.Identity()))
    assert pairs(body) == {"0": "1", "3": None, "6.conv": None}


def test_a_sequential_with_its_own_forward_is_not_taken_by_its_order():
    class Backwards(nn.Sequential):
        def forward(self, x):
            for part in reversed(self):
                x = part(x) if x.sum() > 0 else x
            return x

    assert pairs(Backwards(conv(), nn.BatchNorm2d(4))) == {"0": None}


def test_uses_count_places_calls_and_ties():
    shared = conv()
    called = Parts(lambda p, x: p["conv"](p["conv"](x)), conv=conv())
    tied = nn.Sequential(conv(), conv())
    tied[1].weight = tied[0].weight
    assert [site.uses for site in conv_sites(nn.Sequential(shared, nn.ReLU(), shared))] == [2]
    assert [site.uses for site in conv_sites(called)] == [2]
    assert [site.uses for site in conv_sites(tied)] == [2, 2]
    # One block under two names is one place.
    block = nn.Sequential(conv(), nn.BatchNorm2d(4))
    assert [(site.path, site.uses) for site in conv_sites(nn.ModuleDict({"a": block, "b": block}))] == [("a.0", 1)]


def test_what_is_not_a_plain_convolution_is_left_out():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = torch.nn.utils.spectral_norm(conv())
    parts = (Scaled(4, 4, 3), torch.nn.utils.parametrizations.weight_norm(conv()), hooked, nn.Conv1d(4, 4, 3))
    assert type(hooked) is nn.Conv2d
    assert conv_sites(nn.Sequential(*parts)) == ()
