import gzip
import hashlib
import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import EpsImagePlugin, Image
from sklearn.datasets import load_digits

from evaluators import datasets, image_files
from evaluators.datasets import Dataset, HeldOut, open_dataset
from evaluators.image_files import DEBIAN_FASHION_MNIST, DataError, ImageSource, LabelledImages

CIFAR10 = Path(__file__).parents[2].parent / "shared/data/cifar-10-batches-bin"

Images = npt.NDArray[np.uint8]
Labels = list[int]


def some_images(count: int, *shape: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def ten_classes(count: int) -> Labels:
    return [number % 10 for number in range(count)]


def native_pixels(dataset: Dataset, x: torch.Tensor) -> Images:
    """The bytes from which these normalised images were made, (n, c, s, s)."""
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
    levels = (x.numpy() * std + mean) * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    pixels: Images = np.rint(levels).astype(np.uint8)
    return pixels


def by_split(dataset: Dataset) -> dict[str, tuple[Images, Labels]]:
    splits, test = dataset.at(dataset.native_resolution), dataset.test(dataset.native_resolution)
    return {
        "train": (native_pixels(dataset, splits.train_x), splits.train_y.tolist()),
        "val": (native_pixels(dataset, splits.val_x), splits.val_y.tolist()),
        "test": (native_pixels(dataset, test.x), test.y.tolist()),
    }


def contents(dataset: Dataset) -> dict[str, list[tuple[bytes, int]]]:
    return {
        split: sorted((image.tobytes(), label) for image, label in zip(*pair, strict=True))
        for split, pair in by_split(dataset).items()
    }


def assert_no_image_in_two_splits(dataset: Dataset) -> None:
    splits, test = dataset.at(dataset.native_resolution), dataset.test(dataset.native_resolution)
    train, val, held = ({image.tobytes() for image in x.numpy()} for x in (splits.train_x, splits.val_x, test.x))
    assert not train & val
    assert not train & held
    assert not val & held


# Writers, independent of the readers.


def idx_bytes(array: Images, magic: int) -> bytes:
    return magic.to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder: Path, *, side: int = 5, zipped: bool = False, train: int = 90, test: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    for portion, count in (("train", train), ("t10k", test)):
        images, labels = some_images(count, side, side, seed=count), np.array(ten_classes(count), np.uint8)
        for name, content in (
            (f"{portion}-images-idx3-ubyte", idx_bytes(images, 0x803)),
            (f"{portion}-labels-idx1-ubyte", idx_bytes(labels, 0x801)),
        ):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


CIFAR_FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def cifar_batches() -> dict[str, tuple[Images, Labels]]:
    """Twenty images for each file, as rows of 3,072 pixels."""
    return {name: (some_images(20, 3072, seed=seed), ten_classes(20)) for seed, name in enumerate(CIFAR_FILES)}


def write_cifar_binary(folder: Path) -> Path:
    folder.mkdir()
    for name, (rows, labels) in cifar_batches().items():
        records = [bytes([label]) + row.tobytes() for label, row in zip(labels, rows, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return folder


class Python2Pickler(pickle._Pickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Writes bytes as Python 2 wrote its str, which is what the published batches hold."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined, unused-ignore]

    def save_python2_str(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)  # type: ignore[attr-defined, unused-ignore]
        self.memoize(value)  # type: ignore[attr-defined, unused-ignore]

    dispatch[bytes] = save_python2_str  # type: ignore[assignment, unused-ignore]


def python2_pickle(value: object) -> bytes:
    written = io.BytesIO()
    Python2Pickler(written, protocol=2).dump(value)
    return written.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar_pickles(folder: Path, dump: Callable[[object], bytes] = python2_pickle) -> Path:
    folder.mkdir()
    for name, (rows, labels) in cifar_batches().items():
        (folder / name).write_bytes(dump({b"batch_label": b"some", b"labels": labels, b"data": rows}))
    return folder


def write_classes(folder: Path, classes: dict[str, list[Images]]) -> Path:
    for class_name, images in classes.items():
        (folder / class_name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / class_name / f"{number}.png")
    return folder


def two_classes(count: int = 12, seed: int = 0) -> dict[str, list[Images]]:
    images = list(some_images(2 * count, 6, 6, seed=seed))
    return {"ant": images[:count], "bee": images[count:]}


# Digits, and the splits of a source that has none.


def test_digits_are_those_of_scikit_learn() -> None:
    digits = open_dataset("digits", seed=0)
    expected = load_digits()
    levels = np.rint(expected.images * 255 / 16).astype(np.uint8)
    found = sorted(pair for split in contents(digits).values() for pair in split)
    assert found == sorted((image.tobytes(), int(label)) for image, label in zip(levels, expected.target, strict=True))
    assert (digits.channels, digits.native_resolution, digits.num_classes) == (1, 8, 10)
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_train + digits.num_val + digits.num_test, digits.duplicates_left_out) == (1797, 0)


def test_digits_have_no_exact_copies_and_share_none_between_splits() -> None:
    images = load_digits().images
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797
    assert_no_image_in_two_splits(open_dataset("digits", seed=3))


def test_every_split_holds_a_sixth_or_the_rest_of_each_class() -> None:
    digits = open_dataset("digits", seed=0)
    totals = np.bincount(load_digits().target)
    counts = {split: np.bincount(labels) for split, (_, labels) in by_split(digits).items()}
    assert np.abs(counts["test"] - totals / 6).max() <= 0.5
    assert np.abs(counts["val"] - (totals - counts["test"]) / 6).max() <= 0.5
    assert (counts["train"] + counts["val"] + counts["test"]).tolist() == totals.tolist()


def test_equal_seeds_give_equal_tensors_and_other_seeds_other_splits() -> None:
    one, two, other = (open_dataset("digits", seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.at(8).train_x, two.at(8).train_x)
    assert torch.equal(one.at(8).val_y, two.at(8).val_y)
    assert torch.equal(one.test(8).x, two.test(8).x)
    assert contents(one)["test"] != contents(other)["test"]
    assert contents(one)["val"] != contents(other)["val"]


def test_a_smaller_limit_is_a_stratified_subset_that_leaves_validation_and_test_alone() -> None:
    whole, large, small = (open_dataset("digits", seed=1, limit=limit) for limit in (None, 400, 103))
    assert (large.num_train, small.num_train, small.limit) == (400, 103, 103)
    assert small.train_available == whole.train_available == whole.num_train
    train = [set(contents(dataset)["train"]) for dataset in (small, large, whole)]
    assert train[0] < train[1] < train[2]
    for split in ("val", "test"):
        assert contents(small)[split] == contents(whole)[split]
    available = np.bincount(whole.at(8).train_y)
    shares = np.bincount(small.at(8).train_y) - 103 * available / available.sum()
    assert np.abs(shares).max() <= 1


def test_a_limit_above_what_there_is_takes_all() -> None:
    assert open_dataset("digits", seed=1, limit=10**6).num_train == open_dataset("digits", seed=1).num_train


def test_every_prefix_of_the_training_images_holds_the_classes_in_their_shares(tmp_path: Path) -> None:
    images = list(some_images(140, 6, 6))
    write_classes(tmp_path, {"few": images[:15], "many": images[15:]})
    labels = open_dataset(str(tmp_path), seed=0).at(6).train_y.numpy()
    share = labels.mean()
    assert share > 0.8
    assert set(labels[:2]) == {0, 1}
    assert np.abs(labels.cumsum() - share * np.arange(1, len(labels) + 1)).max() <= 1


def test_limit_must_leave_an_image_to_each_class() -> None:
    assert open_dataset("digits", seed=0, limit=10).at(8).train_y.sort().values.tolist() == list(range(10))
    with pytest.raises(DataError, match="each of the 10 classes, got 9"):
        open_dataset("digits", seed=0, limit=9)


def test_normalisation_is_that_of_the_training_images_in_use() -> None:
    digits = open_dataset("digits", seed=0, limit=300)
    pixels = by_split(digits)["train"][0] / 255
    assert digits.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert digits.std == pytest.approx([pixels.std()], rel=1e-12)
    x = digits.at(8).train_x
    assert x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert abs(float(digits.at(8).val_x.mean())) > 1e-4


def test_a_channel_that_never_changes_is_centred_without_nan(tmp_path: Path) -> None:
    images = list(some_images(24, 6, 6, 3))
    for image in images:
        image[..., 2] = 77
    write_classes(tmp_path, {"ant": images[:12], "bee": images[12:]})
    dataset = open_dataset(str(tmp_path), seed=0)
    assert dataset.std[2] == 1
    assert dataset.at(9).train_x[:, 2].abs().max() < 1e-6


# Resizing.


@pytest.mark.parametrize("resolution", [5, 8, 13, 32])
def test_resizing_agrees_with_pillow(resolution: int) -> None:
    digits = open_dataset("digits", seed=0, limit=20)
    originals = by_split(digits)["train"][0]
    resized = digits.at(resolution).train_x.numpy() * digits.std[0] + digits.mean[0]
    for original, found in zip(originals, resized, strict=True):
        image = Image.fromarray(original[0].astype(np.float32))
        expected = np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR))
        assert found.shape == (1, resolution, resolution)
        np.testing.assert_allclose(found[0] * 255, expected, atol=1e-2)


def test_images_across_a_batch_boundary_are_each_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_dataset("digits", seed=0, limit=50).at(12).train_x
    monkeypatch.setattr(datasets, "RESIZE_BATCH", 7)
    assert torch.allclose(open_dataset("digits", seed=0, limit=50).at(12).train_x, whole, atol=1e-6)


def test_the_resolution_used_longest_ago_is_dropped_when_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = open_dataset("digits", seed=0, limit=50)
    first, second = digits.at(16), digits.at(20)
    assert digits.at(16) is first
    monkeypatch.setattr(datasets, "CACHE_BYTES", 4 * (digits.num_train + digits.num_val) * (16**2 + 12**2))
    third = digits.at(12)
    assert digits.at(16) is first
    assert digits.at(12) is third
    assert digits.at(20) is not second
    assert digits.at(16) is not first


def test_resolution_must_be_positive() -> None:
    with pytest.raises(DataError, match="at least 1 pixel, got 0"):
        open_dataset("digits", seed=0).at(0)


def test_a_search_gets_the_test_images_only_by_asking_for_them() -> None:
    digits = open_dataset("digits", seed=0)
    test = digits.test(8)
    assert isinstance(test, HeldOut)
    assert len(test.x) == len(test.y) == digits.num_test
    held = {image.tobytes() for image in test.x.numpy()}
    seen = [image.tobytes() for x in (digits.at(8).train_x, digits.at(8).val_x) for image in x.numpy()]
    assert not held.intersection(seen)
    assert not any("test" in name for name in vars(digits.at(8)))


# Names.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit", "did you mean digits?"),
        ("MNIST", "did you mean fashion-mnist?"),
        ("cifar-10:somewhere", "did you mean cifar10?"),
        ("qqqq", "known are digits, fashion-mnist, fashion-mnist:FOLDER, cifar10:FOLDER"),
        ("", "no data set or folder is called ''"),
        ("cifar10", "write cifar10:FOLDER"),
        ("cifar10:", "a folder must follow the colon"),
        ("cifar10:/no/such", "/no/such: there is no such folder"),
        ("fashion-mnist:/no/such", "/no/such: there is no such folder"),
        ("digits:here", "take no folder"),
        (__file__, "no data set or folder is called"),
    ],
)
def test_a_name_that_is_not_known_says_what_is(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(text, seed=0)
    assert message in str(caught.value)


# IDX.


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_as_written_with_their_own_test_split(tmp_path: Path, zipped: bool) -> None:
    dataset = open_dataset(f"fashion-mnist:{write_idx(tmp_path, zipped=zipped)}", seed=0)
    found = contents(dataset)
    training = [(image.tobytes(), number % 10) for number, image in enumerate(some_images(90, 5, 5, seed=90))]
    test = [(image.tobytes(), number % 10) for number, image in enumerate(some_images(20, 5, 5, seed=20))]
    assert found["test"] == sorted(test)
    assert sorted(found["train"] + found["val"]) == sorted(training)
    assert (dataset.num_train, dataset.num_val, dataset.class_names[9]) == (70, 20, "Ankle boot")


def test_fingerprint_is_the_same_for_gz_and_plain_and_any_seed_and_limit(tmp_path: Path) -> None:
    plain, zipped = write_idx(tmp_path / "plain"), write_idx(tmp_path / "zipped", zipped=True)
    first = open_dataset(f"fashion-mnist:{plain}", seed=0)
    second = open_dataset(f"fashion-mnist:{zipped}", seed=9, limit=30)
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("train-images-idx3-ubyte", 16 + 1234),
        ("t10k-images-idx3-ubyte", -1),
        ("train-labels-idx1-ubyte", 8 + 40),
    ],
)
def test_fingerprint_changes_with_one_pixel_or_label(tmp_path: Path, name: str, offset: int) -> None:
    before = open_dataset(f"fashion-mnist:{write_idx(tmp_path)}", seed=0).fingerprint
    content = bytearray((tmp_path / name).read_bytes())
    content[offset] ^= 1
    (tmp_path / name).write_bytes(content)
    assert open_dataset(f"fashion-mnist:{tmp_path}", seed=0).fingerprint != before


