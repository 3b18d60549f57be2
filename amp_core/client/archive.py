"""Several files in one answer: a tar archive, each member verified and put into the cache as it arrives."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence

import httpx2

from amp_core.client.cache import Cache
from amp_core.client.download import FileWriter, Progress, RemoteFile
from amp_core.client.http import Connection, Retry, RetryableError
from amp_core.errors import IntegrityError, Unavailable

__all__ = ["fetch_arrays"]

_PATH = "v1/arrays"
_MOST_FILES = 200  # As many as the service sends in one answer.
_MOST_BYTES = 64 << 20  # Bytes of one request: a connection that breaks loses no more than one file, and no request is endless.


def fetch_arrays(connection: Connection, cache: Cache, files: Sequence[RemoteFile], progress: Progress | None = None) -> int:
    """Download exports into the cache, one request a batch; the number of bytes.

    Every file that has arrived is kept when the connection breaks, and only the others are requested again.

    Args:
      files: with their sizes; no two of one digest.
      progress: called with bytes done and in total.
    Raises:
      NotFound: the service does not have one of them; the message has its digest.
      IntegrityError: it sent other bytes than a digest promises; they are not kept.
      Unavailable: it cannot be reached, or the cache cannot hold the files.
    """
    total, amount = sum(file.size or 0 for file in files), 0
    remaining = {file.digest: file for file in files}
    while remaining:
        batch = _select_batch(remaining)
        count = len(remaining)

        def receive(retry: Retry, batch: Mapping[str, RemoteFile] = batch) -> None:
            nonlocal amount
            missing = [file for digest, file in batch.items() if digest in remaining]
            for file in _receive(connection, cache, missing, retry):
                del remaining[file.digest]
                amount += file.size or 0
                if progress is not None:
                    progress(amount, total)

        try:
            connection.retry_call(receive, connection.retry)
        except Unavailable:
            if len(remaining) == count:
                raise
    return amount


def _select_batch(files: Mapping[str, RemoteFile]) -> dict[str, RemoteFile]:
    """The first files that one request may ask for."""
    batch: dict[str, RemoteFile] = {}
    size = 0
    for digest, file in files.items():
        size += file.size or 0
        if batch and (len(batch) == _MOST_FILES or size > _MOST_BYTES):
            break
        batch[digest] = file
    return batch


def _receive(connection: Connection, cache: Cache, files: Sequence[RemoteFile], retry: Retry) -> Iterator[RemoteFile]:
    """Each of the files when it is in the cache, by one request."""
    body = {"digests": [file.digest for file in files]}
    # Compression would cost the service more than the network gains: the arrays are floating-point numbers.
    headers = {"accept": "*/*", "accept-encoding": "identity"}
    with connection.stream("POST", _PATH, retry=retry, json=body, headers=headers, is_transfer=True) as response:
        reader = _Reader(response)
        for file in files:
            name, size = _read_header(reader)
            if (name, size) != (f"{file.digest.removeprefix('sha256:')}.npz", file.size):
                raise IntegrityError(
                    f"the service sent {name[:80]!r} of {size:,} bytes instead of the file that was asked for",
                    file=file.path,
                    expected=f"{file.size or 0:,} bytes with {file.digest}",
                    remedy="Try once more; if it repeats, ask the service's operator to verify its blobs.",
                )
            try:
                with cache.partials.create(file.digest) as (partial, descriptor):
                    try:
                        writer = FileWriter(descriptor, file, None)
                        for chunk in reader.iterate(size):
                            writer.write(chunk)
                        writer.finish()
                        cache.publish(partial, file.digest)
                    finally:
                        partial.unlink(missing_ok=True)  # Nothing resumes in the middle of an archive.
            except OSError as error:
                raise cache.failure(error, file.size) from error
            reader.read(-size % tarfile.BLOCKSIZE)
            yield file


def _read_header(reader: _Reader) -> tuple[str, int]:
    """Name and size of the next member."""
    try:
        header = tarfile.TarInfo.frombuf(reader.read(tarfile.BLOCKSIZE), "ascii", "strict")
    except (tarfile.TarError, UnicodeError) as error:
        raise Unavailable(
            f"the service answered something else than an archive of files ({error})",
            file=_PATH,
            remedy="Check the address: something else may be listening there.",
        ) from error
    return header.name, header.size


class _Reader:
    """Reads a response's body in pieces of given sizes."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.iter_raw()
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, exactly so many."""
        return b"".join(self.iterate(size))

    def iterate(self, size: int) -> Iterator[memoryview]:
        """The next bytes, exactly so many, in the pieces that arrive."""
        while size:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise RetryableError(
                        Unavailable(
                            "the service ended the archive early",
                            file=_PATH,
                            remedy="Try again; if it repeats, look into the service's log.",
                        )
                    )
                self._rest = memoryview(chunk)
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece
