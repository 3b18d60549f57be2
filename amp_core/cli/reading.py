"""Motion files as the verbs read them: options for the files that need them, a refusal for each that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from amp_core.cli.output import Output
from amp_core.commands import fill_command, quote_path
from amp_core.digests import digest_of_file
from amp_core.errors import AmprefError, InputRefused
from amp_core.formats import EXTENSIONS, Limits, Motion, read_motion

ReadOptions = Callable[[Path], dict[str, Any]]
"""The keyword arguments of `read_motion` for a file."""


def limits_of(max_duration: float | None) -> Limits:
    """The default limits, with `--max-duration` seconds where it was given."""
    return Limits() if max_duration is None else Limits(max_duration_sec=max_duration)


def reading_options(
    paths: Sequence[Path], fps: float | None, quat_order: str | None, out: Output, limits: Limits | None = None
) -> ReadOptions:
    """Which files `--fps` and `--quat-order` are for.

    A .csv holds neither its frame rate nor its quaternion order, so where there are .csv files the options are for them, and a
    note says so if there are others as well. Without any, the options are for every file: the reader refuses a frame rate that
    contradicts the file's own.
    """
    options = {"fps": fps, "quat_order": quat_order}
    bounds = {} if limits is None else {"limits": limits}
    is_csv = {path: path.suffix.lower() == ".csv" for path in paths}
    if not any(is_csv.values()):
        return lambda path: options | bounds
    if not all(is_csv.values()) and any(value is not None for value in options.values()):
        out.note("--fps and --quat-order are taken for the .csv files; the others say their own")
    return lambda path: (options if is_csv[path] else {}) | bounds


def read_motions(
    paths: Sequence[Path], options: ReadOptions, check: Callable[[Motion], None]
) -> Iterator[Motion | AmprefError]:
    """Read motions one by one; in the place of each that cannot be used stands its refusal, which names the file.

    Args:
      check: raises an `AmprefError` for a motion that the verb cannot use.
    """
    for path in paths:
        try:
            if not path.is_file():
                raise InputRefused(
                    "is a folder" if path.is_dir() else "is not a file" if path.exists() else "there is no such file",
                    expected="a motion file: .pkl, .npz, .json or .csv",
                    remedy=f"Name the files in it: {quote_path(path)}/*.pkl"
                    if path.is_dir()
                    else f"Check: ls -l {quote_path(path)}",
                )
            motion = read_motion(path, **options(path))
            check(motion)
            yield motion
        except AmprefError as error:
            error.file = error.file if error.file and "/" in error.file else str(path)
            error.remedy = fill_command(error.remedy, path)
            yield error
        except OSError as error:
            yield InputRefused(
                f"cannot be read: {error.strerror or error}",
                file=str(path),
                expected="a readable file",
                remedy=f"Check: ls -l {quote_path(path)}",
            )


def find_sources(folders: Sequence[Path], digests: set[str]) -> dict[str, Path]:
    """The motion files of these digests among some files and folders, by digest.

    Raises:
      InputRefused: there is no such file or folder.
    """
    sources: dict[str, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise InputRefused("there is no such file or folder", file=str(folder), expected="motions, or folders of them")
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.suffix.lower() in EXTENSIONS and path.is_file():
                digest = digest_of_file(path)
                if digest in digests:
                    sources.setdefault(digest, path)
    return sources
