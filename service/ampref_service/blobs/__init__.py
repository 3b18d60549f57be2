"""The content-addressed store: bytes go in, their SHA-256 comes out, and only damaged bytes are ever overwritten.

Digests are written `sha256:<64 hex digits>` everywhere.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore.exceptions
import obstore.store

from amp_core.errors import InputRefused
from ampref_service.blobs.local import LocalBlobStore
from ampref_service.blobs.objects import ObjectBlobStore, insecure_endpoint
from ampref_service.blobs.store import BlobStore, DamageLog, VerifiedBlob

__all__ = ["BlobStore", "DamageLog", "LocalBlobStore", "ObjectBlobStore", "VerifiedBlob", "insecure_endpoint", "open_blobs"]


def open_blobs(url: str, damage_log: DamageLog | None = None) -> BlobStore:
    """The store at `file:///FOLDER` (made where it is missing), `s3://BUCKET/PREFIX`, or `memory://` (tests).

    `damage_log` is told of damaged blobs; without it they are only logged.

    Raises:
      InputRefused: the URL names no store.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InputRefused(f"blob URL {url!r} names no folder", expected="file:/// and an absolute path")
        return LocalBlobStore(Path(unquote(parts.path)), damage_log)
    if parts.scheme == "memory":
        return ObjectBlobStore(obstore.store.MemoryStore(), "memory://", damage_log)
    expected = "file:///FOLDER or s3://BUCKET/PREFIX"
    if parts.scheme not in ("s3", "gs", "az"):
        raise InputRefused(f"blob URL of unknown scheme {parts.scheme!r}", expected=expected)
    try:
        return ObjectBlobStore.connect(url, damage_log)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise InputRefused(f"the blob URL cannot be used: {error}", expected=expected) from None
