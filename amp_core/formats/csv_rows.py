"""CSV clips: one row a frame, `x, y, z, four of a quaternion, joints…`, with an optional header.

A CSV has neither its rate nor its quaternion order, so both come from the caller.
"""

from __future__ import annotations

import io
from array import array
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits
from amp_core.formats.values import quote

__all__ = ["has_row", "read_csv"]

MAX_LINE_BYTES = 64 * 1024
MAX_BLANK_LINES = 1000
_NUMERIC = b"0123456789+-.eE, \t\r\n"
_ROOT_COLUMNS = 7


def read_csv(data: bytes, limits: Limits, quat_order: str) -> dict[str, NDArray[np.float64]]:
    """`root_pos (N,3)`, `root_rot (N,4)` in the file's own order, `dof_pos (N,n)`.

    Args:
      quat_order: from the caller; a header with the four columns in another order is a refusal.

    Raises:
      MotionRefused: names the line (as frame), the column and the text that is not a number.
    """
    lines = io.BytesIO(data.removeprefix(b"\xef\xbb\xbf"))
    values = array("d")
    width = 0
    frames = 0
    blank = 0
    for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            _refuse(frames, f"line {number} is longer than {MAX_LINE_BYTES} bytes", "one row of numbers a line")
        if not line.strip() or line.startswith(b"#"):
            blank += 1
            if blank > MAX_BLANK_LINES:
                _refuse(frames, "the file is mostly empty lines or comments", "one row of numbers a line")
            continue
        cells = line.rstrip(b"\r\n").split(b",")
        if frames == 0 and width == 0 and not any(map(_parses, cells)):
            _check_header(cells, quat_order)
            width = len(cells)
            continue
        if width == 0:
            width = len(cells)
        if len(cells) != width or width <= _ROOT_COLUMNS:
            hint = "; are they separated by ';' or tabs?" if len(cells) == 1 else ""
            expected = "position (3), quaternion (4) and at least one joint, separated by commas"
            if width > _ROOT_COLUMNS:
                expected = f"{width} columns, as in the first line"
            _refuse(frames, f"line {number} has {len(cells)} columns{hint}", expected)
        if width - _ROOT_COLUMNS > limits.max_joints:
            _refuse(frames, f"line {number} has {width - _ROOT_COLUMNS} joints", f"at most {limits.max_joints} joints")
        if frames >= limits.max_frames or (frames + 1) * width > limits.max_values:
            _refuse(frames, "the clip is too long", f"at most {limits.max_frames} frames, {limits.max_values} values")
        try:
            # float() alone would take nan, inf and 1_000; the character check leaves only plain decimal numbers.
            if line.translate(None, _NUMERIC):
                raise ValueError
            values.extend(map(float, cells))
        except ValueError:
            column = next(i for i, cell in enumerate(cells) if cell.translate(None, _NUMERIC) or not _parses(cell))
            cell = cells[column]
            _refuse(frames, f"line {number}, column {column + 1} is {quote(cell.strip(), 24)}", "a finite number")
        frames += 1
    if frames == 0:
        _refuse(None, "the file has no rows of numbers", "one row a frame")
    table = np.frombuffer(values, dtype=np.float64).reshape(frames, width)
    return {"root_pos": table[:, :3], "root_rot": table[:, 3:7], "dof_pos": table[:, 7:]}


def has_row(head: bytes) -> bool:
    """Whether a text begins like a table: the first line, or the one after a header, is several numbers with commas between.

    Args:
      head: the beginning of the text; its last line may be cut off.
    """
    lines = head.removeprefix(b"\xef\xbb\xbf").splitlines()
    rows = [line.split(b",") for line in lines if line.strip() and not line.startswith(b"#")][:2]
    return any(len(cells) > 1 and sum(map(_parses, cells)) > len(cells) // 2 for cells in rows)


def _refuse(frame: int | None, what: str, expected: str) -> NoReturn:
    raise MotionRefused(
        what, frame=frame, expected=expected, remedy="Write rows of x, y, z, quaternion, joints; see docs/motions.md"
    )


def _parses(cell: bytes) -> bool:
    """Whether Python takes it for a number, NaN and infinities included."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_header(cells: list[bytes], quat_order: str) -> None:
    """Where a header names its quaternion columns (`qw, qx, …`), they must agree with the caller."""
    letters = "".join(cell.strip(b" \"'").decode("latin-1").lower()[-1:] for cell in cells[3:7])
    if letters in ("wxyz", "xyzw") and letters != quat_order:
        raise MotionRefused(
            f"the header names the quaternion's columns in the order {letters}, but {quat_order} was asked for",
            key="root_rot",
            expected="the same order in the header and in quat_order",
            remedy=f"Pass {letters} (--quat-order {letters}, or quat_order in Python and HTTP)",
        )
