import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hardware import targets
from hardware.armv7.count_tables import EXECUTED
from hardware.instruction_counts import counts_text, read_counts, write_counts
from hardware.kernels import Kernel
from hardware.latency_table import Tier, UnmeasuredKernel
from hardware.ncnn_model import FUSION_RULES
from hardware.ops import GlobalPool
from hardware.profiled_table import ProfiledTable, TableIdentity, empty_table, write_table
from hardware.published import read_published
from hardware.strict_yaml import ConfigError
from hardware.table_fit import Row
from hardware.target_tables import targets_table, with_table
from hardware.targets import (
    board_table_path,
    described_target,
    host_identity,
    known_targets,
    load_target,
    published_boards,
    table_path,
)

KERNEL = Kernel((GlobalPool(),), ((16, 8, 8),), (16, 1, 1))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edge-nas" / "tables"


@pytest.fixture
def copied_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "targets"
    shutil.copytree(targets.TARGETS_FOLDER, folder)
    for name in ("COUNTS_FILE", "FORMULA_FILE", "TARGETS_FOLDER"):  # the folder last, since the others lie in it
        monkeypatch.setattr(targets, name, folder / getattr(targets, name).relative_to(targets.TARGETS_FOLDER))
    return folder


def test_every_known_target_loads_under_its_file_name(cache: Path) -> None:
    assert set(known_targets()) >= {"host", "rk3288"}
    for name in known_targets():
        target = load_target(name)
        assert target.name == name
        assert target.threads == 1
        assert target.latency_model.table.startswith(f"{name}/{target.runtime}-{target.runtime_version}/1t/fp32@")
        assert len(target.sha256) == 64


def test_rk3288_says_what_it_rests_on() -> None:
    target = load_target("rk3288", threads=4)
    assert target.tier is Tier.calibrated
    assert target.supported_threads == (1, 4)
    assert (target.runtime, target.runtime_version) == ("ncnn", "20211208")
    assert "1d0b78f9b663e4a66596ac83099fa84037a53372" in target.about.provenance.source
    assert target.about.provenance.licence == "BSD-3-Clause"
    assert target.fusion_rules == FUSION_RULES, "what was counted as one kernel is what ncnn_model writes as one layer"
    assert target.errors is not None
    assert (target.errors.networks, target.errors.fastest_ms, target.errors.slowest_ms) == (25, 11.85, 960.6)


def test_thread_counts_have_tables_of_their_own() -> None:
    one, four = load_target("rk3288", threads=1), load_target("rk3288", threads=4)
    assert one.sha256 != four.sha256
    assert one.latency_model.table.split("@")[0] == "rk3288/ncnn-20211208/1t/fp32"
    assert four.latency_model.table.split("@")[0] == "rk3288/ncnn-20211208/4t/fp32"
    assert load_target("rk3288", runtime="ncnn").sha256 == one.sha256


def test_the_hash_follows_the_figures_and_not_the_comments(copied_targets: Path) -> None:
    def hashes() -> tuple[str, str]:
        return load_target("rk3288").sha256, load_target("rk3288", threads=4).sha256

    one, four = hashes()
    boards = copied_targets / "boards.yaml"
    boards.write_text("# a comment\n" + boards.read_text())
    assert hashes() == (one, four)
    rows = (copied_targets / "calibration.csv").read_text()
    changed, count = re.subn(r"(rk3288,4,groups and bytes,)[0-9.]+", r"\g<1>0.5", rows)
    assert count == 1
    (copied_targets / "calibration.csv").write_text(changed)
    assert hashes()[0] == one
    assert hashes()[1] != four
    (copied_targets / "calibration.csv").write_text(rows)
    formula = (copied_targets / "armv7" / "formula.csv").read_text()
    (copied_targets / "armv7" / "formula.csv").write_text(formula.replace("global_pool,", "global_pool,1", 1))
    assert hashes()[0] != one


def test_other_counts_make_another_table(copied_targets: Path) -> None:
    before = load_target("rk3288").sha256
    file = copied_targets / "armv7" / "kernels.tsv.gz"
    counts = read_counts(file, EXECUTED)
    some = next(iter(counts.by_kernel))
    write_counts(file, counts_text(EXECUTED, counts.how, {**counts.by_kernel, some: counts.by_kernel[some] + 1}))
    read_counts.cache_clear()
    assert load_target("rk3288").sha256 != before
    read_counts.cache_clear()


def test_counts_of_another_version_are_refused(copied_targets: Path) -> None:
    file = copied_targets / "armv7" / "kernels.tsv.gz"
    write_counts(file, counts_text("ncnn 1.0.20270101 armv7l", "somehow", {"add(8x4x4,8x4x4)": 500}))
    read_counts.cache_clear()
    message = f"counts must be of {EXECUTED}, which the target was calibrated with, got those of ncnn 1.0.20270101"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_target("rk3288")
    read_counts.cache_clear()


