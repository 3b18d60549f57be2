"""What every blob store can do, how its bytes are verified, and the errors that all of them raise.

Bytes are verified before they are promised: all of a blob by its SHA-256 when a process reads it for the first time, then each
window of it by a checksum while it is sent. A blob with other bytes is set aside under `damaged/`, reported to the `DamageLog`,
and comes back with the next put of the right ones. `docs/storage.md` tells the operator.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import io
import math
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import structlog

from amp_core.dataset.blocks import block_hasher
from amp_core.errors import AmprefError, DiskFull, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.files import NO_ROOM

log = structlog.get_logger("ampref_service.blobs")

CHUNK = 1024 * 1024
WINDOW = CHUNK
"""Bytes that have a checksum of their own; `iter_range` yields whole windows from a start that is a multiple of it."""
TRUST_SEC = 5.0
"""How long a window that was checked is sent without another check, while its file has the same size and time."""
DAMAGED = "damaged"
"""The folder, or prefix, of blobs that were set aside."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_OTHER_BYTES = "has other bytes than its digest says"
_SUM_BYTES = 16
_MOST_SUMS = 1 << 18  # Of windows whose checksums are remembered: 256 GiB of blobs in 4 MiB of memory.
_MOST_SMALL = 1 << 14  # Of blobs that are.
_UNOPENABLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_REMEDY = "The operator brings it back: ampref fsck --repair --from BACKUP (the folder of a backup; docs/storage.md)"


class BlobStat(NamedTuple):
    """The size of a blob in bytes, when it was last put (epoch seconds), and an identity that a blob written anew has not."""

    size: int
    modified: float
    identity: tuple[object, ...]


class DamageLog:
    """Who is told of damaged blobs. This one knows no owners and writes to the log alone."""

    def add(self, digest: str, fault: str, place: str | None) -> str:
        """A blob has a fault (`has other bytes`) and was set aside at `place`. Returns whose it is, as far as is known."""
        log.error("blob_damaged", digest=digest, fault=fault, set_aside=place)
        return ""

    def heal(self, digest: str) -> None:
        """The right bytes of a blob were written."""


@dataclass(frozen=True)
class VerifiedBlob:
    """A blob that has its digest, with the checksums of its windows."""

    digest: str
    stat: BlobStat
    sums: bytes
    checked_at: dict[int, float] = field(default_factory=dict, compare=False)

    def has_window(self, index: int, data: bytes | memoryview) -> bool:
        """Whether `data` is the window at `index`."""
        return window_sum(data) == self.sums[index * _SUM_BYTES : (index + 1) * _SUM_BYTES]


