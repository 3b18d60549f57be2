"""Downloading one file into the cache: resumed, verified while it arrives, put in place whole.

The connection's thread reads from its socket into buffers of one block; other threads check their digests and write them, which
costs the reader nothing because both release the interpreter lock. Memory is a handful of blocks, whatever the file's size.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from amp_core.client._cache import Cache, active_partials
from amp_core.client._http import Connection, Retry, RetryableError
from amp_core.cpus import usable_cpus
from amp_core.dataset.blocks import BLOCK_SIZE, block_digest
from amp_core.errors import IntegrityError, Unavailable

__all__ = ["Progress", "Remote", "download", "is_intact"]

log = logging.getLogger("amp_core.client")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total (0 while the total is not known)."""

_BUFFERS = 6
# A large write makes the kernel (Linux 6.18, ext4) take its page cache from large free blocks. In a virtual machine those
# are the ones that went back to the host: their first touch costs ten times the copy. Measured on one, writes of 4 MiB ran
# at 0.35 to 0.5 times curl's rate (bench/bench_pull.py).
_WRITE_BYTES = 1 << 17
# One thread verifies while the other waits for the disk; measured on two cores, one alone is slower (bench/bench_pull.py).
_THREADS = 2
_UNKNOWN_LIMIT = 1 << 30  # Bytes of a file whose size nobody has vouched for.
_STEP_FORWARD = 1 << 20  # Bytes after which a broken transfer counts as having moved forward.


@dataclass(frozen=True)
class Remote:
    """A file as its locked version describes it.

    Args:
      path: below the service's URL.
      digest: `sha256:…` of the whole file.
      size: bytes, where known.
      blocks: BLAKE3 digests of its blocks of `BLOCK_SIZE` bytes; the SHA-256 is checked where there are none.
    """

    path: str
    digest: str
    size: int | None = None
    blocks: tuple[str, ...] | None = None


