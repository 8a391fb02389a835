"""PBConv (Position Boost Convolution) in any PyTorch network: one call puts it in, one call merges it away.

    trained = with_pbconv(network, {3: layout})   # the same function, more to learn
    ...                                           # any training loop
    network = merge(trained)                      # the structure and the cost of the original

A convolution becomes a `PBConv`: itself and parallel small convolutions over parts of its kernel. Where a batch norm
alone reads its result, the norm moves into the PBConv and each small convolution has its own; elsewhere (no norm, a
group norm, a norm that could not be matched by `conv_sites`) the small convolutions are added before whatever follows.

Source: PBConv (seed 001), section 4.2.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from searchspace.conv_sites import ConvSite, conv_sites
from searchspace.coverage import Layout
from searchspace.layers import BranchedConv, ConvBranch

# One layout per kernel size, or a function from a convolution's path and the convolution to its layout, None for none.
Layouts: TypeAlias = Mapping[int, Layout] | Callable[[str, nn.Conv2d], Layout | None]


class NormPlace(nn.Identity):
    """Stands where a batch norm stood that has moved into the `PBConv` before it."""


class PBConv(nn.Module):
    """A convolution with parallel small ones, and with the batch norm that stood behind it, if one did.

    `norm_place` takes the norm's place in the network; it is a part of both, which is how `merge` finds it again
    wherever the network may have been moved to.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, layout: Layout) -> None:
        super().__init__()
        self.branched = BranchedConv(conv, rectangles=layout.rectangles, norm=norm if norm is not None else False)
        self.norm_place = None if norm is None else NormPlace().train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branched(x)
        return y

    def merged(self) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
        """The plain convolution that computes the same in eval mode, and the norm to stand behind it, if one did.

        All of the function is in the convolution's weight, and in its bias or, behind a norm, in the norm's mean. The
        norm has scale 1, so that weights of either sign and size, zero included, need no division.
        """
        weight, bias = self.branched.folded()
        conv, norm = copy.deepcopy(self.branched.conv), copy.deepcopy(self.branched.norm)
        with torch.no_grad():
            conv.weight.copy_(weight)
            if conv.bias is not None:
                conv.bias.copy_(bias if norm is None else torch.zeros_like(bias))
            if norm is not None:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(-bias)
                norm.running_var.fill_(1 - norm.eps)
                if norm.affine:
                    norm.weight.fill_(1)
                    norm.bias.zero_()
        return conv, norm


def add_nothing(branch: ConvBranch) -> None:
    """Makes a branch start at exactly zero and still learn from the first step on; changes the branch.

    Behind a convolution stands a norm: its scale starts at zero. The scale learns at once, the convolution from the
    second step on, when the scale is no longer zero (the start of residual blocks in Goyal et al., "Accurate, Large
    Minibatch SGD", section 5.1). A convolution of zeros would be worse, as its norm would divide by the root of epsilon
    and throw the first gradients up a few hundred times. Without a norm the convolution itself starts at zero, and
    learns at once.
    """
    if branch.norm is not None:
        nn.init.zeros_(branch.norm.weight)
        return
    nn.init.zeros_(branch.conv.weight)
    if branch.conv.bias is not None:
        nn.init.zeros_(branch.conv.bias)


def keep_drawn(branch: ConvBranch) -> None:
    """Leaves a branch as torch draws it, the start of a training from scratch as in the paper."""


