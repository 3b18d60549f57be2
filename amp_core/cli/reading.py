"""Which files `--fps` and `--quat-order` are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amp_core.cli.output import Output


def reading_options(
    paths: Sequence[Path], fps: float | None, quat_order: str | None, out: Output
) -> Callable[[Path], dict[str, Any]]:
    """What to pass to the reader for each file.

    A .csv holds neither its frame rate nor its quaternion order, so where there are .csv files the options are for them, and a
    note says so if there are others as well. Without any, the options are for every file: the reader refuses a frame rate that
    contradicts the file's own.
    """
    given = {"fps": fps, "quat_order": quat_order}
    of_csv = [path.suffix.lower() == ".csv" for path in paths]
    if any(of_csv) and not all(of_csv) and any(value is not None for value in given.values()):
        out.note("--fps and --quat-order are taken for the .csv files; the others say their own")
    nothing: dict[str, Any] = dict.fromkeys(given)

    def of(path: Path) -> dict[str, Any]:
        return given if not any(of_csv) or path.suffix.lower() == ".csv" else nothing

    return of