def test_a_board_that_does_not_calibrate_is_listed_and_refuses_to_predict() -> None:
    assert "rk3588-a76" in published_boards()
    assert "rk3588-a76" not in known_targets()
    with pytest.raises(ConfigError, match=r"published totals only and predicts nothing: .* the error is 1\d\.\d %"):
        load_target("rk3588-a76")
    # One thread calibrates on this one, and four do not.
    assert load_target("raspberrypi4").supported_threads == (1,)
    with pytest.raises(ConfigError, match=r"calibrated at 1 only; at 4 threads the error is 1\d\.\d %"):
        load_target("raspberrypi4", threads=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rk3289", {}, "got 'rk3289'; did you mean 'rk3288'?"),
        ("../rk3288", {}, "must be one of the known targets"),
        ("rk3288", {"threads": 2}, "target rk3288 has figures for 1, 4 threads, got 2"),
        ("rk3288", {"threads": 0}, "got 0"),
        ("rk3288", {"runtime": "mnn"}, "target rk3288 has figures for ncnn only, got 'mnn'"),
        ("host", {"threads": 10**6}, "got 1000000"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_what_it_can(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_target(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("boards.yaml", "\nruntime: ncnn", "\nruntim: ncnn", "runtim: unknown key; did you mean 'runtime'?"),
        ("boards.yaml", "commit: 1d0b78", "commit: xyz", "boards.0.commit"),
        ("calibration.csv", "target,threads", "target,cores", "the columns must be target, threads"),
        ("calibration.csv", "rk3288,1,instructions,1", "rk3288,1,instructions,-1", "multiplying_ms: Input should be"),
        ("calibration.csv", "rk3288,1,", "rk3288,,", "threads: Input should be a valid integer"),
        ("armv7/formula.csv", "family,counted", "family,count", "the columns must be family, counted"),
    ],
)
def test_a_wrong_target_file_is_refused(copied_targets: Path, file: str, old: str, new: str, message: str) -> None:
    text = (copied_targets / file).read_text()
    assert old in text
    (copied_targets / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_target("rk3288")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rk3288,20211208,1,", "rk3288,,1,", "a published row must say its version, which is empty for alexnet"),
        ("rk3288,20211208,1,", "rk3288,20211208,,", "a published row must say its threads"),
        ("rk3288,20211208,1,", "rk3288,20211208,one,", "threads and mean_ms must be numbers"),
        (",330.15,", ",0,", "threads and mean_ms must be above zero, got 1 and 0.0"),
        ("target,version", "target,release", "the columns must be target, version"),
    ],
)
def test_a_published_row_without_what_it_needs_is_refused(
    copied_targets: Path, old: str, new: str, message: str
) -> None:
    file = copied_targets / "published.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_published(file)


def test_the_readme_has_the_table_of_targets_as_they_are() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "| `rk3399-a53` |" in readme
    assert with_table(readme, targets_table(targets.TARGETS_FOLDER)) == readme, "run `nas calibrate --write`"


def measured(identity: TableIdentity, ms: float = 0.25) -> ProfiledTable:
    """A table that knows one kernel."""
    rows = {KERNEL.key: Row(ms, 0.01, 3)}
    empty = empty_table(identity)
    return replace(empty, measured_on="2026-01-01", fit=replace(empty.fit, rows=rows))


def host(threads: int = 1, runtime: str | None = None) -> TableIdentity:
    return host_identity(described_target("host", runtime), threads)


def test_host_answers_from_a_table_of_its_own_in_the_users_cache(cache: Path) -> None:
    first = load_target("host")
    assert not cache.exists(), "looking at a target leaves nothing behind"
    with pytest.raises(UnmeasuredKernel):
        first.latency_model.kernel(KERNEL)
    write_table(measured(host()), table_path(host()))
    again = load_target("host")
    assert again.latency_model.kernel(KERNEL).value_ms == 0.25
    assert again.tier is Tier.measured
    assert again.sha256 != first.sha256
    assert [path.parent for path in cache.rglob("*.csv")] == [cache]


def test_host_tables_of_other_threads_processors_and_versions_are_not_mixed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    write_table(measured(host()), table_path(host()))

    def is_empty(threads: int = 1, runtime: str | None = None) -> bool:
        try:
            load_target("host", threads=threads, runtime=runtime).latency_model.kernel(KERNEL)
        except UnmeasuredKernel:
            return True
        return False

    assert is_empty(threads=2)
    assert is_empty(runtime="ncnn")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.0.1")
        assert is_empty()
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_processor_name", lambda: "another processor")
        assert is_empty()
    with monkeypatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 4)
        assert is_empty()
    assert not is_empty()


def test_a_table_of_another_machine_under_this_ones_name_is_refused(cache: Path) -> None:
    other = host().model_copy(update={"cpu": "another processor"})
    write_table(measured(other), table_path(host()))
    with pytest.raises(ConfigError, match="one identity only; cpu is 'another processor' in the file"):
        load_target("host")


def test_a_given_table_stands_in_for_the_machines_own(cache: Path, tmp_path: Path) -> None:
    write_table(measured(host()), table_path(host()))
    write_table(measured(host(), 0.5), tmp_path / "table.csv")
    assert load_target("host", table=tmp_path / "table.csv").latency_model.kernel(KERNEL).value_ms == 0.5


def test_host_without_its_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise targets.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(ConfigError, match="run pip install onnxruntime"):
        load_target("host")


def test_tables_fall_back_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert table_path(host()).parent == tmp_path / ".cache" / "edge-nas" / "tables"
    assert board_table_path("mine", "ncnn", 1) == tmp_path / ".local/share/edge-nas/boards/mine/ncnn-1t.csv"


def test_loading_a_target_needs_neither_pandas_nor_torch_nor_onnxruntime() -> None:
    code = (
        "import sys; from hardware.targets import load_target; load_target('rk3288'); "
        "print([name for name in ('pandas', 'torch', 'onnxruntime', 'onnx', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
