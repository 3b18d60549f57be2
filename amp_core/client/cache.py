"""The local cache: verified files by digest, and the digest of each version's manifest.

    blobs/sha256/ab/abcd…                    one verified file, read-only, named by its SHA-256
    refs/<server>/<name>/<version>.json      the manifest's digest of a version, as that server gave it
    refs/<server>/<name>/@<alias>.json       the version that an alias last meant
    snapshots/<name>/<version>-<digest>/     links to its files under their own names
    partial/<digest>.<machine>.<pid>.<random>  a download of one process

It may lie on a cluster file system where locks do nothing, so no lock is taken: nobody writes to a file that another process
may see. Every process downloads into a file of its own, verifies, and renames it into place; the last one replaces equal bytes
by equal bytes. A cache that cannot be written still serves what it holds.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from amp_core.client.partials import Partials
from amp_core.errors import Unavailable
from amp_core.files import NO_ROOM, expand_home, publish_file, replace_file, sync_file, sync_folder, write_file
from amp_core.strict_json import canonical_json, read_json

__all__ = ["Cache", "resolve_cache_dir"]

log = logging.getLogger("amp_core.client")

_STALL_SEC = 15.0  # Seconds without progress in a peer's download after which this process starts its own.
_FULL = NO_ROOM | {errno.EFBIG}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}  # File systems without fsync.
_DENIAL_CODES = {errno.EROFS, errno.EACCES, errno.EPERM}


def resolve_cache_dir(cache_dir: str | os.PathLike[str] | None) -> Path:
    """`cache_dir`, else `$AMPREF_CACHE`, else `~/.cache/ampref`; raises `InputRefused` for a `~` that is nobody's."""
    return expand_home(Path(cache_dir or os.environ.get("AMPREF_CACHE") or "~/.cache/ampref")).absolute()


class Cache:
    """One cache folder, shared with any number of processes on any number of machines.

    Args:
      root: the folder; made when something is first written.
      server: URL of the service whose references are meant.
    """

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        self.partials = Partials(root / "partial")
        url = httpx2.URL(server)
        netloc = url.netloc.decode("ascii")
        key = f"{url.scheme}://{netloc}{url.path.rstrip('/')}"
        readable = re.sub(r"[^0-9a-z.]+", "_", netloc.lower())[:60]
        self._refs = root / "refs" / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        self._new_files: list[Path] = []

    def blob(self, digest: str) -> Path:
        """Where the file of this digest is, or would be."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.root / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal

    def read_ref(self, name: str, label: str) -> dict[str, Any]:
        """The reference of a version (`0.11.0`) or alias (`@latest`); empty when there is none, or none that can be read."""
        try:
            value = read_json((self._refs / name / f"{label}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write_ref(self, name: str, label: str, value: dict[str, Any]) -> None:
        """Write a reference; a cache that cannot be written is left as it is."""
        if self.read_ref(name, label) == value:
            return
        path = self._refs / name / f"{label}.json"
        try:
            write_file(path, canonical_json(value))
            self._new_files.append(path)
        except OSError as error:
            if error.errno not in _DENIAL_CODES | _FULL:
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

    def wait_for_peer(self, digest: str, stop: threading.Event) -> bool:
        """Whether another process that downloads the same file has finished it.

        Returns at once when no process downloads it or when `stop` is set, and after some seconds when none that does makes
        progress.
        """
        sizes: dict[Path, int] = {}
        last_progress = time.monotonic()
        while not self.blob(digest).exists():
            peers = self.partials.measure_peers(digest)
            if not peers:
                return self.blob(digest).exists()
            if peers != sizes:
                sizes, last_progress = peers, time.monotonic()
            elif time.monotonic() - last_progress > _STALL_SEC:
                return False
            if stop.wait(0.1):
                return False
        return True

    def publish(self, partial: Path, digest: str) -> Path:
        """Put a verified partial file in its place. `sync` brings it to the disk."""
        blob = self.blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial.chmod(0o444)
        publish_file(partial, blob)
        self._new_files.append(blob)
        return blob

    def sync(self) -> Future[None]:
        """Bring published blobs and references to the disk, in a thread; the interpreter waits for it at its exit.

        Every load verifies, so that a file which a loss of power has damaged is downloaded again. A file that the disk does not
        take is removed and logged; the future's result is then an `Unavailable`.
        """
        paths, self._new_files = self._new_files, []
        pool = ThreadPoolExecutor(1, "ampref-sync")
        future = pool.submit(self._sync, paths)
        pool.shutdown(wait=False)
        return future

    def _sync(self, paths: list[Path]) -> None:
        failure: OSError | None = None
        for path in paths:
            try:
                sync_file(path)
                with suppress(OSError):  # Some file systems cannot do that for folders.
                    sync_folder(path.parent)
            except FileNotFoundError:
                continue  # Another process has emptied the cache.
            except OSError as error:
                if error.errno in _CANNOT_SYNC:
                    continue
                failure = error
                log.error("%s could not be brought to the disk (%s); it is removed", path, error.strerror or error)
                with suppress(OSError):
                    path.unlink()
        if failure is not None:
            raise self.failure(failure) from failure

    def failure(self, error: OSError, size: int | None = None) -> Unavailable:
        """The readable error for a cache folder that cannot be used, for example for a file of `size` bytes."""
        if error.errno in _FULL:
            cause, remedy = f"there is no room{f' for {size:,} bytes' if size else ''} in the cache", "Make room"
        else:
            cause, remedy = f"the cache cannot be written ({error.strerror or error})", "Make it writable"
        return Unavailable(
            cause,
            file=str(self.root),
            expected="a folder with room",
            remedy=f"{remedy}, or set AMPREF_CACHE to another folder.",
        )
