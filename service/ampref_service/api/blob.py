"""Serving one stored file: validators, conditional requests, byte ranges, HEAD.

The ETag is strong and is the content's own SHA-256, so a client can resume, revalidate and verify with the same value.
Rules are those of RFC 9110 §13–14: `If-Match`, then `If-None-Match`, then `Range` under `If-Range`. Several ranges in one
request are answered with the whole file, which the RFC allows and no client of ours asks for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from amp_core.errors import AmprefError, IntegrityError, NotFound
from ampref_service.blobs import BlobStore
from ampref_service.errors import MEDIA_TYPE, RangeNotSatisfiable, problem, responses

READ_BYTES = 1024 * 1024
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "public, no-cache"

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


class PreconditionFailed(AmprefError):
    """If-Match names other bytes than there are."""

    slug = "precondition-failed"
    title = "Other bytes than expected"
    status = 412


@dataclass(frozen=True)
class StoredFile:
    """A blob with what HTTP must say about it: `digest` is `sha256:…`, `cache` a Cache-Control value."""

    digest: str
    size: int
    filename: str
    media_type: str
    cache: str

    @property
    def etag(self) -> str:
        return '"' + self.digest.removeprefix("sha256:") + '"'

    def headers(self) -> dict[str, str]:
        sha256 = base64.b64encode(bytes.fromhex(self.digest.removeprefix("sha256:"))).decode()
        return {
            "etag": self.etag,
            "cache-control": self.cache,
            "accept-ranges": "bytes",
            "repr-digest": f"sha-256=:{sha256}:",
            "content-disposition": f'attachment; filename="{self.filename}"',
        }


def serve(request: Request, blobs: BlobStore, file: StoredFile, headers: dict[str, str] | None = None) -> Response:
    """The answer to a GET or HEAD of `file`: 200, 206, 304, 412 or 416."""
    given, known = request.headers, file.headers() | (headers or {})
    if "if-match" in given and not _matches(given["if-match"], file.etag, weak=False):
        error = PreconditionFailed("If-Match names other bytes than there are", key="if-match", expected=file.etag)
        return problem(request.scope, error)
    if "if-none-match" in given and _matches(given["if-none-match"], file.etag, weak=True):
        return Response(status_code=304, headers=known)
    span = _span(given.get("range"), file.size)
    if "if-range" in given and given["if-range"].strip() != file.etag:
        span = None
    if span is None:
        start, end, status = 0, file.size, 200
    elif span[0] >= span[1]:
        outside = RangeNotSatisfiable(
            f"the file has {file.size:,} bytes", key="range", expected=f"a range within 0-{file.size - 1}"
        )
        return problem(request.scope, outside, headers={"content-range": f"bytes */{file.size}"})
    else:
        (start, end), status = span, 206
        known["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    known["content-length"] = str(end - start)
    _check_there(blobs, file)
    if request.method == "HEAD":
        return Response(status_code=status, headers=known, media_type=file.media_type)
    return _BlobResponse(_chunks(blobs, file.digest, start, end), status, known, file.media_type)


def _check_there(blobs: BlobStore, file: StoredFile) -> None:
    """Refuse before the headers are out what could not be sent after them. Blobs never change, so this stays true."""
    try:
        size = blobs.size(file.digest)
        path = blobs.local_path(file.digest)
        if path is not None:
            path.open("rb").close()
    except (NotFound, OSError) as error:
        reason = "is not there" if isinstance(error, NotFound) else f"cannot be read ({error.strerror or error})"
        raise _damaged(file, reason) from None
    if size != file.size:
        raise _damaged(file, f"has {size:,} bytes instead of {file.size:,}")


def _damaged(file: StoredFile, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the stored bytes of this file are damaged: the blob {reason}",
        file=file.filename,
        expected=f"{file.size:,} bytes with {file.digest}",
        remedy="The operator has to put the blob store (AMPREF_BLOB_URL) back from a backup, or check its permissions",
    )


def _matches(header: str, etag: str, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in tags or (weak and f"W/{etag}" in tags)


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open byte range asked for, `start >= end` when it lies outside, None when there is none that we serve."""
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last = match.groups()
    if first:
        if last and int(last) < int(first):
            return None
        return int(first), min(int(last) + 1, size) if last else size
    if not last:
        return None
    return (size, size) if int(last) == 0 else (max(0, size - int(last)), size)


async def _chunks(blobs: BlobStore, digest: str, start: int, end: int) -> AsyncIterator[bytes]:
    path = await anyio.to_thread.run_sync(blobs.local_path, digest)
    if path is None:
        async for chunk in iterate_in_threadpool(blobs.iter_range(digest, start, end)):
            yield chunk
        return
    file = await anyio.to_thread.run_sync(lambda: open(path, "rb", buffering=0))  # noqa: SIM115 - closed below
    try:
        file.seek(start)
        left = end - start
        while left > 0:
            chunk = await anyio.to_thread.run_sync(file.read, min(READ_BYTES, left))
            if not chunk:
                raise OSError(f"blob {digest} is shorter than its row says")
            left -= len(chunk)
            yield chunk
    finally:
        file.close()


class _BlobResponse(StreamingResponse):
    """A stream that closes its file at once when the client leaves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            close = getattr(self.body_iterator, "aclose", None)
            if close is not None:
                await close()


def file_responses(media_type: str, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an endpoint that serves a file."""
    binary = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    problem_body = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = {
        "ETag": {"description": "The file's SHA-256, quoted.", "schema": {"type": "string"}},
        "Repr-Digest": {"description": "The file's SHA-256 (RFC 9530).", "schema": {"type": "string"}},
        "Accept-Ranges": {"schema": {"type": "string"}},
    }
    return {
        200: {"description": "The whole file", "content": binary, "headers": headers},
        206: {"description": "The range that was asked for", "content": binary, "headers": headers},
        304: {"description": "The client's copy is current", "headers": headers},
        412: {"description": "If-Match names other bytes", "content": problem_body},
        **responses(416, *statuses),
    }