def is_intact(path: Path, remote: Remote) -> bool:
    """Whether a cached file holds the bytes that it should; False as well when it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if remote.size is not None and size != remote.size:
                return False
            if remote.blocks is None:
                return hashlib.file_digest(file, "sha256").hexdigest() == remote.digest.removeprefix("sha256:")

            def matches(item: tuple[int, str]) -> bool:
                return block_digest(os.pread(file.fileno(), BLOCK_SIZE, item[0] * BLOCK_SIZE)) == item[1]

            with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
                return all(pool.map(matches, enumerate(remote.blocks)))
    except OSError:
        return False


def download(connection: Connection, cache: Cache, remote: Remote, progress: Progress | None = None) -> Path:
    """Fetch, verify and publish one file.

    Raises:
      IntegrityError: the service sent other bytes than the digest promises; nothing is kept of them.
      Unavailable: the service cannot be reached (what came is kept, to resume from), or the cache cannot hold the file.
    """
    for adopt in (True, False):
        with _private_file(cache, remote) as (partial, descriptor):
            cache.sweep(partial)
            sink = _Sink(descriptor, remote, progress)
            try:
                if adopt and remote.size is not None:
                    _adopt(cache, remote, partial, sink)
                adopted = sink.position
                _receive(connection, remote, sink)
                intact = sink.finish()
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise cache.failure(error, remote.size) from error
            except IntegrityError:
                partial.unlink(missing_ok=True)
                raise
            finally:
                sink.close()
            if intact:
                return cache.publish(partial, remote.digest)
            partial.unlink(missing_ok=True)
            if not adopted:
                raise _differs(remote)
            # The left-behind part was bad: once more, without it.
    raise AssertionError("unreachable")


@contextmanager
def _private_file(cache: Cache, remote: Remote) -> Iterator[tuple[Path, int]]:
    partial = cache.new_partial(remote.digest)
    active_partials.add(partial)
    try:
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise cache.failure(error, remote.size) from error
        try:
            yield partial, descriptor
        finally:
            os.close(descriptor)
    finally:
        active_partials.discard(partial)
        if partial.exists() and partial.stat().st_size == 0:
            partial.unlink(missing_ok=True)


class _Sink:
    """Where bytes go, in order: assembled into blocks, written and checked by other threads."""

    def __init__(self, descriptor: int, remote: Remote, progress: Progress | None) -> None:
        self._descriptor = descriptor
        self._remote = remote
        self._progress = progress
        self._sha = hashlib.sha256()
        # One thread keeps the order that SHA-256 needs.
        self._workers = ThreadPoolExecutor(_THREADS if remote.blocks is not None else 1, "ampref-verify")
        self._writing = threading.Lock()
        self._tasks: set[Future[None]] = set()
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._made = 0
        self._limit = remote.size if remote.size is not None else _UNKNOWN_LIMIT
        # A byte more than the file has shows a service that sends too many.
        self._length = min(BLOCK_SIZE, self._limit + 1)
        self._buffer: bytearray | None = None
        self._filled = 0
        self._reported = 0
        self.position = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises what a writing or checking thread has raised."""
        view = memoryview(data)
        while view:
            room = self.room()
            count = min(len(view), len(room))
            room[:count] = view[:count]
            room.release()
            view = view[count:]
            self.took(count)

    def room(self) -> memoryview:
        """Where the next bytes may be put directly; tell `took` how many there were."""
        if self._buffer is None:
            self._buffer = self._take()
        return memoryview(self._buffer)[self._filled :]

    def took(self, count: int) -> None:
        """`count` bytes were put into `room()`. Raises what a writing or checking thread has raised."""
        self._filled += count
        self.position += count
        if self._filled == BLOCK_SIZE:
            self._dispatch()
        if self.position > self._limit:
            raise IntegrityError(
                "the service sends more bytes than the file has",
                file=self._remote.path,
                expected=f"{self._limit:,} bytes",
                remedy="Ask the service's operator to verify its blobs.",
            )
        if self._progress is not None and self.position - self._reported >= _STEP_FORWARD:
            self._report()

    def finish(self) -> bool:
        """Write and check what is left; whether all digests are right."""
        if self._filled:
            self._dispatch()
        self._collect(everything=True)
        if self._remote.blocks is not None:
            if self.position != self._remote.size:
                return False
        elif f"sha256:{self._sha.hexdigest()}" != self._remote.digest:
            return False
        # Network file systems write when a descriptor is closed, and say only then that there is no room.
        os.close(os.dup(self._descriptor))
        if self._progress is not None:
            self._report()
        return True

    def close(self) -> None:
        """Stop the threads; an unfinished block is written, so that the next one can resume from it."""
        self._workers.shutdown(wait=True)
        if self._buffer is not None and self._filled:
            try:
                os.pwrite(self._descriptor, memoryview(self._buffer)[: self._filled], self.position - self._filled)
            except OSError:
                log.debug("could not keep the last bytes of %s", self._remote.path)

    def _dispatch(self) -> None:
        buffer, filled, offset = self._buffer, self._filled, self.position - self._filled
        assert buffer is not None
        self._buffer, self._filled = None, 0
        self._tasks.add(self._workers.submit(self._settle, buffer, filled, offset))
        self._collect()

    def _settle(self, buffer: bytearray, filled: int, offset: int) -> None:
        try:
            data = memoryview(buffer)[:filled]
            blocks = self._remote.blocks
            if blocks is None:
                self._sha.update(data)
            else:
                index = offset // BLOCK_SIZE
                if index >= len(blocks) or block_digest(data) != blocks[index]:
                    raise _differs(self._remote, f"bytes {offset:,} to {offset + filled:,}")
            written = 0
            # One at a time: the kernel lets no two write to one file, and the second would burn a core while it waits.
            with self._writing:
                while written < filled:
                    written += os.pwrite(self._descriptor, data[written : written + _WRITE_BYTES], offset + written)
            del data
        finally:
            self._free.put(buffer)

    def _collect(self, everything: bool = False) -> None:
        for task in [task for task in self._tasks if everything or task.done()]:
            self._tasks.discard(task)
            task.result()

    def _take(self) -> bytearray:
        if self._made < _BUFFERS:
            self._made += 1
            return bytearray(self._length)
        return self._free.get()

    def _report(self) -> None:
        self._reported = self.position
        if self._progress is not None:
            self._progress(self.position, self._remote.size or 0)


def _adopt(cache: Cache, remote: Remote, mine: Path, sink: _Sink) -> None:
    """Copy what an interrupted download of the same file has left behind, as far as it is good."""
    taken = cache.claim_abandoned(remote.digest, mine)
    if taken is None or remote.size is None:
        return
    try:
        # Another machine may have swept it away just now.
        with suppress(FileNotFoundError), open(taken, "rb") as file:
            while sink.position < remote.size:
                block = file.read(min(BLOCK_SIZE, remote.size - sink.position))
                if not block:
                    break
                if remote.blocks is not None:
                    index = sink.position // BLOCK_SIZE
                    if index >= len(remote.blocks) or block_digest(block) != remote.blocks[index]:
                        break
                sink.feed(block)
    finally:
        taken.unlink(missing_ok=True)
    log.info("resuming %s at %d bytes", remote.path, sink.position)


