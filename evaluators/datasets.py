"""Data sets by name or folder: read once, split once by a seed, resized to any input size that a candidate asks for."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from evaluators.cifar_files import read_cifar10
from evaluators.data_splits import split
from evaluators.image_files import DataError, ImageSource, LabelledImages, read_digits, read_fashion_mnist
from evaluators.image_folder import read_image_folder

CACHE_BYTES: Final = 2 * 1024**3
RESIZE_BATCH: Final = 1024

READERS: Final[dict[str, Callable[[Path | None], ImageSource]]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar10,
}
"""By name; what follows a colon in `--data` is the folder."""


@dataclass(frozen=True, eq=False)
class Splits:
    """What a search may see: normalised images (n, c, r, r) float32 and labels (n,) int64.

    Training images are in an order whose every prefix holds the classes in their proportions, so that `train_x[:k]` is
    a fair smaller training set. The tensors are shared by all who ask: do not write to them.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    val_x: torch.Tensor
    val_y: torch.Tensor


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The test split, images (n, c, r, r) float32 normalised as the others, labels (n,) int64."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split for good; made by `open_dataset`.

    `limit` is the number of training images asked for, None if all, and `train_available` how many there were to choose
    from. `mean` and `std` are per channel over the training split that is used, at native resolution, white being 1.0;
    a channel that never changes has std 1. `fingerprint` is the SHA-256 of all pixels, labels and class names as read:
    seed, limit, order and names of files play no part. `duplicates_left_out` counts the images that `open_dataset`
    dropped. `max_resolution` is the side to which larger images were shrunk on reading, above which `at` refuses; None
    means that none was.
    """

    name: str
    seed: int
    limit: int | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_available: int
    duplicates_left_out: int
    fingerprint: str
    max_resolution: int | None
    _train: LabelledImages = field(repr=False)
    _val: LabelledImages = field(repr=False)
    _test: LabelledImages = field(repr=False)
    _cache: dict[int, Splits] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self._train.pixels.shape[1])

    @property
    def native_resolution(self) -> int:
        """The side in pixels of the square images as they are kept."""
        return int(self._train.pixels.shape[-1])

    @property
    def num_train(self) -> int:
        return len(self._train)

    @property
    def num_val(self) -> int:
        return len(self._val)

    @property
    def num_test(self) -> int:
        return len(self._test)

    @property
    def size_bytes(self) -> int:
        """Of all images as they are kept."""
        return sum(each.pixels.nbytes + each.labels.nbytes for each in (self._train, self._val, self._test))

    def to_send(self) -> "Dataset":
        """The same data without the resolutions that were worked out so far, which are larger and soon made again."""
        return replace(self)

    def at(self, resolution: int) -> Splits:
        """Training and validation images of this side in pixels, bilinear with antialiasing, then normalised.

        The resolutions last asked for are kept, as many as fit in 2 GiB and at least one. A new one costs a resize of
        all images: Fashion-MNIST to 64 pixels takes a few seconds and 1 GB.

        Raises:
            DataError: the resolution is not positive, or above `max_resolution`.
        """
        splits = self._cache.pop(resolution, None)
        if splits is None:
            train, val = self._resized(self._train, resolution), self._resized(self._val, resolution)
            splits = Splits(train.x, train.y, val.x, val.y)
        self._cache[resolution] = splits  # the last used comes last
        while len(self._cache) > 1 and sum(map(_kept_bytes, self._cache.values())) > CACHE_BYTES:
            del self._cache[next(iter(self._cache))]
        return splits

    def test(self, resolution: int) -> HeldOut:
        """The test images of this side in pixels; for reporting a finished candidate, never for choosing one.

        Raises:
            DataError: as `at`.
        """
        return self._resized(self._test, resolution)

    def validation_image(self, index: int) -> npt.NDArray[np.uint8]:
        """A validation image as it was read, (channels, side, side) with white 255, by its place in `at`."""
        image: npt.NDArray[np.uint8] = self._val.pixels[index].copy()
        return image

    def _resized(self, images: LabelledImages, resolution: int) -> HeldOut:
        if resolution < 1:
            raise DataError(f"resolution must be at least 1 pixel, got {resolution}")
        if self.max_resolution is not None and resolution > self.max_resolution:
            raise DataError(
                f"{self.name}: its images were shrunk to {self.max_resolution} pixels when read, so {resolution} would "
                f"only blow them up; open it with folder_side={resolution} or more, which takes more memory"
            )
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        x = torch.empty(len(images), self.channels, resolution, resolution)
        for start in range(0, len(images), RESIZE_BATCH):
            # Copied: pixels that came out of shared memory may not be written to, which torch would warn of.
            batch = torch.tensor(images.pixels[start : start + RESIZE_BATCH]).float() / 255
            if resolution != self.native_resolution:
                batch = torch.nn.functional.interpolate(
                    batch, (resolution, resolution), mode="bilinear", antialias=True
                )
            x[start : start + RESIZE_BATCH] = batch.sub_(mean).div_(std)
        return HeldOut(x, torch.tensor(images.labels))


def open_dataset(name_or_path: str, *, seed: int, limit: int | None = None, folder_side: int = 128) -> Dataset:
    """The data set that `--data` names, with its splits fixed by the seed.

    Known are `digits`, `fashion-mnist` (Debian's package), `fashion-mnist:FOLDER` (IDX files), `cifar10:FOLDER` (binary
    or pickled batches) and the path of a folder of class folders of images, with or without train/, val/ and test/
    around them. `limit` is the largest number of training images, None for all; it touches neither validation nor test.
    Images of a folder whose shorter side exceeds `folder_side` pixels are shrunk to it.

    A test split is the source's own where it has one, else one sixth of each class. Validation likewise comes from
    val/, or is one sixth of each class of what is left. Within a class an image's place follows from the hash of its
    pixels and the seed: the order of files plays no part, a smaller `limit` gives a subset of a larger, and no
    library's random numbers are needed.

    Exact copies never lie in two splits. The source's own test split stays as it is; a validation image that is in it,
    and a training image that is in either, is left out. Of equal images in the training portion the first stays, and
    none if their labels disagree. scikit-learn's digits, Fashion-MNIST and the CIFAR-10 subset that this was tried on
    have no exact copies. Images that are merely alike, say one photograph saved twice as JPEG, are not recognized.

        >>> digits = open_dataset("digits", seed=0, limit=500)
        >>> digits.num_train, digits.train_available, digits.num_val, digits.num_test
        (500, 1249, 249, 299)
        >>> digits.at(32).train_x.shape
        torch.Size([500, 1, 32, 32])

    Raises:
        DataError: the name is unknown, a file is missing or damaged, a class has too few images, `limit` is below the
            number of classes, or `folder_side` is not positive.
    """
    if folder_side < 1:
        raise DataError(f"folder_side must be at least 1 pixel, got {folder_side}")
    source = _read(name_or_path, folder_side)
    splits = split(source, seed=seed, name=name_or_path)
    train = splits.train if limit is None else _limited(splits.train, limit, num_classes=len(source.class_names))
    mean, std = _mean_and_std(train.pixels)
    return Dataset(
        name=name_or_path,
        seed=seed,
        limit=limit,
        class_names=source.class_names,
        mean=mean,
        std=std,
        train_available=len(splits.train),
        duplicates_left_out=splits.left_out,
        fingerprint=source.fingerprint(),
        max_resolution=source.shrunk_to,
        _train=train,
        _val=splits.val,
        _test=splits.test,
    )


def _read(name_or_path: str, folder_side: int) -> ImageSource:
    name, colon, folder = name_or_path.partition(":")
    if name in READERS:
        if colon and not folder:
            raise DataError(f"{name_or_path!r}: a folder must follow the colon")
        return READERS[name](Path(folder) if colon else None)
    # An empty text would be the current folder.
    if name_or_path and Path(name_or_path).is_dir():
        return read_image_folder(Path(name_or_path), largest_side=folder_side)
    near = difflib.get_close_matches(name.lower(), READERS, n=1, cutoff=0.5)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise DataError(
        f"no data set or folder is called {name_or_path!r}: known are digits, fashion-mnist, fashion-mnist:FOLDER, "
        f"cifar10:FOLDER and the path of a folder of class folders{suggestion}"
    )


def _limited(train: LabelledImages, limit: int, *, num_classes: int) -> LabelledImages:
    if limit < num_classes:
        raise DataError(f"limit must leave one training image to each of the {num_classes} classes, got {limit}")
    return train.chosen(np.arange(min(limit, len(train))))


def _mean_and_std(pixels: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, from its histogram: exact, and without a float copy of the images."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in torch.from_numpy(pixels).transpose(0, 1):
        histogram = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(histogram @ levels)
        std = math.sqrt(float(histogram @ (levels - mean) ** 2))
        means.append(mean)
        stds.append(std if std > 1e-9 else 1.0)
    return tuple(means), tuple(stds)


def _kept_bytes(splits: Splits) -> int:
    return splits.train_x.nbytes + splits.val_x.nbytes
