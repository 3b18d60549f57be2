"""Whether a file is in proportion to the motion in it: a service keeps whole files, ignored keys included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from amp_core.errors import TooLarge
from amp_core.formats.clip import Motion
from amp_core.formats.json_clip import read_json_clip
from amp_core.formats.layouts import FIELD_KEYS, unwrap_clip
from amp_core.formats.npz import read_directory
from amp_core.formats.pkl import read_pickle
from amp_core.formats.values import RawArray, quote

__all__ = ["check_proportion"]

_FREE_BYTES = 1 << 20
# 64 numbers of 8 bytes. Files with the poses and velocities of every link have 12 to 25 for each that is read.
_BYTES_A_VALUE = 512
_MAX_LISTED_KEYS = 3


def check_proportion(data: bytes, motion: Motion) -> None:
    """Raise `TooLarge` for a file that is much larger than its motion, with the largest of the keys that are ignored.

    Args:
      data: the bytes that `motion` was read from.
    """
    values = motion.root_pos.size + motion.root_rot.size + motion.dof_pos.size
    values += motion.recording.size if motion.recording else 0
    bound = max(_FREE_BYTES, _BYTES_A_VALUE * values)
    if len(data) <= bound:
        return
    sizes = {key: size for key, size in _measure_keys(data, motion.source_format).items() if key not in FIELD_KEYS}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:_MAX_LISTED_KEYS]
    keys = ", ".join(f"{quote(key)} ({size:,} bytes)" for key, size in largest)
    raise TooLarge(
        f"the file has {len(data):,} bytes for {motion.num_frames:,} frames"
        + (f"; of the keys that are ignored the largest are {keys}" if keys else ""),
        file=motion.name,
        expected=f"at most {bound:,} bytes for a motion of this length",
        remedy="Save only fps, root_pos, root_rot and dof_pos",
    )


def _measure_keys(data: bytes, kind: str) -> dict[str, int]:
    """The bytes of each key, as far as they can be told."""
    if kind == "npz":
        members = read_directory(data)
        return {member.name.decode("latin-1").removesuffix(".npy"): member.packed for member in members}
    if kind == "csv":
        return {}
    fields = unwrap_clip(read_json_clip(data) if kind == "json" else read_pickle(data, FIELD_KEYS))
    return {key: _measure(value) for key, value in fields.items()}


def _measure(value: Any) -> int:
    if isinstance(value, RawArray):
        return len(value.data or b"")
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple | Mapping):
        return len(json.dumps(value, default=lambda part: " " * _measure(part)))
    return 8
