"""Answering rows of an export: read from its blob as far as they need, after all of it was verified once."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from amp_core.digests import digest_of
from amp_core.errors import Busy, InputRefused
from amp_core.frames import FrameWindow, WindowType, select_frames, slice_frames
from amp_core.npz import StoredArray, locate_arrays
from ampref_service.api.files import BINARY, IMMUTABLE, StoredFile, lists_etag, naming, verify_in_turn
from ampref_service.blobs import BlobStore, VerifiedBlob
from ampref_service.errors import ParameterRefused

_LAYOUTS = 4096  # Exports whose arrays are known where they are: 4 kB each.
_LARGE = 1 << 20  # Bytes of an answer that needs one of some places, which it has until it was sent.
_LARGE_PLACES = 16
_CHUNK = 128 << 10  # Bytes that are handed over at a time: what is handed over waits in memory for a reader that does not read.
_PLACES: RunVar[anyio.CapacityLimiter] = RunVar("ampref_frames")


@dataclass(frozen=True)
class FrameQuery:
    """Which rows of which arrays are asked for, and how floats are sent."""

    names: tuple[str, ...] | None
    start: int
    stop: int | None
    dtype: WindowType


class FrameLayouts:
    """Where the exports that were read last have their arrays. Safe to share between threads."""

    def __init__(self) -> None:
        self._layouts: OrderedDict[str, dict[str, StoredArray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, blobs: BlobStore, blob: VerifiedBlob) -> dict[str, StoredArray]:
        """The arrays of an export's blob."""
        with self._lock:
            if (layout := self._layouts.get(blob.digest)) is not None:
                self._layouts.move_to_end(blob.digest)
                return layout
        with blobs.open_verified(blob) as file:
            layout = locate_arrays(file, Path(blob.digest))
        with self._lock:
            self._layouts[blob.digest] = layout
            while len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        return layout


_layouts = FrameLayouts()


def serve_frames(request: Request, blobs: BlobStore, file: StoredFile, query: FrameQuery) -> Response:
    """The answer to a GET of rows of an export: 200 or 304; what cannot be answered is refused when the answer is sent."""
    # The digest of the export stands for its bytes, and the same rows of them are the same answer.
    key = json.dumps([file.digest, query.names, query.start, query.stop, query.dtype])
    etag = f'"{digest_of(key.encode()).removeprefix("sha256:")}"'
    headers = {"etag": etag, "cache-control": IMMUTABLE}
    if lists_etag(request.headers.get("if-none-match", ""), etag, weak=True):
        return Response(status_code=304, headers=headers)
    return _FramesResponse(blobs, file, query, headers)


class _FramesResponse(Response):
    """Rows of an export, which are read when the answer is sent."""

    def __init__(self, blobs: BlobStore, file: StoredFile, query: FrameQuery, headers: dict[str, str]) -> None:
        super().__init__(headers=headers, media_type=BINARY)
        self._blobs = blobs
        self._file = file
        self._query = query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        blob = await verify_in_turn(self._blobs, self._file)
        window = await anyio.to_thread.run_sync(self._select, blob)
        place: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if window.nbytes > _LARGE:
            place = _take_place()
        with place:
            body = memoryview(await anyio.to_thread.run_sync(self._slice, blob, window))
            headers = {**self.headers, "content-length": str(len(body))}
            # Ends when the client leaves; each piece waits until most of those before it were sent.
            await StreamingResponse(_iterate_pieces(body), self.status_code, headers, BINARY)(scope, receive, send)

    def _select(self, blob: VerifiedBlob) -> FrameWindow:
        query = self._query
        with naming(self._file):
            arrays = _layouts.get(self._blobs, blob)
            try:
                return select_frames(arrays, query.names, query.start, query.stop, query.dtype)
            except InputRefused as error:
                raise ParameterRefused(
                    error.what, key=f"query.{error.key}", expected=error.expected, remedy=error.remedy
                ) from None

    def _slice(self, blob: VerifiedBlob, window: FrameWindow) -> bytes:
        with naming(self._file), self._blobs.open_verified(blob) as file:
            return slice_frames(file, window)


async def _iterate_pieces(body: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]


@contextlib.contextmanager
def _take_place() -> Iterator[None]:
    """One of the places for large answers, which it has until it was sent; raises `Busy` where all are taken."""
    try:
        places = _PLACES.get()
    except LookupError:
        _PLACES.set(places := anyio.CapacityLimiter(_LARGE_PLACES))
    borrower = object()
    try:
        places.acquire_on_behalf_of_nowait(borrower)
    except anyio.WouldBlock:
        raise Busy("too many long windows of frames are being sent", remedy="Try again, or ask for fewer rows") from None
    try:
        yield
    finally:
        places.release_on_behalf_of(borrower)
