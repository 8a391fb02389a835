"""Training images changed so that a network does not learn them by heart: moved, mirrored, mixed."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluators.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Batch:
    """Images (n, c, h, w), each of which is `share` of the class `first` (n,) and the rest of `second` (n,)."""

    images: Tensor
    first: Tensor
    second: Tensor
    share: float

    def on(self, device: torch.device) -> "Batch":
        """The same batch where the network is."""
        return Batch(self.images.to(device), self.first.to(device), self.second.to(device), self.share)

    def loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Mean cross-entropy with the mixed labels."""
        loss = nn.functional.cross_entropy(logits, self.first, label_smoothing=label_smoothing)
        if self.share == 1:
            return loss
        other = nn.functional.cross_entropy(logits, self.second, label_smoothing=label_smoothing)
        return self.share * loss + (1 - self.share) * other


def augmented(images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Batch:
    """A batch as the recipe changes it; the images given are left as they are."""
    images = shifted(images, round(recipe.shift * images.shape[-1]), generator)
    if recipe.flip:
        images = flipped(images, generator)
    ways = [way for way, parameter in ((mixed, recipe.mixup), (cut_and_mixed, recipe.cutmix)) if parameter > 0]
    if not ways or len(images) < 2:
        return Batch(images, labels, labels, 1.0)
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    way = rng.choice(ways)
    parameter = recipe.mixup if way is mixed else recipe.cutmix
    partners = torch.randperm(len(images), generator=generator)
    return way(images, labels, partners, rng.betavariate(parameter, parameter), rng)


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) moved by its own random offset of up to `reach` pixels along both axes."""
    if reach == 0:
        return images
    count, channels, height, width = images.shape
    padded = nn.functional.pad(images, (reach, reach, reach, reach))
    top, left = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    cells = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    # Gathered into a fresh tensor on purpose: indexing would leave grey images with the strides of channels-last, at
    # which oneDNN's backward of a strided 1x1 convolution writes past its memory (torch 2.13, CPU).
    return padded.flatten(2).gather(2, cells.reshape(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def mixed(images: Tensor, labels: Tensor, partners: Tensor, share: float, rng: random.Random) -> Batch:
    """Each image is `share` of itself and the rest of its partner.

    Source: mixup, Zhang et al., 2018.
    """
    return Batch(torch.lerp(images[partners], images, share), labels, labels[partners], share)


def cut_and_mixed(images: Tensor, labels: Tensor, partners: Tensor, share: float, rng: random.Random) -> Batch:
    """Each image with a rectangle of its partner in it, the same place for all, about 1 - `share` of the area.

    The rectangle's centre is anywhere in the image and what stands out is cut off; labels are shared by the area that
    is left.
    Source: CutMix, Yun et al., 2019.
    """
    height, width = images.shape[2:]
    side = (1 - share) ** 0.5
    row, column = rng.randrange(height), rng.randrange(width)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    result = images.clone()
    result[:, :, top:bottom, left:right] = images[partners][:, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return Batch(result, labels, labels[partners], kept)
