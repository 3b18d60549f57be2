"""CSV clips: one row a frame, `x, y, z, four of a quaternion, joints…`, with an optional header.

Values are separated by commas, semicolons, tabs or spaces, and may be quoted; where commas do not separate them, they may be
decimal commas. A CSV has neither its rate nor its quaternion order, so both come from the caller.
"""

from __future__ import annotations

import csv
import io
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits
from amp_core.formats.csv_header import Header, is_number, read_header
from amp_core.formats.joint_names import ROOT_COLUMNS
from amp_core.formats.name_lists import COMMENTS_KEY
from amp_core.formats.values import quote

__all__ = ["has_row", "read_csv"]

MAX_LINE_BYTES = 64 * 1024
MAX_BLANK_LINES = 1000
_NUMERIC = b"0123456789+-.eE \t\r\n"
_SEPARATORS = b',;"'
_BOM = b"\xef\xbb\xbf"
# Quaternions written with four digits are this close to unit norm; positions and joint angles are not.
_UNIT_NORM = 0.02
_STEP_SPREAD = 0.05
_KEY_AND_TEXT = re.compile(rb"\s*([A-Za-z][\w ]{0,40}?)\s*[:=]\s*(\S.*)")
_RATE_TOLERANCE = 0.03


@dataclass(frozen=True)
class _Dialect:
    """How a line is split: at `delimiter`, or at spaces; `decimal_comma` where 0,5 is a half."""

    delimiter: bytes | None
    decimal_comma: bool = False

    def split(self, line: bytes) -> list[bytes]:
        """The cells of a line, without quotes, with decimal points."""
        line = line.strip(b"\r\n")
        if b'"' in line:
            delimiter = (self.delimiter or b" ").decode()
            cells = [cell.encode("latin-1") for cell in next(csv.reader([line.decode("latin-1")], delimiter=delimiter))]
        else:
            cells = line.split(self.delimiter)
        return [cell.replace(b",", b".") for cell in cells] if self.decimal_comma else cells


_DIALECTS = (
    _Dialect(b","),
    _Dialect(b";"),
    _Dialect(b";", decimal_comma=True),
    _Dialect(b"\t"),
    _Dialect(b"\t", decimal_comma=True),
    _Dialect(None),
    _Dialect(None, decimal_comma=True),
    # Every cell in quotes.
    _Dialect(b",", decimal_comma=True),
)


