"""Blobs as files below one folder.

A blob is a plain file, `sha256/ab/cdef…`, that is written under another name, synced and renamed: after `put_file` returned,
its bytes survive a crash of the machine, and no reader ever sees a part of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from amp_core.digests import digest_of_file
from amp_core.errors import NotFound
from amp_core.files import partial_path, publish_file, sync_folder
from ampref_service.blobs.store import (
    CHUNK,
    BlobStat,
    BlobStore,
    DamageLog,
    blob_key,
    damaged_key,
    disk_errors,
    is_digest,
    missing_blob,
)

_DELETION_PREFIX = "gone-"
_SCRATCH_FILE = re.compile(rf"\.(put|check)\.\d+\.[0-9a-f]{{12}}\.partial|{_DELETION_PREFIX}\d+-\d+-[0-9a-f]{{64}}")
"""What this store leaves in its `tmp` when it is killed; other files there are somebody else's."""


class LocalBlobStore(BlobStore):
    """Blobs as files below `root`.

    Args:
      make: whether its folders are made where they are missing; a store that is only read may lie where nothing can be written.
    """

    has_cheap_stat = True

    def __init__(self, root: Path, damage_log: DamageLog | None = None, *, make: bool = True) -> None:
        super().__init__(damage_log)
        self.root = Path(os.path.abspath(root))
        self._scratch = self.root / "tmp"
        if make:
            with disk_errors(self.root):
                self._scratch.mkdir(parents=True, exist_ok=True)

    def put_file(self, path: Path) -> str:
        with open(path, "rb") as source:
            return self.put_chunks(iter(lambda: source.read(CHUNK), b""))

    def put_bytes(self, data: bytes) -> str:
        return self.put_chunks([data])

    def put_chunks(self, chunks: Iterable[bytes]) -> str:
        """Store bytes as they come and return their digest."""
        # The digest is taken from the same read that is stored: a source that changes meanwhile cannot give a false name.
        hasher = hashlib.sha256()
        with disk_errors(self.root):
            partial = partial_path(self._scratch / "put")
            try:
                with open(partial, "xb") as out:
                    for chunk in chunks:
                        hasher.update(chunk)
                        out.write(chunk)
                digest = f"sha256:{hasher.hexdigest()}"
                target = self._path(digest)
                if self._renew(target, digest):
                    return digest
                partial.chmod(0o400)
                if not target.parent.is_dir():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    sync_folder(target.parent.parent)
                    sync_folder(target.parent.parent.parent)
                publish_file(partial, target, durable=True)
            finally:
                partial.unlink(missing_ok=True)
        self.damage_log.heal(digest)
        return digest

    def _renew(self, target: Path, digest: str) -> bool:
        """Make a blob that is put again young, so that garbage collection leaves it to the row that names it next.

        False where there is none, or another file in its place, of which a copy is set aside.
        """
        try:
            os.utime(target)
            if digest_of_file(target) == digest:
                return True
        except FileNotFoundError:
            return False
        except OSError:  # What cannot be read is replaced as well: the right bytes are at hand.
            pass
        place = self._make_place(digest)
        try:
            # By a link the blob is never missing: the good bytes take its name.
            os.link(target, place)
        except OSError:  # A folder, or a file system without links.
            os.rename(target, place)
        self.damage_log.add(digest, "had other bytes than its digest says; it was put again", self._name(place))
        return False

    def _make_place(self, digest: str) -> Path:
        place = self.root / damaged_key(digest)
        place.parent.mkdir(exist_ok=True)
        return place

    def _name(self, place: Path) -> str:
        return str(place.relative_to(self.root))

    def set_aside(self, digest: str, identity: tuple[object, ...]) -> str | None:
        path = self._path(digest)
        try:
            if self.stat(digest).identity != identity:
                return None
            place = self._make_place(digest)
            os.rename(path, place)
            if _identify(place.stat()) != identity:
                # It was replaced between the two calls.
                with contextlib.suppress(FileExistsError):
                    os.link(place, path)
                place.unlink()
                return None
        except (OSError, NotFound):  # A store that cannot be written keeps the blob where it is.
            return None
        return self._name(place)

    def _path(self, digest: str) -> Path:
        return self.root / blob_key(digest)

    def stat(self, digest: str) -> BlobStat:
        try:
            status = self._path(digest).stat()
        except FileNotFoundError:
            raise missing_blob(digest) from None
        return BlobStat(status.st_size, status.st_mtime, _identify(status))

    def local_path(self, digest: str) -> Path | None:
        self.stat(digest)
        return self._path(digest)

    def open(self, digest: str) -> BinaryIO:
        try:
            return open(self._path(digest), "rb")
        except FileNotFoundError:
            raise missing_blob(digest) from None

    def iter_range(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        file = self.open(digest)

        def read() -> Iterator[bytes]:
            with file:
                file.seek(start)
                while chunk := file.read(CHUNK if end is None else max(0, min(CHUNK, end - file.tell()))):
                    yield chunk

        return read()

    def delete(self, digest: str) -> bool:
        try:
            self._path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def delete_older(self, digest: str, age_sec: float) -> bool:
        # The file is renamed before its age is read a second time: between reading the age and deleting, another process could
        # put the blob again and rely on it. A process that puts it after the rename finds none and writes it anew.
        path = self._path(digest)
        renamed_path = self._scratch / f"{_DELETION_PREFIX}{os.getpid()}-{threading.get_ident()}-{path.parent.name}{path.name}"
        try:
            if time.time() - path.stat().st_mtime < age_sec:
                return False
            os.rename(path, renamed_path)
        except FileNotFoundError:
            return False
        if time.time() - renamed_path.stat().st_mtime < age_sec:
            os.rename(renamed_path, path)
            sync_folder(path.parent)
            return False
        renamed_path.unlink(missing_ok=True)
        return True

    def iter_digests(self) -> Iterator[tuple[str, float]]:
        for folder in sorted((self.root / "sha256").glob("*")):
            for path in sorted(folder.glob("*")):
                digest = f"sha256:{folder.name}{path.name}"
                if is_digest(digest) and (put_time := self.put_time(digest)) is not None:
                    yield digest, put_time

    def iter_leftovers(self) -> Iterator[str]:
        for path in sorted(self.root.rglob("*")):
            name = self._name(path)
            if path.is_file() and not is_digest(f"sha256:{''.join(Path(name).parts[-2:])}"):
                yield name

    def drop_partials(self, older_than_sec: float) -> int:
        """Remove temporary files that a killed process left behind; returns how many.

        A blob whose deletion was interrupted goes back to its place, unless it was put again: it may have been put just before.
        """
        count = 0
        for path in self._scratch.iterdir():
            if not _SCRATCH_FILE.fullmatch(path.name):
                continue
            digest = f"sha256:{path.name.rpartition('-')[2]}"
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime <= older_than_sec:
                    continue
                if path.name.startswith(_DELETION_PREFIX) and is_digest(digest) and not self.exists(digest):
                    path.rename(self._path(digest))
                else:
                    path.unlink()
                count += 1
        return count

    def check(self) -> None:
        # Both folders that a put writes: each may be a mount of its own.
        folder = self.root / "sha256"
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            partial = partial_path(self._scratch / "check")
            try:
                partial.write_bytes(b"ampref")
                os.rename(partial, probe := partial_path(folder / "check"))
                probe.unlink()
            finally:
                partial.unlink(missing_ok=True)


def _identify(status: os.stat_result) -> tuple[object, ...]:
    """What changes when a file is written or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns
