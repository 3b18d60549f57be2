"""The content-addressed store: bytes go in, their SHA-256 comes out, and nothing is ever overwritten.

On a local disk a blob is a plain file, `sha256/ab/cdef…`, written as temporary file, fsync, rename, fsync of the folder: after
`put_file` returned, the bytes survive a crash of the machine, and no reader ever sees a part. Elsewhere (S3 and its like)
obstore
does the writing. Digests are written `sha256:<64 hex digits>` everywhere.
"""

from __future__ import annotations

import abc
import errno
import hashlib
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import obstore
import obstore.exceptions
import obstore.store

from amp_core.errors import DiskFull, InputRefused, IntegrityError, NotFound, Unavailable
from amp_core.files import partial_path, publish_file, sync_folder

CHUNK = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def digest_of(data: bytes) -> str:
    """`sha256:…` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """`sha256:…` of a file, read in chunks."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return "sha256:" + hasher.hexdigest()


def _key(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise InputRefused(f"{digest[:80]!r} is not a blob digest", expected="sha256: and 64 lower-case hex digits")
    return f"sha256/{digest[7:9]}/{digest[9:]}"


class BlobStore(abc.ABC):
    """Blobs by digest. Safe to share between threads and processes."""

    @staticmethod
    def from_url(url: str) -> BlobStore:
        """Open `file:///FOLDER` (made when missing), `s3://BUCKET/PREFIX`, or `memory://` (tests)."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise InputRefused(f"blob URL {url!r} names no folder", expected="file:/// and an absolute path")
            return LocalBlobStore(Path(unquote(parts.path)))
        if parts.scheme == "memory":
            return ObjectBlobStore(obstore.store.MemoryStore(), "memory://")
        if parts.scheme in ("s3", "gs", "az"):
            try:
                return ObjectBlobStore(obstore.store.from_url(url), f"{parts.scheme}://{parts.hostname}{parts.path}")
            except (obstore.exceptions.BaseError, ValueError) as error:
                raise InputRefused(
                    f"the blob URL cannot be used: {error}", expected="file:///FOLDER or s3://BUCKET/PREFIX"
                ) from None
        raise InputRefused(f"blob URL of unknown scheme {parts.scheme!r}", expected="file:///FOLDER or s3://BUCKET/PREFIX")

    @abc.abstractmethod
    def put_file(self, path: Path) -> str:
        """Store a copy of a file and return its digest; constant memory. Storing the same bytes again is free."""

    @abc.abstractmethod
    def put_bytes(self, data: bytes) -> str:
        """Store some bytes and return their digest."""

    @abc.abstractmethod
    def size(self, digest: str) -> int:
        """Bytes in a blob; raises `NotFound`."""

    @abc.abstractmethod
    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `start ≤ i < end` in chunks; raises `NotFound` before the first one."""

    @abc.abstractmethod
    def delete(self, digest: str) -> bool:
        """Remove a blob; False when there was none."""

    def delete_older(self, digest: str, age_sec: float) -> bool:
        """Remove a blob unless it was put within the last `age_sec`; False when it stays or there was none."""
        modified = self.modified(digest)
        return modified is not None and time.time() - modified >= age_sec and self.delete(digest)

    @abc.abstractmethod
    def iter_digests(self) -> Iterator[tuple[str, float]]:
        """Every blob with the time it was last put (epoch seconds)."""

    @abc.abstractmethod
    def modified(self, digest: str) -> float | None:
        """When a blob was last put (epoch seconds), None when there is none."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `Unavailable` unless the store can be reached and written."""

    def exists(self, digest: str) -> bool:
        """Whether there is such a blob."""
        return self.modified(digest) is not None

    def local_path(self, digest: str) -> Path | None:
        """The blob's file where blobs are local files (for `sendfile` and memory maps), else None; raises `NotFound`."""
        self.size(digest)
        return None

    def open(self, digest: str) -> BinaryIO:
        """The blob as a readable file; seekable. Raises `NotFound`."""
        chunks = self.iter_range(digest)
        spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=8 * CHUNK))  # noqa: SIM115 - the caller closes it
        for chunk in chunks:
            spool.write(chunk)
        spool.seek(0)
        return spool

    def read_bytes(self, digest: str, *, verify: bool = True) -> bytes:
        """A whole blob; with `verify` its digest is checked and `IntegrityError` raised when the store has rotten."""
        data = b"".join(self.iter_range(digest))
        if verify and digest_of(data) != digest:
            raise _rotten(digest)
        return data

    def fetch(self, digest: str, target: Path, *, verify: bool = True) -> None:
        """Copy a blob into a new file in chunks, checking its digest on the way."""
        hasher = hashlib.sha256()
        with _clear_disk_errors(str(target.parent)), open(target, "wb") as out:
            for chunk in self.iter_range(digest):
                hasher.update(chunk)
                out.write(chunk)
        if verify and "sha256:" + hasher.hexdigest() != digest:
            target.unlink(missing_ok=True)
            raise _rotten(digest)

    def verify(self, digest: str) -> None:
        """Read a blob in full and raise `IntegrityError` when it is not what its name says."""
        hasher = hashlib.sha256()
        for chunk in self.iter_range(digest):
            hasher.update(chunk)
        if "sha256:" + hasher.hexdigest() != digest:
            raise _rotten(digest)


