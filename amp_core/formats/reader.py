"""`read_motion`: from bytes to a checked `Motion`, whatever the bytes are."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.commands import fill_command
from amp_core.digests import digest_of
from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, Motion, check_limits, check_values
from amp_core.formats.csv_rows import has_row, read_csv
from amp_core.formats.joint_names import find_joint_names
from amp_core.formats.json_clip import read_json_clip
from amp_core.formats.layouts import FIELD_KEYS, find_layout, read_layout, unwrap_clip
from amp_core.formats.name_lists import find_name_lists
from amp_core.formats.names import EXTENSIONS, clean_name, name_clip
from amp_core.formats.npz import NpzFields, read_directory
from amp_core.formats.pkl import read_pickle
from amp_core.formats.recording import Recording
from amp_core.formats.recording_keys import CONTROL_KEYS, RECORDING_KEYS, STATE_KEYS, read_export_meta, read_recording
from amp_core.formats.values import KEYS, matrix, number, quote
from amp_core.lineage import Lineage
from amp_core.rotations import to_wxyz, to_xyzw

__all__ = ["FORMATS", "QUAT_ORDERS", "read_motion", "sniff"]

FORMATS = ("pkl", "npz", "json", "csv")
QUAT_ORDERS = ("xyzw", "wxyz")
MAX_PATH_CHARACTERS = 200
"""The end of a path that errors quote."""
MAX_LISTED_KEYS = 12
"""The keys of a file that an error lists."""

_SAVE_TORCH = "Convert it where torch is: clip = torch.load('clip.pt', weights_only=True); "
_SAVE_TORCH += "np.savez('clip.npz', **{key: np.asarray(value) for key, value in clip.items()})"
_SAVE_NPY = (
    "Where you trust a .npy that holds a dictionary: np.savez('clip.npz', **np.load('clip.npy', allow_pickle=True).item())"
)
_SAVE_JOBLIB = "Where you trust it: clip = joblib.load('clip.pkl'); np.savez('clip.npz', **clip)"
_EXPORT = "Export the clip in one of these formats; see docs/motions.md"
_NOT_READ = {
    b"\x93NUMPY": "a single .npy array",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.": "a PyTorch file",
    b"\x1f\x8b": "gzip-compressed data",
    b"BZh": "bzip2-compressed data",
    b"\xfd7zXZ": "xz-compressed data",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"version https://git-lfs": "a Git LFS pointer instead of the file (run git lfs pull)",
}


def read_motion(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    format: str | None = None,
    fps: float | None = None,
    quat_order: str | None = None,
    limits: Limits | None = None,
    frames: tuple[int, int | None] | None = None,
) -> Motion:
    """Read a motion clip. Nothing in the file is executed, and memory stays in proportion to its size.

    Args:
      source: a file's path, or a file's bytes.
      name: the clip's name (`clean_name` gives the rule), by default the file's (`name_clip`). Bytes need one; it
        is also what errors call them.
      format: `pkl`, `npz`, `json` or `csv`, when it is known. The content decides; another `format`, or a file name that
        ends otherwise, is refused rather than guessed around.
      fps: frames per second, for files without a rate (every CSV). A file with another rate is refused.
      quat_order: `xyzw` or `wxyz`. Needed for CSV; for the other formats it defaults to xyzw.
      limits: what a clip may cost; the defaults are `Limits()`.
      frames: the first frame and the one after the last (None for the end), for a part of the file; the rest of it is not
        checked. The digest and the lineage are still those of the file.

    Raises:
      MotionRefused: names file, key, frame, expectation and remedy.
      TypeError: bytes without a name.
    """
    limits = limits or Limits()
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if name is None:
        if path is None:
            raise TypeError("bytes have no file name: pass name=, the clip's name")
        name = name_clip(path.name)
    name = clean_name(name)
    if format is not None and format not in FORMATS:
        raise MotionRefused(f"there is no format {quote(format)}", key="format", expected="one of " + ", ".join(FORMATS))
    if quat_order is not None and quat_order not in QUAT_ORDERS:
        raise MotionRefused(
            f"there is no quaternion order {quote(quat_order)}", key="quat_order", expected="one of " + ", ".join(QUAT_ORDERS)
        )
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or fps <= 0):
        raise MotionRefused(
            f"fps is {fps!r}" if isinstance(fps, float | int) else "fps is no number",
            key="fps",
            expected="a positive number of frames per second",
            remedy="Pass the rate of the clip, for example --fps 50 (fps=50 in Python and HTTP)",
        )
    file = name if path is None else str(path)
    if len(file) > MAX_PATH_CHARACTERS:
        file = "…" + file[-MAX_PATH_CHARACTERS:]
    if not file.isprintable():
        file = quote(file, MAX_PATH_CHARACTERS + 1).strip("'")
    try:
        data = _load(Path(source), limits) if isinstance(source, str | os.PathLike) else bytes(source)
        hint = format or EXTENSIONS.get((path or Path(name)).suffix.lower())
        motion = _parse(data, name, hint, fps, quat_order, limits, frames)
        check_limits(motion, limits, frames[0] if frames else 0)
    except MotionRefused as error:
        error.file = file
        error.remedy = error.remedy if path is None else fill_command(error.remedy, path)
        raise
    return motion


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise MotionRefused(
            f"the file has {size} bytes" if size <= limits.max_bytes * 64 else "the file is far too large",
            expected=f"at most {limits.max_bytes} bytes",
            remedy="Cut the clip into shorter ones, or save only fps, root_pos, root_rot and dof_pos",
        )


def _load(path: Path, limits: Limits) -> bytes:
    """A regular file's bytes, at most one more than the limit."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise MotionRefused(f"it cannot be opened: {reason}", expected="a motion file", remedy="Check the path") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise MotionRefused("it is not a regular file", expected="a motion file", remedy="Check the path")
    with os.fdopen(handle, "rb") as stream:
        _check_size(status.st_size, limits)
        return stream.read(limits.max_bytes + 1)


