"""A training node: `ampref` without extras imports, pulls and loads, with no MuJoCo, JAX or web stack to be found.

The wheel is built and installed by pip into an empty virtual environment, without its dependencies: the network is not needed.
Links to exactly the distributions that its base requirements lead to take their place.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from datasetkit import Site, make_bundle, serving
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("amp_core", "ampref_service", "ampref_workers", "ampref_migrations")
FORBIDDEN = (
    *("mujoco", "jax", "yaml", "fastapi", "starlette", "uvicorn", "multipart", "sqlalchemy", "alembic", "psycopg"),
    *("celery", "redis", "obstore", "structlog", "prometheus_client", "pytest", "hypothesis"),
)
NOT_IMPORTED = (*FORBIDDEN, "pydantic")  # typer brings pydantic along; the client has no use for it.
BASE = ("numpy", "httpx2", "blake3", "typer", "rich")
# What the client, and nothing else of ours, consists of.
CLIENT = {
    *("amp_core", "amp_core.client", "amp_core.dataset", "amp_core.dataset.blocks", "amp_core.dataset.manifest"),
    *(
        "amp_core.dataset.names",
        "amp_core.dataset.statistics",
        "amp_core.cpus",
        "amp_core.digests",
        "amp_core.errors",
        "amp_core.features",
        "amp_core.files",
        "amp_core.lazy",
    ),
    *("amp_core.npz", "amp_core.strict_json", "amp_core.version"),
}


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
    """The virtual environment of a training node."""
    work = tmp_path_factory.mktemp("node")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = work.glob("ampref-*.whl")
    node = work / "venv"
    venv.create(node, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(node), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    site = site_packages(node)
    [metadata] = site.glob("ampref-*.dist-info")
    requirements = importlib.metadata.Distribution.at(metadata).requires or []
    for distribution in base_distributions(requirements).values():
        for top in {path.parts[0] for path in distribution.files or [] if path.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return node


def site_packages(node: Path) -> Path:
    [site] = node.glob("lib/python*/site-packages")
    return site


def run(node: Path, program: str, *args: str, environment: dict[str, str] | None = None) -> str:
    """What a program of the node prints, in an environment that has nothing of this one."""
    done = subprocess.run(
        [str(node / "bin" / program), *args],
        env={"PATH": "/usr/bin:/bin", "HOME": str(node.parent), **(environment or {})},
        cwd=node.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_node_has_what_it_needs_and_nothing_else(node: Path) -> None:
    code = f"""
import importlib.util, json
print(json.dumps([name for name in {(*FORBIDDEN, *BASE)!r} if importlib.util.find_spec(name)]))
"""
    assert json.loads(run(node, "python", "-c", code)) == list(BASE)


def test_the_wheel_installs_no_name_that_a_strangers_package_may_have(node: Path) -> None:
    site = site_packages(node)
    [metadata] = site.glob("ampref-*.dist-info")
    installed = importlib.metadata.Distribution.at(metadata).files or []
    tops = {path.parts[0] for path in installed if path.parts[0] != ".."}
    assert tops == {*PACKAGES, metadata.name}
    assert [str(path) for path in installed if path.parts[0] == ".."] == ["../../../bin/ampref"]
    assert all((site / package / "py.typed").is_file() for package in PACKAGES)


def test_the_description_on_an_index_links_to_files_of_the_repository(node: Path) -> None:
    [folder] = site_packages(node).glob("ampref-*.dist-info")
    metadata = importlib.metadata.Distribution.at(folder).metadata
    description = metadata["Description"] or str(metadata.get_payload())
    repository = dict(url.split(", ", 1) for url in metadata.get_all("Project-URL") or [])["Repository"]

    links = re.findall(r"\]\(([^)\s]+)\)", description)
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    paths = [match[1] for link in links if (match := re.match(rf"{re.escape(repository)}/(?:blob|raw)/main/([^#]+)", link))]
    assert len(paths) == len(links)
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_the_client_loads_nothing_of_locking_planning_or_gates(node: Path) -> None:
    code = """
import sys
import amp_core.client
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("amp_core", "ampref_service", "ampref_workers")))
"""
    loaded = set(run(node, "python", "-c", code).split())
    assert {name for name in loaded if not name.startswith("amp_core.client.")} == CLIENT


def test_the_command_shows_its_help(node: Path) -> None:
    assert "pull" in run(node, "ampref", "--help")


def test_it_imports_pulls_and_loads(node: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "locked")
    with serving(Site()) as site:
        site.add(bundle)
        environment = {"AMPREF_URL": site.url, "AMPREF_CACHE": str(tmp_path / "cache")}
        facts: dict[str, Any] = json.loads(run(node, "ampref", "pull", "walk==0.11.0", "--json", environment=environment))
        assert facts["manifest_sha256"] == bundle.manifest.sha256

        code = f"""
import json, sys
import numpy as np
from amp_core.client import load_dataset
data = load_dataset("walk==0.11.0", manifest_sha256={bundle.manifest.sha256!r})
s, t = data.sample_transitions(np.random.default_rng(0), 4)
loaded = sorted(name for name in {NOT_IMPORTED!r} if name in sys.modules)
print(json.dumps([list(data.features.shape), list(data.normalize(s).shape), loaded]))
"""
        loaded = json.loads(run(node, "python", "-c", code, environment=environment))
        assert loaded == [[bundle.num_frames, 13], [4, 13], []]


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
