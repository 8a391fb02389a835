"""Counts of executed instructions: the files they are kept in, the formula beside them, and the counting itself."""

import os
from pathlib import Path

import numpy as np
import pytest

from hardware.armv7 import ground as grounds
from hardware.armv7.benchmark_layers import ONLY_INSIDE_NETWORKS, layer_subject
from hardware.armv7.count_tables import EXECUTED, Journal, count_missing, formula_table, spread_sample
from hardware.armv7.counting import Count, NotCounted, Subject, count, kernel_subject
from hardware.armv7.ground import NCNN_VERSION, Ground, GroundMissing, ready_ground
from hardware.boards import read_boards
from hardware.calibration import layer_of, read_layers
from hardware.count_formula import check_formula, fit_formula, formula_text, read_formula
from hardware.instruction_counts import counts_text, read_counts, write_counts
from hardware.kernel_keys import kernel_of
from hardware.kernels import Kernel
from hardware.ncnn_layers import AMOUNTS, Work
from hardware.ops import Activation, Conv
from hardware.strict_yaml import ConfigError
from hardware.targets import COUNTS_FILE, FORMULA_FILE, LAYERS_FILE, TARGETS_FOLDER

# As it was when the tests were collected: they give themselves other folders later.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-nas" / f"armv7-{NCNN_VERSION}"


@pytest.fixture(scope="module")
def ground() -> Ground:
    try:
        return ready_ground(CACHE)
    except GroundMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shipped() -> dict[str, int]:
    return dict(read_counts(COUNTS_FILE, read_boards(TARGETS_FOLDER).counts).by_kernel)


def test_the_shipped_counts_are_of_the_version_that_is_counted() -> None:
    assert read_boards(TARGETS_FOLDER).counts == EXECUTED


def test_every_key_of_the_shipped_counts_is_a_kernel(shipped: dict[str, int]) -> None:
    assert len(shipped) > 10_000
    for key in list(shipped)[::50]:
        assert kernel_of(key).key == key
        assert shipped[key] > 0


@pytest.mark.parametrize(
    "key",
    ["", "conv", "conv(16x8x8)", "nothing(8x4x4)", "add(8x4x4,8x4x4)+what", "conv(8x4x4>16 k1x1 s1 p0x0 g1)+relu 3"],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a kernel's key"):
        kernel_of(key)


def test_counts_are_read_as_they_were_written(tmp_path: Path) -> None:
    counts = {"add(8x4x4,8x4x4)": 700, "conv(8x4x4>16 k1x1 s1 p0x0 g1)+relu": 12345}
    text = counts_text("a 1", "by hand", counts)
    write_counts(tmp_path / "one.gz", text)
    write_counts(tmp_path / "two.gz", text)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    found = read_counts(tmp_path / "one.gz", "a 1")
    assert (found.executed, found.how, found.by_kernel) == ("a 1", "by hand", counts)


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08"])
def test_a_file_that_holds_no_counts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "counts.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="a file of counts is needed"):
        read_counts(tmp_path / "counts.gz", "a 1")


def test_a_formula_finds_again_what_made_the_counts() -> None:
    rng = np.random.default_rng(3)
    works = []
    for _ in range(60):
        amounts = np.zeros(len(AMOUNTS))
        amounts[AMOUNTS.index("macs")], amounts[AMOUNTS.index("written")] = rng.uniform(1e4, 1e6), rng.uniform(1e2, 1e4)
        amounts[AMOUNTS.index("calls")] = 1
        works.append(Work("conv1x1", tuple(amounts)))
    counts = np.array([0.25 * each.amounts[0] + 3 * each.amounts[1] + 4000 for each in works])
    formula, errors = fit_formula(works, counts), check_formula(works, counts)
    known = dict(zip(AMOUNTS, formula["conv1x1"], strict=True))
    assert known["macs"] == pytest.approx(0.25, rel=1e-3)
    assert known["written"] == pytest.approx(3, rel=1e-3)
    assert known["calls"] == pytest.approx(4000, rel=1e-3)
    assert errors["conv1x1"].mean_percent < 0.01
    assert read_formula(formula_text(formula, errors)) == formula


def test_the_error_of_a_formula_is_that_on_counts_it_was_fitted_without() -> None:
    works = [Work("add", tuple(float(name == "written") * 100 for name in AMOUNTS)) for _ in range(10)]
    # One of ten is twice the others: fitted without it, it is predicted at half; the others as they are.
    counts = np.array([1000.0] * 9 + [2000.0])
    error = check_formula(works, counts)["add"]
    assert error.counted == 10
    assert error.mean_percent > 5


def test_the_shipped_formula_is_what_the_counts_give(shipped: dict[str, int]) -> None:
    assert formula_table(shipped, LAYERS_FILE) == FORMULA_FILE.read_text()


def test_a_sample_has_every_kind_before_it_has_two_of_one() -> None:
    keys = [*(f"conv({size}x4x4)" for size in range(50)), "add(1)", "mul(1)"]
    sample = spread_sample(keys, 4)
    assert {key.partition("(")[0] for key in sample[:3]} == {"add", "conv", "mul"}
    assert len(set(sample)) == 4
    assert spread_sample(reversed(keys), 4) == sample


def test_a_journal_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "counts.tsv"
    journal = Journal(path)
    journal.add("a", Count(10, 4))
    journal.add("b", NotCounted("it\ncannot run"))
    path.write_text(path.read_text() + "c\t3")
    again = Journal(path)
    assert again.counts == {"a": 10}
    assert again.failures == {"b": "it cannot run"}
    assert "c" not in again


def test_every_layer_of_the_benchmark_networks_can_run_alone() -> None:
    for row in read_layers(LAYERS_FILE):
        layer = layer_of(row)
        if layer.kind not in ONLY_INSIDE_NETWORKS:
            subject = layer_subject(layer, 1.0)
            assert subject.param.startswith("7767517\n")


# Without what counting needs


def test_each_thing_that_is_missing_is_named_with_what_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        with pytest.raises(GroundMissing) as caught:
            ready_ground(tmp_path)
        assert "the shipped counts, and every command that uses them, work without" in str(caught.value)
        return caught.value.what

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert missing() == "Debian's armhf Python"
    (tmp_path / "armhf").mkdir()
    (tmp_path / "armhf" / "ready").touch()
    assert missing() == f"ncnn {NCNN_VERSION} for armv7l"
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "ready").touch()
    assert missing() == "qemu-arm"
    (tmp_path / "bin").mkdir()
    qemu = tmp_path / "bin" / "qemu-arm"
    qemu.write_text("#!/bin/sh\necho 'qemu-arm version 10.0.2'\n")
    qemu.chmod(0o755)
    assert missing() == "qemu-arm 6 to 8"
    qemu.write_text("#!/bin/sh\necho 'qemu-arm version 7.2.22 (Debian)'\n")
    assert missing() == "a C compiler"


