"""A real HTTP server with locked versions, and the client's functions with a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clientkit import QUICK, SPEC
from datasetkit import Site, make_bundle, serving

from amp_core.client import load_dataset, pull


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_bundle(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """About 13 MB: several blocks."""
    return make_bundle(tmp_path_factory.mktemp("large"), clips=4, frames=52_000, seed=1)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


@pytest.fixture
def get(site: Site, tmp_path: Path) -> Callable[..., Any]:
    """Pulls from the site into this test's cache."""

    def call(spec: str = SPEC, **options: Any) -> Any:
        return pull(spec, **({"url": site.url, "cache_dir": tmp_path / "cache", "retry": QUICK} | options))

    return call


@pytest.fixture
def load(site: Site, tmp_path: Path) -> Callable[..., Any]:
    def call(spec: str = SPEC, **options: Any) -> Any:
        return load_dataset(spec, **({"url": site.url, "cache_dir": tmp_path / "cache", "retry": QUICK} | options))

    return call
