"""Downloading one file into the cache: resumed, verified while it arrives, put in place complete.

One thread reads, writes and hashes each chunk while the processor's cache holds it. A second thread for the digests and the
file costs more processor time than it saves: see `pull` in docs/benchmarks.md. Memory does not depend on the file's size.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from amp_core.client.cache import Cache
from amp_core.client.http import Connection, Retry, RetryableError
from amp_core.client.transport import STEP_FORWARD
from amp_core.cpus import usable_cpus
from amp_core.dataset.blocks import BLOCK_SIZE, block_digest, block_hasher
from amp_core.errors import IntegrityError, Unavailable

__all__ = ["UNKNOWN_LIMIT", "FileWriter", "Progress", "RemoteFile", "download", "is_intact"]

log = logging.getLogger("amp_core.client")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total (0 while the total is not known)."""

# A large write makes the kernel (Linux 6.18, ext4) take its page cache from large free blocks. In a virtual machine those
# are the ones that went back to the host: their first touch costs ten times the copy. Measured on one, writes of 4 MiB ran
# at 0.35 to 0.5 times curl's rate (bench/bench_pull.py).
_WRITE_BYTES = 1 << 17
UNKNOWN_LIMIT = 1 << 30
"""Bytes of a file whose size is not known beforehand."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its locked version describes it.

    Args:
      path: below the service's URL.
      digest: `sha256:…` of the whole file.
      size: bytes, where known.
      blocks: BLAKE3 digests of its blocks of `BLOCK_SIZE` bytes; the SHA-256 is checked where there are none.
      origin: where else the service may send a reader for it, as `scheme://host[:port]`.
    """

    path: str
    digest: str
    size: int | None = None
    blocks: tuple[str, ...] | None = None
    origin: str | None = None

    def has_block(self, data: bytes | memoryview, offset: int) -> bool:
        """Whether `data` is the block at `offset`; True where the file has no list of blocks."""
        index = offset // BLOCK_SIZE
        return self.blocks is None or (index < len(self.blocks) and block_digest(data) == self.blocks[index])

    def refuse(self, place: str = "") -> IntegrityError:
        """The error for bytes that have another digest; `place` says which."""
        return IntegrityError(
            f"the service sent other bytes than the version was locked with{place}",
            file=self.path,
            expected=self.digest,
            remedy="Try once more; if it repeats, the service's copy or a proxy is damaged: do not train on it.",
        )


