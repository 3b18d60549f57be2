"""Partial files of downloads: each belongs to one process, and another takes it over when its owner has died.

A partial file is called `<digest>.<machine>.<pid>.<random>`, so that every process sees what every file is and whose.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from amp_core.errors import IntegrityError

__all__ = ["Partials", "machine_key"]

log = logging.getLogger("amp_core.client")

_ABANDONED_SEC = 3600.0  # Seconds without a write after which a partial file of another machine counts as left behind.
_FORGOTTEN = 86_400.0  # Seconds after which a left-behind partial file of any version is removed.
_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{12}\.\d+\.[0-9a-f]{12}")

_active: set[Path] = set()  # The partial files that this process is writing.


class Partials:
    """The folder of the partial files, shared with any number of processes on any number of machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def create(self, digest: str) -> Iterator[tuple[Path, int]]:
        """A new partial file of this process, and its descriptor, open while the block runs.

        After an `OSError` or `IntegrityError` it is removed; after other errors its bytes stay, to resume from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._new_path(digest)
        _active.add(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                yield path, descriptor
            finally:
                os.close(descriptor)
        except (OSError, IntegrityError):
            path.unlink(missing_ok=True)
            raise
        finally:
            _active.discard(path)
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()

    def claim(self, digest: str, partial: Path) -> Path | None:
        """Take over the largest partial file of this digest that no process writes any more; None when there is none.

        It is renamed, which takes it from all other processes. Copy its bytes, do not append to them: an owner that lives after
        all goes on writing into it.

        Args:
          partial: this process's new partial file, whose time stamp is the present time of the file server.
        """
        current = partial.stat().st_mtime
        abandoned_files = [
            (stat.st_size, path) for path, stat in self._list(digest) if _is_abandoned(path, current - stat.st_mtime)
        ]
        for _, path in sorted(abandoned_files, reverse=True):
            claimed_path = self._new_path(digest)
            with suppress(OSError):
                os.rename(path, claimed_path)
                os.utime(claimed_path)  # A fresh time stamp keeps it from being swept.
                return claimed_path
        return None

    def sweep(self, partial: Path) -> None:
        """Remove partial files of any version that nobody has written for a day. `partial` tells the time, as in `claim`."""
        current = partial.stat().st_mtime
        for path, stat in self._list(""):
            idle = current - stat.st_mtime
            if _NAME.fullmatch(path.name) and idle > _FORGOTTEN and _is_abandoned(path, idle):
                with suppress(OSError):
                    path.unlink()
                    log.info("removed %s, which an interrupted download left behind", path)

    def measure_peers(self, digest: str) -> dict[Path, int]:
        """The sizes of the partial files of this digest that other processes are writing."""
        current = time.time()
        return {path: stat.st_size for path, stat in self._list(digest) if not _is_abandoned(path, current - stat.st_mtime)}

    def _new_path(self, digest: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.{machine_key()}.{os.getpid()}.{os.urandom(6).hex()}"

    def _list(self, digest: str) -> Iterator[tuple[Path, os.stat_result]]:
        """The partial files of this digest, or of all, with their sizes and times; files that vanish are left out."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(digest.removeprefix("sha256:")):
                    with suppress(OSError):
                        yield Path(entry.path), os.stat(entry.path)


@cache
def machine_key() -> str:
    """Identifies where process ids have a meaning: this machine since its last start, and this container."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(source) if source.endswith("pid") else Path(source).read_text())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_abandoned(path: Path, idle: float) -> bool:
    """Whether the owner of a partial file has died: by its process id on this machine, else by seconds without a write."""
    parts = path.name.split(".")
    if len(parts) == 4 and parts[1] == machine_key() and parts[2].isdigit():
        if int(parts[2]) == os.getpid():
            return path not in _active
        try:
            os.kill(int(parts[2]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # It lives and belongs to another user.
    return idle > _ABANDONED_SEC
