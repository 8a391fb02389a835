"""ParC and PPE in any PyTorch network: one call puts them in, one call makes them plain operations for one size of map.

    trained = with_parc(network, ["layer4.1.conv1", "layer4.1.conv2"], example)
    ...                                  # any training loop
    deployed = merge_at(trained, example)

ParC (position aware circular convolution) makes a convolution see the whole map, half of the channels along the height
and half along the width. PPE (parameterized position encoding) tells a convolution where it is. Where a batch norm
alone reads the result, it moves into the new part, so that on the device it is a part of the kernels.

Both need to know the size of the map that a convolution works on: a dry run with the example tells it.

Source: ParC-Net (seed 002), section 4.5; PPENet (seed 000), section 4.2 and Table 3.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from searchspace.blocks.ppe import position_map
from searchspace.conv_sites import ConvSite, conv_sites
from searchspace.fold import ConstantWeights, ConvWeights, fold_batchnorm, scale_and_shift
from searchspace.layers import BranchedConv, zero_padding
from searchspace.parc_conv import ParcConv, halved
from searchspace.reparam import put_part

Extent = tuple[int, int]  # of a map, height and width


class MovedNorm(nn.Identity):
    """Stands where a batch norm stood that has moved into the part before it; `merge_at` leaves an identity there."""


class CircularRing(nn.Module):
    """Half of a merged ParC: the map behind itself, a convolution without padding, and a constant map."""

    positions: Tensor | None

    def __init__(self, axis: int, length: int, weights: ConvWeights, groups: int) -> None:
        super().__init__()
        self.dim, self.length = axis + 1, length
        out_channels, group_width, *kernel = weights.weight.shape
        # On no device, since its weights need not be drawn.
        self.conv = nn.Conv2d(group_width * groups, out_channels, (kernel[0], kernel[1]), groups=groups, device="meta")
        self.conv.weight, self.conv.bias = nn.Parameter(weights.weight), nn.Parameter(weights.bias)
        self.register_buffer("positions", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] != self.length:
            raise ValueError(
                f"a merged ParC fits maps that are {self.length} long along dimension {self.dim}, got "
                f"{tuple(x.shape)}; merge the trained network again with an example of this size"
            )
        y: Tensor = self.conv(torch.cat([x, x.narrow(self.dim, 0, self.length - 1)], self.dim))
        return y if self.positions is None else y + self.positions


class MergedParc(nn.Module):
    """What a trained `PluggedParc` becomes for one size of map: slices, concats, convolutions and constants."""

    def __init__(self, along_height: CircularRing, along_width: CircularRing) -> None:
        super().__init__()
        self.along_height, self.along_width = along_height, along_width

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.chunk(2, 1)
        return torch.cat([self.along_height(upper), self.along_width(lower)], 1)


class MergedPpe(nn.Module):
    """What a trained `PluggedPpe` becomes for one size of map: a convolution and a constant map."""

    def __init__(self, conv: nn.Conv2d, positions: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.get_buffer("positions")


class PluggedParc(nn.Module):
    """ParC where a convolution was, and the batch norm that stood behind it, if one did.

    `norm_place` takes the norm's place in the network; it is a part of both, which is how `merge_at` finds it again.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, extent: Extent, position_embedding: bool) -> None:
        super().__init__()
        in_shape = (conv.in_channels, *extent)
        # Drawn and then set, so no number of torch's generator may be used up.
        with torch.random.fork_rng(devices=[]):
            ring = ParcConv(in_shape, conv.out_channels, groups=conv.groups, position_embedding=position_embedding)
        self.ring = ring.to(conv.weight.device, conv.weight.dtype).train(conv.training)
        self.norm = norm
        self.norm_place = None if norm is None else MovedNorm().train(norm.training)
        with torch.no_grad():
            _project(conv, self.ring)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ring(x)
        return y if self.norm is None else self.norm(y)

    def fresh_parameters(self) -> Iterator[nn.Parameter]:
        """What was not in the network before."""
        return self.ring.parameters()

    def merged(self, extent: Extent) -> nn.Module:
        """The plain operations that compute the same in eval mode, on maps of `extent`."""
        nodes = self.ring.folded(extent, self.norm)
        rings = []
        for name, half, length in zip(
            ("along_height", "along_width"), (self.ring.along_height, self.ring.along_width), extent, strict=True
        ):
            weights, added = nodes[name], nodes.get(f"{name}_positions")
            assert isinstance(weights, ConvWeights)
            ring = CircularRing(half.axis, length, weights, half.groups)
            if isinstance(added, ConstantWeights):
                ring.positions = added.constant
            rings.append(ring)
        return MergedParc(*rings)