def read_csv(
    data: bytes, limits: Limits, quat_order: str, fps: float
) -> dict[str, NDArray[np.float64] | list[str] | dict[str, str]]:
    """`root_pos (N,3)`, `root_rot (N,4)` in the file's own order, `dof_pos (N,n)`, and `joint_names` where a header has them.

    Args:
      quat_order: from the caller; a header with the four columns in another order is a refusal.
      fps: from the caller; a time column that says another rate is a refusal.

    Raises:
      MotionRefused: names the line (as frame), the column and the text that is not a number.
    """
    if b"\n" not in data:
        # The line ends of old spreadsheets.
        data = data.replace(b"\r", b"\n")
    lines = io.BytesIO(data.removeprefix(_BOM))
    dialect = _find_dialect(data[: 2 * MAX_LINE_BYTES])
    values = array("d")
    header: Header | None = None
    comments: list[bytes] = []
    width = frames = blank = 0
    ends_in_delimiter = False
    for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            _refuse(frames, f"line {number} is longer than {MAX_LINE_BYTES} bytes", "one row of numbers a line")
        if _is_comment(line):
            if line.startswith(b"#") and not frames:
                comments.append(line.lstrip(b"# "))
            blank += 1
            if blank > MAX_BLANK_LINES:
                _refuse(frames, "the file is mostly empty lines or comments", "one row of numbers a line")
            continue
        try:
            cells = dialect.split(line)
        except csv.Error as error:
            _refuse(frames, f"line {number} cannot be split ({error})", "one row of numbers a line")
        if frames == 0 and header is None and (header := read_header(cells, quat_order)) is not None:
            continue
        if frames == 0:
            ends_in_delimiter = len(cells) > 1 and not cells[-1].strip()
            width = len(cells) - ends_in_delimiter
            header = header or _read_comments(comments, dialect, width, quat_order)
            if dialect == _Dialect(b",") and _has_decimal_commas(cells):
                _refuse(
                    0,
                    f"the numbers of line {number} have decimal commas, and commas between them",
                    "decimal points, or semicolons or tabs between the numbers",
                    "Export it with decimal points, or with another separator than the comma",
                )
        if ends_in_delimiter and len(cells) == width + 1 and not cells[-1].strip():
            cells.pop()
        if len(cells) != width or width <= ROOT_COLUMNS:
            hint = "; are they separated by ';' or tabs?" if len(cells) == 1 else ""
            expected = "position (3), quaternion (4) and at least one joint, separated by commas, semicolons, tabs or spaces"
            if width > ROOT_COLUMNS:
                expected = f"{width} columns, as in the first line"
            _refuse(frames, f"line {number} has {len(cells)} columns{hint}", expected)
        if width - ROOT_COLUMNS > limits.max_joints + 1:
            _refuse(frames, f"line {number} has {width - ROOT_COLUMNS} joints", f"at most {limits.max_joints} joints")
        if frames >= limits.max_frames or (frames + 1) * width > limits.max_values:
            _refuse(frames, "the clip is too long", f"at most {limits.max_frames} frames, {limits.max_values} values")
        try:
            # float() alone would take nan, inf and 1_000; the character check leaves only plain decimal numbers.
            if line.translate(None, _NUMERIC + _SEPARATORS):
                raise ValueError
            values.extend(map(float, cells))
        except ValueError:
            column = next(i for i, cell in enumerate(cells) if cell.translate(None, _NUMERIC) or not is_number(cell))
            _refuse(frames, f"line {number}, column {column + 1} is {quote(cells[column].strip(), 24)}", "a finite number")
        frames += 1
    if frames == 0:
        _refuse(None, "the file has no rows of numbers", "one row a frame")
    table = np.frombuffer(values, dtype=np.float64).reshape(frames, width)
    table = _drop_index(table, header, fps)
    fields: dict[str, NDArray[np.float64] | list[str] | dict[str, str]] = {
        "root_pos": table[:, :3],
        "root_rot": table[:, 3:ROOT_COLUMNS],
        "dof_pos": table[:, ROOT_COLUMNS:],
    }
    if header is not None and header.joint_names is not None:
        fields["joint_names"] = list(header.joint_names)
    if lists := _read_comment_lists(comments, has_names="joint_names" in fields):
        fields[COMMENTS_KEY] = lists
    return fields


