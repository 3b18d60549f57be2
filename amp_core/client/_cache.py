"""The local cache: verified files by digest, and what each version's digest is.

    blobs/sha256/ab/abcd…                    one verified file, read-only, named by its SHA-256
    refs/<server>/<name>/<version>.json      the manifest's digest of a version, as that server said
    refs/<server>/<name>/@<alias>.json       the version that an alias last meant
    snapshots/<name>/<version>-<digest>/     links to the three files under their own names
    partial/<digest>.<place>.<pid>.<random>  a download of one process

It may lie on a cluster file system where locks do nothing, so no lock is taken: nobody writes to a file that another process
may see. Every process downloads into a file of its own, verifies, and renames it into place; whoever comes last replaces equal
bytes by equal bytes. A cache that cannot be written still serves what it holds.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from amp_core.errors import Unavailable
from amp_core.files import publish_file, replace_file, sync_file, sync_folder, write_file
from amp_core.strict_json import canonical_json, read_json

__all__ = ["Cache", "active_partials", "resolve_cache_dir"]

log = logging.getLogger("amp_core.client")

_ABANDONED = 3600.0  # Seconds without a write after which another machine's partial file counts as left behind.
_FORGOTTEN = 86_400.0  # Seconds after which a left-behind partial file is removed, whatever version it is of.
_STALLED = 15.0  # Seconds for which a peer's download may stand still before this process starts its own.
active_partials: set[Path] = set()
"""The partial files that this process is writing."""

_PARTIAL = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{12}\.\d+\.[0-9a-f]{12}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # File systems that do not know how.
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


def resolve_cache_dir(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, else `$AMPREF_CACHE`, else `~/.cache/ampref`."""
    return Path(cache_dir or os.environ.get("AMPREF_CACHE") or Path("~/.cache/ampref")).expanduser().absolute()


