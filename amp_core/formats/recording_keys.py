"""Controls that a motion file carries beside its kinematics: what made the motion, and from which state.

A fault in them is no fault of the kinematics, which other modes use. So it is kept with the motion, and refuses where the
controls are used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.errors import MotionRefused
from amp_core.formats.clip import Limits, shape_text
from amp_core.formats.joint_names import parse_names
from amp_core.formats.recording import Recording
from amp_core.formats.values import RawArray, describe, matrix, number
from amp_core.strict_json import parse_json

__all__ = ["CONTROL_KEYS", "RECORDING_KEYS", "STATE_KEYS", "read_export_meta", "read_recording"]

Array = NDArray[np.float64]

CONTROL_KEYS = ("ctrl_substeps", "ctrl")
"""The controls, those that are held for a part of a frame first: an export has both where they differ."""

STATE_KEYS = ("initial_qpos", "initial_qvel")

RECORDING_KEYS = frozenset(
    [*CONTROL_KEYS, *STATE_KEYS, "recorded_qpos", "actuator_names", "timestep", "mujoco_version", "stab_force"]
)
"""Every key of a recording."""

LARGEST = 1e6
"""m, rad and their rates; sums of larger ones overflow, and no state of a robot has any."""

MAX_META_BYTES = 256 * 1024
MAX_VERSION_CHARACTERS = 64


def read_recording(fields: Mapping[str, Any], frames: int, limits: Limits) -> Recording | None:
    """The recording in a file's fields; None for a file with neither controls nor an initial state.

    Args:
      frames: of the motion.

    Raises:
      MotionRefused: it is not whole, its shapes do not fit the motion, or a number is not finite; the caller adds the file.
    """
    control_key = next((key for key in CONTROL_KEYS if key in fields), None)
    missing = [key for key in STATE_KEYS if key not in fields]
    if control_key is None and len(missing) == len(STATE_KEYS):
        return None
    missing += ["ctrl"] if control_key is None else []
    if control_key is None or missing:
        present = [key for key in (*CONTROL_KEYS, *STATE_KEYS) if key in fields]
        raise MotionRefused(
            f"the recording is not whole: the file has {', '.join(present)} without {' and '.join(missing)}",
            key=missing[0],
            expected="ctrl, initial_qpos and initial_qvel, all of them or none",
            remedy=f"Write the state before the first control beside ctrl, or leave {', '.join(present)} out",
        )
    ctrl = _read_controls(control_key, fields[control_key], frames, limits)
    initial_qpos, initial_qvel = (_read_state(key, fields[key], limits) for key in STATE_KEYS)
    states = None
    if fields.get("recorded_qpos") is not None:
        states = matrix("recorded_qpos", fields["recorded_qpos"], limits)
        _check_rows("recorded_qpos", states, frames, "nq")
        if states.shape[1] != len(initial_qpos):
            raise _refuse_shape("recorded_qpos", states.shape, f"({frames}, {len(initial_qpos)}), as wide as initial_qpos")
    for key, array in ((control_key, ctrl), *zip(STATE_KEYS, (initial_qpos, initial_qvel), strict=True)):
        _check_finite(key, array)
    if states is not None:
        _check_finite("recorded_qpos", states)
    names = parse_names("actuator_names", fields.get("actuator_names")) or None
    timestep = None if fields.get("timestep") is None else number("timestep", fields["timestep"])
    if timestep is not None and not (math.isfinite(timestep) and timestep > 0.0):
        raise MotionRefused(f"timestep is {timestep!r}", key="timestep", expected="a positive number of seconds")
    version = fields.get("mujoco_version")
    is_text = (
        isinstance(version, str) and len(version) <= MAX_VERSION_CHARACTERS and version.isascii() and version.isprintable()
    )
    return Recording(
        ctrl, initial_qpos, initial_qvel, states, names, timestep, version if is_text else None, _read_harness(fields, limits)
    )


def read_export_meta(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an export's `meta` says that its arrays do not: `fps` and `mujoco_version`; empty for any other file."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(MotionRefused, ValueError):
        member = fields.get("meta")
        if (
            not isinstance(member, RawArray)
            or member.dtype != "|u1"
            or member.data is None
            or len(member.data) > MAX_META_BYTES
        ):
            return facts
        meta = parse_json(bytes(member.data).decode())
        if isinstance(meta, dict) and isinstance(meta.get("generation_mode"), str):
            provenance = meta.get("provenance")
            version = provenance.get("mujoco_version") if isinstance(provenance, dict) else None
            facts = {key: value for key, value in (("fps", meta.get("fps")), ("mujoco_version", version)) if value is not None}
    return facts


def _read_controls(key: str, value: object, frames: int, limits: Limits) -> Array:
    """(N, S, nu) from an array or nested lists of two or three dimensions."""
    per_frame = None
    if isinstance(value, RawArray) and len(value.shape) == 3:
        if value.shape[0] != frames or value.shape[1] == 0:
            raise _refuse_shape(key, value.shape, f"({frames}, S, nu): the frames of dof_pos")
        per_frame = value.shape[1]
        value = replace(value, shape=(frames * per_frame, value.shape[2]))
    elif _is_nested(value, 3):
        assert isinstance(value, list | tuple)
        per_frame = len(value[0])
        for frame, rows in enumerate(value):
            if not isinstance(rows, list | tuple) or len(rows) != per_frame:
                raise MotionRefused(
                    f"the frame is {describe(rows)}",
                    key=key,
                    frame=frame,
                    expected=f"{per_frame} controls, as in the first frame",
                    remedy="Write as many controls in every frame",
                )
        if len(value) != frames:
            raise _refuse_shape(key, (len(value), per_frame, len(value[0][0])), f"({frames}, S, nu): the frames of dof_pos")
        value = [row for rows in value for row in rows]
    elif isinstance(value, RawArray) and len(value.shape) != 2:
        raise _refuse_shape(key, value.shape, f"({frames}, nu) or ({frames}, S, nu)")
    ctrl = matrix(key, value, limits)
    if per_frame is not None:
        return ctrl.reshape(frames, per_frame, ctrl.shape[1])
    _check_rows(key, ctrl, frames, "nu")
    return ctrl[:, None]


def _is_nested(value: object, levels: int) -> bool:
    """Whether the first entries are lists in lists, so many deep."""
    for _ in range(levels):
        if not isinstance(value, list | tuple) or not value:
            return False
        value = value[0]
    return True


def _read_state(key: str, value: object, limits: Limits) -> Array:
    """One row of numbers."""
    if isinstance(value, RawArray) and len(value.shape) == 1:
        value = replace(value, shape=(1, *value.shape))
    elif isinstance(value, list | tuple) and not (value and isinstance(value[0], list | tuple)):
        value = [value]
    row = matrix(key, value, limits)
    if len(row) != 1:
        raise _refuse_shape(key, row.shape, "one state")
    state: Array = row[0]
    return state


def _read_harness(fields: Mapping[str, Any], limits: Limits) -> float:
    """N, the most of `stab_force` that an export has; 0 for a file without it."""
    value = fields.get("stab_force")
    with contextlib.suppress(MotionRefused):
        if isinstance(value, RawArray) and len(value.shape) == 1 and value.shape[0] > 0:
            force = np.abs(matrix("stab_force", replace(value, shape=(value.shape[0], 1)), limits))
            return float(force.max()) if np.isfinite(force).all() else 0.0
    return 0.0


def _check_rows(key: str, array: Array, frames: int, width: str) -> None:
    if len(array) != frames:
        raise _refuse_shape(key, array.shape, f"({frames}, {width}): the frames of dof_pos")


def _check_finite(key: str, array: Array) -> None:
    possible = np.abs(array) <= LARGEST  # NaN is not.
    if possible.all():
        return
    place = [int(i) for i in np.argwhere(~possible)[0]]
    frame = place[0] if array.ndim > 1 else None
    raise MotionRefused(
        f"column {place[-1]} is {float(array[tuple(place)])}",
        key=key,
        frame=frame,
        expected=f"finite numbers of at most {LARGEST:g}",
        remedy="Record it again, or cut the clip before the first such frame",
    )


def _refuse_shape(key: str, shape: tuple[int, ...], expected: str) -> MotionRefused:
    return MotionRefused(
        f"its shape is {shape_text(shape)}",
        key=key,
        expected=expected,
        remedy="Write one row of controls, or several, for each frame of the kinematics",
    )
