"""The arrows of docs/architecture.md: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
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
HEAVY += ("obstore", "celery", "kombu", "redis", "structlog", "prometheus_client", "sse_starlette", "jax")

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


def test_the_import_contracts_hold() -> None:
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_broken_contract_is_seen(tmp_path: Path) -> None:
    """The same contracts on a tree where the science imports the service."""
    for package in ("amp_core", "ampref_service", "ampref_service/api", "ampref_workers", "ampref_migrations"):
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
    (tmp_path / "amp_core/rollout.py").write_text("import ampref_service.api\n")
    config = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")
    # Of the contracts only the first names nothing but packages, which is all that this tree has.
    first = "[[tool.importlinter.contracts]]".join(config[2].split("[[tool.importlinter.contracts]]")[:2])
    (tmp_path / "pyproject.toml").write_text(config[1] + first)
    done = _lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "amp_core.rollout -> ampref_service.api" in done.stdout


def _modules(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]


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
