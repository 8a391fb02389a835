import io
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from hardware import bundle
from hardware.bundle import import_results, write_bundle
from hardware.job_results import load_results
from hardware.strict_yaml import ConfigError


def _unpack(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / bundle.FOLDER


def _empty_environment(folder: Path, *packages: Path) -> Path:
    """The Python of an environment that has nothing but those packages."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        (site / package.name).symlink_to(package)
    return folder / "bin/python"


def _pack(folder: Path, file: Path) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder / "jobs", "jobs")
    return file


def test_a_bundle_runs_in_an_empty_environment_and_its_results_come_back(fake_ncnn, make_folder, tmp_path):
    folder = make_folder({"a": {"ms": [1.0]}, "b": {"ms": [2.0, 4.0, 9.0]}}, sentinel="a")
    write_bundle(folder, tmp_path / "b.tar.gz")
    board = _unpack(tmp_path / "b.tar.gz", tmp_path / "board")
    assert sorted(path.name for path in board.iterdir()) == ["README.txt", "board.py", "jobs"]
    readme = (board / "README.txt").read_text()
    assert "python3 board.py jobs" in readme
    assert "python3 -m pip install --no-deps ncnn" in readme
    python = _empty_environment(tmp_path / "empty", fake_ncnn / "ncnn.py")
    done = subprocess.run([python, "-I", "board.py", "jobs"], cwd=board, env={}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["1/2 a: 1 ms", "2/2 b: 4 ms"])
    by_hand = import_results(board / "jobs/samples.jsonl", folder)
    assert by_hand.timings["b"].median_ms == 4.0
    assert import_results(_pack(board, tmp_path / "back.tar.gz"), folder) == by_hand
    with tarfile.open(tmp_path / "back.tar", "w") as archive:
        archive.add(board, "renamed")
    assert import_results(tmp_path / "back.tar", folder) == by_hand
    assert load_results(folder) == by_hand


def test_a_bundle_measures_with_the_real_ncnn_and_no_numpy(make_folder, tmp_path):
    pytest.importorskip("ncnn")
    package = Path(sysconfig.get_path("purelib")) / "ncnn"
    folder = make_folder({"a": {}}, {"min_runs": 20, "max_s": 1.0})
    layers = "7767517\n2 2\nInput in0 0 1 in0\nConvolution c 1 1 in0 out0 0=8 1=3 3=1 4=1 5=1 6=216\n"
    (folder / "a.param").write_text(layers)
    write_bundle(folder, tmp_path / "b.tar.gz")
    board = _unpack(tmp_path / "b.tar.gz", tmp_path / "board")
    python = _empty_environment(tmp_path / "empty", package, *package.parent.glob("ncnn.libs"))
    assert subprocess.run([python, "-c", "import numpy"], env={}, capture_output=True).returncode == 1
    done = subprocess.run([python, "-I", "board.py", "jobs"], cwd=board, env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = import_results(board / "jobs/samples.jsonl", folder)
    assert 0 < found.timings["a"].median_ms < 1000
    assert found.timings["a"].runs == 20


@pytest.fixture
def measured(fake_ncnn, make_folder, tmp_path) -> tuple[Path, bytes]:
    """A job folder, and what a board wrote of it."""
    folder = make_folder({"a": {"ms": [1.0]}})
    runner = Path(bundle.board.__file__)
    subprocess.run([sys.executable, runner, folder], check=True, capture_output=True)
    samples = (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").unlink()
    return folder, samples


def _archive(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def _member(name: str, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize("name", ["../samples.jsonl", "jobs/../../samples.jsonl", "../../etc/passwd"])
def test_an_archive_that_points_out_of_itself_is_refused(measured, tmp_path, name):
    folder, samples = measured
    file = _archive(tmp_path / "x.tar.gz", (_member("samples.jsonl"), samples), (_member(name), b"x"))
    with pytest.raises(ConfigError, match="outside the destination"):
        import_results(file, folder)


def test_an_archive_with_a_link_in_the_place_of_the_samples_is_refused(measured, tmp_path):
    folder, _ = measured
    link = _member("samples.jsonl", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(ConfigError, match="absolute"):
        import_results(_archive(tmp_path / "x.tar.gz", (link, b"")), folder)
    link = _member("samples.jsonl", type=tarfile.SYMTYPE, linkname="other")
    with pytest.raises(ConfigError, match=r"must have one samples\.jsonl, got 0"):
        import_results(_archive(tmp_path / "x.tar.gz", (link, b"")), folder)


def test_an_archive_with_two_samples_or_too_much_is_refused(measured, tmp_path, monkeypatch):
    folder, samples = measured
    two = _archive(tmp_path / "x.tar.gz", (_member("samples.jsonl"), samples), (_member("a/samples.jsonl"), samples))
    with pytest.raises(ConfigError, match=r"must have one samples\.jsonl, got 2"):
        import_results(two, folder)
    big = _archive(tmp_path / "y.tar.gz", (_member("samples.jsonl"), samples), (_member("zeros"), bytes(10**6)))
    assert big.stat().st_size < 10_000
    assert import_results(big, folder).timings["a"].median_ms == 1.0
    monkeypatch.setattr(bundle, "LARGEST_ARCHIVE_BYTES", 10**6)
    with pytest.raises(ConfigError, match="must have at most 1000000 bytes unpacked, got more"):
        import_results(big, folder)
    monkeypatch.setattr(bundle, "LARGEST_SAMPLES_BYTES", 100)
    (tmp_path / "plain.jsonl").write_bytes(samples)
    for file in (tmp_path / "plain.jsonl", _archive(tmp_path / "z.tar.gz", (_member("samples.jsonl"), samples))):
        with pytest.raises(ConfigError, match="must have at most 100 bytes, got"):
            import_results(file, folder)


def test_an_archive_of_too_many_files_is_refused(measured, tmp_path, monkeypatch):
    folder, samples = measured
    monkeypatch.setattr(bundle, "MOST_FILES", 3)
    members = [(_member(f"file{number}"), b"") for number in range(3)]
    with pytest.raises(ConfigError, match="must have at most 3 files, got more"):
        import_results(_archive(tmp_path / "x.tar.gz", *members, (_member("samples.jsonl"), samples)), folder)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bnot gzip", b"PK\x03\x04 a zip"])
def test_what_is_neither_samples_nor_an_archive_is_refused(measured, tmp_path, content):
    folder, _ = measured
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match="file"):
        import_results(tmp_path / "file", folder)


def test_a_torn_archive_and_a_missing_file_are_refused(measured, tmp_path):
    folder, samples = measured
    whole = _archive(tmp_path / "x.tar.gz", (_member("samples.jsonl"), samples)).read_bytes()
    (tmp_path / "torn.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("torn.tar.gz", "nothing"):
        with pytest.raises(ConfigError, match=f"{name}: a samples.jsonl or an archive with it is needed"):
            import_results(tmp_path / name, folder)
