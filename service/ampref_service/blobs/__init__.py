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
from ampref_service.urls import check_blob_url

__all__ = ["BlobStore", "DamageLog", "LocalBlobStore", "ObjectBlobStore", "VerifiedBlob", "insecure_endpoint", "open_blobs"]


def open_blobs(url: str, damage_log: DamageLog | None = None, *, make: bool = True) -> BlobStore:
    """The store at `file:///FOLDER`, `s3://BUCKET/PREFIX`, or `memory://` (tests).

    `damage_log` is told of damaged blobs; without it they are only logged.

    Args:
      make: whether the folders are made where they are missing; False for a store that is only read.

    Raises:
      InputRefused: the URL names no store.
    """
    check_blob_url(url)
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalBlobStore(Path(unquote(parts.path)), damage_log, make=make)
    if parts.scheme == "memory":
        return ObjectBlobStore(obstore.store.MemoryStore(), "memory://", damage_log)
    try:
        return ObjectBlobStore.connect(url, damage_log)
    except (obstore.exceptions.BaseError, ValueError) as error:
        reason = str(error).splitlines()[0].replace(url, "it")  # Behind it obstore prints its own data.
        raise InputRefused(f"the blob URL cannot be used: {reason}", expected="file:///FOLDER or s3://BUCKET/PREFIX") from None
