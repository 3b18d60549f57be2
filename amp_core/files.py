"""Files that are written whole or not at all: a partial file in the same folder, then a rename.

A partial file belongs to one process and one write, so that writers of the same target never mix their bytes; the last rename
wins. What is durable also survives a loss of power: the file's bytes are on the disk before its name, and the name before the
call returns.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amp_core.errors import InputRefused

__all__ = [
    "NO_ROOM",
    "expand_home",
    "is_special",
    "partial_path",
    "publish_file",
    "replace_file",
    "sync_file",
    "sync_folder",
    "write_file",
]

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The error numbers of a disk, or a quota, that is full."""

_NAME_CHARACTERS = 40  # Of the target's name; four bytes each leave room below the 255 bytes of most file systems.


def expand_home(path: Path) -> Path:
    """A path with the home folder that its `~` or `~USER` stands for; raises `InputRefused` where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputRefused(
            f"no home folder is known for {path.parts[0]}",
            file=str(path),
            expected="~ of a user that there is",
            remedy="Write the path as a whole; ./~NAME is a file of that name",
        ) from None


def partial_path(target: Path) -> Path:
    """A path for a new partial file beside `target`, which no other process and no other write has."""
    return target.with_name(f".{target.name[:_NAME_CHARACTERS]}.{os.getpid()}.{os.urandom(6).hex()}.partial")


def publish_file(partial: Path, target: Path, *, durable: bool = False) -> None:
    """Give a finished partial file its name; what had that name is replaced."""
    if durable:
        sync_file(partial)
    os.replace(partial, target)
    if durable:
        sync_folder(target.parent)


@contextmanager
def replace_file(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to, which becomes `target` at the end of the block; after an error nothing is left of it."""
    partial = partial_path(target)
    try:
        yield partial
        publish_file(partial, target, durable=durable)
    finally:
        partial.unlink(missing_ok=True)


def write_file(target: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `data` as the whole of `target`, whose folder is made where it is missing.

    A pipe or a device is written to: a file in its place would be of no use to whoever reads it.
    """
    if is_special(target):
        target.write_bytes(data)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(target, durable=durable) as partial:
        partial.write_bytes(data)


def is_special(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder, such as a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    _sync(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows has no call for it."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
