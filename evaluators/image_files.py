"""What a source of labelled images offers, and the two simplest: scikit-learn's digits and IDX files."""

import gzip
import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

DEBIAN_FASHION_MNIST: Final = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class DataError(ValueError):
    """A data set that cannot be used; the text names the file, the rule it breaks and what to do."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Square images, pixels (n, c, side, side) with c 1 (grey) or 3 (RGB) and white 255, labels (n,)."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digests(self) -> list[bytes]:
        """The SHA-256 of each image's pixels, by which equal images are found."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.pixels]

    def chosen(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """A copy of the images at these places, in this order."""
        return LabelledImages(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class ImageSource:
    """Everything that one source holds, before our own splitting.

    `validation` and `test` are None where the source does not set them apart. `shrunk_to` is the side in pixels to
    which larger images were reduced on reading, None if none was.
    """

    class_names: tuple[str, ...]
    training: LabelledImages
    validation: LabelledImages | None = None
    test: LabelledImages | None = None
    shrunk_to: int | None = None

    def fingerprint(self) -> str:
        """The SHA-256 of class names, pixels and labels of each part, whatever the order and names of files."""
        whole = hashlib.sha256(json.dumps(self.class_names).encode())
        for name, part in (("training", self.training), ("validation", self.validation), ("test", self.test)):
            if part is None:
                continue
            # With the sizes in front, no two sources can run together to the same bytes.
            whole.update(json.dumps([name, part.pixels.shape]).encode())
            for label, digest in sorted(zip(part.labels.tolist(), part.digests, strict=True)):
                whole.update(label.to_bytes(4, "little") + digest)
        return whole.hexdigest()


def read_digits(folder: Path | None) -> ImageSource:
    """The 1,797 grey 8x8 digits that scikit-learn carries, their 17 levels stretched to 0..255.

    Raises:
        DataError: a folder is given, or scikit-learn is not installed.
    """
    if folder is not None:
        raise DataError(f"digits come with scikit-learn and take no folder, got {str(folder)!r}; write digits alone")
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise DataError("digits come with scikit-learn, which is missing: pip install scikit-learn") from error
    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSource(tuple(str(digit) for digit in range(10)), LabelledImages(pixels, digits.target.astype(np.int64)))


def read_fashion_mnist(folder: Path | None) -> ImageSource:
    """Fashion-MNIST from its four IDX files, gzipped or not; None means where Debian's package puts them.

    Source: https://github.com/zalandoresearch/fashion-mnist, and the end of http://yann.lecun.com/exdb/mnist for IDX.

    Raises:
        DataError: a file is missing, cut short, not IDX, or labels and images do not go together.
    """
    if folder is None:
        folder = DEBIAN_FASHION_MNIST
        if not folder.is_dir():
            raise DataError(
                f"{folder}: fashion-mnist is read from Debian's package, which is not installed: "
                "apt-get install dataset-fashion-mnist, or give a folder with its IDX files as fashion-mnist:FOLDER"
            )
    require_folder(folder)
    training = _read_idx_pair(folder, "train")
    test = _read_idx_pair(folder, "t10k")
    if training.pixels.shape[1:] != test.pixels.shape[1:]:
        sides = f"{training.pixels.shape[-1]} and {test.pixels.shape[-1]}"
        raise DataError(
            f"{folder}: train and t10k images must have one size, got sides of {sides}; fetch all four again"
        )
    return ImageSource(FASHION_MNIST_CLASSES, training, test=test)


def require_folder(folder: Path) -> None:
    """Checks that the folder is there.

    Raises:
        DataError: it is not.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the folder that holds the files")


def checked(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], num_classes: int, path: Path
) -> LabelledImages:
    """The images with their labels, which came from this file.

    Raises:
        DataError: there are none, their numbers differ, or a label is not that of a class.
    """
    if len(labels) == 0:
        raise DataError(f"{path}: holds no image; fetch it again")
    if len(labels) != len(pixels):
        raise DataError(f"{path}: every image needs one label, got {len(labels)} labels for {len(pixels)} images")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise DataError(
            f"{path}: labels must be 0..{num_classes - 1}, got {outside[0]}; "
            "the file is damaged or belongs to another data set"
        )
    return LabelledImages(pixels, labels)


def _read_idx_pair(folder: Path, portion: str) -> LabelledImages:
    images_path, labels_path = (_idx_path(folder, f"{portion}-{name}") for name in ("images-idx3", "labels-idx1"))
    images = _read_idx(images_path, dimensions=3)
    _, rows, columns = images.shape
    if rows != columns or rows == 0:
        raise DataError(f"{images_path}: images must be square, got {rows}x{columns}; crop or pad them")
    labels = _read_idx(labels_path, dimensions=1).astype(np.int64)
    return checked(images[:, None], labels, len(FASHION_MNIST_CLASSES), labels_path)


def _idx_path(folder: Path, stem: str) -> Path:
    plain, zipped = folder / f"{stem}-ubyte", folder / f"{stem}-ubyte.gz"
    if plain.is_file():
        return plain
    if zipped.is_file():
        return zipped
    raise DataError(f"{folder}: needs the file {plain.name} or {zipped.name}; found neither")


def _read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    content = _unzipped(path) if path.suffix == ".gz" else file_content(path)
    header_bytes = 4 + 4 * dimensions
    if len(content) < header_bytes:
        raise DataError(f"{path}: an IDX header has {header_bytes} bytes, got {len(content)}; fetch the file again")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:header_bytes])
    expected_magic = 0x0800 | dimensions  # 0x08: unsigned bytes
    if magic != expected_magic:
        raise DataError(
            f"{path}: must start with the magic number 0x{expected_magic:08x} (IDX, bytes, {dimensions} axes), "
            f"got 0x{magic:08x}; it is another kind of file, or gzipped without .gz in its name"
        )
    expected_bytes = math.prod(shape)
    if len(content) - header_bytes != expected_bytes:
        raise DataError(
            f"{path}: its header announces {expected_bytes} bytes, got {len(content) - header_bytes}; "
            "fetch the file again"
        )
    # A copy, because what lies on `bytes` is read-only and torch warns of it.
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape).copy()


def file_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _unzipped(path: Path) -> bytes:
    try:
        return gzip.decompress(file_content(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is not a whole gzip file ({error}); fetch it again") from error
