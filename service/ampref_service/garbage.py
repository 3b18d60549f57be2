"""Deleting blobs that no row of the catalog names."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from ampref_service.blobs import BlobStore, LocalBlobStore, ObjectBlobStore
from ampref_service.blobs.objects import RENEW_AFTER_SEC
from ampref_service.catalog import Catalog, blob_refs

_BATCH = 200


def delete_unreferenced(
    catalog: Catalog, store: BlobStore, *, grace_sec: float = 3600.0, should_stop: Callable[[], bool] = lambda: False
) -> list[str]:
    """Delete the blobs that no row of the catalog names and that were last put more than `grace_sec` ago.

    The grace covers the time between storing a blob and committing the row that names it: storing it, again or for the first
    time, makes it young. Any number of processes may collect at a time. Returns the deleted digests.
    """
    if isinstance(store, ObjectBlobStore):
        # A blob that is put again is renewed only above an age, so that much more has to pass.
        grace_sec = max(grace_sec, 2 * RENEW_AFTER_SEC)
    blobs = itertools.takewhile(lambda _: not should_stop(), store.iter_digests())
    old = (digest for digest, put_time in blobs if time.time() - put_time >= grace_sec)
    deletions: list[str] = []
    while batch := list(itertools.islice(old, _BATCH)):
        with catalog.session() as session:
            orphans = blob_refs.unreferenced(session, batch)
        # `delete_older` reads the age again, because a blob may have been put again since it was listed.
        deletions.extend(digest for digest in sorted(orphans) if not should_stop() and store.delete_older(digest, grace_sec))
    if isinstance(store, LocalBlobStore) and not should_stop():
        store.drop_partials(max(grace_sec, 60.0))
    return deletions