def sniff(data: bytes, hint: str | None = None) -> str:
    """What the content is: `pkl`, `npz`, `json` or `csv`.

    Args:
      hint: the format by the name or the caller. It decides only between a pickle of protocol 0, which is text, and CSV.

    Raises:
      MotionRefused: none of them.
    """
    for magic, description in _NOT_READ.items():
        if data.startswith(magic):
            remedies = {"a single .npy array": _SAVE_NPY, "a PyTorch file": _SAVE_TORCH}
            raise _unknown(f"its content is {description}", remedies.get(description, _EXPORT))
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        if any(member.name.rsplit(b"/", 1)[-1] == b"data.pkl" for member in read_directory(data)):
            raise _unknown("its content is a PyTorch file", _SAVE_TORCH)
        return "npz"
    if data[:1] == b"\x80" and data[1:2] <= b"\x08":
        return "pkl"
    if data[:1] == b"\x78" and data[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        raise _unknown("its content is zlib-compressed data (a joblib pickle?)", _SAVE_JOBLIB)
    head = data[:4096]
    first_line = head.split(b"\n", 1)[0]
    # Pickles of protocol 0 and 1 have no magic. They begin by opening a container, or naming something, and end with a dot.
    opens = head[:1] in b"(}])" or (head[:1] == b"c" and len(first_line) < 200)
    if (opens and data.endswith(b".") and b"," not in first_line) or (hint == "pkl" and head[:1] in b"(}])c"):
        return "pkl"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1]
    if start and start in b"{[":
        return "json"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _unknown("its content is UTF-16 text")
    if _is_text(head) and (hint == "csv" or has_row(head)):
        return "csv"
    raise _unknown("its content is plain text" if _is_text(head) else f"it begins with {head[:8].hex(' ')}")