def test_fingerprint_tells_which_class_an_image_belongs_to() -> None:
    images = sorted(some_images(3, 1, 4, 4), key=lambda image: hashlib.sha256(image.tobytes()).digest())
    one, two = (
        ImageSource(("ant", "bee"), LabelledImages(np.stack(images), np.array(labels)))
        for labels in ([0, 0, 1], [0, 1, 1])
    )
    assert one.fingerprint() != two.fingerprint()


def test_a_training_image_that_is_in_the_test_file_is_left_out(tmp_path: Path) -> None:
    write_idx(tmp_path)
    images = some_images(90, 5, 5, seed=90)
    images[33] = some_images(20, 5, 5, seed=20)[4]  # lies in the test file as well
    images[47] = images[7]  # twice with one label
    images[52] = images[61]  # under labels 2 and 1: neither can be believed
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images, 0x803))
    dataset = open_dataset(f"fashion-mnist:{tmp_path}", seed=0)
    assert_no_image_in_two_splits(dataset)
    assert (dataset.duplicates_left_out, dataset.num_test) == (4, 20)
    found = contents(dataset)
    kept = [pixels for pixels, _ in found["train"] + found["val"]]
    assert (kept.count(images[7].tobytes()), kept.count(images[61].tobytes()), len(kept)) == (1, 0, 86)