class PluggedPpe(nn.Module):
    """A convolution with PPE, and the batch norm that stood behind it, if one did; `norm_place` as in `PluggedParc`.

    The convolution reads the map with positions added. Beside it one with a refocused kernel, W + R * W, reads the map
    itself, where R has a 3x3 kernel for each slice of W (RefConv's form for convolutions that are not depthwise). Both
    are linear, so training runs one convolution over the map and one over the positions.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        weight = conv.weight.detach()
        # No convolution as a part: nothing may be put in its place, since it is never called.
        self.weight, self.bias, self.norm = conv.weight, conv.bias, norm
        self.padding, self.sides = conv.padding, zero_padding(conv)
        self.dilation, self.groups = conv.dilation, conv.groups
        self.norm_place = None if norm is None else MovedNorm().train(norm.training)
        self.scale = nn.Parameter(weight.new_zeros(conv.in_channels))
        self.refocused = nn.Parameter(torch.zeros_like(weight))
        self.refocus = nn.Parameter(weight.new_zeros(weight.shape[0] * weight.shape[1], 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x, self.weight + self._refocused_kernel(), self.bias)
        y = y + self._convolved(position_map(self.scale, x.shape[-2], x.shape[-1])[None], self.weight, None)
        return y if self.norm is None else self.norm(y)

    def _refocused_kernel(self) -> Tensor:
        bank = self.refocused.flatten(0, 1)[None]
        change = functional.conv2d(bank, self.refocus, padding=1, groups=len(self.refocus))
        return self.refocused + change[0].reshape(self.refocused.shape)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded = functional.pad(x, self.sides)
        return functional.conv2d(padded, weight, bias, dilation=self.dilation, groups=self.groups)

    def fresh_parameters(self) -> Iterator[nn.Parameter]:
        """What was not in the network before."""
        return iter((self.scale, self.refocused, self.refocus))

    def merged(self, extent: Extent) -> nn.Module:
        """The convolution and the constant map that compute the same in eval mode, on maps of `extent`."""
        kernel = self.weight.detach()
        positions = self._convolved(position_map(self.scale.detach(), *extent)[None], kernel, None)[0]
        bias = kernel.new_zeros(len(kernel)) if self.bias is None else self.bias.detach()
        weights = ConvWeights(kernel + self._refocused_kernel().detach(), bias)
        if self.norm is not None:
            scale, _ = scale_and_shift(self.norm)
            weights, positions = fold_batchnorm(weights, self.norm), positions * scale[:, None, None]
        conv = nn.Conv2d(
            kernel.shape[1] * self.groups,
            len(kernel),
            kernel.shape[2:],  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.groups,
            device="meta",
        )
        conv.weight, conv.bias = nn.Parameter(weights.weight), nn.Parameter(weights.bias)
        return MergedPpe(conv, positions)


def with_parc(
    module: nn.Module, paths: Collection[str], example: Tensor, *, position_embedding: bool = True
) -> nn.Module:
    """A copy of a network with ParC in the place of the convolutions at `paths`.

    The copy computes something else: these convolutions become global. Kept are every other part, the bias, the batch
    norm behind the convolution with its statistics, and of the convolution what ParC can hold: the half of the channels
    that goes along the height starts with the kernel summed over its columns, the other half with the kernel summed
    over its rows, and embeddings start at zero. So a depthwise convolution computes at first what it did on maps that
    are constant across its axis, but for the border. Groups are kept, two halves of them; a dense convolution becomes
    dense within each half of the channels, and loses what went from one half to the other. Kernels and embeddings are
    as long as the map of the example, and resampled where others come. Each part is in the mode (training or not) of
    its convolution, and frozen where that is.

    Raises:
        ValueError: a path leads to no convolution that can be replaced, or there is none; the message says why.
    """
    return _with_parts(
        module,
        paths,
        example,
        lambda conv, norm, extent: PluggedParc(conv, norm, extent, position_embedding),
        _parc_reason,
    )


def with_ppe(module: nn.Module, paths: Collection[str], example: Tensor) -> nn.Module:
    """A copy of a network with PPE in the place of the convolutions at `paths`, which computes the same at first.

    All weights are kept: positions have scale zero at first, and so has the refocused kernel; both learn from the first
    step on, the change of the kernel from the second. Groups are kept, also where PPENet's own are depthwise, and what
    follows the convolution is the network's, where PPENet has ReLU.

    Raises:
        ValueError: a path leads to no convolution that can be replaced, or there is none; the message says why.
    """
    return _with_parts(module, paths, example, lambda conv, norm, extent: PluggedPpe(conv, norm), _ppe_reason)


def replaceable(module: nn.Module, example: Tensor) -> dict[str, Extent]:
    """The paths that `with_parc` takes, and the height and width of the map there, in the order of the parts."""
    seen = _seen(module, example)
    return {
        site.path: next(iter(seen[site.path]))[0]
        for site in conv_sites(module)
        if _parc_reason(site, module, seen) is None
    }


def merge_at(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy with each ParC and PPE as plain operations, for images of the example's size alone.

    The norms that moved into them are part of the kernels, and where they stood is an identity. The example goes
    through the network once to find the sizes of the maps; any values will do.

    Raises:
        ValueError: there is neither, one is not reached by the example or at several sizes, or the norm of one stood
            outside of this module.
    """
    seen = _seen(module, example)
    result = copy.deepcopy(module)
    parts = {path: part for path, part in result.named_modules() if isinstance(part, PluggedParc | PluggedPpe)}
    if not parts:
        raise ValueError("nothing to merge: the module has neither ParC nor PPE; with_parc and with_ppe put them in")
    for path, part in parts.items():
        if len(seen[path]) != 1:
            raise ValueError(f"{path!r} must see one size of map to be merged, got {_sizes(seen[path])}")
        ((extent, _),) = seen[path]
        result = put_part(result, path, part.merged(extent))
    own = {part.norm_place for part in parts.values() if part.norm_place is not None}
    places = {part: path for path, part in result.named_modules() if isinstance(part, MovedNorm)}
    if places.keys() != own:
        raise ValueError("a ParC or PPE and the place of its norm must be merged together; merge the module with both")
    for place_path in places.values():
        result = put_part(result, place_path, nn.Identity())
    return result


