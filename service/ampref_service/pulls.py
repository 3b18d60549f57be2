"""Pulls are counted beside the serving: an answer never waits for the catalog, and none fails for a pull's sake."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import structlog

from amp_core.errors import AmprefError
from ampref_service.catalog import Catalog, pulls
from ampref_service.catalog.records import Puller

log = structlog.get_logger("ampref_service.pulls")

BATCH_SEC = 0.5
_MOST_WAITING = 10_000  # Rows that wait while the catalog is away; more are not counted.


class PullCounter:
    """Counts pulls in the catalog, those of half a second in one transaction."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._counts: Counter[Puller] = Counter()
        self._is_due = False
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(1, "ampref-pulls")

    def count(self, puller: Puller) -> None:
        """Count a pull that begins now."""
        with self._lock:
            if puller in self._counts or len(self._counts) < _MOST_WAITING:
                self._counts[puller] += 1
            if not self._is_due and not self._end.is_set():
                self._is_due = True
                self._pool.submit(self._write_batch)

    def close(self) -> None:
        """Write what waits."""
        self._end.set()
        self._pool.shutdown()
        self._write()

    def _write_batch(self) -> None:
        self._end.wait(BATCH_SEC)
        self._write()

    def _write(self) -> None:
        with self._lock:
            batch, self._counts = self._counts, Counter()
            self._is_due = False
        if not batch:
            return
        try:
            with self._catalog.begin() as session:
                pulls.add_pulls(session, batch)
        except AmprefError as error:
            log.warning("pulls_not_counted_yet", rows=len(batch), reason=error.what)
            with self._lock:  # The next pull, or the end, tries again.
                self._counts.update(batch)
        except Exception as error:
            log.error("pulls_not_counted", rows=len(batch), error=f"{type(error).__name__}: {error}")