def _is_text(head: bytes) -> bool:
    return not head.translate(None, bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)) + b"\t\r\n")


def _unknown(what: str, remedy: str = _EXPORT) -> MotionRefused:
    return MotionRefused(
        f"this is no motion clip: {what}",
        expected="a GMR pickle (.pkl), .npz, .json or .csv",
        remedy=remedy,
    )


def _parse(
    data: bytes,
    name: str,
    hint: str | None,
    fps: float | None,
    quat_order: str | None,
    limits: Limits,
    frames: tuple[int, int | None] | None,
) -> Motion:
    _check_size(len(data), limits)
    if not data.strip(b" \t\r\n\0"):
        raise MotionRefused("the file is empty", expected="a motion clip", remedy="Copy or export it again")
    kind = sniff(data, hint)
    if hint and hint != kind:
        raise MotionRefused(
            f"it is named or declared {hint} but its content is {kind}",
            expected="a name that says what the content is",
            remedy=f"Rename it to end in .{kind} if that is what it is meant to be (in Python format={kind!r} does as well)",
        )
    fields = keys = _read_fields(data, kind, fps, quat_order, limits)
    lineage = Lineage.from_members(fields) if kind in ("npz", "json") else None
    layout = find_layout(fields)
    if layout is not None:
        fields = read_layout(layout, fields, quat_order, limits)
    meta = read_export_meta(keys)
    rate = _read_rate(fields if "fps" in fields or "fps" not in meta else meta, fps, keys)
    for key in KEYS[1:]:
        if key not in fields:
            raise _missing_key(key, fields, "Export the clip with all of them; see docs/motions.md")
    root_pos, root_rot, dof_pos = (
        value if isinstance(value := fields[key], np.ndarray) else matrix(key, value, limits) for key in KEYS[1:]
    )
    # Read before the motion is cut: its own frames are compared.
    recording, fault = _find_recording(keys, meta, len(dof_pos), frames, limits)
    if frames is not None:
        root_pos, root_rot, dof_pos = (_cut(array, frames) for array in (root_pos, root_rot, dof_pos))
    # Before the order is changed: that there are four columns is checked here.
    check_values(rate, root_pos, root_rot, dof_pos, frames[0] if frames else 0)
    _check_root_columns(root_pos, root_rot, dof_pos)
    if quat_order == "wxyz" and layout is None:
        root_rot = to_xyzw(root_rot)
    digest = digest_of(data)
    # Beside controls the actuators' names are those of their columns.
    known_keys = FIELD_KEYS - ({"actuator_names"} if "ctrl" not in keys else set())
    texts = keys.read_texts(known_keys) if isinstance(keys, NpzFields) else keys
    name_lists = find_name_lists({key: value for key, value in texts.items() if key not in known_keys}, dof_pos.shape[1])
    joint_names = find_joint_names(fields, dof_pos.shape[1], name_lists)
    return Motion(
        name,
        rate,
        root_pos,
        root_rot,
        dof_pos,
        digest,
        kind,
        lineage,
        joint_names,
        name_lists if joint_names is None else {},
        recording,
        fault,
    )


def _find_recording(
    keys: Mapping[str, Any],
    meta: Mapping[str, Any],
    num_frames: int,
    frames: tuple[int, int | None] | None,
    limits: Limits,
) -> tuple[Recording | None, MotionRefused | None]:
    """The controls that a file carries, or why they cannot be used; a part that does not begin with the file has none.

    Args:
      meta: of an export.
      num_frames: of the file.
      frames: the part of it that is read; None for all.
    """
    if not any(key in keys for key in (*CONTROL_KEYS, *STATE_KEYS)) or (frames is not None and frames[0] > 0):
        return None, None
    try:
        recording = read_recording({**meta, **{key: keys[key] for key in RECORDING_KEYS if key in keys}}, num_frames, limits)
    except MotionRefused as error:
        return None, error
    return recording if recording is None or frames is None else recording.cut(frames[1] or num_frames), None


