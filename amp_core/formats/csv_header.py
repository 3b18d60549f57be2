"""What a CSV's header says: an index column, the order of the quaternion, units, the joints' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from amp_core.errors import MotionRefused
from amp_core.formats.joint_names import ROOT_COLUMNS, strip_generic_names
from amp_core.formats.values import KEYS, quote

__all__ = ["Header", "is_number", "read_header"]

_TIME = frozenset(["time", "t", "timestamp", "timestamps", "sec", "seconds", "time_s", "time_sec"])
_INDEX = frozenset(["", "index", "idx", "id", "frame", "frames", "frame_id", "frame_idx", "frame_index", "frame_number", "row"])
_UNIT = re.compile(r"\s*[(\[]([^()\[\]]*)[)\]]\s*$")
# An axis is the last letter of `x`, `qx`, `pos_x`, `posx` and `translateX`, and not of `yaw`.
_AXIS = re.compile(r"(?:^|[^a-z]|[qprt]|ori|orn|quaternion|translate|rotate|position|rotation|orientation)([wxyz])$")
_FOREIGN_UNITS = {
    **dict.fromkeys(("deg", "degs", "degree", "degrees", "°", "\u00c2°"), "degrees"),
    **dict.fromkeys(("cm", "centimetres", "centimeters"), "centimetres"),
    **dict.fromkeys(("mm", "millimetres", "millimeters"), "millimetres"),
    **dict.fromkeys(("in", "inch", "inches"), "inches"),
    **dict.fromkeys(("ft", "feet"), "feet"),
}


@dataclass(frozen=True)
class Header:
    """What the header of a table says.

    Args:
      num_columns: how many columns it names.
      index: the first column numbers the frames or gives their time.
      time: the first column gives the frames' time.
      joint_names: of the columns after the root's; None where the header only numbers them.
    """

    num_columns: int
    index: bool
    time: bool
    joint_names: tuple[str, ...] | None


def is_number(cell: bytes) -> bool:
    """Whether Python takes it for a number, NaN and infinities included."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_header(cells: Sequence[bytes], quat_order: str) -> Header | None:
    """The header in a line's cells; None where the line is a row of numbers.

    Raises:
      MotionRefused: columns in another order than position, quaternion, joints; a quaternion in another order than
        `quat_order`; or another unit than metres and radians.
    """
    texts = [cell.decode("utf-8", errors="replace").strip() for cell in cells]
    if len(texts) > 1 and not texts[-1]:
        texts.pop()  # A delimiter ends each line.
    # pandas numbers the columns of an array that has no names: 0, 1, 2, … is no pose, since (3, 4, 5, 6) is no rotation.
    numbered = [text for place, text in enumerate(texts) if text or place]
    is_numbered = len(numbered) > ROOT_COLUMNS and numbered == [str(place) for place in range(len(numbered))]
    if is_numbered:
        return Header(len(texts), len(numbered) < len(texts), False, None)
    if any(is_number(cell) for cell in cells):
        return None
    first = _strip_unit(texts[0])[0].lower() if texts else ""
    has_time = first in _TIME
    has_index = has_time or first in _INDEX or first.startswith("unnamed")
    columns = [_strip_unit(text) for text in texts[has_index:]]
    _check_root([name.lower() for name, _ in columns], quat_order, has_index)
    for place, (name, unit) in enumerate(columns):
        if unit in _FOREIGN_UNITS:
            _refuse(
                f"the header gives {quote(name, 40)} in {_FOREIGN_UNITS[unit]}",
                "metres and radians",
                "Convert the column and name it without that unit",
                key=KEYS[1 + (place >= 3) + (place >= ROOT_COLUMNS)],
            )
    return Header(len(texts), has_index, has_time, strip_generic_names([name for name, _ in columns[ROOT_COLUMNS:]]))


def _strip_unit(text: str) -> tuple[str, str]:
    """A column's name, and its unit in brackets or as its last word, in lower case."""
    if match := _UNIT.search(text):
        return text[: match.start()].strip(), match[1].strip().lower()
    last = re.split(r"[\W_]+", text.lower())[-1]
    return text, last if last in _FOREIGN_UNITS else ""


def _check_root(names: list[str], quat_order: str, has_index: bool) -> None:
    """Check that the columns whose names end with an axis are x, y, z, then the quaternion in the caller's order."""
    axes = ["".join(_AXIS.findall(name)) for name in names]
    stems = [name.removesuffix(axis) for name, axis in zip(names, axes, strict=True)]
    # By their letters alone, x, y, z, w, x, y, z may begin with either of the two.
    begins_with_quaternion = axes[:7] == list("xyzwxyz") and stems[0] == stems[3] != stems[4]
    for start in sorted(range(len(axes) - 3), key=lambda place: place != (0 if begins_with_quaternion else 3)):
        order = "".join(axes[start : start + 4])
        if order not in ("wxyz", "xyzw"):
            continue
        if start != 3:
            begin = start + has_index + 1
            _refuse(
                f"the header has the quaternion in columns {begin} to {begin + 3}",
                "x, y, z, then the quaternion, then the joints",
                "Reorder the columns",
                key="root_rot",
            )
        if order != quat_order:
            _refuse(
                f"the header names the quaternion's columns in the order {order}, but {quat_order} was asked for",
                "the same order in the header and in quat_order",
                f"Pass {order} (--quat-order {order}, or quat_order in Python and HTTP)",
                key="root_rot",
            )
        break
    else:
        if axes[:6] == list("xyzxyz"):
            _refuse(
                "the header has three columns of rotation: Euler angles or a rotation vector",
                "a quaternion in columns 4 to 7",
                "Convert them with scipy's Rotation.from_euler(...) or from_rotvec(...) and .as_quat(), which is xyzw",
                key="root_rot",
            )
    if len(axes) >= 3 and all(axes[:3]) and axes[:3] != list("xyz"):
        _refuse(
            f"the header has the position in the order {', '.join(axes[:3])}", "x, y, z", "Reorder the columns", key="root_pos"
        )


def _refuse(what: str, expected: str, remedy: str, *, key: str) -> NoReturn:
    raise MotionRefused(what, key=key, expected=expected, remedy=remedy)