class BlobStore(abc.ABC):
    """Blobs by digest. Safe to share between threads and processes. Methods that read raise `NotFound` for a missing blob.

    Args:
      damage_log: is told of damage.
    """

    has_cheap_stat = False  # Of object stores it is a request.

    def __init__(self, damage_log: DamageLog | None = None) -> None:
        self.damage_log = damage_log or DamageLog()
        self._verified_blobs: OrderedDict[str, VerifiedBlob] = OrderedDict()
        self._num_sums = 0
        self._lock = threading.Lock()

    @abc.abstractmethod
    def put_file(self, path: Path) -> str:
        """Store a copy of a file in constant memory and return its digest. A damaged blob of that digest is replaced."""

    @abc.abstractmethod
    def put_bytes(self, data: bytes) -> str:
        """Store some bytes and return their digest. A damaged blob of that digest is replaced."""

    @abc.abstractmethod
    def stat(self, digest: str) -> BlobStat:
        """The size and the age of a blob."""

    @abc.abstractmethod
    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `start ≤ i < end` in chunks; raises `NotFound` before the first one."""

    @abc.abstractmethod
    def set_aside(self, digest: str, identity: tuple[object, ...]) -> str | None:
        """Move a damaged blob below `damaged/`; its place, None where it was replaced since it had this identity."""

    @abc.abstractmethod
    def delete(self, digest: str) -> bool:
        """Remove a blob; False when there was none."""

    @abc.abstractmethod
    def iter_digests(self) -> Iterator[tuple[str, float]]:
        """Every blob with the time it was last put (epoch seconds)."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `Unavailable` unless the store can be reached and written."""

    def sign_url(self, digest: str, expires_in_sec: float) -> str | None:
        """A URL of the store itself from which a blob can be read for some seconds; None where it has none."""
        return None

    @property
    def origin(self) -> str | None:
        """Where the URLs of `sign_url` lead, as `scheme://host[:port]`; None where there are none."""
        url = self.sign_url("sha256:" + "0" * 64, 1.0)
        return None if url is None else "{0.scheme}://{0.netloc}".format(urlsplit(url))

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
        yield from self._iter_hashed(digest, self.stat(digest))

    def _iter_hashed(self, digest: str, stat: BlobStat) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        with self._read_errors(digest):
            for chunk in self.iter_range(digest):
                hasher.update(chunk)
                yield chunk
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise self.refuse(digest, self.set_aside(digest, stat.identity))

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

    @abc.abstractmethod
    def iter_leftovers(self) -> Iterator[str]:
        """Names of what is in the store and is no blob: parts of uploads, and blobs that were set aside."""

    def find_fault(self, digest: str, on_read: Callable[[int], object] = lambda _: None) -> str:
        """Read all of a blob and say what is wrong with it, empty where nothing is; changes and reports nothing.

        `on_read` takes the bytes that were read since its last call.
        """
        hasher = hashlib.sha256()
        try:
            for chunk in self.iter_range(digest):
                hasher.update(chunk)
                on_read(len(chunk))
        except InterruptedError:
            raise
        except OSError as error:
            if error.errno in _UNOPENABLE:
                raise
            return f"cannot be read ({error.strerror or error})"
        return "" if f"sha256:{hasher.hexdigest()}" == digest else _OTHER_BYTES

    def verify(self, digest: str) -> VerifiedBlob:
        """Read all of a blob.

        Raises:
          IntegrityError: its bytes do not have the digest; it was set aside and reported.
        """
        sums, stat = bytearray(), self.stat(digest)
        for chunk in self._iter_hashed(digest, stat):
            for window in split_windows(chunk):
                sums += window_sum(window)
        blob = VerifiedBlob(digest, stat, bytes(sums))
        self._remember(blob)
        return blob

    def verify_once(self, digest: str) -> VerifiedBlob:
        """As `verify`, unless this process has read the blob since it was written."""
        return self.find_verified(digest) or self.verify(digest)

    def find_verified(self, digest: str) -> VerifiedBlob | None:
        """A blob that this process has verified since it was written; reads none of it."""
        identity = self.stat(digest).identity
        with self._lock:
            blob = self._verified_blobs.get(digest)
            if blob is None or blob.stat.identity != identity:
                return None
            self._verified_blobs.move_to_end(digest)
            return blob

    def _remember(self, blob: VerifiedBlob) -> None:
        with self._lock:
            previous = self._verified_blobs.pop(blob.digest, None)
            self._verified_blobs[blob.digest] = blob
            self._num_sums += len(blob.sums) - (len(previous.sums) if previous else 0)
            while len(self._verified_blobs) > 1 and (
                self._num_sums > _MOST_SUMS * _SUM_BYTES or len(self._verified_blobs) > _MOST_SMALL
            ):
                _, oldest = self._verified_blobs.popitem(last=False)
                self._num_sums -= len(oldest.sums)

    def iter_windows(self, blob: VerifiedBlob, start: int, end: int) -> Iterator[bytes | memoryview]:
        """The bytes `start ≤ i < end` of a verified blob, each window of which is checked again before it is yielded.

        Raises:
          IntegrityError: the next bytes are not what they were; they are not yielded.
        """
        position = start - start % WINDOW
        with contextlib.suppress(NotFound), self._read_errors(blob.digest):
            for chunk in self.iter_range(blob.digest, position, min(blob.stat.size, end + -end % WINDOW)):
                for window in split_windows(chunk):
                    index = position // WINDOW
                    if not self._is_trusted(blob, index):
                        if not blob.has_window(index, window):
                            break
                        blob.checked_at[index] = time.monotonic()
                    yield window[max(0, start - position) : end - position]
                    position += len(window)
                else:
                    continue
                break
        if position < end:
            raise self._refuse_window(blob)

    def open_verified(self, blob: VerifiedBlob) -> BinaryIO:
        """A verified blob as a seekable file, of which what is read is checked as in `iter_windows`."""
        return io.BufferedReader(_CheckedFile(self, blob), WINDOW)

    def check_windows(self, blob: VerifiedBlob, file: BinaryIO, start: int, end: int) -> None:
        """Check the windows of a blob's open file that hold the bytes `start ≤ i < end`, but for those that are trusted.

        Raises:
          IntegrityError: they are not what they were.
        """
        with self._read_errors(blob.digest):
            for index in range(start // WINDOW, -(-end // WINDOW)):
                if not self._is_trusted(blob, index):
                    if not blob.has_window(index, os.pread(file.fileno(), WINDOW, index * WINDOW)):
                        raise self._refuse_window(blob)
                    blob.checked_at[index] = time.monotonic()

    def are_trusted(self, blob: VerifiedBlob, start: int, end: int) -> bool:
        """Whether `check_windows` would read nothing."""
        return all(self._is_trusted(blob, index) for index in range(start // WINDOW, -(-end // WINDOW)))

    def _refuse_window(self, blob: VerifiedBlob) -> IntegrityError:
        """The error for a window with other bytes. All of the blob is read: what was replaced meanwhile is not set aside."""
        self.verify(blob.digest)
        return IntegrityError(f"{blob.digest} was written anew while it was sent", remedy="Ask for it again")

    def _is_trusted(self, blob: VerifiedBlob, index: int) -> bool:
        """Whether a window was checked a moment ago, in a file that was not written since: many nodes read one file at once."""
        return (
            self.has_cheap_stat
            and time.monotonic() - blob.checked_at.get(index, -math.inf) < TRUST_SEC
            and self.stat(blob.digest).identity == blob.stat.identity
        )

    def refuse(self, digest: str, place: str | None, fault: str = _OTHER_BYTES) -> IntegrityError:
        """The error for a damaged blob, which was set aside at `place`; the damage is reported."""
        owners = self.damage_log.add(digest, fault, place)
        return IntegrityError(
            f"the stored bytes are damaged: the blob {fault}{f' (set aside as {place})' if place else ''}"
            + (f"; it belongs to {owners}" if owners else ""),
            key=digest,
            expected=f"bytes with the digest {digest}",
            # Whoever reads a version cannot send its files; a clip's comes from somebody who may have it.
            remedy=_REMEDY + ("; or send the clip's file again" if owners.startswith("clip ") else ""),
        )

    @contextlib.contextmanager
    def _read_errors(self, digest: str) -> Iterator[None]:
        """Errors of the disk while a blob is read; it stays where it is, as the bytes may be right."""
        try:
            yield
        except AmprefError:
            raise
        except OSError as error:
            if error.errno in _UNOPENABLE:
                raise Unavailable(f"a blob cannot be opened: {error.strerror}", remedy="Try again in a moment") from error
            raise self.refuse(digest, None, f"cannot be read ({error.strerror or error})") from error


class _CheckedFile(io.RawIOBase):
    """What `BlobStore.open_verified` buffers."""

    def __init__(self, blobs: BlobStore, blob: VerifiedBlob) -> None:
        self._blobs = blobs
        self._blob = blob
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._blob.stat.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._position
        for part in self._blobs.iter_windows(self._blob, start, min(start + len(view), self._blob.stat.size)):
            view[self._position - start : self._position - start + len(part)] = part
            self._position += len(part)
        return self._position - start


def split_windows(chunk: bytes) -> Iterator[bytes | memoryview]:
    """The windows of a chunk that begins with one."""
    if len(chunk) <= WINDOW:
        yield chunk
        return
    view = memoryview(chunk)
    for begin in range(0, len(chunk), WINDOW):
        yield view[begin : begin + WINDOW]


def window_sum(data: bytes | memoryview) -> bytes:
    """The checksum of a window: BLAKE3, which costs less than sending the bytes."""
    return block_hasher(data).digest(_SUM_BYTES)


def damaged_key(digest: str) -> str:
    """Where a blob that is set aside now goes below the root of its store: `damaged/` and its digest, with the time in ms."""
    return f"{DAMAGED}/{digest.removeprefix('sha256:')}-{time.time_ns() // 1_000_000}"


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
def disk_errors(folder: Path, content: str = "blobs") -> Iterator[None]:
    """Raise `DiskFull` or `Unavailable` for a disk that is full, read-only, closed to this user or broken.

    Args:
      content: what the folder is for, in words.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM | {errno.EFBIG}:
            raise DiskFull(
                f"no space left for {content} in {folder}", remedy="Free some disk space and send it again; nothing was stored"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise Unavailable(
                f"{folder} cannot be written",
                remedy="Give this user write access to it, or set AMPREF_DATA_DIR to another folder",
            ) from error
        if error.errno == errno.EIO:
            raise Unavailable(f"the disk of {folder} fails: {error}", remedy="Replace the disk") from error
        raise