def _missing_key(key: str, keys: Iterable[str], remedy: str) -> MotionRefused:
    key_list = list(keys)
    names = ", ".join(map(quote, key_list[:MAX_LISTED_KEYS]))
    more = f" and {len(key_list) - MAX_LISTED_KEYS} more" if len(key_list) > MAX_LISTED_KEYS else ""
    problem = f"the key {key!r} is missing; the file has {names or 'no keys'}{more}"
    return MotionRefused(problem, key=key, expected="the keys " + ", ".join(KEYS), remedy=remedy)


def _cut(array: NDArray[np.float64], frames: tuple[int, int | None]) -> NDArray[np.float64]:
    """The frames from the first up to, and without, the last; None for the end."""
    start, end = frames
    if not 0 <= start < len(array) or not (end is None or start < end <= len(array)):
        raise MotionRefused(
            f"there are no frames {start}:{'' if end is None else end}",
            key="frames",
            expected=f"frames within 0:{len(array)}",
            remedy="The first frame is 0, and the end itself is left out",
        )
    return array[start:end]


def _check_root_columns(root_pos: NDArray[np.float64], root_rot: NDArray[np.float64], dof_pos: NDArray[np.float64]) -> None:
    """A dof_pos that begins with the root's own pose, as MuJoCo's qpos does."""
    if dof_pos.shape[1] <= 7:
        return
    for position, rotation in ((dof_pos[:, :3], dof_pos[:, 3:7]), (dof_pos[:, 4:7], dof_pos[:, :4])):
        pairs = ((rotation, root_rot), (to_xyzw(rotation), root_rot), (to_wxyz(rotation), root_rot))
        if np.allclose(position, root_pos, atol=1e-3) and any(np.allclose(np.abs(a), np.abs(b), atol=1e-3) for a, b in pairs):
            raise MotionRefused(
                "the first 7 columns of dof_pos look like the root: they repeat root_pos and root_rot",
                key="dof_pos",
                expected="the joints alone: (N, n)",
                remedy="Write dof_pos = dof_pos[:, 7:]",
            )


def _read_fields(data: bytes, kind: str, fps: float | None, quat_order: str | None, limits: Limits) -> Mapping[str, Any]:
    if kind == "npz":
        return NpzFields(data, limits)
    if kind == "json":
        return unwrap_clip(read_json_clip(data))
    if kind == "pkl":
        return unwrap_clip(read_pickle(data, FIELD_KEYS))
    missing = [key for key, value in (("fps", fps), ("quat_order", quat_order)) if value is None]
    if missing:
        raise MotionRefused(
            f"a CSV does not say its {' and '.join(missing)}",
            key=missing[0],
            expected="fps in frames per second and quat_order xyzw or wxyz from the caller",
            remedy="Pass both, for example --fps 50 and --quat-order xyzw (fps and quat_order in Python and HTTP)",
        )
    assert quat_order is not None
    assert fps is not None
    return read_csv(data, limits, quat_order, fps)


def _read_rate(fields: Mapping[str, Any], fps: float | None, keys: Iterable[str]) -> float:
    """The clip's rate.

    Args:
      keys: those of the file, for errors; a layout's are others than those of `fields`.
    """
    if fps is not None and fields.get("fps") is None:
        return float(fps)
    if fields.get("fps") is None:
        remedy = "Export the clip with its rate, or pass it: --fps 50 (fps=50 in Python and HTTP)"
        if "fps" not in fields:
            raise _missing_key("fps", keys, remedy)
        raise MotionRefused("it is None", key="fps", expected="one number", remedy=remedy)
    rate = number("fps", fields["fps"])
    if fps is not None and not math.isclose(rate, fps, rel_tol=1e-6):
        raise MotionRefused(
            f"the file says {rate:g} fps, the caller {fps:g}",
            key="fps",
            expected="one rate",
            remedy="Leave fps (--fps) out: the file has its own",
        )
    return rate
