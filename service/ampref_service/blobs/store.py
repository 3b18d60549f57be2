"""What every blob store can do, and the errors that all of them raise."""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from amp_core.errors import DiskFull, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.files import NO_ROOM

CHUNK = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


class BlobStat(NamedTuple):
    """The size of a blob in bytes, and when it was last put (epoch seconds)."""

    size: int
    modified: float


class BlobStore(abc.ABC):
    """Blobs by digest. Safe to share between threads and processes. Methods that read raise `NotFound` for a missing blob."""

    @abc.abstractmethod
    def put_file(self, path: Path) -> str:
        """Store a copy of a file in constant memory and return its digest. Storing the same bytes again is free."""

    @abc.abstractmethod
    def put_bytes(self, data: bytes) -> str:
        """Store some bytes and return their digest."""

    @abc.abstractmethod
    def stat(self, digest: str) -> BlobStat:
        """The size and the age of a blob."""

    @abc.abstractmethod
    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `start ≤ i < end` in chunks; raises `NotFound` before the first one."""

    @abc.abstractmethod
    def delete(self, digest: str) -> bool:
        """Remove a blob; False when there was none."""

    @abc.abstractmethod
    def iter_digests(self) -> Iterator[tuple[str, float]]:
        """Every blob with the time it was last put (epoch seconds)."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `Unavailable` unless the store can be reached and written."""

    def size(self, digest: str) -> int:
        """Bytes in a blob."""
        return self.stat(digest).size

    def put_time(self, digest: str) -> float | None:
        """When a blob was last put (epoch seconds), None when there is none."""
        try:
            return self.stat(digest).modified
        except NotFound:
            return None

    def exists(self, digest: str) -> bool:
        """Whether there is such a blob."""
        return self.put_time(digest) is not None

    def delete_older(self, digest: str, age_sec: float) -> bool:
        """Remove a blob unless it was put within the last `age_sec`; False when it stays or there was none."""
        put_time = self.put_time(digest)
        return put_time is not None and time.time() - put_time >= age_sec and self.delete(digest)

    def local_path(self, digest: str) -> Path | None:
        """The file of a blob where blobs are local files (for memory maps), else None."""
        self.stat(digest)
        return None

    def open(self, digest: str) -> BinaryIO:
        """A blob as a readable, seekable file."""
        chunks = self.iter_range(digest)
        spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=8 * CHUNK))  # noqa: SIM115 - the caller closes it
        for chunk in chunks:
            spool.write(chunk)
        spool.seek(0)
        return spool

    def iter_verified(self, digest: str) -> Iterator[bytes]:
        """All bytes of a blob in chunks; raises `IntegrityError` after the last one where they do not have the digest."""
        hasher = hashlib.sha256()
        for chunk in self.iter_range(digest):
            hasher.update(chunk)
            yield chunk
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise IntegrityError(f"the stored bytes do not have the digest {digest}", remedy="Restore this blob from a backup")

    def read_bytes(self, digest: str) -> bytes:
        """All bytes of a blob; raises `IntegrityError` where they do not have the digest."""
        return b"".join(self.iter_verified(digest))

    def fetch(self, digest: str, target: Path) -> None:
        """Copy a blob into a new file; raises `IntegrityError`, and leaves no file, where the bytes do not have the digest."""
        try:
            with disk_errors(target.parent), open(target, "wb") as out:
                out.writelines(self.iter_verified(digest))
        except IntegrityError:
            target.unlink(missing_ok=True)
            raise

    def verify(self, digest: str) -> None:
        """Read all of a blob; raises `IntegrityError` where its bytes do not have the digest."""
        for _ in self.iter_verified(digest):
            pass


def is_digest(text: str) -> bool:
    """Whether `text` is written as a digest is."""
    return _DIGEST.match(text) is not None


def blob_key(digest: str) -> str:
    """Where a blob is below the root of its store: `sha256/ab/cdef…`. Raises `InputRefused` for what is no digest."""
    if not is_digest(digest):
        raise InputRefused(f"{digest[:80]!r} is not a blob digest", expected="sha256: and 64 lower-case hex digits")
    return f"sha256/{digest[7:9]}/{digest[9:]}"


def missing_blob(digest: str) -> NotFound:
    """The error for a blob that is not in the store."""
    return NotFound(f"no blob {digest}", remedy="It was deleted, or AMPREF_BLOB_URL points to another store than the catalog's")


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise `DiskFull` or `Unavailable` for a disk that is full, read-only, closed to this user or broken."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM | {errno.EFBIG}:
            raise DiskFull(
                f"no space left for blobs in {folder}", remedy="Free some disk space and send it again; nothing was stored"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise Unavailable(
                f"{folder} cannot be written",
                remedy="Give this user write access to it, or set AMPREF_DATA_DIR to another folder",
            ) from error
        if error.errno == errno.EIO:
            raise Unavailable(f"the disk of {folder} fails: {error}", remedy="Replace the disk") from error
        raise