def has_row(head: bytes) -> bool:
    """Whether a text begins like a table: the first line, or the one after a header, is several numbers.

    Args:
      head: the beginning of the text; its last line may be cut off.
    """
    rows = _first_rows(head)
    by_comma = [row.split(b",") for row in rows]
    if any(len(cells) > 1 and sum(map(is_number, cells)) > len(cells) // 2 for cells in by_comma):
        return True
    splits = (_split(dialect, row) for dialect in _DIALECTS for row in rows)
    return any(len(cells) > ROOT_COLUMNS and sum(map(is_number, cells)) > len(cells) // 2 for cells in splits)


def _first_rows(head: bytes) -> list[bytes]:
    """The first two lines that are neither empty nor comments."""
    lines = head.removeprefix(_BOM).splitlines()
    return [line for line in lines if not _is_comment(line)][:2]


def _is_comment(line: bytes) -> bool:
    """Nothing, a line that begins with #, or Excel's `sep=;`."""
    return not line.strip() or line.startswith((b"#", b"sep="))


def _split(dialect: _Dialect, row: bytes) -> Sequence[bytes]:
    """The cells of a line, without the empty one after a delimiter at its end; none where its quotes are damaged."""
    try:
        cells = dialect.split(row)
    except (csv.Error, StopIteration):
        return ()
    return cells[:-1] if len(cells) > 1 and not cells[-1].strip() else cells


def _find_dialect(head: bytes) -> _Dialect:
    """The first dialect in which the second line (the first may be a header) is numbers; else the one of its delimiter."""
    rows = _first_rows(head)
    row = rows[-1] if rows else b""
    for dialect in _DIALECTS:
        cells = _split(dialect, row)
        if len(cells) > ROOT_COLUMNS and all(map(is_number, cells)):
            return dialect
    delimiter = next((mark for mark in (b";", b"\t", b",") if mark in row), b"," if b" " not in row.strip() else None)
    return _Dialect(delimiter, delimiter != b"," and b"," in row and b"." not in row)


def _read_comments(comments: Sequence[bytes], dialect: _Dialect, width: int, quat_order: str) -> Header | None:
    """The last comment above the rows that names as many columns as they have (np.savetxt writes the header so).

    A line with one text for several joints has their units, and one with numbers is a row that was left out.
    """
    for comment in reversed(comments):
        for candidate in (dialect, *_DIALECTS):
            cells = _split(candidate, comment)
            if len(cells) == width and (header := read_header(cells, quat_order)) is not None:
                names = header.joint_names or ()
                if len(names) == 1 or len(set(names)) != 1:
                    return header
    return None


def _read_comment_lists(comments: Sequence[bytes], *, has_names: bool) -> dict[str, str]:
    """The texts of comments such as `joint_names: hip, knee, …` by their keys, those without one by their number from 1 on.

    Args:
      has_names: a header names the joints, so that a comment without a key is none.
    """
    lists = {}
    for number, comment in enumerate(comments, 1):
        match = _KEY_AND_TEXT.match(comment)
        if match is not None or not has_names:
            key, text = (f"line {number}".encode(), comment) if match is None else (match[1], match[2])
            lists[key.decode()] = text.decode("utf-8", errors="replace").strip()
    return lists


def _has_decimal_commas(cells: Sequence[bytes]) -> bool:
    """Whether the cells of a row are the whole and the decimal parts of numbers in turn."""
    stripped = [cell.strip() for cell in cells]
    wholes, decimals = stripped[::2], stripped[1::2]
    are_integers = all(cell.lstrip(b"+-").isdigit() for cell in wholes) and all(cell.isdigit() for cell in decimals)
    return len(wholes) == len(decimals) > ROOT_COLUMNS and are_integers and any(len(cell) > 1 for cell in decimals)


def _drop_index(table: NDArray[np.float64], header: Header | None, fps: float) -> NDArray[np.float64]:
    """The table without a first column that numbers the frames or gives their time.

    A header names it, or has one name less than there are columns. Without a header it is one where the quaternion is found
    a column later than it should be and the first column increases evenly.
    """
    frames, width = table.shape
    has_index = has_time = False
    if header is not None:
        has_index, has_time = header.index or header.num_columns == width - 1, header.time
        if header.num_columns not in (width, width - 1):
            _refuse(0, f"the header names {header.num_columns} columns, the rows have {width}", "one name a column")
    steps = np.diff(table[:, 0])
    increases = frames > 1 and bool((steps > 0).all())
    is_even = increases and float(np.ptp(steps)) <= _STEP_SPREAD * abs(float(steps.mean())) + 1e-9
    if not has_index and width > ROOT_COLUMNS + 1 and is_even:
        as_read, one_later = (np.abs(np.linalg.norm(table[:, i : i + 4], axis=1) - 1.0) for i in (3, 4))
        has_index = bool((as_read > _UNIT_NORM).any() and (one_later <= _UNIT_NORM).all())
    if not has_index:
        return table
    if width <= ROOT_COLUMNS + 1 or not increases:
        _refuse(0, "the first column is named as an index or a time but does not increase", "rows in order, one a frame")
    if has_time:
        step = float(np.median(steps))
        if all(abs(rate / fps - 1.0) > _RATE_TOLERANCE for rate in (1.0 / step, 1e3 / step, 1e6 / step, 1e9 / step)):
            raise MotionRefused(
                f"the time column says {1.0 / step:.4g} frames per second (steps of {step:.4g}), the caller {fps:g}",
                key="fps",
                expected="one rate",
                remedy=f"Pass {1.0 / step:.4g} (--fps {1.0 / step:.4g}, or fps in Python and HTTP), or drop the column",
            )
    return table[:, 1:]


def _refuse(
    frame: int | None,
    what: str,
    expected: str,
    remedy: str = "Write rows of x, y, z, quaternion, joints; see docs/motions.md",
) -> NoReturn:
    raise MotionRefused(what, frame=frame, expected=expected, remedy=remedy)