def is_intact(path: Path, remote: RemoteFile) -> bool:
    """Whether a cached file holds the bytes that it should; False as well when it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if remote.size is not None and size != remote.size:
                return False
            if remote.blocks is None:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == remote.digest

            def check(offset: int) -> bool:
                return remote.has_block(os.pread(file.fileno(), BLOCK_SIZE, offset), offset)

            with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
                return all(pool.map(check, range(0, size, BLOCK_SIZE)))
    except OSError:
        return False


def download(
    connection: Connection,
    cache: Cache,
    remote: RemoteFile,
    progress: Progress | None = None,
    *,
    adopt: bool = True,
) -> Path:
    """Fetch, verify and publish one file.

    Args:
      adopt: whether to begin with what an interrupted download of the same file has left behind.
    Raises:
      IntegrityError: the service sent other bytes than the digest promises; none of them is kept.
      Unavailable: the service cannot be reached (what came is kept, to resume from), or the cache cannot hold the file.
      CancelledError: the connection was told to stop; what came is kept.
    """
    num_adopted = 0
    try:
        with cache.partials.create(remote.digest) as (partial, descriptor):
            cache.partials.sweep(partial)
            writer = FileWriter(descriptor, remote, progress, connection.stop)
            if adopt and remote.size is not None:
                num_adopted = _adopt(cache, remote, partial, writer)
            _receive(connection, remote, writer)
            writer.finish()
            return cache.publish(partial, remote.digest)
    except OSError as error:
        raise cache.failure(error, remote.size) from error
    except IntegrityError:
        if not num_adopted:
            raise
    # The bytes that were left behind may have been wrong.
    return download(connection, cache, remote, progress, adopt=False)


class FileWriter:
    """Writes what arrives and checks it: each block when it is complete, or the whole file at its end.

    Args:
      descriptor: of the partial file.
      stop: refuses further bytes when it is set.
    Attributes:
      position: bytes that are written.
      limit: bytes that the file has, or may have.
    """

    def __init__(
        self, descriptor: int, remote: RemoteFile, progress: Progress | None, stop: threading.Event | None = None
    ) -> None:
        self.position = 0
        self._stop = stop
        self._descriptor = descriptor
        self._remote = remote
        self._progress = progress
        self._reported_position = 0
        self.limit = remote.size if remote.size is not None else UNKNOWN_LIMIT
        self._hasher = hashlib.sha256() if remote.blocks is None else block_hasher()

    def write(self, data: bytes | memoryview) -> None:
        """Add the next bytes.

        Raises:
          IntegrityError: they exceed the file's size, or complete a block that has another digest.
          OSError: the file cannot be written.
          CancelledError: the download is to end.
        """
        if self._stop is not None and self._stop.is_set():
            raise CancelledError
        self.check_size(self.position + len(data))
        view = memoryview(data)
        while view:
            room = BLOCK_SIZE - self.position % BLOCK_SIZE
            count = os.pwrite(self._descriptor, view[: min(room, _WRITE_BYTES)], self.position)
            self._hasher.update(view[:count])
            self.position += count
            view = view[count:]
            if count == room:
                self._check_block()
        if self.position - self._reported_position >= STEP_FORWARD:
            self._report()

    def check_size(self, size: int) -> None:
        """Raise `IntegrityError` for more bytes than the file has."""
        if size > self.limit:
            raise IntegrityError(
                f"the service sends more bytes than the file has: {size:,}",
                file=self._remote.path,
                expected=f"{self.limit:,} bytes" if self._remote.size is not None else f"at most {self.limit:,} bytes",
                remedy="Ask the service's operator to verify its blobs.",
            )

    def finish(self) -> None:
        """Check what is left.

        Raises:
          IntegrityError: size or digest differ.
          OSError: the file cannot be written.
        """
        if self.position % BLOCK_SIZE:
            self._check_block()
        if self._remote.blocks is None:
            intact = f"sha256:{self._hasher.hexdigest()}" == self._remote.digest
        else:
            intact = self.position == self._remote.size
        if not intact:
            raise self._remote.refuse()
        # Network file systems write when a descriptor is closed, and report only then that there is no room.
        os.close(os.dup(self._descriptor))
        self._report()

    def _check_block(self) -> None:
        """Check the block that ends at `position`, and begin the next one."""
        blocks = self._remote.blocks
        if blocks is None:
            return
        index = (self.position - 1) // BLOCK_SIZE
        if index >= len(blocks) or self._hasher.hexdigest() != blocks[index]:
            raise self._remote.refuse(f" (bytes {index * BLOCK_SIZE:,} to {self.position:,})")
        self._hasher = block_hasher()

    def _report(self) -> None:
        self._reported_position = self.position
        if self._progress is not None:
            self._progress(self.position, self._remote.size or 0)


def _adopt(cache: Cache, remote: RemoteFile, partial: Path, writer: FileWriter) -> int:
    """Copy the intact beginning of what an interrupted download of the same file has left behind; how many bytes it has."""
    partial_path = cache.partials.claim(remote.digest, partial)
    if partial_path is None or remote.size is None:
        return 0
    try:
        # Another machine may just have swept it away.
        with suppress(FileNotFoundError), open(partial_path, "rb") as file:
            while block := file.read(min(BLOCK_SIZE, remote.size - writer.position)):
                if not remote.has_block(block, writer.position):
                    break
                writer.write(block)
    except (OSError, IntegrityError):
        partial_path.unlink(missing_ok=True)
        raise
    partial_path.unlink(missing_ok=True)
    log.info("resuming %s at %d bytes", remote.path, writer.position)
    return writer.position


def _receive(connection: Connection, remote: RemoteFile, writer: FileWriter) -> None:
    """Bring the writer to the end of the file, over as many connections as it takes while each of them moves forward."""
    while True:
        start = writer.position
        try:
            connection.retry_call(lambda retry: _receive_once(connection, remote, writer, retry), connection.retry)
            return
        except Unavailable:
            if writer.position - start < STEP_FORWARD:
                raise


def _receive_once(connection: Connection, remote: RemoteFile, writer: FileWriter, retry: Retry) -> None:
    """One request for the missing bytes."""
    if remote.size is not None and writer.position >= remote.size:
        return
    # Compression would make ranges and digests mean other bytes.
    headers = {"accept": "*/*", "accept-encoding": "identity"}
    if writer.position:
        # The service's entity tag of a file is its digest.
        headers |= {"range": f"bytes={writer.position}-", "if-range": f'"{remote.digest.removeprefix("sha256:")}"'}
    with connection.stream(
        "GET", remote.path, headers=headers, retry=retry, is_transfer=True, origin=remote.origin
    ) as response:
        skip = _count_known(response, remote, writer.position)
        length = re.fullmatch(r"\d{1,18}", response.headers.get("content-length", ""))
        writer.check_size(writer.position - skip + (int(length[0]) if length else 0))
        for chunk in response.iter_raw():
            writer.write(chunk[skip:])
            skip = max(0, skip - len(chunk))
    if remote.size is not None and writer.position < remote.size:
        raise RetryableError(
            Unavailable(
                f"the service ended the file after {writer.position:,} of {remote.size:,} bytes",
                file=remote.path,
                remedy="Try again; if it repeats, ask the service's operator to verify its blobs.",
            )
        )


def _count_known(response: httpx2.Response, remote: RemoteFile, position: int) -> int:
    """How many bytes of this response the writer has: all up to `position` where the service sends the file from its start."""
    if response.status_code != 206:
        return position
    match = re.fullmatch(r"bytes (\d{1,18})-.*", response.headers.get("content-range", ""))
    if match is None or int(match[1]) > position:
        raise Unavailable(
            "the service answered another byte range than was asked for",
            file=remote.path,
            expected=f"bytes from {position}",
            remedy="A proxy between here and the service may be at fault.",
        )
    return position - int(match[1])
