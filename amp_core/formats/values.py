"""From what a reader found in a file to numbers: type, shape and size are checked before anything is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, shape_text

__all__ = ["KEYS", "Opaque", "PickledDict", "RawArray", "describe", "matrix", "number", "quote", "root_body"]

KEYS = ("fps", "root_pos", "root_rot", "dof_pos")
WIDTHS: Mapping[str, int | None] = {"root_pos": 3, "root_rot": 4, "dof_pos": None}
AXES = {"root_pos": "x, y, z in m", "root_rot": "quaternion xyzw", "dof_pos": "joint angles in rad"}

_NUMBER_DTYPE = re.compile(r"[<>|=]?([fiu])([1248])")


MAX_KEY_CHARACTERS = 200
MAX_LIST_VALUES = 2_500_000
# A numpy scalar in a list is an array of its own, and slower.
MAX_LISTED_SCALARS = 400_000


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """What a pickle builds by a name that is not read: nothing was imported or called, and no value can be had from it."""

    name: str


@dataclass(slots=True, eq=False)
class PickledDict:
    """A pickled dictionary as pairs: keys are never hashed, so they may be anything."""

    pairs: list[tuple[Any, Any]]

    def fields(self, *, unique: frozenset[str]) -> dict[str, Any]:
        """The values whose keys are text.

        Args:
          unique: keys that may appear only once.

        Raises:
          MotionRefused: such a key appears twice.
        """
        fields: dict[str, Any] = {}
        for key, value in self.pairs:
            if isinstance(key, bytes) and len(key) <= MAX_KEY_CHARACTERS:
                key = key.decode("latin-1")
            if not isinstance(key, str) or len(key) > MAX_KEY_CHARACTERS:
                continue
            if key in fields and key in unique:
                raise MotionRefused(
                    "the key appears twice", key=key, expected="each key once", remedy="Write each key of the dictionary once"
                )
            fields[key] = value
        return fields


@dataclass(slots=True, eq=False)
class RawArray:
    """An array that a file describes and that nothing has been built from yet. (A pickle fills it in a second step.)

    Args:
      dtype: the type string as the file has it, for example `<f8`.
      shape: its sizes.
      fortran: column-major.
      data: the bytes, or None where the file has something else (an object array's list).
      items: the list of an object array, from a pickle.
    """

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: bytes | bytearray | memoryview | None = None
    items: list[Any] | None = None

    def build(self, key: str) -> NDArray[Any]:
        """A view of the bytes with a plain numeric type.

        Raises:
          MotionRefused: an object, text, structured or otherwise unusual type, or bytes that do not fill the shape.
        """
        match = _NUMBER_DTYPE.fullmatch(self.dtype)
        if match is None or match[1] + match[2] == "f1" or self.data is None:
            kind = "an object array" if "O" in self.dtype else f"an array of type {quote(self.dtype)}"
            raise MotionRefused(
                f"it is {kind}",
                key=key,
                expected="plain numbers (float32 or float64)",
                remedy="Save it with np.asarray(..., dtype=np.float64)",
            )
        dtype = np.dtype(self.dtype)
        declared_bytes = math.prod(self.shape) * dtype.itemsize
        if declared_bytes != len(self.data):
            raise MotionRefused(
                f"the header declares shape {shape_text(self.shape)} of {self.dtype}, {declared_bytes} bytes, but the file has "
                f"{len(self.data)}",
                key=key,
                expected="as many bytes as the shape needs",
                remedy="The file is damaged: export it again",
            )
        flat = np.frombuffer(self.data, dtype=dtype) if declared_bytes else np.empty(0, dtype=dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def quote(text: object, limit: int = 60) -> str:
    """Hostile text made fit for an error: ASCII, short, on one line. Only str and bytes are ever quoted."""
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    if not isinstance(text, str):
        return describe(text)
    ascii_text = ascii(text[:limit])
    return ascii_text + "…" if len(text) > limit else ascii_text


def describe(value: object) -> str:
    """What kind of thing this is, without ever printing what is in it."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "a true/false value"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return f"the text {quote(value, 24)}"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    if isinstance(value, RawArray):
        return f"an array of shape {shape_text(value.shape)}" if len(value.shape) <= 8 else "an array of many dimensions"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict | PickledDict):
        return "a dictionary"
    if isinstance(value, Opaque):
        return f"what the file calls {value.name} for, and ampref never imports or calls anything that a file names"
    return f"a {type(value).__name__.strip('_').lower()}"


