"""The arrows of docs/architecture.md: who may import whom."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Everything that the bare install does not bring, by the extra that does.
HEAVY = (
    "mujoco",
    "yaml",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "pydantic_settings",
    "sqlalchemy",
    "alembic",
    "psycopg",
)
HEAVY += ("obstore", "celery", "kombu", "redis", "structlog", "prometheus_client", "sse_starlette", "jax", "onnxruntime")

FOR_A_TRAINING_NODE = ["amp_core.client", "amp_core.errors", "amp_core.features", "amp_core.npz", "amp_core.dataset"]


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the linter forks, which nothing should do where another test has loaded JAX."""
    return subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": ":".join(str(folder / part) for part in (".", "service", "workers", "migrations")),
            "PATH": "/usr/bin:/bin",
        },
    )


def _copy_tree(folder: Path) -> None:
    for name in ("amp_core", "service", "workers", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def test_the_import_contracts_hold() -> None:
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_broken_contract_is_seen(tmp_path: Path) -> None:
    """The same contracts on a copy of the tree where the science imports the service."""
    _copy_tree(tmp_path)
    with (tmp_path / "amp_core/progress.py").open("a") as file:
        file.write("import ampref_service.api\n")
    done = _lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "amp_core.progress -> ampref_service.api" in done.stdout


PACKAGES = ("amp_core", "ampref_service", "ampref_workers", "ampref_migrations")

IMPORT_FUNCTIONS = ("import_module", "__import__", "resolve_name")
TARGET = re.compile(rf"((?:{'|'.join(PACKAGES)})(?:\.\w+)*):\w+")


def _package_folders(root: Path) -> dict[str, Path]:
    return {name: root / name.removeprefix("ampref_") / ("" if name == "amp_core" else name) for name in PACKAGES}


def _imports_by_string(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that a source names for a later import: `module:attribute`, the argument of a function that imports, or a
    key of a table of lazy exports.

    Args:
      package: that of the source, for relative names.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = TARGET.fullmatch(node.value)
            if match:
                yield match[1]
        if not isinstance(node, ast.Call):
            continue
        function = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [item.value for item in arguments if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if function in IMPORT_FUNCTIONS and texts:
            yield importlib.util.resolve_name(texts[0].partition(":")[0], (texts[1:] or [package])[0])
        elif function == "lazy_exports":
            tables = [item for item in arguments if isinstance(item, ast.Dict)]
            yield from (key.value for table in tables for key in table.keys if isinstance(key, ast.Constant))


def _judge_imports_by_string(root: Path) -> str:
    """What the linters say of a tree, which is changed, once each import by string is an ordinary one."""
    for name, folder in _package_folders(root).items():
        for path in sorted(folder.rglob("*.py")):
            package = ".".join((name, *path.parent.relative_to(folder).parts))
            imports = sorted(set(_imports_by_string(ast.parse(path.read_text()), package)))
            with path.open("a") as file:
                file.writelines(f"\nimport {module}\n" for module in imports)
    done = _lint_imports(root)
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--output-format", "concise", "."]
    banned = subprocess.run(ruff, cwd=root, capture_output=True, text=True)
    return (done.stdout + done.stderr if done.returncode else "") + (banned.stdout + banned.stderr if banned.returncode else "")


def test_imports_by_string_keep_the_contracts(tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    assert _judge_imports_by_string(tmp_path) == ""


def test_a_contract_broken_by_a_string_is_seen(tmp_path: Path) -> None:
    _copy_tree(tmp_path)
    for name, text in {
        "service/ampref_service/variants.py": "importlib.import_module('ampref_workers.app')",
        "service/ampref_service/recipes.py": "importlib.import_module('.app', package=__package__)",
        "amp_core/digests.py": "importlib.import_module('mujoco')",
        "amp_core/kernels.py": "__import__('mujoco')",
        "amp_core/client/__init__.py": "lazy_exports(__name__, {'ampref_service.settings': ('Settings',)})",
        "amp_core/cli/verbs.py": "Verb('up', '', '', 'ampref_workers.cli.up:up')",
    }.items():
        with (tmp_path / name).open("a") as file:
            file.write(f"{text}\n")
    faults = _judge_imports_by_string(tmp_path)
    for line in (
        "ampref_service.variants -> ampref_workers.app",
        "ampref_service.recipes -> ampref_service.app",
        "amp_core.client -> ampref_service.settings",
        "amp_core.cli.verbs -> ampref_workers.cli.up",
        "amp_core/digests.py",
        "amp_core/kernels.py",
    ):
        assert line in faults, faults


def _find_folders_without_init(root: Path) -> set[Path]:
    """Folders with modules that the linters pass over, as they are no packages."""
    sources = (path for folder in _package_folders(root).values() for path in folder.rglob("*.py"))
    return {path.parent for path in sources if not (path.parent / "__init__.py").exists()}


def test_every_folder_of_modules_is_a_package(tmp_path: Path) -> None:
    assert _find_folders_without_init(ROOT) == set()
    (tmp_path / "amp_core/new/deep").mkdir(parents=True)
    (tmp_path / "amp_core/new/deep/module.py").touch()
    assert _find_folders_without_init(tmp_path) == {tmp_path / "amp_core/new/deep"}


CIRCLES = """
import graphlib, json, sys
import grimp

packages = json.loads(sys.argv[1])
graph = grimp.build_graph(*packages, exclude_type_checking_imports=False, cache_dir=None)
imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
groups = {"modules": {module: module for module in graph.modules}}
for parent in [None, *(module for module in graph.modules if graph.find_children(module))]:
    children = graph.find_children(parent) if parent else packages
    groups[f"children of {parent}"] = {
        module: child for module in graph.modules for child in children if module == child or module.startswith(child + ".")
    }
for name, group_of in groups.items():
    edges = {group: set() for group in group_of.values()}
    for module, group in group_of.items():
        edges[group] |= {group_of[other] for other in imports[module] if other in group_of and group_of[other] != group}
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        print(name, " <- ".join(error.args[1]))
"""
"""Prints every circle of modules and, at each level, of packages; imports in functions and for the type checker included."""


def _find_circles(folder: Path, packages: tuple[str, ...]) -> str:
    command = [sys.executable, "-c", CIRCLES, json.dumps(packages)]
    path = ":".join(str(folder / part) for part in (".", "service", "workers", "migrations"))
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_circle_of_modules_or_packages() -> None:
    assert _find_circles(ROOT, PACKAGES) == ""


def test_every_module_is_in_one_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    named = [name for layer in layers for name in layer.split(" | ")]
    folders = _package_folders(ROOT)
    modules = {"ampref_migrations"}
    for package in PACKAGES[:-1]:
        children = (path for path in folders[package].iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
        modules |= {f"{package}.{path.stem}" for path in children if path.stem not in ("__init__", "__main__")}
    assert sorted(named) == sorted(modules - {"amp_core.robots"})  # a folder of robot files


def test_a_circle_is_seen_even_in_a_function(tmp_path: Path) -> None:
    for name, text in {
        "__init__": "",
        "a/__init__": "",
        "a/one": "import pack.b.two",
        "a/other": "",
        "b/__init__": "",
        "b/two": "def f():\n    import pack.a.other",
    }.items():
        file = tmp_path / "pack" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    # Its modules form no circle, its packages do.
    assert _find_circles(tmp_path, ("pack",)).startswith("children of pack ")


def _modules(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if not {"__pycache__", "node_modules"} & set(path.parts)]


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found


def test_nothing_imports_the_tests_and_the_libraries_do_not_print() -> None:
    for path in [path for folder in ("amp_core", "service", "workers", "migrations") for path in _modules(folder)]:
        tree = ast.parse(path.read_text())
        assert "tests" not in _imports(tree), path
        if "cli" not in path.parts:
            prints = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
            assert not prints, f"{path}: print() in lines {prints}"


def test_nothing_that_reads_motions_knows_pickle_load() -> None:
    """Nothing uploaded is ever given to `pickle`; `pickletools` only names opcodes."""
    for path in [path for folder in ("amp_core", "service", "workers") for path in _modules(folder)]:
        assert not _imports(ast.parse(path.read_text())) & {"pickle", "_pickle", "cPickle", "dill", "joblib", "shelve"}, path


def test_a_training_node_imports_without_mujoco_and_without_a_web_stack() -> None:
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import importlib
for module in {FOR_A_TRAINING_NODE!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", blocker], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