def _with_parts(
    module: nn.Module,
    paths: Collection[str],
    example: Tensor,
    make: Callable[[nn.Conv2d, nn.BatchNorm2d | None, Extent], "PluggedParc | PluggedPpe"],
    reason: "Reason",
) -> nn.Module:
    if not paths:
        raise ValueError(
            "at least one convolution must be replaced, got no paths; `replaceable` lists those that can be"
        )
    seen, result = _seen(module, example), copy.deepcopy(module)
    sites = {site.path: site for site in conv_sites(result)}
    for path in paths:
        if path not in sites:
            known = [site.path for site in sites.values() if reason(site, result, seen) is None]
            raise ValueError(f"{path!r} is no plain convolution; can be replaced: {', '.join(known) or 'none'}")
        if why := reason(sites[path], result, seen):
            raise ValueError(f"convolution {path!r} cannot be replaced: {why}")
    for path in paths:
        site = sites[path]
        norm = None if site.norm_path is None else result.get_submodule(site.norm_path)
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        ((extent, _),) = seen[path]
        part = make(site.conv, norm, extent)
        part.training = site.conv.training
        for parameter in part.fresh_parameters():
            parameter.requires_grad_(site.conv.weight.requires_grad)
        result = put_part(result, path, part)
        if site.norm_path is not None and part.norm_place is not None:
            result = put_part(result, site.norm_path, part.norm_place)
    return result