class Cache:
    """One cache folder, shared with any number of processes on any number of machines.

    Args:
      root: the folder; made when something is first written.
      server: URL of the service whose references are meant.
    """

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        url = httpx2.URL(server)
        key = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}"
        readable = re.sub(r"[^0-9a-z.]+", "_", url.netloc.decode("ascii").lower())[:60]
        self._unsynced: list[Path] = []
        self._refs = root / "refs" / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def blob(self, digest: str) -> Path:
        """Where the file of this digest is, or would be."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.root / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal

    def read_ref(self, name: str, label: str) -> dict[str, Any] | None:
        """What is remembered of a version (`0.11.0`) or alias (`@latest`); None when nothing, or nothing that can be read."""
        try:
            value = read_json((self._refs / name / f"{label}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write_ref(self, name: str, label: str, value: dict[str, Any]) -> None:
        """Remember; a cache that cannot be written is left as it is."""
        if self.read_ref(name, label) == value:
            return
        path = self._refs / name / f"{label}.json"
        try:
            write_file(path, canonical_json(value))
            self._unsynced.append(path)
        except OSError as error:
            if error.errno not in _DENIED | _FULL:
                raise self.failure(error) from error
            log.warning("the cache %s cannot be written (%s); going on without", self.root, error.strerror)

    def snapshot(self, name: str, version: str, manifest: str, files: dict[str, str]) -> dict[str, Path]:
        """Paths of the files (name to digest) under their own names, by links; the blobs where links cannot be made."""
        folder = self.root / "snapshots" / name / f"{version}-{manifest.removeprefix('sha256:')[:12]}"
        paths = {}
        for file, digest in files.items():
            link, blob = folder / file, self.blob(digest)
            target = os.path.relpath(blob, folder)
            try:
                if not (link.is_symlink() and os.readlink(link) == target):
                    folder.mkdir(parents=True, exist_ok=True)
                    with replace_file(link) as partial:
                        os.symlink(target, partial)
                paths[file] = link
            except OSError:
                paths[file] = blob
        return paths

    def new_partial(self, digest: str) -> Path:
        """A path for a private partial file; its folder exists."""
        folder = self.root / "partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.failure(error) from error
        return folder / f"{digest.removeprefix('sha256:')}.{_place()}.{_identity()}"

    def claim_abandoned(self, digest: str, mine: Path) -> Path | None:
        """The largest partial file of this digest that nobody writes any more, now under a name of ours; None if there is none.

        Renaming takes it from all others who might want it. Its bytes are to be copied, not appended to: if its owner lives
        after all, it goes on writing into a file that is no longer anybody's. `mine` is this process' own, freshly written
        partial file: its time stamp is the file server's idea of now.
        """
        now = mine.stat().st_mtime
        found = []
        for path in self._partials(digest):
            try:
                status = path.stat()
            except OSError:
                continue
            if path != mine and _is_abandoned(path, now - status.st_mtime):
                found.append((status.st_size, path))
        for _, path in sorted(found, key=lambda item: -item[0]):
            taken = path.with_name(f"{path.name.split('.')[0]}.{_place()}.{_identity()}")
            try:
                os.rename(path, taken)
                os.utime(taken)  # In use, and not one to be swept.
            except OSError:
                continue
            return taken
        return None

    def sweep(self, mine: Path) -> None:
        """Remove partial files of any version that nobody has written for a day. `mine` tells the time, as above."""
        now = mine.stat().st_mtime
        for path in self._partials(""):
            try:
                idle = now - path.stat().st_mtime
                if path != mine and _PARTIAL.fullmatch(path.name) and idle > _FORGOTTEN and _is_abandoned(path, idle):
                    path.unlink()
                    log.info("removed %s, which an interrupted download left behind", path)
            except OSError:
                continue

    def wait_for_peer(self, digest: str, waiting: Callable[[], None] | None = None) -> bool:
        """Whether another process on the way to the same file has finished it. Returns at once when nobody downloads it, and
        after a while when those who do stand still."""
        sizes: dict[Path, int] = {}
        moved = time.monotonic()
        while True:
            if self.blob(digest).exists():
                return True
            peers = {}
            for path in self._partials(digest):
                try:
                    status = path.stat()
                except OSError:
                    continue
                if not _is_abandoned(path, time.time() - status.st_mtime):
                    peers[path] = status.st_size
            if not peers:
                return self.blob(digest).exists()
            if peers != sizes:
                sizes, moved = peers, time.monotonic()
            elif time.monotonic() - moved > _STALLED:
                return False
            if waiting is not None:
                waiting()
            time.sleep(0.1)

    def publish(self, partial: Path, digest: str) -> Path:
        """Put a verified partial file in its place. `sync` brings it to the disk."""
        blob = self.blob(digest)
        try:
            blob.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(partial, 0o444)
            publish_file(partial, blob)
        except OSError as error:
            _unlink(partial)
            raise self.failure(error) from error
        self._unsynced.append(blob)
        return blob

    def sync(self) -> Future[None]:
        """Bring to the disk what was published and remembered, in a thread; the interpreter waits for it at its exit.

        What a load needs is safe before that, because every load verifies: a file that a machine took with it when it lost
        power is found damaged and downloaded again. A file that the disk would not take is removed, logged, and is the
        future's `Unavailable`.
        """
        paths, self._unsynced = self._unsynced, []
        done: Future[None] = Future()
        if not paths:
            done.set_result(None)
            return done
        pool = ThreadPoolExecutor(1, "ampref-sync")
        future = pool.submit(self._sync, paths)
        pool.shutdown(wait=False)
        return future

    def _sync(self, paths: list[Path]) -> None:
        failed: OSError | None = None
        for path in paths:
            try:
                sync_file(path)
                with contextlib.suppress(OSError):  # Some file systems cannot do that for folders.
                    sync_folder(path.parent)
            except FileNotFoundError:
                continue  # Somebody has emptied the cache.
            except OSError as error:
                if error.errno in _CANNOT_SYNC:
                    continue
                failed = error
                log.error("%s could not be brought to the disk (%s); it is removed", path, error.strerror or error)
                _unlink(path)
        if failed is not None:
            raise self.failure(failed) from failed

    def failure(self, error: OSError, needed: int | None = None) -> Unavailable:
        """The readable error for a cache folder that cannot be used."""
        size = f" for {needed:,} bytes" if needed else ""
        if error.errno in _FULL:
            what, remedy = f"there is no room{size} in the cache", "Make room"
        else:
            what, remedy = f"the cache cannot be written ({error.strerror or error})", "Make it writable"
        return Unavailable(
            what, file=str(self.root), expected="a folder with room", remedy=f"{remedy}, or set AMPREF_CACHE to another folder."
        )

    def _partials(self, digest: str) -> list[Path]:
        prefix = digest.removeprefix("sha256:") + "." if digest else ""
        try:
            with os.scandir(self.root / "partial") as entries:
                return [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
        except OSError:
            return []


def _identity() -> str:
    return f"{os.getpid()}.{os.urandom(6).hex()}"


def _place() -> str:
    """Where process ids mean something: this machine since its last start, and this container."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(source) if source.endswith("pid") else Path(source).read_text())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_abandoned(path: Path, idle: float) -> bool:
    """Whether the owner of a partial file is gone: for certain here, by its silence elsewhere."""
    parts = path.name.split(".")
    if len(parts) == 4 and parts[1] == _place() and parts[2].isdigit():
        if int(parts[2]) == os.getpid():
            return path not in active_partials
        try:
            os.kill(int(parts[2]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # It lives and belongs to another user.
    return idle > _ABANDONED


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        log.debug("could not remove %s", path)
