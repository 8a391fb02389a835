"""Imports run one way, and heavy or special libraries are met in the one place that is meant for them."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import itself and what stands further right.
LAYERS = ("nas", "evaluators", "searchspace", "hardware")

# Where a library may be imported: a package, or a file. Every other place is a mistake.
ONLY_IN = {
    "optuna": ("nas/",),
    "ray": ("nas/executors/ray.py", "nas/executors/ray_tune.py"),
    "rich": ("nas/console.py",),
    "optuna_dashboard": ("nas/web/optuna_pages.py",),
    # board.py and guest.py run where nothing else of ours does; the quantizer comes with the runtime.
    "onnxruntime": ("hardware/runners/onnxruntime.py", "hardware/board.py", "hardware/onnx_int8.py"),
    "ncnn": ("hardware/runners/ncnn.py", "hardware/board.py", "hardware/armv7/guest.py"),
    "MNN": ("hardware/runners/mnn.py", "hardware/board.py"),
    "_tools": ("hardware/runners/mnn.py",),
    "torch": ("nas/", "evaluators/", "searchspace/"),
    "safetensors": ("nas/",),
    "scipy": ("nas/gaussian_process.py", "nas/screening.py"),
    "threadpoolctl": ("nas/screening.py",),
    "sklearn": ("evaluators/", "hardware/kernel_fit.py"),
    "PIL": ("evaluators/", "nas/export.py", "nas/front_picture.py"),
}

# Slow to import, or needed by few: they wait until a function is called.
INSIDE_FUNCTIONS = {"sklearn", "PIL", "ray", "onnxruntime", "ncnn", "MNN", "_tools", "optuna_dashboard"}

# What a distribution is called where its module has another name.
MODULE_OF = {
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "mnn": "MNN",
    "optuna-dashboard": "optuna_dashboard",
}

# Part of pydantic, which pins its version and hands out its types; the converter that comes with MNN.
PARTS_OF_OTHERS = {"pydantic_core": "pydantic", "_tools": "MNN"}

# What SQLAlchemy imports by the name in a storage's URL.
IMPORTED_BY_OTHERS = {"psycopg"}

# Extras that no part of the package needs.
EXTRAS_FOR_DEVELOPERS = {"test", "bench"}


@dataclass(frozen=True)
class Import:
    """`module` as file `file` imports it; `runs_on_import` is false inside functions and under TYPE_CHECKING."""

    file: str
    line: int
    module: str
    runs_on_import: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(source: str, file: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, not deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its own package.
            module = node.module if node.level == 0 else file.partition("/")[0]
            found.append(Import(file, node.lineno, module, not deferred))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            deferred = True
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, deferred or (is_type_checking(node) and name == "body"))

    visit(ast.parse(source), False)
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_that_point_left(imports: Iterable[Import]) -> list[Import]:
    return [
        each
        for each in imports
        if each.top in LAYERS and LAYERS.index(each.top) < LAYERS.index(each.file.partition("/")[0])
    ]


def imports_out_of_place(imports: Iterable[Import]) -> list[Import]:
    return [each for each in imports if each.top in ONLY_IN and not each.file.startswith(ONLY_IN[each.top])]


def imports_too_early(imports: Iterable[Import]) -> list[Import]:
    return [each for each in imports if each.top in INSIDE_FUNCTIONS and each.runs_on_import]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    paths = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
    assert len(paths) > 30
    return [
        each
        for path in paths
        for each in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]


@pytest.fixture(scope="module")
def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras.keys() - EXTRAS_FOR_DEVELOPERS)]
    names = {re.split(r"[^A-Za-z0-9._-]", text)[0].lower() for each in lists for text in each}
    return {MODULE_OF.get(name, name) for name in names}


def told(wrong: Iterable[Import]) -> str:
    return "\n".join(map(str, wrong))


def test_imports_run_from_nas_to_hardware_only(imports):
    assert not told(imports_that_point_left(imports))


def test_libraries_stay_where_they_belong(imports):
    assert not told(imports_out_of_place(imports))


def test_rare_libraries_are_imported_inside_functions_only(imports):
    assert not told(imports_too_early(imports))


def test_every_library_that_is_imported_is_declared(imports, declared):
    known = declared | set(sys.stdlib_module_names) | set(LAYERS)
    assert not told(each for each in imports if PARTS_OF_OTHERS.get(each.top, each.top) not in known)


def test_every_declared_library_is_imported_somewhere(imports, declared):
    assert sorted(declared - IMPORTED_BY_OTHERS - {each.top for each in imports}) == []


def test_no_module_hides_the_standard_library_or_a_dependency(declared):
    hidden = set(sys.stdlib_module_names) | declared
    # Inside a package a name hides nothing: `nas.executors.ray` and `runners.onnxruntime` are not `ray`, `onnxruntime`.
    assert [name for name in LAYERS if name in hidden] == []


@pytest.mark.parametrize(
    ("file", "source", "check", "seen"),
    [
        ("hardware/cost.py", "import searchspace.spec", imports_that_point_left, 1),
        ("searchspace/spec.py", "def f():\n    from nas.study import Search", imports_that_point_left, 1),
        ("hardware/a/b.py", "from . import nas", imports_that_point_left, 0),
        ("evaluators/early.py", "from searchspace.network import deploy", imports_that_point_left, 0),
        ("hardware/cost.py", "import numpy, torch.nn as nn", imports_out_of_place, 1),
        ("evaluators/early.py", "if True:\n    import optuna.trial", imports_out_of_place, 1),
        ("nas/study.py", "import raylib", imports_out_of_place, 0),
        ("nas/executors/ray.py", "import ray", imports_too_early, 1),
        ("nas/executors/ray.py", "class A:\n    def __init__(self):\n        import ray", imports_too_early, 0),
        ("evaluators/a.py", "class A:\n    import sklearn.datasets", imports_too_early, 1),
        ("evaluators/a.py", "if TYPE_CHECKING:\n    from PIL import Image", imports_too_early, 0),
        ("evaluators/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from PIL import Image", imports_too_early, 1),
    ],
)
def test_the_checks_see_what_they_are_for(file, source, check, seen):
    assert len(check(imports_of(source, file))) == seen


def test_asking_for_help_loads_no_heavy_library():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nas", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "search" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert loaded & {"torch", "ray", "optuna", "pandas", "numpy", "onnx", "sklearn"} == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_every_folder_of_modules_is_a_package(layer):
    # A folder without __init__.py works in a checkout and is missing from the wheel.
    assert importlib.util.find_spec(layer) is not None
    folders = {path.parent for path in (ROOT / layer).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []
