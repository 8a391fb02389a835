"""Folders of class folders of images, in any size and mix of grey and colour."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from evaluators.image_files import DataError, ImageSource, LabelledImages, require_folder

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow goes by content, not by name, and some of its other formats start programs (EPS runs Ghostscript).
FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LEFTOVERS_OF_FILE_MANAGERS: Final = ("desktop.ini", "Thumbs.db")
SPLIT_FOLDERS: Final = ("train", "val", "test")
DEEP_GREY_MODES: Final = ("I;16", "I;16B", "I;16L")
GREY_MODES: Final = ("1", "L", "LA", *DEEP_GREY_MODES)
COLOUR_MODES: Final = ("CMYK", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")


def read_image_folder(folder: Path, *, largest_side: int) -> ImageSource:
    """The images of FOLDER/CLASS/*.png, or of FOLDER/train, FOLDER/val and FOLDER/test with the classes inside.

    Without val/ or test/ that split is None, to be cut from the rest. Classes are sorted by name. Every image is turned
    as its EXIF data says, laid on black where it is transparent, and cropped about its centre to a square; all are then
    resized to one side: that of the largest square, but at most `largest_side`. One image in colour makes all colour.

    Raises:
        DataError: fewer than two classes, an empty class, a file that is no image or cannot be decoded, split folders
            that have different classes or no train/, or Pillow is missing.
    """
    require_folder(folder)
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError("reading a folder of images needs Pillow: pip install pillow") from error
    files = {split: _class_files(root) for split, root in _split_roots(folder).items()}
    class_names = tuple(files["train"])
    for split, classes in files.items():
        if different := set(class_names) ^ set(classes):
            raise DataError(
                f"{folder / split}: must have the class folders of train/, differs in {_listed(different)}; "
                "add or remove these"
            )
    properties = [_properties(path) for classes in files.values() for paths in classes.values() for path in paths]
    sides, greys = zip(*properties, strict=True)
    side = min(max(sides), largest_side)
    images = {split: _decoded(classes, side=side, channels=1 if all(greys) else 3) for split, classes in files.items()}
    return ImageSource(
        class_names,
        images["train"],
        validation=images.get("val"),
        test=images.get("test"),
        shrunk_to=side if max(sides) > side else None,
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _split_roots(folder: Path) -> dict[str, Path]:
    """Where each split's class folders lie; only "train", the folder itself, where it has no split folders."""
    found = {path.name for path in _visible(folder) if path.is_dir()}
    if not found & set(SPLIT_FOLDERS):
        return {"train": folder}
    if "train" not in found:
        raise DataError(
            f"{folder}: has {_listed(found & set(SPLIT_FOLDERS))} but no train; add it, or rename the class"
        )
    if unknown := found - set(SPLIT_FOLDERS):
        raise DataError(
            f"{folder}: beside train only val and test may stand, got {_listed(unknown)}; move or rename it"
        )
    return {split: folder / split for split in SPLIT_FOLDERS if split in found}


def _class_files(root: Path) -> dict[str, list[Path]]:
    entries = _visible(root)
    if stray := [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]:
        raise DataError(f"{stray[0]}: an image must lie in the folder of its class; move it there")
    classes = {path.name: _image_files(path) for path in entries if path.is_dir()}
    if len(classes) < 2:
        raise DataError(
            f"{root}: must hold one folder of images per class, at least two, got {len(classes)}; "
            "batches of CIFAR-10 are given as cifar10:FOLDER, IDX files as fashion-mnist:FOLDER"
        )
    return classes


def _image_files(class_folder: Path) -> list[Path]:
    paths = [path for path in _visible(class_folder) if path.name not in LEFTOVERS_OF_FILE_MANAGERS]
    if not paths:
        raise DataError(f"{class_folder}: a class folder must hold images, this one is empty; fill or remove it")
    for path in paths:
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise DataError(f"{path}: a class folder holds only images ({' '.join(SUFFIXES)}); convert or move it")
    return paths


@contextmanager
def _opened(path: Path) -> Iterator["Image.Image"]:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    # Our own error is a ValueError too, and must pass as it is.
    except DataError:
        raise
    # SyntaxError is Pillow's for a broken PNG; the others come from damaged headers.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is not an image that can be read ({error}); replace or remove it") from error


def _properties(path: Path) -> tuple[int, bool]:
    """The shorter side in pixels, and whether the image is grey; reads the header only."""
    with _opened(path) as image:
        if image.mode not in GREY_MODES + COLOUR_MODES:
            raise DataError(
                f"{path}: pixels of mode {image.mode} have no agreed white; convert it to 8 bits per channel"
            )
        return min(image.size), image.mode in GREY_MODES


def _decoded(classes: dict[str, list[Path]], *, side: int, channels: int) -> LabelledImages:
    labelled = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    pixels = np.empty((len(labelled), channels, side, side), np.uint8)
    for number, (path, _) in enumerate(labelled):
        with _opened(path) as image:
            square = _square(_flat(image, "L" if channels == 1 else "RGB"), side)
            pixels[number] = np.asarray(square).reshape(side, side, channels).transpose(2, 0, 1)
    return LabelledImages(pixels, np.array([label for _, label in labelled], np.int64))


def _flat(image: "Image.Image", mode: str) -> "Image.Image":
    """The upright image as 8-bit "L" or "RGB", on black where it is transparent."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in DEEP_GREY_MODES:
        # Pillow's own conversion clips at 255 in some versions.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        with_alpha = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", with_alpha.size, (0, 0, 0, 255)), with_alpha)
    return upright.convert(mode)


def _square(image: "Image.Image", side: int) -> "Image.Image":
    from PIL import Image

    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    cropped = image.crop((left, top, left + shorter, top + shorter))
    # Pillow's bilinear filter averages when it shrinks, as torch's does with antialias.
    return cropped.resize((side, side), Image.Resampling.BILINEAR)