# Sizes of the map before and behind each part that a network ran, by path.
Seen: TypeAlias = Mapping[str, set[tuple[Extent, Extent]]]
Reason: TypeAlias = Callable[[ConvSite, nn.Module, Seen], str | None]


def _seen(module: nn.Module, example: Tensor) -> Seen:
    probe = copy.deepcopy(module).eval()
    seen: defaultdict[str, set[tuple[Extent, Extent]]] = defaultdict(set)

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if inputs:
                seen[path].add((_extent(inputs[0]), _extent(output)))

        return note

    for path, part in probe.named_modules():
        if isinstance(part, nn.Conv2d | PluggedParc | PluggedPpe):
            part.register_forward_hook(watch(path))
    with torch.no_grad():
        probe(example)
    return seen


def _extent(x: Tensor) -> Extent:
    return x.shape[-2], x.shape[-1]


def _sizes(seen: Collection[tuple[Extent, Extent]]) -> str:
    return ", ".join(sorted(f"{height}x{width}" for (height, width), _ in seen)) or "none"


def _reason(site: ConvSite, module: nn.Module, seen: Seen) -> str | None:
    """Why a convolution can become neither ParC nor PPE; None where it can."""
    conv, sizes = site.conv, seen.get(site.path, set())
    owners = [module.get_submodule(site.path[:end]) for end, letter in enumerate(site.path) if letter == "."]
    if any(isinstance(owner, BranchedConv | PluggedParc | PluggedPpe) for owner in (module, *owners)):
        return "it is a part of one that is re-parameterized already"
    if tuple(conv.stride) != (1, 1):
        return f"its stride must be 1, got {conv.stride}"
    if tuple(conv.kernel_size) == (1, 1):
        return "a 1x1 convolution looks at one position and has none to mix"
    if site.uses > 1:
        return f"it or its weight is used {site.uses} times, each perhaps on a map of its own"
    if len(sizes) != 1:
        return f"the example must show it one size of map, got {_sizes(sizes)}"
    ((before, behind),) = sizes
    if before != behind:
        return f"it must keep the size of its map, got {before} -> {behind}; pad it to keep it"
    return None


def _parc_reason(site: ConvSite, module: nn.Module, seen: Seen) -> str | None:
    why = _reason(site, module, seen)
    if why is None:
        try:
            halved(site.conv.in_channels, site.conv.groups)
            halved(site.conv.out_channels, site.conv.groups)
        except ValueError as error:
            return str(error)
    return why


def _ppe_reason(site: ConvSite, module: nn.Module, seen: Seen) -> str | None:
    if site.conv.padding_mode != "zeros":
        return f"PPE pads with zeros, got {site.conv.padding_mode!r}"
    return _reason(site, module, seen)


def _project(conv: nn.Conv2d, ring: ParcConv) -> None:
    """Sets each half to what it can hold of a convolution; changes the ring."""
    left, _, top, _ = zero_padding(conv)
    upper, lower = conv.weight.chunk(2)
    if conv.groups == 1:
        upper, lower = upper.chunk(2, 1)[0], lower.chunk(2, 1)[1]
    biases = (None, None) if conv.bias is None else conv.bias.chunk(2)
    for half, kernel, dilation, padding, bias in (
        (ring.along_height, upper.sum(3), conv.dilation[0], top, biases[0]),
        (ring.along_width, lower.sum(2), conv.dilation[1], left, biases[1]),
    ):
        # Tap t reads t * dilation - padding positions further on, here round the end.
        taps = torch.arange(kernel.shape[2], device=kernel.device) * dilation - padding
        half.weight.zero_().index_add_(2, taps % half.weight.shape[2], kernel)
        if bias is not None:
            half.bias.copy_(bias)
        if half.embedding is not None:
            half.embedding.zero_()