def with_pbconv(
    module: nn.Module, layouts: Layouts, *, start: Callable[[ConvBranch], None] = add_nothing, seed: int = 0
) -> nn.Module:
    """A copy of a network with PBConv on each K x K convolution (K >= 2) that `layouts` has a layout for.

    With `add_nothing` the copy computes what the network computes; with `keep_drawn` the branches take part from the
    start. The branches follow from `seed` alone. Each is in the mode (training or not) of its convolution, and frozen
    where that is. Convolutions of every stride, dilation, grouping and zero padding will do; rectangular kernels are
    left alone. Layouts for a mapping's other sizes do no harm.

    Raises:
        ValueError: the network is re-parameterized already; no convolution gets a layout; a layout has another size
            than its kernel; or a convolution that gets one is used more than once or pads with other than zeros.
    """
    _refuse_branches(module)
    layout_of = _by_size(layouts) if isinstance(layouts, Mapping) else layouts
    result = copy.deepcopy(module)
    carriers = [site for site in conv_sites(result) if _kernel(site.conv) is not None]
    chosen = {site: layout for site in carriers if (layout := layout_of(site.path, site.conv)) is not None}
    if not chosen:
        sizes = sorted({f"{size}x{size}" for site in carriers if (size := _kernel(site.conv))})
        raise ValueError(
            f"at least one convolution must get a layout; square kernels here: {', '.join(sizes) or 'none'}"
        )
    for site, layout in chosen.items():
        _check(site, layout)
    devices = sorted({site.conv.weight.get_device() for site in chosen if site.conv.weight.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for site, layout in chosen.items():
            norm = None if site.norm_path is None else result.get_submodule(site.norm_path)
            assert norm is None or isinstance(norm, nn.BatchNorm2d)
            placed = PBConv(site.conv, norm, layout)
            _start(placed, start)
            result = put_part(result, site.path, placed)
            if site.norm_path is not None and placed.norm_place is not None:
                result = put_part(result, site.norm_path, placed.norm_place)
    return result


def merge(module: nn.Module) -> nn.Module:
    """A copy of a network with each PBConv as the one convolution that computes the same in eval mode.

    It has the original's parts, names, shapes and cost, so its state fits the original. It is made to be used, not to
    be trained on: each norm behind a merged convolution is the identity but for its mean, and in train mode would
    normalise anew.

    Raises:
        ValueError: there is no PBConv, or the norm of one stood outside of this module.
    """
    result = copy.deepcopy(module)
    norms: dict[nn.Module, nn.BatchNorm2d] = {}
    placed = [(path, part) for path, part in result.named_modules() if isinstance(part, PBConv)]
    if not placed:
        raise ValueError("nothing to merge: the module has no PBConv; with_pbconv puts them in")
    for path, part in placed:
        conv, norm = part.merged()
        result = put_part(result, path, conv)
        if part.norm_place is not None and norm is not None:
            norms[part.norm_place] = norm
    places = {part: path for path, part in result.named_modules() if isinstance(part, NormPlace)}
    if norms.keys() != places.keys():
        raise ValueError("a PBConv and the place of its norm must be merged together; merge the module that has both")
    for place, path in places.items():
        result = put_part(result, path, norms[place])
    return result


def merged_kernels(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Path and folded weight (out, in / groups, k, k) of each PBConv: layouts are chosen by their dispersion."""
    for path, part in module.named_modules():
        if isinstance(part, PBConv):
            yield path, part.branched.folded().weight


def _refuse_branches(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if isinstance(part, PBConv):
            raise ValueError(f"the module is re-parameterized already, at {path!r}; merge it first")
        if isinstance(part, BranchedConv):
            raise ValueError(f"the module has parallel branches of its own, at {path!r}; set the layouts in its spec")


def _by_size(layouts: Mapping[int, Layout]) -> Callable[[str, nn.Conv2d], Layout | None]:
    for size, layout in layouts.items():
        if layout.kernel != size:
            raise ValueError(
                f"layouts are given by kernel size, got one for {size} that is for {layout.kernel}: {layout}"
            )
    return lambda path, conv: layouts.get(_kernel(conv) or 0)


def is_carrier(site: ConvSite) -> bool:
    """Whether a convolution can carry a layout."""
    return _kernel(site.conv) is not None and site.uses == 1 and site.conv.padding_mode == "zeros"


def _kernel(conv: nn.Conv2d) -> int | None:
    """The size of a square kernel that has parts; None for others."""
    height, width = conv.kernel_size
    return height if height == width > 1 else None


def _check(site: ConvSite, layout: Layout) -> None:
    size = _kernel(site.conv)
    if layout.kernel != size:
        raise ValueError(f"convolution {site.path!r} is {size}x{size}, got a layout for another size: {layout}")
    if site.uses > 1:
        raise ValueError(
            f"convolution {site.path!r} or its weight is used {site.uses} times, and would be no more after merging; "
            "leave it out, with layouts given as a function that returns None for it"
        )
    if site.conv.padding_mode != "zeros":
        raise ValueError(
            f"convolution {site.path!r} must pad with zeros, since small kernels crop and pad anew, got "
            f"{site.conv.padding_mode!r}; leave it out, with layouts given as a function that returns None for it"
        )


def _start(placed: PBConv, start: Callable[[ConvBranch], None]) -> None:
    conv = placed.branched.conv
    # Not placed.train(): the mode of the convolution and of its norm, which may be frozen in a network that trains.
    placed.training = placed.branched.training = conv.training
    placed.branched.branches.train(conv.training).requires_grad_(conv.weight.requires_grad)
    for branch in placed.branched.branches:
        assert isinstance(branch, ConvBranch)
        start(branch)


def put_part(root: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """The root with the part at `path` replaced, in place; the part itself where it is the root that is replaced."""
    if not path:
        return part
    root.set_submodule(path, part)
    return root
