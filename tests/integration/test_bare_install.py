"""A training node: `ampref` without extras imports, pulls and loads, with no MuJoCo, JAX or web stack to be found.

The wheel is built and unpacked into a folder beside links to exactly the distributions that its base requirements lead to; an
interpreter is started that sees this folder and the standard library, and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasetkit import Site, make_bundle, serving
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FORBIDDEN = (
    *("mujoco", "jax", "yaml", "fastapi", "starlette", "uvicorn", "multipart", "sqlalchemy", "alembic", "psycopg"),
    *("celery", "redis", "obstore", "structlog", "prometheus_client", "pytest", "hypothesis"),
)
NOT_IMPORTED = (*FORBIDDEN, "pydantic")  # typer brings pydantic along; the client has no use for it.
BASE = ("numpy", "httpx2", "blake3", "typer", "rich")


def base_distributions(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Everything that a plain install of these requirements brings, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        wanted = todo.pop()
        extras = wanted.extras or {""}
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        distribution = importlib.metadata.distribution(wanted.name)
        if wanted.name in found and not wanted.extras:
            continue
        found[wanted.name] = distribution
        for text in distribution.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                todo.append(needed)
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site folder of a training node."""
    work = tmp_path_factory.mktemp("node")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = work.glob("ampref-*.whl")
    site = work / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    [metadata] = site.glob("ampref-*.dist-info")
    requirements = importlib.metadata.Distribution.at(metadata).requires or []
    for distribution in base_distributions(requirements).values():
        for top in {path.parts[0] for path in distribution.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return site


def run(node: Path, code: str, *args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code on the node: isolated, without site packages."""
    start = f"import sys; sys.path.insert(0, {str(node)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code, *args],
        env={"PATH": "/usr/bin:/bin", "HOME": str(node.parent), **(environment or {})},
        cwd=node.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_node_has_what_it_needs_and_nothing_else(node: Path) -> None:
    code = f"""
import importlib.util, json
print(json.dumps([name for name in {(*FORBIDDEN, *BASE)!r} if importlib.util.find_spec(name)]))
"""
    assert json.loads(run(node, code).stdout) == list(BASE)


def test_it_imports_pulls_and_loads(node: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "locked")
    with serving(Site()) as site:
        site.add(bundle)
        environment = {"AMPREF_URL": site.url, "AMPREF_CACHE": str(tmp_path / "cache")}
        command = "from amp_core.cli.main import main\nsys.exit(main())"
        pulled = run(node, command, "pull", "walk==0.11.0", "--json", environment=environment)
        assert pulled.returncode == 0, pulled.stderr
        facts: dict[str, Any] = json.loads(pulled.stdout)
        assert facts["manifest_sha256"] == bundle.manifest.sha256

        code = f"""
import json
import numpy as np
from amp_core.client import load_dataset
data = load_dataset("walk==0.11.0", manifest_sha256={bundle.manifest.sha256!r})
s, t = data.sample_transitions(np.random.default_rng(0), 4)
loaded = sorted(name for name in {NOT_IMPORTED!r} if name in sys.modules)
print(json.dumps([list(data.features.shape), list(data.normalize(s).shape), loaded]))
"""
        loaded = run(node, code, environment=environment)
        assert loaded.returncode == 0, loaded.stderr
        assert json.loads(loaded.stdout) == [[bundle.num_frames, 13], [4, 13], []]


def test_a_pull_imports_no_web_stack_even_where_there_is_one(tmp_path: Path) -> None:
    """The same in this environment, which has everything: what is not needed is not imported."""
    bundle = make_bundle(tmp_path / "locked")
    with serving(Site()) as site:
        site.add(bundle)
        code = f"""
import sys
from amp_core.client import load_dataset
load_dataset("walk==0.11.0", url={site.url!r}, cache_dir={str(tmp_path / "cache")!r})
print(sorted(name for name in {NOT_IMPORTED!r} if name in sys.modules))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.stdout.strip() == "[]", done.stderr