class LocalBlobStore(BlobStore):
    """Blobs as files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        with _clear_disk_errors(str(self.root)):
            (self.root / "tmp").mkdir(parents=True, exist_ok=True)

    def put_file(self, path: Path) -> str:
        with open(path, "rb") as source:
            return self._put(lambda: source.read(CHUNK))

    def put_bytes(self, data: bytes) -> str:
        source = io.BytesIO(data)
        return self._put(lambda: source.read(CHUNK))

    def _put(self, read: Callable[[], bytes]) -> str:
        # The digest is taken from the same read that is stored: a source that changes meanwhile cannot make a false name.
        hasher = hashlib.sha256()
        with _clear_disk_errors(str(self.root)):
            partial = partial_path(self.root / "tmp" / "put")
            try:
                with open(partial, "xb") as out:
                    while chunk := read():
                        hasher.update(chunk)
                        out.write(chunk)
                digest = "sha256:" + hasher.hexdigest()
                target = self._path(digest)
                if self._touch(target):
                    return digest
                partial.chmod(0o444)
                self._make_folder(target.parent)
                publish_file(partial, target, durable=True)
            finally:
                partial.unlink(missing_ok=True)
        return digest

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            for parent in (folder.parent, folder.parent.parent):
                sync_folder(parent)

    @staticmethod
    def _touch(target: Path) -> bool:
        # A blob that is put again is young again, so that garbage collection leaves it to its new owner.
        try:
            os.utime(target)
        except FileNotFoundError:
            return False
        return True

    def _path(self, digest: str) -> Path:
        return self.root / _key(digest)

    def local_path(self, digest: str) -> Path | None:
        path = self._path(digest)
        if not path.is_file():
            raise _missing(digest)
        return path

    def open(self, digest: str) -> BinaryIO:
        try:
            return open(self._path(digest), "rb")
        except FileNotFoundError:
            raise _missing(digest) from None

    def size(self, digest: str) -> int:
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def modified(self, digest: str) -> float | None:
        try:
            return self._path(digest).stat().st_mtime
        except FileNotFoundError:
            return None

    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        file = self.open(digest)
        return _read_range(file, start, end)

    def delete(self, digest: str) -> bool:
        try:
            self._path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def delete_older(self, digest: str, age_sec: float) -> bool:
        # Moved aside first and looked at there: between looking and deleting under its name, somebody could put it again and
        # rely on it. Who puts it while it is aside finds none and writes it anew.
        path = self._path(digest)
        aside = self.root / "tmp" / f"gone-{os.getpid()}-{threading.get_ident()}-{path.parent.name}{path.name}"
        try:
            if time.time() - path.stat().st_mtime < age_sec:
                return False
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        if time.time() - aside.stat().st_mtime < age_sec:
            os.rename(aside, path)
            sync_folder(path.parent)
            return False
        aside.unlink(missing_ok=True)
        return True

    def iter_digests(self) -> Iterator[tuple[str, float]]:
        base = self.root / "sha256"
        for folder in sorted(base.iterdir()) if base.is_dir() else ():
            for entry in sorted(folder.iterdir()):
                digest = f"sha256:{folder.name}{entry.name}"
                if _DIGEST.match(digest):
                    modified = self.modified(digest)
                    if modified is not None:
                        yield digest, modified

    def drop_partials(self, older_than_sec: float) -> int:
        """Remove temporary files that a killed process left behind; returns how many.

        A blob that it had moved aside to delete goes back, unless it is there again: perhaps somebody had just put it.
        """
        count = 0
        for path in (self.root / "tmp").iterdir():
            try:
                if time.time() - path.stat().st_mtime > older_than_sec:
                    digest = f"sha256:{path.name.rpartition('-')[2]}"
                    if path.name.startswith("gone-") and _DIGEST.match(digest) and not self._path(digest).exists():
                        path.rename(self._path(digest))
                    else:
                        path.unlink()
                    count += 1
            except FileNotFoundError:
                continue
        return count

    def check(self) -> None:
        with _clear_disk_errors(str(self.root)), tempfile.TemporaryFile(dir=self.root / "tmp") as probe:
            probe.write(b"ampref")
            probe.flush()


class ObjectBlobStore(BlobStore):
    """Blobs as objects, through obstore."""

    # Above this age a blob that is put again is written again, so that garbage collection sees it as young.
    RENEW_AFTER_SEC = 600.0

    def __init__(self, store: Any, name: str) -> None:
        self._store = store
        self._name = name

    def put_file(self, path: Path) -> str:
        digest = digest_of_file(path)
        if not self._young(digest):
            # obstore reads the file in parts; a multipart upload becomes visible only as a whole.
            with open(path, "rb") as source, self._clear():
                obstore.put(self._store, _key(digest), source)
            self.verify(digest)
        return digest

    def put_bytes(self, data: bytes) -> str:
        digest = digest_of(data)
        if not self._young(digest):
            with self._clear():
                obstore.put(self._store, _key(digest), data)
        return digest

    def _young(self, digest: str) -> bool:
        modified = self.modified(digest)
        return modified is not None and time.time() - modified < self.RENEW_AFTER_SEC

    def size(self, digest: str) -> int:
        with self._clear(digest):
            return int(obstore.head(self._store, _key(digest))["size"])

    def modified(self, digest: str) -> float | None:
        try:
            with self._clear(digest):
                return float(obstore.head(self._store, _key(digest))["last_modified"].timestamp())
        except NotFound:
            return None

    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        stop = self.size(digest) if end is None else min(end, self.size(digest))
        return self._parts(digest, start, stop)

    def _parts(self, digest: str, start: int, stop: int) -> Iterator[bytes]:
        part = 8 * CHUNK
        for begin in range(start, stop, part):
            with self._clear(digest):
                data = bytes(obstore.get_range(self._store, _key(digest), start=begin, end=min(begin + part, stop)))
            yield data

    def delete(self, digest: str) -> bool:
        if not self.exists(digest):
            return False
        with self._clear(digest):
            obstore.delete(self._store, _key(digest))
        return True

    def iter_digests(self) -> Iterator[tuple[str, float]]:
        with self._clear():
            for page in obstore.list(self._store, prefix="sha256"):
                for meta in page:
                    digest = "sha256:" + "".join(meta["path"].split("/")[-2:])
                    if _DIGEST.match(digest):
                        yield digest, meta["last_modified"].timestamp()

    def check(self) -> None:
        self.exists("sha256:" + "0" * 64)

    def _clear(self, digest: str | None = None) -> _ClearStoreErrors:
        return _ClearStoreErrors(self._name, digest)


class _ClearStoreErrors:
    def __init__(self, name: str, digest: str | None) -> None:
        self._name = name
        self._digest = digest

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._digest is not None and isinstance(error, obstore.exceptions.NotFoundError | FileNotFoundError):
            raise _missing(self._digest) from None
        if isinstance(error, obstore.exceptions.BaseError | OSError):
            raise Unavailable(
                f"the blob store {self._name} failed: {str(error).splitlines()[0][:300]}",
                remedy="Check AMPREF_BLOB_URL, its credentials and that the store is up, then try again",
            ) from error


class _clear_disk_errors:  # noqa: N801 - it reads as a statement
    """Turn a full, read-only or closed disk into `Unavailable`."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"no space left for blobs in {self._where}", remedy="Free some disk space and send it again; nothing was stored"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise Unavailable(
                f"{self._where} cannot be written",
                remedy="Give this user write access to it, or set AMPREF_DATA_DIR to another folder",
            ) from error
        if error.errno == errno.EIO:
            raise Unavailable(f"the disk of {self._where} fails: {error}", remedy="Replace the disk") from error