def test_a_wheel_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / grounds.WHEEL).write_bytes(b"something else")
    monkeypatch.setattr(grounds, "_run", lambda *_, **__: None)
    with pytest.raises(GroundMissing, match=r"has sha256 .*, not "):
        grounds._fetch_wheel(tmp_path)


# With it


MAP = (16, 12, 12)


def conv(size: int, *, groups: int = 1, dilation: int = 1, stride: int = 1) -> Kernel:
    padding = dilation * (size // 2)
    op = Conv(16, (size, size), stride, (padding, padding), dilation, groups)
    return Kernel((op,), (MAP,), (16, -(-12 // stride), -(-12 // stride)))


def test_lanes_of_multiply_adds_are_the_multiply_adds(ground: Ground) -> None:
    macs = {
        conv(1): 16 * 16 * 144,
        conv(3, groups=16): 16 * 9 * 144,
        conv(5, groups=16): 16 * 25 * 144,
        conv(7, groups=16): 16 * 49 * 144,
        conv(9, groups=16): 16 * 81 * 144,
        conv(3, groups=16, dilation=2): 16 * 9 * 144,
    }
    found = dict(count(ground, [kernel_subject(kernel, 1e6) for kernel in macs]))
    for kernel, number in macs.items():
        result = found[kernel.key]
        assert isinstance(result, Count)
        assert result.multiply_add_lanes == number, kernel.key
        assert result.instructions > number / 4


def test_shipped_counts_are_found_again(ground: Ground, shipped: dict[str, int]) -> None:
    small = [key for key in shipped if shipped[key] < 300_000]
    sample = spread_sample(small, 24)
    subjects = [kernel_subject(kernel_of(key), float(shipped[key])) for key in sample]
    for key, found in count(ground, subjects):
        assert isinstance(found, Count)
        # Memory management takes some hundred instructions more or less.
        assert found.instructions == pytest.approx(shipped[key], rel=0.01, abs=2500), key


def test_what_cannot_run_is_a_reason_and_the_others_are_counted(ground: Ground, tmp_path: Path) -> None:
    kernel = Kernel((Activation("relu"),), (MAP,), MAP)
    good = kernel_subject(kernel, 1e4)
    nonsense = Subject("nonsense", "7767517\n1 1\nNoSuchLayer a 0 1 a\n", (), (), "a", 1e4)
    # 2 ** 40 weights do not fit into the memory of the emulated process.
    huge = kernel_subject(Kernel((Conv(2**20, (1, 1)),), ((2**20, 2, 2),), (2**20, 2, 2)), 1e4)
    journal = Journal(tmp_path / "counts.tsv")
    names = list(count_missing(ground, [nonsense, huge, good], journal))
    assert sorted(names) == sorted([nonsense.name, huge.name, good.name])
    assert set(journal.failures) == {nonsense.name, huge.name}
    assert set(journal.counts) == {kernel.key}
    assert list(count_missing(ground, [nonsense, huge, good], journal)) == []