def _receive(connection: Connection, remote: Remote, sink: _Sink) -> None:
    """Bring the sink to the end of the file, over as many connections as it takes while each of them moves forward."""
    etag = f'"{remote.digest.removeprefix("sha256:")}"'
    complete = remote.size is not None and sink.position >= remote.size
    while not complete:
        before = sink.position

        def call(patience: Retry) -> bool:
            nonlocal etag
            etag = _receive_once(connection, remote, sink, etag, patience)
            return True

        try:
            complete = connection.retried(call, connection.retry)
        except Unavailable:
            if sink.position - before < _STEP_FORWARD:
                raise
        if complete and remote.size is not None and sink.position < remote.size:
            complete = False


def _receive_once(connection: Connection, remote: Remote, sink: _Sink, etag: str, patience: Retry) -> str:
    """One request for what is missing. Returns the ETag that the service gave."""
    # Compression would make ranges and digests speak of other bytes.
    headers = {"accept": "*/*", "accept-encoding": "identity"}
    if sink.position:
        headers |= {"range": f"bytes={sink.position}-", "if-range": etag}
    with connection.stream("GET", remote.path, headers=headers, retry=patience) as response:
        skip = _to_skip(response, remote, sink)
        came = 0
        chunks = response.iter_raw()
        for chunk in chunks:
            came += len(chunk)
            if skip:
                # The service sent the whole file in answer to a range; what is here already passes by.
                passed = min(skip, len(chunk))
                skip -= passed
                chunk = chunk[passed:]
            if chunk:
                sink.feed(chunk)
            if not skip and (plain := _plain_body(response)) is not None:
                _drain(*plain, came, patience, sink)
                break
        if remote.size is not None and sink.position < remote.size:
            raise RetryableError(
                Unavailable(
                    f"the service ended the file after {sink.position:,} of {remote.size:,} bytes",
                    file=remote.path,
                    remedy="Try again; if it repeats, ask the service's operator to verify its blobs.",
                )
            )
        given = response.headers.get("etag", etag)
        return etag if given.startswith("W/") else given


def _plain_body(response: httpx2.Response) -> tuple[socket.socket, int] | None:
    """The socket and the length of a body that can be read from the socket itself; None where it cannot.

    The HTTP library hands out 64 KiB at a time, copied four times. A body in HTTP/1.1 with a length and no transfer coding is
    the plain bytes of the connection, and once a first chunk was handed out, the library holds none of them back: the rest
    can go from the socket (of the library's making: proxies, redirects and TLS are as ever) into the place where it stays.
    """
    length = response.headers.get("content-length", "")
    if response.http_version != "HTTP/1.1" or "transfer-encoding" in response.headers or not length.isdigit():
        return None
    stream = response.extensions.get("network_stream")
    if stream is None:
        return None
    found, encrypted = stream.get_extra_info("socket"), stream.get_extra_info("ssl_object")
    # TLS within TLS (an https proxy) does not decrypt in the socket.
    usable = isinstance(found, socket.socket) and (encrypted is None or encrypted is found)
    return (found, int(length)) if usable else None


def _drain(source: socket.socket, length: int, came: int, patience: Retry, sink: _Sink) -> None:
    """Read what is left of a body of `length` bytes, of which `came` have come, from its socket into the sink."""
    source.settimeout(patience.read)
    while came < length:
        room = sink.room()[: length - came]
        try:
            count = source.recv_into(room)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpx2.ReadError(str(error)) from error
        finally:
            room.release()
        if not count:
            raise httpx2.RemoteProtocolError(f"the connection was closed after {came:,} of {length:,} bytes")
        came += count
        sink.took(count)


def _to_skip(response: httpx2.Response, remote: Remote, sink: _Sink) -> int:
    """How many bytes of this response the sink already has."""
    if response.status_code != 206:
        return sink.position
    unit, _, span = response.headers.get("content-range", "").partition(" ")
    start = span.partition("-")[0]
    if unit != "bytes" or not start.isdigit() or int(start) > sink.position:
        raise Unavailable(
            "the service answered another byte range than was asked for",
            file=remote.path,
            expected=f"bytes from {sink.position}",
            remedy="A proxy between here and the service may be at fault.",
        )
    return sink.position - int(start)


def _differs(remote: Remote, where: str | None = None) -> IntegrityError:
    place = f" ({where})" if where else ""
    return IntegrityError(
        f"the service sent other bytes than the version was locked with{place}",
        file=remote.path,
        expected=remote.digest,
        remedy="Try once more; if it repeats, the service's copy or a proxy is damaged: do not train on it.",
    )