def _read_range(file: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = None if end is None else max(0, end - start)
        while left is None or left > 0:
            chunk = file.read(CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk


def _missing(digest: str) -> NotFound:
    return NotFound(f"no blob {digest}", remedy="It was deleted, or AMPREF_BLOB_URL points to another store than the catalog's")


def _rotten(digest: str) -> IntegrityError:
    return IntegrityError(f"the stored bytes do not have the digest {digest}", remedy="Restore this blob from a backup")


def delete_unreferenced(
    catalog: Any, store: BlobStore, *, grace_sec: float = 3600.0, should_stop: Callable[[], bool] = lambda: False
) -> list[str]:
    """Delete the blobs that no row of the catalog names and that were last put more than `grace_sec` ago.

    The grace covers the time between storing a blob and committing the row that names it: storing it, again or for the first
    time, makes it young. Any number may collect at a time. Returns the deleted digests.
    """
    from ampref_service.catalog import blob_refs  # The store itself needs no database.

    gone: list[str] = []
    batch: list[str] = []

    def flush() -> None:
        with catalog.session() as session:
            unused = blob_refs.unreferenced(session, batch)
        # Their age is looked at again, because they may have been put again since they were listed.
        gone.extend(digest for digest in sorted(unused) if not should_stop() and store.delete_older(digest, grace_sec))
        batch.clear()

    if isinstance(store, ObjectBlobStore):
        # What was put again is renewed only above an age, so that much more has to pass.
        grace_sec = max(grace_sec, 2 * store.RENEW_AFTER_SEC)
    for digest, modified in store.iter_digests():
        if should_stop():
            return gone
        if time.time() - modified >= grace_sec:
            batch.append(digest)
            if len(batch) >= 200:
                flush()
    if batch:
        flush()
    if isinstance(store, LocalBlobStore):
        store.drop_partials(max(grace_sec, 60.0))
    return gone
