"""Who trains, who validates, who tests: fixed by a seed, stratified, without the same image twice."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from evaluators.image_files import DataError, ImageSource, LabelledImages

# One sixth gives Fashion-MNIST 50,000 training and 10,000 validation images.
HELD_OUT_FRACTION: Final = 1 / 6

Places = npt.NDArray[np.int64]
"""Where images stand in their source."""


@dataclass(frozen=True)
class SplitImages:
    """The three splits, and how many images were left out because another split has them, or as copies."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    left_out: int


def split(source: ImageSource, *, seed: int, name: str) -> SplitImages:
    """The source's own test and validation where it has them, else one sixth of each class, cut from the training part.

    Training images, and those of a split cut here, are in an order whose every prefix holds the classes in their
    proportions. `name` is for messages. `open_dataset` says what happens to copies.

    Raises:
        DataError: a class has too few different images, or test holds all of validation.
    """
    training, val, test = source.training, source.validation, source.test
    in_test = set() if test is None else set(test.digests)
    in_val = set() if val is None else set(val.digests)
    kept = _different(training, elsewhere=in_test | in_val)
    left_out = len(training) - len(kept)
    if val is not None:
        fresh = [place for place, digest in enumerate(val.digests) if digest not in in_test]
        if not fresh:
            raise DataError(f"{name}: every image of val is in test as well; add images to val, or remove it")
        left_out += len(val) - len(fresh)
        val = val.chosen(np.array(fresh, np.int64))
    classes = _shuffled_classes(training, kept, num_classes=len(source.class_names), seed=seed)
    needed = 1 + (test is None) + (val is None)
    for class_name, places in zip(source.class_names, classes, strict=True):
        if len(places) < needed:
            raise DataError(
                f"{name}: class {class_name!r} needs at least {needed} different training images that are in no other "
                f"split, got {len(places)}; add some or remove the class"
            )
    if test is None:
        held_out, classes = _cut(classes)
        test = training.chosen(_interleaved(held_out))
    if val is None:
        held_out, classes = _cut(classes)
        val = training.chosen(_interleaved(held_out))
    return SplitImages(training.chosen(_interleaved(classes)), val, test, left_out)


def _different(images: LabelledImages, *, elsewhere: set[bytes]) -> list[int]:
    """The first place of each image; of none that is elsewhere, or whose copies disagree on the label."""
    first: dict[bytes, int] = {}
    excluded = set(elsewhere)
    for place, digest in enumerate(images.digests):
        if images.labels[first.setdefault(digest, place)] != images.labels[place]:
            excluded.add(digest)
    return [place for digest, place in first.items() if digest not in excluded]


def _shuffled_classes(images: LabelledImages, kept: list[int], *, num_classes: int, seed: int) -> list[Places]:
    keys = {place: hashlib.sha256(b"%d:" % seed + images.digests[place]).digest() for place in kept}
    order = np.array(sorted(kept, key=keys.__getitem__), np.int64)
    return [order[images.labels[order] == label] for label in range(num_classes)]


def _cut(classes: list[Places]) -> tuple[list[Places], list[Places]]:
    """One sixth of each class but at least one image, and the rest."""
    counts = [max(1, round(len(places) * HELD_OUT_FRACTION)) for places in classes]
    return (
        [places[:count] for places, count in zip(classes, counts, strict=True)],
        [places[count:] for places, count in zip(classes, counts, strict=True)],
    )


def _interleaved(classes: list[Places]) -> Places:
    """All places in an order whose every prefix has each class within one image of its share."""
    position = np.concatenate([np.arange(len(places)) / len(places) for places in classes])
    return np.concatenate(classes)[np.argsort(position, kind="stable")]
