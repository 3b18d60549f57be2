"""Blobs as objects of S3 and its like, through obstore."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from obstore.exceptions import BaseError, NotFoundError

from amp_core.digests import digest_of, digest_of_file
from amp_core.errors import IntegrityError, NotFound, Unavailable
from ampref_service.blobs.store import (
    CHUNK,
    BlobStat,
    BlobStore,
    DamageLog,
    blob_key,
    damaged_key,
    is_digest,
    missing_blob,
)

_PART = 8 * CHUNK

RENEW_AFTER_SEC = 600.0
"""Above this age a blob that is put again is written again, so that garbage collection sees it as young."""


class ObjectBlobStore(BlobStore):
    """Blobs as objects in `store` (an obstore store); `name` is what errors call it."""

    def __init__(self, store: Any, name: str, damage_log: DamageLog | None = None) -> None:
        super().__init__(damage_log)
        self._store = store
        self._name = name

    def put_file(self, path: Path) -> str:
        digest = digest_of_file(path)
        # obstore reads the file in parts; an upload of several parts becomes visible only when all are there.
        with open(path, "rb") as source:
            if self._write_blob(digest, source):
                self.verify(digest)
        return digest

    def put_bytes(self, data: bytes) -> str:
        digest = digest_of(data)
        self._write_blob(digest, data)
        return digest

    def _write_blob(self, digest: str, source: BinaryIO | bytes) -> bool:
        """Write a blob, unless it was put a short time ago and is whole; whether it was written."""
        try:
            put_time = self.verify(digest).stat.modified
        except (NotFound, IntegrityError):
            put_time = -math.inf
        if time.time() - put_time < RENEW_AFTER_SEC:
            return False
        with self._store_errors():
            obstore.put(self._store, blob_key(digest), source)
        self.damage_log.heal(digest)
        return True

    def set_aside(self, digest: str, identity: tuple[object, ...]) -> str | None:
        try:
            if self.stat(digest).identity != identity:
                return None
        except NotFound:
            return None
        # An object store renames by copying: a put between the two requests is lost, but the row that names it is not, and
        # its reader is told. Objects that rot are rarer than that.
        with self._store_errors(digest):
            obstore.rename(self._store, blob_key(digest), place := damaged_key(digest))
        return place

    def stat(self, digest: str) -> BlobStat:
        with self._store_errors(digest):
            meta = obstore.head(self._store, blob_key(digest))
        modified = float(meta["last_modified"].timestamp())
        return BlobStat(int(meta["size"]), modified, (int(meta["size"]), meta["e_tag"], modified))

    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        size = self.size(digest)
        end = size if end is None else min(end, size)

        def read() -> Iterator[bytes]:
            for first in range(start, end, _PART):
                with self._store_errors(digest):
                    part = bytes(obstore.get_range(self._store, blob_key(digest), start=first, end=min(first + _PART, end)))
                yield part

        return read()

    def delete(self, digest: str) -> bool:
        if not self.exists(digest):
            return False
        with self._store_errors(digest):
            obstore.delete(self._store, blob_key(digest))
        return True

    def iter_digests(self) -> Iterator[tuple[str, float]]:
        with self._store_errors():
            for page in obstore.list(self._store, prefix="sha256"):
                for meta in page:
                    digest = "sha256:" + "".join(meta["path"].split("/")[-2:])
                    if is_digest(digest):
                        yield digest, meta["last_modified"].timestamp()

    def check(self) -> None:
        self.exists("sha256:" + "0" * 64)

    @contextlib.contextmanager
    def _store_errors(self, digest: str | None = None) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            if digest is not None and isinstance(error, NotFoundError | FileNotFoundError):
                raise missing_blob(digest) from None
            raise Unavailable(
                f"the blob store {self._name} failed: {str(error).splitlines()[0][:300]}",
                remedy="Check AMPREF_BLOB_URL, its credentials and that the store is up, then try again",
            ) from error
