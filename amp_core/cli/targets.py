"""Files and folders that a verb writes: checked before the work, written as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from typer import BadParameter

from amp_core.errors import InputRefused
from amp_core.files import NO_ROOM, is_special

MOTION_SUFFIXES = (".pkl", ".npz", ".csv")
_MOTION_KEYS = {"root_pos", "root_rot", "dof_pos"}


@contextmanager
def refuse_unwritable(path: Path) -> Iterator[None]:
    """Turn an error of the system while `path` is made or written into an `InputRefused`."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in NO_ROOM
        remedy = "Make room there, or name a folder on another disk" if is_full else "Name a folder that you may write to"
        raise InputRefused(f"cannot be written: {error.strerror or error}", file=str(path), remedy=remedy) from error


def check_file(path: Path) -> None:
    """Refuse, before the work, a file that its results cannot be written to.

    Raises:
      InputRefused: its folder does not exist or cannot be written, or it is a folder itself.
      typer.BadParameter: it is a motion file, as where `--json` swallows the word after it.
    """
    if path.suffix in MOTION_SUFFIXES or is_json_motion(path):
        raise BadParameter(f"{path} is a motion file and would be overwritten; put --json at the end", param_hint="--json")
    if not path.parent.is_dir():
        # A folder for exports is made; a file in a folder that does not exist is a slip of the pen.
        raise InputRefused(
            "cannot be written: there is no such folder",
            file=str(path),
            expected="a file in a folder that exists",
            remedy=f"Check the path, or: mkdir -p {path.parent}",
        )
    if is_special(path):
        _check_access(path, os.W_OK)
        return
    _check_access(path.parent, os.W_OK | os.X_OK)
    with refuse_unwritable(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def is_json_motion(path: Path) -> bool:
    """Whether the file exists and holds a motion, be it incomplete; a result of an earlier run may be overwritten."""
    with suppress(OSError, ValueError, RecursionError):
        document = json.loads(path.read_bytes()) if path.is_file() else None
        return isinstance(document, dict) and not _MOTION_KEYS.isdisjoint(document)
    return False


@contextmanager
def made_folder(path: Path | None) -> Iterator[None]:
    """Make a folder for exports; remove it again if it is new and nothing was written, such as after Ctrl-C.

    Raises:
      InputRefused: it cannot be made or written.
    """
    if path is None:
        yield
        return
    is_new = not path.exists()
    with refuse_unwritable(path):
        path.mkdir(parents=True, exist_ok=True)
    _check_access(path, os.W_OK | os.X_OK)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # It is not empty, or another process has removed it.
                path.rmdir()


def _check_access(path: Path, mode: int) -> None:
    with refuse_unwritable(path):
        if not os.access(path, mode):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
