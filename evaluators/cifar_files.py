"""CIFAR-10 from its batches, binary or pickled, without running what a pickle may carry."""

import math
import pickle
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from evaluators.image_files import DataError, ImageSource, LabelledImages, checked, file_content, require_folder

CIFAR10_CLASSES: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_SHAPE: Final = (3, 32, 32)
CIFAR10_TRAINING: Final = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_TEST: Final = "test_batch"


def read_cifar10(folder: Path | None) -> ImageSource:
    """CIFAR-10 from its five training batches and the test batch, binary (`*.bin`) or pickled.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout".

    Raises:
        DataError: a batch is missing, cut short, or a pickle holds anything but numbers, text and a uint8 array.
    """
    if folder is None:
        raise DataError("cifar10 needs the folder of its batches: write cifar10:FOLDER")
    require_folder(folder)
    names = (*CIFAR10_TRAINING, CIFAR10_TEST)
    is_binary = any((folder / f"{name}.bin").is_file() for name in names)
    paths = [folder / (f"{name}.bin" if is_binary else name) for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: CIFAR-10 is data_batch_1 to 5 and test_batch, all six as .bin or all six pickled; "
            f"missing {', '.join(missing)}: unpack the archive again"
        )
    read_batch = _read_cifar_binary if is_binary else _read_cifar_pickle
    *batches, test = [read_batch(path) for path in paths]
    training = LabelledImages(
        np.concatenate([batch.pixels for batch in batches]), np.concatenate([batch.labels for batch in batches])
    )
    return ImageSource(CIFAR10_CLASSES, training, test=test)


def _read_cifar_binary(path: Path) -> LabelledImages:
    record_bytes = 1 + math.prod(CIFAR10_SHAPE)
    content = file_content(path)
    if len(content) % record_bytes:
        raise DataError(
            f"{path}: must be whole records of {record_bytes} bytes (label, then 3x32x32 pixels), "
            f"got {len(content)} bytes, which leaves {len(content) % record_bytes}; fetch the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record_bytes)
    pixels = records[:, 1:].reshape(-1, *CIFAR10_SHAPE).copy()
    return checked(pixels, records[:, 0].astype(np.int64), len(CIFAR10_CLASSES), path)


class _PickledDtype:
    """Stands for numpy.dtype in a pickle: keeps the type's text."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, without meaning for bytes."""


class _PickledArray:
    """Stands for numpy.ndarray and its constructor: keeps the state (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists and dicts, and a numpy array as a `_PickledArray`; refuses any other name.

    The pickle reaches nothing but the two stand-ins, not even numpy, so there is nothing in it that could run.
    """

    _STAND_INS: Final = {
        ("numpy", "dtype"): _PickledDtype,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # as numpy 2 writes it
    }

    def find_class(self, module_name: str, global_name: str) -> type:
        stand_in = self._STAND_INS.get((module_name, global_name))
        if stand_in is None:
            asked_for = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it asks for {asked_for!r}, which no batch of CIFAR-10 needs")
        return stand_in


def _read_cifar_pickle(path: Path) -> LabelledImages:
    try:
        with path.open("rb") as file:
            batch: object = _InertUnpickler(file, encoding="bytes").load()
    # A damaged pickle raises nearly anything: EOFError, KeyError, UnicodeError, MemoryError, TypeError ...
    except Exception as error:
        raise DataError(
            f"{path}: refused, a batch must be a plain pickle of numbers and one uint8 array ({error}); "
            "fetch it from its first source, or use the binary version"
        ) from error
    found = batch if isinstance(batch, dict) else {}
    pixels, labels = _pickled_pixels(found.get(b"data"), path), found.get(b"labels")
    # The range is checked here because a pickled number may be too large for any array.
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{path}: b'labels' must be a list of numbers 0..{len(CIFAR10_CLASSES) - 1}; fetch it again")
    return checked(pixels, np.array(labels, np.int64), len(CIFAR10_CLASSES), path)


def _pickled_pixels(array: object, path: Path) -> npt.NDArray[np.uint8]:
    match array:
        case _PickledArray(
            state=(
                _,
                (int(), int()) as shape,
                _PickledDtype(code=b"u1" | "u1"),
                bool() as is_fortran,
                bytes() as content,
            )
        ) if shape[1] == math.prod(CIFAR10_SHAPE) and len(content) == math.prod(shape):
            rows = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")
            return rows.reshape(-1, *CIFAR10_SHAPE).copy()
    raise DataError(
        f"{path}: b'data' must be a whole uint8 array of n rows of {math.prod(CIFAR10_SHAPE)} pixels; fetch it again"
    )
