"""What the tests of this folder share: its kits, and a catalog whose clock they move."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from catalogkit import Clock, opened

from ampref_service.catalog import Catalog
from ampref_service.jobs import JobQueue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(database_url: str, clock: Clock) -> Iterator[Catalog]:
    with opened(database_url, clock) as value:
        yield value


@pytest.fixture
def queue(catalog: Catalog) -> JobQueue:
    return JobQueue(catalog, lease_sec=30, max_attempts=3, backoff_sec=2, ring_again_sec=60)
