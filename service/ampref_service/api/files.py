"""Serving one stored file: validators, conditional requests, byte ranges, HEAD.

No digest is promised of bytes that were not verified: all of a blob before its first answer by this process, in a thread of
few, so that other requests do not wait, and each window again while it is sent. A window that has rotted ends the connection.

The ETag is strong and is the content's SHA-256, so a client can resume, revalidate and verify with the same value. Rules are
those of RFC 9110 §13–14: `If-Match`, then `If-None-Match`, then `Range` under `If-Range`. Several ranges in one request are
answered with the complete file, which the RFC allows and no client of ours asks for.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import re
import tarfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from amp_core.errors import IntegrityError, NotFound
from ampref_service.api.deps import accept_link
from ampref_service.api.problems import BODY_STATUSES, problem, responses
from ampref_service.blobs import BlobStore, VerifiedBlob
from ampref_service.errors import BrokenAnswer, PreconditionFailed, RangeNotSatisfiable

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "public, no-cache"
BINARY = "application/octet-stream"
TAR = "application/x-tar"
ZERO_COPY = "http.response.zerocopysend"
"""ASGI's extension by which the kernel sends parts of files, and the type of its messages: `file, offset, count, more_body`.

An answer with such messages has all of its body in them, and the header `connection: close`: uvicorn counts the bytes that go
through it, and can answer nothing else on that connection.
"""

_TAR_BLOCK = tarfile.BLOCKSIZE
_SPAN = 8 << 20  # Bytes whose windows are checked together before the kernel sends them.
_REDIRECT_SEC = 600.0  # How long a signed URL is valid: a download that was begun in time goes on.
_READERS = 4  # Blobs that are read for the first time at once.
_TURNS: RunVar[tuple[WeakValueDictionary[str, anyio.Lock], anyio.CapacityLimiter]] = RunVar("ampref_turns")

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class StoredFile:
    """A blob with what HTTP needs besides its bytes: `digest` is `sha256:…`, `cache` a Cache-Control value."""

    digest: str
    size: int
    filename: str
    media_type: str = BINARY
    cache: str = IMMUTABLE

    @property
    def etag(self) -> str:
        return f'"{self.digest.removeprefix("sha256:")}"'

    def headers(self) -> dict[str, str]:
        sha256 = base64.b64encode(bytes.fromhex(self.digest.removeprefix("sha256:"))).decode()
        return {
            "etag": self.etag,
            "cache-control": self.cache,
            "accept-ranges": "bytes",
            "repr-digest": f"sha-256=:{sha256}:",
            "content-disposition": f'attachment; filename="{self.filename}"',
        }


def serve_file(
    request: Request,
    blobs: BlobStore,
    file: StoredFile,
    extra_headers: dict[str, str] | None = None,
    *,
    may_redirect: bool = False,
) -> Response:
    """The answer to a GET or HEAD of `file`: 200, 206, 304, 412 or 416. A damaged blob is refused when the answer is sent.

    With `may_redirect` a GET is sent to the store itself (307) where that has URLs of its own. No digest is promised then: the
    reader has it from the version, and checks it.
    """
    conditions, headers = request.headers, file.headers() | (extra_headers or {})
    if "if-match" in conditions and not lists_etag(conditions["if-match"], file.etag, weak=False):
        mismatch = PreconditionFailed("If-Match names other bytes than there are", key="if-match", expected=file.etag)
        return problem(request.scope, mismatch)
    if "if-none-match" in conditions and lists_etag(conditions["if-none-match"], file.etag, weak=True):
        return Response(status_code=304, headers=headers)
    if may_redirect and request.method == "GET" and (url := blobs.sign_url(file.digest, _REDIRECT_SEC)) is not None:
        if not blobs.exists(file.digest):
            raise blobs.refuse(file.digest, None, "is not there")
        return Response(status_code=307, headers=(extra_headers or {}) | {"location": url, "cache-control": "no-store"})
    # RFC 9110 §14.2: a range is for GET alone.
    has_range = request.method == "GET" and conditions.get("if-range", file.etag).strip() == file.etag
    span = _parse_range(conditions.get("range", ""), file.size) if has_range else None
    start, end = span or (0, file.size)
    if start >= end and span:
        outside = RangeNotSatisfiable(
            f"the file has {file.size:,} bytes", key="range", expected=f"a range within 0-{file.size - 1}"
        )
        return problem(request.scope, outside, headers={"content-range": f"bytes */{file.size}"})
    if span:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["content-length"] = str(end - start)
    return _BlobResponse(blobs, [(b"", file, start, end)], 206 if span else 200, headers, file.media_type)


def begins_download(request: Request, response: Response) -> bool:
    """Whether an answer of `serve_file` brings a file from its first byte on, by itself or from the store that it leads to.

    HEAD, 304 and what goes on within a file do not, nor does a look at the first byte alone.
    """
    if request.method != "GET":
        return False
    if response.status_code == 206:
        return response.headers["content-range"].startswith("bytes 0-") and response.headers["content-length"] != "1"
    begin = request.headers.get("range", "bytes=0-").replace(" ", "")
    return response.status_code == 200 or (response.status_code == 307 and begin.startswith("bytes=0-"))


def serve_archive(blobs: BlobStore, files: Sequence[StoredFile]) -> Response:
    """The answer with several files in one tar archive, by name and in this order. Nothing is sent where one is damaged."""
    size = sum(_TAR_BLOCK + file.size + -file.size % _TAR_BLOCK for file in files) + 2 * _TAR_BLOCK
    headers = {"content-length": str(size), "cache-control": "no-store"}
    parts, padding = [], 0
    for file in files:
        header = tarfile.TarInfo(file.filename)
        header.size = file.size
        parts.append((bytes(padding) + header.tobuf(tarfile.USTAR_FORMAT), file, 0, file.size))
        padding = -file.size % _TAR_BLOCK
    return _BlobResponse(blobs, parts, 200, headers, TAR, end=bytes(padding + 2 * _TAR_BLOCK))


def lists_etag(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a condition's header names this ETag; `weak` by the comparison of `If-None-Match`."""
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in tags or (weak and f"W/{etag}" in tags)


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open byte range of a Range header, `start >= end` when it lies outside, None for one that is not served."""
    match = _RANGE.fullmatch(header)
    if match is None:
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is None:
        return None if last is None else (max(0, size - last) if last else size, size)
    if last is None:
        return first, size
    return None if last < first else (first, min(last + 1, size))


class _BlobResponse(StreamingResponse):
    """Ranges of files that are verified before the first header is sent; it closes its file at once when the client leaves.

    Args:
      parts: some bytes each, and after them a range of a file.
      end: the last bytes.
    Raises:
      IntegrityError: when it is sent: a blob is missing, cannot be read or has other bytes.
    """

    def __init__(
        self,
        blobs: BlobStore,
        parts: Sequence[tuple[bytes, StoredFile, int, int]],
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        *,
        end: bytes = b"",
    ) -> None:
        super().__init__(iter(()), status, headers, media_type)
        self._blobs = blobs
        self._parts = parts
        self._end = end
        # Made in the endpoint's thread: the look at each file may ask another machine.
        self._known_blobs = [_find_verified(blobs, file) for _, file, _, _ in parts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        verified_blobs = [
            blob or await verify_in_turn(self._blobs, file)
            for blob, (_, file, _, _) in zip(self._known_blobs, self._parts, strict=True)
        ]
        if scope["method"] != "HEAD":
            if ZERO_COPY in scope.get("extensions", {}) and self._is_from_disk():
                await self._send_from_disk(send, verified_blobs[0])
                return
            # The first window is checked before a header promises a digest: it may have rotted since the blob was verified.
            reader = self._read(verified_blobs)
            first = await anyio.to_thread.run_sync(next, reader, b"")
            self.body_iterator = iterate_in_threadpool(itertools.chain([first], reader))
        async with contextlib.aclosing(cast(AsyncGenerator[bytes, None], self.body_iterator)):
            try:
                await super().__call__(scope, receive, send)
            except IntegrityError as error:
                raise BrokenAnswer(error.what) from error

    def _is_from_disk(self) -> bool:
        """Whether it is a large part of one file of this machine, which the kernel can send by itself."""
        (_, _, start, stop), *more = self._parts
        return self._blobs.has_cheap_stat and not more and not self._end and stop - start >= _SPAN

    async def _send_from_disk(self, send: Send, blob: VerifiedBlob) -> None:
        """Have the kernel send the file, a span after each check of its windows, which it then holds in its cache."""
        _, file, position, stop = self._parts[0]
        with await anyio.to_thread.run_sync(_open_blob, self._blobs, file) as content:

            async def check_span() -> int:
                end = min(stop, position - position % _SPAN + _SPAN)
                if not self._blobs.are_trusted(blob, position, end):
                    with naming(file):
                        await anyio.to_thread.run_sync(self._blobs.check_windows, blob, content, position, end)
                return end

            await check_span()  # Before a header promises a digest.
            self.headers["connection"] = "close"
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                while position < stop:
                    end = await check_span()
                    message = {"type": ZERO_COPY, "file": content, "offset": position, "count": end - position}
                    await send(message | {"more_body": end < stop})
                    position = end
            except IntegrityError as error:
                raise BrokenAnswer(error.what) from error

    def _read(self, verified_blobs: Sequence[VerifiedBlob]) -> Iterator[bytes | memoryview]:
        # Opened by the first chunk that is asked for: nothing stays open of an answer that is never begun.
        for (header, file, start, stop), blob in zip(self._parts, verified_blobs, strict=True):
            if header:
                yield header
            with naming(file):
                yield from self._blobs.iter_windows(blob, start, stop)
        if self._end:
            yield self._end


@contextlib.contextmanager
def naming(file: StoredFile) -> Iterator[None]:
    """Errors of damage name the file."""
    try:
        yield
    except IntegrityError as error:
        error.file = file.filename
        raise


def _open_blob(blobs: BlobStore, file: StoredFile) -> BinaryIO:
    with naming(file):
        try:
            return blobs.open(file.digest)
        except NotFound:
            raise blobs.refuse(file.digest, None, "is not there") from None


def _find_verified(blobs: BlobStore, file: StoredFile) -> VerifiedBlob | None:
    try:
        return blobs.find_verified(file.digest)
    except NotFound:
        return None


async def verify_in_turn(blobs: BlobStore, file: StoredFile) -> VerifiedBlob:
    """The blob of a file that this process reads for the first time: one of many requests for it reads it, the others wait.

    They wait without a thread, and the readers have threads of their own, so that a large file delays nobody else.
    """
    try:
        locks, readers = _TURNS.get()
    except LookupError:
        locks, readers = WeakValueDictionary(), anyio.CapacityLimiter(_READERS)
        _TURNS.set((locks, readers))
    lock = locks.get(file.digest)
    if lock is None:
        lock = locks[file.digest] = anyio.Lock()
    async with lock:
        return await anyio.to_thread.run_sync(_verify_blob, blobs, file, limiter=readers)


def _verify_blob(blobs: BlobStore, file: StoredFile) -> VerifiedBlob:
    """The blob of a file.

    Raises:
      IntegrityError: it is missing, cannot be read or has other bytes; nothing is promised of it then.
    """
    with naming(file):
        try:
            return blobs.verify_once(file.digest)
        except NotFound:
            raise blobs.refuse(file.digest, None, "is not there") from None


def add_file_route(
    router: APIRouter,
    path: str,
    endpoint: Callable[..., Any],
    name: str,
    *,
    media_types: Sequence[str] = (BINARY,),
    dependencies: list[Any] | None = None,
) -> None:
    """Serve the file that `endpoint` returns to GET (`get_{name}`) and HEAD (`head_{name}`), by a key or a signed link."""
    for method in ("GET", "HEAD"):
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            name=f"{method.lower()}_{name}",
            response_class=Response,
            responses=file_responses(*media_types),
            dependencies=[*(dependencies or ()), Depends(accept_link)],
        )


def npz_responses(description: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an endpoint that answers with an npz which it makes, or that there is nothing to make it of."""
    return {
        200: {"description": description, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The client's copy is current"},
        **responses(404),
    }


def file_responses(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an endpoint that serves a file, or that there is none."""
    binary = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    headers = {
        "ETag": {"description": "The file's SHA-256, quoted.", "schema": {"type": "string"}},
        "Repr-Digest": {"description": "The file's SHA-256 (RFC 9530).", "schema": {"type": "string"}},
        "Accept-Ranges": {"schema": {"type": "string"}},
    }
    return {
        200: {"description": "The whole file", "content": binary, "headers": headers},
        206: {"description": "The range that was asked for", "content": binary, "headers": headers},
        304: {"description": "The client's copy is current", "headers": headers},
        307: {"description": "The file of a version is at `Location`, for some minutes; only with `AMPREF_REDIRECT_DOWNLOADS`"},
        **responses(404, 412, 416),
    }


ARCHIVE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The files", "content": {TAR: {"schema": {"type": "string", "format": "binary"}}}},
    **responses(404, *BODY_STATUSES),
}