def test_missing_debian_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(image_files, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*fashion-mnist:FOLDER"):
        open_dataset("fashion-mnist", seed=0)


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-1], "announces 2250 bytes, got 2249"),
        ("train-images-idx3-ubyte", lambda content: content + b"!", "announces 2250 bytes, got 2251"),
        ("t10k-images-idx3-ubyte", lambda content: content[:9], "an IDX header has 16 bytes, got 9"),
        ("train-labels-idx1-ubyte", lambda content: b"", "an IDX header has 8 bytes, got 0"),
        (
            "train-images-idx3-ubyte",
            lambda content: b"\0\0\x0d\x03" + content[4:],
            "magic number 0x00000803.*0x00000d03",
        ),
        (
            "train-labels-idx1-ubyte",
            lambda content: b"\0\0\x08\x03" + content[4:],
            "header has|magic number 0x00000801",
        ),
        ("train-labels-idx1-ubyte", gzip.compress, "magic number 0x00000801.*gzipped without .gz"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0a", r"labels must be 0\.\.9, got 10"),
        (
            "t10k-labels-idx1-ubyte",
            lambda content: idx_bytes(np.zeros(19, np.uint8), 0x801),
            "got 19 labels for 20 images",
        ),
        ("t10k-labels-idx1-ubyte", lambda content: idx_bytes(np.zeros(0, np.uint8), 0x801), "holds no image"),
        (
            "t10k-images-idx3-ubyte",
            lambda content: idx_bytes(np.zeros((20, 5, 4), np.uint8), 0x803),
            "must be square, got 5x4",
        ),
        (
            "train-labels-idx1-ubyte",
            lambda content: idx_bytes(np.array(ten_classes(90), np.uint8) % 9, 0x801),
            "class 'Ankle boot' needs at least 2 different training images.*got 0",
        ),
    ],
)
def test_damaged_idx_file_is_named_with_the_broken_rule(
    tmp_path: Path, name: str, damage: Damage, message: str
) -> None:
    path = write_idx(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(f"fashion-mnist:{tmp_path}", seed=0)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-3],
        lambda content: b"plainly not gzip",
        lambda content: content[:10] + b"\xff" + content[11:],  # no such kind of block
        lambda content: content[:-8] + bytes(8),  # wrong checksum
    ],
)
def test_damaged_gz_file_is_named(tmp_path: Path, damage: Damage) -> None:
    path = write_idx(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: is not a whole gzip file"):
        open_dataset(f"fashion-mnist:{tmp_path}", seed=0)


def test_missing_idx_file_is_named_in_both_spellings(tmp_path: Path) -> None:
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"):
        open_dataset(f"fashion-mnist:{tmp_path}", seed=0)


def test_train_and_test_images_must_have_one_size(tmp_path: Path) -> None:
    (write_idx(tmp_path) / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(some_images(20, 7, 7), 0x803))
    with pytest.raises(DataError, match="one size, got sides of 5 and 7"):
        open_dataset(f"fashion-mnist:{tmp_path}", seed=0)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_fashion_mnist_is_found_where_debian_puts_it() -> None:
    dataset = open_dataset("fashion-mnist", seed=0, limit=1000)
    assert (dataset.train_available, dataset.num_val, dataset.num_test) == (50_000, 10_000, 10_000)
    assert (dataset.num_train, dataset.native_resolution, dataset.channels) == (1000, 28, 1)
    assert dataset.duplicates_left_out == 0
    # Published for all 60,000: mean 0.2860, std 0.3530.
    assert dataset.mean[0] == pytest.approx(0.2860, abs=0.01)
    assert dataset.std[0] == pytest.approx(0.3530, abs=0.01)
    with gzip.open(DEBIAN_FASHION_MNIST / "t10k-labels-idx1-ubyte.gz") as file:
        assert dataset.test(2).y.tolist() == list(file.read()[8:])


# CIFAR-10.


def test_cifar_binary_and_pickled_batches_hold_the_same_images(tmp_path: Path) -> None:
    binary = open_dataset(f"cifar10:{write_cifar_binary(tmp_path / 'binary')}", seed=0)
    pickled = open_dataset(f"cifar10:{write_cifar_pickles(tmp_path / 'pickled')}", seed=0)
    batches = cifar_batches()
    expected = [
        (row.tobytes(), label) for rows, labels in batches.values() for row, label in zip(rows, labels, strict=True)
    ]
    for dataset in (binary, pickled):
        found = contents(dataset)
        assert found["test"] == sorted(expected[100:])
        assert sorted(found["train"] + found["val"]) == sorted(expected[:100])
        assert (dataset.channels, dataset.native_resolution) == (3, 32)
    assert binary.fingerprint == pickled.fingerprint
    assert torch.equal(binary.at(16).train_x, pickled.at(16).train_x)


def test_a_pickle_written_by_python_3_is_read_as_well(tmp_path: Path) -> None:
    folder = write_cifar_pickles(tmp_path / "pickled", lambda value: pickle.dumps(value, protocol=4))
    binary = write_cifar_binary(tmp_path / "binary")
    assert (
        open_dataset(f"cifar10:{folder}", seed=0).fingerprint == open_dataset(f"cifar10:{binary}", seed=0).fingerprint
    )


def test_column_major_pickled_array_is_read_in_its_own_order(tmp_path: Path) -> None:
    folder = write_cifar_pickles(tmp_path / "pickled")
    before = open_dataset(f"cifar10:{folder}", seed=0).fingerprint
    rows, labels = cifar_batches()["data_batch_2"]
    (folder / "data_batch_2").write_bytes(python2_pickle({b"labels": labels, b"data": np.asfortranarray(rows)}))
    assert open_dataset(f"cifar10:{folder}", seed=0).fingerprint == before


class Calls:
    """Pickles as a call of a function, as an attacker would write it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["whole", "label", "data", "beside"])
def test_a_pickle_that_carries_a_call_is_refused_and_does_not_run(tmp_path: Path, where: str, protocol: int) -> None:
    folder, canary = write_cifar_pickles(tmp_path / "pickled"), tmp_path / "canary"
    rows, labels = cifar_batches()["data_batch_3"]
    attack = Calls(os.mkdir, str(canary))
    content: object = {
        "whole": attack,
        "label": {b"labels": [*labels[:-1], attack], b"data": rows},
        "data": {b"labels": labels, b"data": attack},
        "beside": {b"labels": labels, b"data": rows, b"x": attack},
    }[where]
    written = pickle.dumps(content, protocol=protocol)
    (folder / "data_batch_3").write_bytes(written)
    with pytest.raises(DataError, match="data_batch_3: refused"):
        open_dataset(f"cifar10:{folder}", seed=0)
    assert not canary.exists()
    pickle.loads(written)
    assert canary.exists(), "the attack must be one that works"


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(S'x'\ntR.",
        b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",  # a dotted name reaches into an allowed one
        b"cnumpy\nndarray\n(dS'__init__'\nI1\nsb.",  # tries to overwrite part of the stand-in itself
        b"cnumpy\nndarray\n(N(dS'state'\nI1\nstb.",
    ],
)
def test_crafted_pickles_reach_neither_builtins_nor_numpy(tmp_path: Path, attack: bytes) -> None:
    folder = write_cifar_pickles(tmp_path / "pickled")
    (folder / "test_batch").write_bytes(attack)
    with pytest.raises(DataError, match="test_batch: refused"):
        open_dataset(f"cifar10:{folder}", seed=0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "b'data' must be a whole uint8 array"),
        ({b"labels": [1], b"data": b"raw"}, "b'data' must be a whole uint8 array"),
        ({b"labels": [1], b"data": np.zeros((1, 3072), np.int8)}, "b'data' must be a whole uint8 array"),
        ({b"labels": [1], b"data": np.zeros((1, 3071), np.uint8)}, "n rows of 3072 pixels"),
        ({b"labels": [1], b"data": np.zeros(3072, np.uint8)}, "n rows of 3072 pixels"),
        ({b"labels": [1], b"data": np.zeros((1, 3072), object)}, "b'data' must be a whole uint8 array"),
        ({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}, "got 2 labels for 1 images"),
        ({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, r"labels must be 0\.\.9, got 10"),
        ({b"labels": [10**30], b"data": np.zeros((1, 3072), np.uint8)}, r"numbers 0\.\.9"),
        ({b"labels": [-1], b"data": np.zeros((1, 3072), np.uint8)}, r"numbers 0\.\.9"),
        ({b"labels": [0.5], b"data": np.zeros((1, 3072), np.uint8)}, r"numbers 0\.\.9"),
        ({b"fine_labels": [1], b"data": np.zeros((1, 3072), np.uint8)}, r"b'labels' must be a list"),
        ({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}, "holds no image"),
    ],
)
def test_pickled_batch_of_another_form_is_named_with_the_broken_rule(
    tmp_path: Path, batch: object, message: str
) -> None:
    folder = write_cifar_pickles(tmp_path / "pickled")
    (folder / "data_batch_4").write_bytes(python2_pickle(batch))
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(f"cifar10:{folder}", seed=0)
    assert str(folder / "data_batch_4") in str(caught.value)


class ShortArray:
    """Pickles as an array that announces one image and brings three bytes."""

    def __reduce__(self) -> tuple[object, ...]:
        whole = np.zeros((1, 3072), np.uint8).__reduce__()
        assert isinstance(whole, tuple)
        return whole[0], whole[1], (1, (1, 3072), np.dtype(np.uint8), False, b"abc")


def test_pickled_array_shorter_than_its_shape_is_an_error(tmp_path: Path) -> None:
    folder = write_cifar_pickles(tmp_path / "pickled")
    (folder / "data_batch_5").write_bytes(python2_pickle({b"labels": [1], b"data": ShortArray()}))
    with pytest.raises(DataError, match="data_batch_5: b'data' must be a whole uint8 array"):
        open_dataset(f"cifar10:{folder}", seed=0)


def test_truncated_cifar_files_are_named(tmp_path: Path) -> None:
    binary, pickled = write_cifar_binary(tmp_path / "binary"), write_cifar_pickles(tmp_path / "pickled")
    for path, message in (
        (binary / "data_batch_2.bin", "records of 3073 bytes"),
        (pickled / "data_batch_2", "refused"),
    ):
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(f"cifar10:{path.parent}", seed=0)
        assert str(path) in str(caught.value)


def test_a_missing_cifar_batch_is_an_error_not_a_smaller_set(tmp_path: Path) -> None:
    folder = write_cifar_binary(tmp_path / "binary")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"missing data_batch_4\.bin"):
        open_dataset(f"cifar10:{folder}", seed=0)
    with pytest.raises(DataError, match="missing data_batch_1, "):
        open_dataset(f"cifar10:{tmp_path}", seed=0)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10 beside the repository")
def test_real_cifar_images_are_read_as_colour_planes() -> None:
    dataset = open_dataset(f"cifar10:{CIFAR10}", seed=0)
    assert (dataset.channels, dataset.native_resolution, dataset.num_classes) == (3, 32, 10)
    # Published for all 50,000 training images: mean .4914 .4822 .4465, std .2470 .2435 .2616.
    assert dataset.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    assert dataset.std == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.01)
    first = (CIFAR10 / "test_batch.bin").read_bytes()[:3073]
    test = dataset.test(32)
    assert int(test.y[0]) == first[0]
    assert native_pixels(dataset, test.x[:1]).tobytes() == first[1:]
    assert_no_image_in_two_splits(dataset)


# Folders.


def test_grey_folder_is_one_channel_and_classes_are_sorted(tmp_path: Path) -> None:
    classes = two_classes()
    dataset = open_dataset(str(write_classes(tmp_path, {"bee": classes["bee"], "ant": classes["ant"]})), seed=0)
    assert (dataset.class_names, dataset.channels, dataset.native_resolution) == (("ant", "bee"), 1, 6)
    assert (dataset.num_train, dataset.num_val, dataset.num_test) == (16, 4, 4)
    expected = [(image.tobytes(), label) for label, name in enumerate(("ant", "bee")) for image in classes[name]]
    assert sorted(pair for split in contents(dataset).values() for pair in split) == sorted(expected)
    assert_no_image_in_two_splits(dataset)


def test_one_colour_image_makes_all_colour_and_grey_keeps_its_levels(tmp_path: Path) -> None:
    classes = two_classes()
    colour = some_images(1, 6, 6, 3, seed=5)[0]
    write_classes(tmp_path, {**classes, "bee": [*classes["bee"], colour]})
    dataset = open_dataset(str(tmp_path), seed=0)
    assert dataset.channels == 3
    found = {pixels for split in contents(dataset).values() for pixels, _ in split}
    assert found == {image.tobytes() * 3 for images in classes.values() for image in images} | {
        colour.transpose(2, 0, 1).tobytes()
    }


def test_splits_do_not_depend_on_the_names_or_order_of_files(tmp_path: Path) -> None:
    classes = two_classes()
    turned = {name: images[::-1] for name, images in classes.items()}
    one, two = (
        open_dataset(str(write_classes(tmp_path / str(number), content)), seed=4)
        for number, content in enumerate((classes, turned))
    )
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.at(6).train_x, two.at(6).train_x)


def test_fingerprint_changes_with_one_pixel_of_a_folder_or_the_name_of_a_class(tmp_path: Path) -> None:
    before = open_dataset(str(write_classes(tmp_path / "a", two_classes())), seed=0).fingerprint
    changed = two_classes()
    changed["bee"][3][2, 2] ^= 1
    assert open_dataset(str(write_classes(tmp_path / "b", changed)), seed=0).fingerprint != before
    renamed = {name.upper(): images for name, images in two_classes().items()}
    assert open_dataset(str(write_classes(tmp_path / "c", renamed)), seed=0).fingerprint != before


def test_copies_in_a_folder_never_straddle_splits(tmp_path: Path) -> None:
    images = list(some_images(12, 6, 6))
    write_classes(tmp_path, {"ant": images[:6] * 5, "bee": images[6:] * 5})
    for seed in range(5):
        dataset = open_dataset(str(tmp_path), seed=seed)
        assert_no_image_in_two_splits(dataset)
        assert (dataset.num_train + dataset.num_val + dataset.num_test, dataset.duplicates_left_out) == (12, 48)


def test_own_train_val_and_test_folders_are_honoured(tmp_path: Path) -> None:
    expected = {split: two_classes(seed=seed) for seed, split in enumerate(("train", "val", "test"))}
    for split, classes in expected.items():
        write_classes(tmp_path / split, classes)
    dataset = open_dataset(str(tmp_path), seed=0)
    for split, pairs in contents(dataset).items():
        own = [(image.tobytes(), label) for label, name in enumerate(("ant", "bee")) for image in expected[split][name]]
        assert pairs == sorted(own)


@pytest.mark.parametrize(("own", "counts"), [("test", (20, 4, 24)), ("val", (20, 24, 4))])
def test_the_split_that_a_folder_lacks_is_cut_from_train(
    tmp_path: Path, own: str, counts: tuple[int, int, int]
) -> None:
    write_classes(tmp_path / "train", two_classes(seed=1))
    write_classes(tmp_path / own, two_classes(seed=2))
    dataset = open_dataset(str(tmp_path), seed=0)
    assert (dataset.num_train, dataset.num_val, dataset.num_test) == counts
    assert contents(dataset)[own] == sorted(
        (image.tobytes(), label) for label, images in enumerate(two_classes(seed=2).values()) for image in images
    )


def test_copies_are_left_out_of_val_for_test_and_of_train_for_both(tmp_path: Path) -> None:
    shared, fresh = two_classes(seed=2), two_classes(seed=3)
    train = two_classes(seed=1)
    train["bee"][5] = fresh["bee"][7]
    write_classes(tmp_path / "train", train)
    write_classes(tmp_path / "test", shared)
    write_classes(tmp_path / "val", {name: [*fresh[name], shared[name][0]] for name in shared})
    dataset = open_dataset(str(tmp_path), seed=0)
    assert (dataset.num_train, dataset.num_val, dataset.num_test, dataset.duplicates_left_out) == (23, 24, 24, 3)
    assert_no_image_in_two_splits(dataset)


def test_val_that_is_a_copy_of_test_is_an_error(tmp_path: Path) -> None:
    for seed, split in ((1, "train"), (2, "val"), (2, "test")):
        write_classes(tmp_path / split, two_classes(seed=seed))
    with pytest.raises(DataError, match="every image of val is in test as well"):
        open_dataset(str(tmp_path), seed=0)


def test_oblong_images_are_cropped_about_the_centre(tmp_path: Path) -> None:
    wide = [np.pad(image, ((0, 0), (3, 4))) for image in two_classes()["ant"]]
    tall = [np.pad(image, ((2, 2), (0, 0))) for image in two_classes()["bee"]]
    oblong = open_dataset(str(write_classes(tmp_path / "oblong", {"ant": wide, "bee": tall})), seed=0)
    square = open_dataset(str(write_classes(tmp_path / "square", two_classes())), seed=0)
    assert contents(oblong) == contents(square)


def test_images_of_several_sizes_come_to_the_largest_side_up_to_the_bound(tmp_path: Path) -> None:
    classes = two_classes()
    classes["bee"][0] = some_images(1, 11, 15, seed=3)[0]
    write_classes(tmp_path, classes)
    free, bound = open_dataset(str(tmp_path), seed=0), open_dataset(str(tmp_path), seed=0, folder_side=9)
    assert (free.native_resolution, free.max_resolution) == (11, None)
    assert free.at(200).val_x.shape[-1] == 200
    assert (bound.native_resolution, bound.max_resolution) == (9, 9)
    assert bound.at(9).val_x.shape[-1] == 9
    with pytest.raises(DataError, match=r"shrunk to 9 pixels.*folder_side=10"):
        bound.at(10)
    with pytest.raises(DataError, match="shrunk to 9 pixels"):
        bound.test(10)
    with pytest.raises(DataError, match="folder_side must be at least 1"):
        open_dataset(str(tmp_path), seed=0, folder_side=0)


def single_image_pixels(folder: Path) -> Images:
    """The (c, side, side) of the one image that is not black, from FOLDER/odd."""
    dataset = open_dataset(str(folder), seed=0)
    images = np.concatenate([pixels for pixels, labels in by_split(dataset).values()])
    labels = [label for _, labels in by_split(dataset).values() for label in labels]
    found: Images
    (found,) = [image for image, label in zip(images, labels, strict=True) if label == 1 and image.max() == 200]
    return found


def write_around(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    """A class of grey noise, and a class "odd" with this image and two more; only this one reaches 200."""
    noise = list(some_images(9, 4, 4) // 2)
    write_classes(folder, {"noise": noise[:6], "odd": noise[6:]})
    image.save(folder / "odd" / name, **options)  # type: ignore[arg-type]
    return folder


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    deep = np.array([[200, 1, 2, 3]] * 4, np.uint16) * 256 + 255
    found = single_image_pixels(write_around(tmp_path, Image.fromarray(deep), "deep.png"))
    assert found.tolist() == [[[200, 1, 2, 3]] * 4]


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 4), np.uint8)
    image[..., 0] = 200
    image[:2, :, 3] = 255
    found = single_image_pixels(write_around(tmp_path, Image.fromarray(image), "clear.png"))
    assert found.tolist() == [[[200] * 4] * 2 + [[0] * 4] * 2, [[0] * 4] * 4, [[0] * 4] * 4]


def test_palette_with_transparency_is_read_in_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 0]] * 4, np.uint8)).convert("P")
    image.putpalette([200, 0, 0, 0, 150, 0, 90, 90, 90])
    found = single_image_pixels(write_around(tmp_path, image, "p.png", transparency=bytes([255, 255, 0])))
    assert found[:, 0].tolist() == [[200, 0, 0, 200], [0, 150, 0, 0], [0, 0, 0, 0]]


def test_photograph_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    upright = np.zeros((4, 4), np.uint8)
    upright[0] = [200, 100, 50, 25]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    folder = write_around(tmp_path, Image.fromarray(np.rot90(upright, 2).copy()), "turned.png", exif=exif)
    assert single_image_pixels(folder).tolist() == [upright.tolist()]


def test_hidden_files_and_those_of_file_managers_are_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, two_classes())
    before = open_dataset(str(tmp_path), seed=0).fingerprint
    for name in (".DS_Store", "README.md", "ant/.hidden", "ant/Thumbs.db"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / ".git").mkdir()
    assert open_dataset(str(tmp_path), seed=0).fingerprint == before


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: [path.unlink() for path in (root / "bee").iterdir()] and (root / "bee").rmdir(),
            "at least two, got 1",
        ),
        (lambda root: (root / "empty").mkdir(), "empty: a class folder must hold images, this one is empty"),
        (lambda root: (root / "ant/0.png").write_bytes(b"no image"), r"ant/0\.png: is not an image that can be read"),
        (lambda root: (root / "ant/0.png").write_bytes(b""), r"ant/0\.png: is not an image that can be read"),
        (lambda root: cut(root / "ant/0.png", 40), r"ant/0\.png: is not an image that can be read"),
        (
            lambda root: (root / "ant/labels.csv").write_text("a,b"),
            r"ant/labels\.csv: a class folder holds only images",
        ),
        (lambda root: (root / "ant/deeper").mkdir(), "ant/deeper: a class folder holds only images"),
        (
            lambda root: (root / "ant/0.png").rename(root / "0.png"),
            r"/0\.png: an image must lie in the folder of its class",
        ),
        (lambda root: (root / "test").mkdir(), "has test but no train"),
        (lambda root: (root / "train").mkdir(), "only val and test may stand, got ant, bee"),
        (
            lambda root: Image.fromarray(np.zeros((6, 6), np.float32)).save(root / "ant/deep.tif"),
            r"ant/deep\.tif: pixels of mode F have no agreed white",
        ),
        (
            lambda root: [(root / f"ant/{number}.png").unlink() for number in range(10)],
            "class 'ant' needs at least 3 different training images.*got 2",
        ),
    ],
)
def test_folder_that_cannot_be_used_is_named_with_the_broken_rule(tmp_path: Path, spoil: Spoil, message: str) -> None:
    write_classes(tmp_path, two_classes())
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path), seed=0)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def test_truncated_jpeg_is_an_error(tmp_path: Path) -> None:
    write_classes(tmp_path, two_classes())
    path = tmp_path / "ant/photo.JPG"
    Image.fromarray(some_images(64, 64)).save(path, format="JPEG")
    open_dataset(str(tmp_path), seed=0)
    cut(path, 900)
    with pytest.raises(DataError, match=r"photo\.JPG: is not an image that can be read"):
        open_dataset(str(tmp_path), seed=0)


def test_a_format_that_starts_programs_is_refused_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, two_classes())
    path = tmp_path / "ant/0.png"
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    with path.open("wb") as file:
        Image.fromarray(some_images(6, 6)).save(file, format="EPS")
    with Image.open(path) as image:
        assert image.format == "EPS", "Pillow must recognize it, or the test shows nothing"
    with pytest.raises(DataError, match=r"ant/0\.png: is not an image that can be read"):
        open_dataset(str(tmp_path), seed=0)
    assert not started


def test_class_folders_of_the_splits_must_be_the_same(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", two_classes())
    write_classes(tmp_path / "test", {**two_classes(seed=2), "cow": list(some_images(3, 6, 6))})
    with pytest.raises(DataError, match="test: must have the class folders of train/, differs in cow"):
        open_dataset(str(tmp_path), seed=0)
