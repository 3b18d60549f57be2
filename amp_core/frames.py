"""Rows of an export: some of its arrays between two frames, as an npz of their own.

An export is read where it lies, so that a window of a long rollout costs what the window has. The service answers windows of a
blob with it, the command those of a file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import InputRefused, IntegrityError
from amp_core.npz import NpzWriter, StoredArray

__all__ = ["MAX_WINDOW_BYTES", "FrameWindow", "WindowType", "count_frames", "frame_arrays", "select_frames", "slice_frames"]

MAX_WINDOW_BYTES = 32 << 20
"""Of the rows of one window."""

WindowType = Literal["stored", "float32"]
"""How a window has its floats: as the export, or in single precision whatever their size."""

_STATES = frozenset(["initial_qpos", "initial_qvel"])
"""Arrays without a row a frame, whose length may be that of a rollout by chance."""
_LENGTHS = ("qpos", "features")
_CHUNK = 4 << 20


def count_frames(arrays: Mapping[str, StoredArray]) -> int:
    """The rows of an export's arrays; raises `IntegrityError` where it is no export."""
    for name in _LENGTHS:
        if name in arrays and arrays[name].shape:
            return arrays[name].shape[0]
    raise IntegrityError("this is no export: it has neither qpos nor features", expected="the arrays of a rollout")


def frame_arrays(arrays: Mapping[str, StoredArray]) -> list[str]:
    """The names of the arrays that have a row a frame, in the export's order."""
    frames = count_frames(arrays)
    return [name for name, array in arrays.items() if array.shape[:1] == (frames,) and name not in _STATES]


@dataclass(frozen=True)
class FrameWindow:
    """Rows `start ≤ i < stop` of some arrays of an export, each as one of `dtypes`."""

    arrays: Mapping[str, StoredArray]
    dtypes: Mapping[str, np.dtype[Any]]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes in a row of all arrays together."""
        return sum(math.prod(self.arrays[name].shape[1:]) * dtype.itemsize for name, dtype in self.dtypes.items())

    @property
    def nbytes(self) -> int:
        """Bytes in all rows."""
        return self.row_bytes * (self.stop - self.start)


def select_frames(
    arrays: Mapping[str, StoredArray],
    names: Sequence[str] | None = None,
    start: int = 0,
    stop: int | None = None,
    dtype: WindowType = "stored",
) -> FrameWindow:
    """Rows of an export that has its `arrays` where `npz.locate_arrays` says.

    Args:
      names: of the arrays; None for all that have a row a frame.
      start, stop: rows, half-open; None for the last.

    Raises:
      InputRefused: an array that it does not have, rows outside it, or more than `MAX_WINDOW_BYTES`; `key` is the argument.
    """
    known_names, frames = frame_arrays(arrays), count_frames(arrays)
    names = list(dict.fromkeys(known_names if names is None else names))
    for name in names:
        if name not in known_names:
            problem = f"there is no array {name[:64]!r} with a row a frame"
            raise InputRefused(problem, key="arrays", expected=", ".join(known_names))
    stop = frames if stop is None else stop
    if not 0 <= start <= stop <= frames:
        key = "stop" if stop > frames else "start"
        problem = f"rows {start} to {stop} are not within the {frames} frames"
        raise InputRefused(problem, key=key, expected=f"0 <= start <= stop <= {frames}")
    window = FrameWindow(
        {name: arrays[name] for name in names}, {name: _window_type(arrays[name].dtype, dtype) for name in names}, start, stop
    )
    if window.nbytes > MAX_WINDOW_BYTES:
        raise InputRefused(
            f"these rows have {window.nbytes >> 20} MiB",
            key="stop",
            expected=f"at most {MAX_WINDOW_BYTES >> 20} MiB: {MAX_WINDOW_BYTES // window.row_bytes} rows of these arrays",
            remedy="Ask for fewer rows or arrays at a time, or for the whole export",
        )
    return window


def slice_frames(file: BinaryIO, window: FrameWindow) -> bytes:
    """The npz of some rows of an export, a seekable file. The same rows are the same bytes.

    Raises:
      IntegrityError: the file ends before its arrays do.
    """
    buffer = io.BytesIO()
    with NpzWriter(buffer) as writer:
        for name, array in window.arrays.items():
            writer.begin(name, (window.stop - window.start, *array.shape[1:]), window.dtypes[name])
            for rows in _read_rows(file, array, window.start, window.stop):
                writer.write(rows.astype(window.dtypes[name], copy=False))
    return buffer.getvalue()


def _window_type(stored: np.dtype[Any], dtype: WindowType) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype == "float32" and stored.kind == "f" else stored


def _read_rows(file: BinaryIO, array: StoredArray, start: int, stop: int) -> Iterator[NDArray[Any]]:
    """The rows `start ≤ i < stop` of an array, some at a time."""
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    step = max(1, _CHUNK // max(1, row_bytes))
    for first in range(start, stop, step):
        count = min(step, stop - first)
        file.seek(array.offset + first * row_bytes)
        data = file.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise IntegrityError("the export ends before its arrays do")
        yield np.frombuffer(data, array.dtype).reshape(count, *array.shape[1:])