def number(key: str, value: object) -> float:
    """One finite or infinite number from a number, a 0-d array, or an array or a list of one.

    Raises:
      MotionRefused: anything else, booleans included.
    """
    if isinstance(value, list | tuple) and len(value) == 1 and not isinstance(value[0], list | tuple):
        value = value[0]
    if isinstance(value, RawArray) and math.prod(value.shape) == 1 and len(value.shape) <= 2:
        return float(value.build(key).reshape(())[()])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MotionRefused(
            f"it is {describe(value)}", key=key, expected="one number", remedy="Write it as a plain number, for example 50.0"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


def matrix(key: str, value: object, limits: Limits) -> NDArray[np.float64]:
    """The (N, w) float64 array of a key, from an array or from rows of numbers; a batch of one clip is that clip.

    Raises:
      MotionRefused: not numbers, not two-dimensional, the wrong width, or over the limits.
    """
    width = WIDTHS.get(key)
    if isinstance(value, RawArray):
        shape = value.shape
        if len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        elif len(shape) == 3 and shape[1] == 1:
            shape = shape[0], shape[2]
        elif len(shape) == 3 and shape[2] == 1 and width is None:
            shape = shape[:2]
        value = replace(value, shape=shape)
        _check_shape(key, shape, width, limits)
        return np.ascontiguousarray(value.build(key), dtype=np.float64)
    if isinstance(value, list | tuple):
        is_batch = (
            len(value) == 1 and isinstance(value[0], list | tuple) and _row_length(next(iter(value[0]), None)) is not None
        )
        return _stack_rows(key, value[0] if is_batch else value, width, limits)
    is_tensor = isinstance(value, Opaque) and value.name.startswith("torch")
    raise MotionRefused(
        f"it is {describe(value)}",
        key=key,
        expected=f"an array of shape (N, {width or 'n'}): {AXES.get(key, 'numbers')}",
        remedy="Convert the tensor with .numpy() and save it with np.savez" if is_tensor else "Save it as a numpy array",
    )


def root_body(key: str, value: object, body: int, limits: Limits) -> NDArray[np.float64]:
    """The rows of one body, (N, w) float64, of an array (N, B, w) of all bodies.

    Raises:
      MotionRefused: not an array of numbers with three dimensions and such a body, or over the limits.
    """
    if not isinstance(value, RawArray) or len(value.shape) != 3 or not body < value.shape[1]:
        raise MotionRefused(
            f"it is {describe(value)}",
            key=key,
            expected="an array of shape (N, bodies, 3 or 4)",
            remedy="Save it with np.savez, one row a frame",
        )
    frames, bodies, width = value.shape
    _check_shape(key, (frames, width), None, limits)
    if frames * bodies * width > limits.max_values:
        raise MotionRefused(
            f"it has {frames} × {bodies} × {width} values",
            key=key,
            expected=f"at most {limits.max_values}",
            remedy="Save the root's alone as root_pos and root_rot",
        )
    return np.ascontiguousarray(value.build(key)[:, body], dtype=np.float64)


def _check_shape(key: str, shape: tuple[int, ...], width: int | None, limits: Limits) -> None:
    if len(shape) != 2 or (width is not None and shape[1] != width) or shape[1] == 0:
        cause, remedy = _explain_shape(key, shape, width)
        raise MotionRefused(
            f"its shape is {shape_text(shape[:8])}{cause}",
            key=key,
            expected=f"(N, {width or 'n'}): one row a frame, {AXES.get(key, 'numbers')}",
            remedy=remedy,
        )
    frames, columns = shape
    too_long, transposed = "Cut the clip into shorter ones", "Is it transposed? Write one row per frame"
    longest = f"{limits.max_frames} ({limits.max_duration_sec:g} s at {limits.max_fps:g} fps)"
    for is_over, size, most, remedy in (
        (frames > limits.max_frames, f"{frames} frames", longest, too_long),
        (columns > limits.max_joints, f"{columns} columns", f"{limits.max_joints} joints", transposed),
        (frames * columns > limits.max_values, f"{frames} × {columns} values", str(limits.max_values), too_long),
    ):
        if is_over:
            raise MotionRefused(f"it has {size}", key=key, expected=f"at most {most}", remedy=remedy)


def _explain_shape(key: str, shape: tuple[int, ...], width: int | None) -> tuple[str, str]:
    """What an array of another shape probably is, and how it becomes what is expected."""
    if key == "root_rot":
        for tail, description, code in (
            (
                (3,),
                "Euler angles or a rotation vector",
                "Rotation.from_euler('xyz', root_rot).as_quat(), or Rotation.from_rotvec(root_rot).as_quat()",
            ),
            ((3, 3), "rotation matrices", "Rotation.from_matrix(root_rot).as_quat()"),
            ((9,), "flattened rotation matrices", "Rotation.from_matrix(root_rot.reshape(-1, 3, 3)).as_quat()"),
            (
                (6,),
                "a six-dimensional rotation",
                "x = root_rot[:, :3]; z = np.cross(x, root_rot[:, 3:]); "
                "Rotation.from_matrix(np.stack([x, np.cross(z, x), z], axis=-1)).as_quat() "
                "(axis=-2 where the six are rows of the matrix)",
            ),
        ):
            if shape[1:] == tail:
                return f": {description}, not quaternions", f"Convert with scipy's Rotation, which gives xyzw: {code}"
    if len(shape) == 3:
        return f": a batch of {shape[0]} clips?", f"Write one clip a file, without the batch dimension: {key}[i]"
    if len(shape) == 2 and shape[0] == width:
        return ": it is transposed", f"Write one row per frame: {key}.T"
    return "", "Write one row per frame"


def _stack_rows(key: str, rows: Sequence[object], width: int | None, limits: Limits) -> NDArray[np.float64]:
    """Rows of Python numbers, of numpy scalars, or one-dimensional arrays."""
    if not rows:
        _check_shape(key, (0,), width, limits)
    first = _row_length(rows[0])
    if first is None:
        raise MotionRefused(
            f"the first row is {describe(rows[0])}",
            key=key,
            frame=0,
            expected=f"a row of {width or 'n'} numbers: {AXES.get(key, 'numbers')}",
            remedy="Write one row per frame",
        )
    # The size is known before any row is touched: a row that is shared by a million frames costs nothing until here.
    _check_shape(key, (len(rows), first), width, limits)
    if len(rows) * first > MAX_LIST_VALUES:
        raise MotionRefused(
            f"it lists {len(rows)} × {first} values one by one",
            key=key,
            expected=f"at most {MAX_LIST_VALUES} in lists",
            remedy="Save arrays (.npz), or cut the clip into shorter ones",
        )
    out = np.empty((len(rows), first), dtype=np.float64)
    scalars = 0
    for frame, row in enumerate(rows):
        if _row_length(row) != first:
            length = _row_length(row)
            raise MotionRefused(
                f"the row is {describe(row)}" if length is None else f"the row has {length} values",
                key=key,
                frame=frame,
                expected=f"{first} numbers, as in the first frame",
                remedy="Write rows of one length",
            )
        if isinstance(row, RawArray):
            out[frame] = row.build(key)
            continue
        assert isinstance(row, list | tuple)
        scalars += sum(isinstance(item, RawArray) for item in row)
        if scalars > MAX_LISTED_SCALARS:
            raise MotionRefused(
                "it lists too many numpy scalars one by one",
                key=key,
                frame=frame,
                expected=f"at most {MAX_LISTED_SCALARS}",
                remedy="Save arrays: np.asarray(rows)",
            )
        for column, item in enumerate(row):
            if type(item) is float:
                out[frame, column] = item
                continue
            is_scalar = isinstance(item, RawArray) and item.shape == ()
            if not is_scalar and (isinstance(item, bool) or not isinstance(item, int | float)):
                raise MotionRefused(
                    f"column {column} is {describe(item)}",
                    key=key,
                    frame=frame,
                    expected="a number",
                    remedy="Write numbers only",
                )
            out[frame, column] = number(key, item)
    return out


def _row_length(row: object) -> int | None:
    if isinstance(row, list | tuple):
        return len(row)
    if isinstance(row, RawArray) and len(row.shape) == 1:
        return row.shape[0]
    return None
