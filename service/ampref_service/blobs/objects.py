"""Blobs as objects of S3 and its like, through obstore.

Credentials, region and endpoint are those of the `AWS_*` variables. An endpoint that says `http://` is used without TLS.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import obstore
import obstore.store
from obstore.exceptions import BaseError, NotFoundError

from amp_core.digests import digest_of, digest_of_file
from amp_core.errors import IntegrityError, NotFound, Unavailable
from ampref_service.blobs.store import (
    CHUNK,
    DAMAGED,
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


_CLIENT = {"connect_timeout": "3s", "read_timeout": "30s", "timeout": "10min"}
_PROBE_CLIENT = {"connect_timeout": "3s", "read_timeout": "4s", "timeout": "8s"}
_RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=5), "backoff": {"max_backoff": timedelta(seconds=2)}}
_PROBE_RETRY = {"max_retries": 0}
_WRITE_PROBE_SEC = 60.0  # Between two writes of the check; in between it reads.


def insecure_endpoint() -> str | None:
    """The endpoint that is reached without TLS, by the environment."""
    urls = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    return next((url for url in urls if url.lower().startswith("http://")), None)


class ObjectBlobStore(BlobStore):
    """Blobs as objects in `store` (an obstore store).

    Args:
      name: what errors call the store.
      probe: the same store with less patience, for `check`.
    """

    def __init__(self, store: Any, name: str, damage_log: DamageLog | None = None, *, probe: Any = None) -> None:
        super().__init__(damage_log)
        self._store = store
        self._name = name
        self._probe = probe or store
        self._write_probed_at = -math.inf

    @classmethod
    def connect(cls, url: str, damage_log: DamageLog | None = None) -> ObjectBlobStore:
        """The store at `s3://BUCKET/PREFIX` and its like."""
        allow_http = {"allow_http": True} if insecure_endpoint() else {}
        store, probe = (
            obstore.store.from_url(url, client_options=client | allow_http, retry_config=retry)  # type: ignore[call-overload]
            for client, retry in ((_CLIENT, _RETRY), (_PROBE_CLIENT, _PROBE_RETRY))
        )
        parts = urlsplit(url)
        return cls(store, f"{parts.scheme}://{parts.hostname}{parts.path}", damage_log, probe=probe)

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

    def iter_leftovers(self) -> Iterator[str]:
        with self._store_errors():
            for prefix in ("tmp", DAMAGED):
                for page in obstore.list(self._store, prefix=prefix):
                    yield from (meta["path"] for meta in page)

    def check(self) -> None:
        with self._store_errors():
            # A missing bucket answers a look at one object as a missing object does.
            next(iter(obstore.list(self._probe, prefix="tmp", chunk_size=1)), None)
            if time.monotonic() - self._write_probed_at >= _WRITE_PROBE_SEC:
                key = f"tmp/check-{uuid.uuid4().hex}"
                obstore.put(self._probe, key, b"ampref", use_multipart=False)
                obstore.delete(self._probe, key)
                self._write_probed_at = time.monotonic()

    def sign_url(self, digest: str, expires_in_sec: float) -> str | None:
        if not isinstance(self._store, obstore.store.S3Store):
            return None
        with self._store_errors(digest):
            return obstore.sign(self._store, "GET", blob_key(digest), timedelta(seconds=expires_in_sec))

    @contextlib.contextmanager
    def _store_errors(self, digest: str | None = None) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            if digest is not None and isinstance(error, NotFoundError | FileNotFoundError):
                raise missing_blob(digest) from None
            if "NoSuchBucket" in str(error):
                raise Unavailable(
                    f"the blob store {self._name} has no bucket: the server knows none of this name",
                    remedy="Make the bucket there, or correct AMPREF_BLOB_URL",
                ) from error
            raise Unavailable(
                f"the blob store {self._name} failed: {str(error).splitlines()[0][:300]}",
                remedy="Check AMPREF_BLOB_URL, its credentials and that the store is up, then try again",
            ) from error
