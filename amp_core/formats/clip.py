"""The motion clip as a value, and the limits it must keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.commands import CUT_COMMAND
from amp_core.errors import MotionRefused
from amp_core.formats.names import clean_name
from amp_core.formats.recording import Recording
from amp_core.lineage import Lineage

__all__ = ["WIDE_LIMITS", "Limits", "Motion"]

_ZERO_NORM = 1e-6
_NORM_ROUNDING = 1e-6
"""A quaternion of a norm at the limit, rounded to float32."""
MAX_LISTED_FRAMES = 8


@dataclass(frozen=True)
class Limits:
    """What a motion file may cost and what a clip may claim.

    Args:
      max_bytes: size of the file.
      max_duration_sec: s, from the first frame to the last.
      max_fps: frames per second.
      min_fps: frames per second; below it, interpolation would invent the motion.
      max_joints: joint columns.
      max_values: numbers in the three arrays together; bounds the memory of a clip to 8 bytes times this.
      max_speed: m/s, root displacement between two frames; above it the root teleports.
      max_turn_rate: rad/s, root rotation between two frames; above it the root flips over.
      max_distance: m from the origin, in each coordinate.
      max_norm_error: how far a quaternion's norm may be from 1; what is off by less is normalized.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_duration_sec: float = 120.0
    max_fps: float = 1000.0
    min_fps: float = 1.0
    max_joints: int = 128
    max_values: int = 8_000_000
    max_speed: float = 10.0
    max_turn_rate: float = 50.0
    max_distance: float = 10_000.0
    max_norm_error: float = 0.1

    @property
    def max_frames(self) -> int:
        """The most frames that both limits on time allow."""
        return int(self.max_duration_sec * self.max_fps) + 1


WIDE_LIMITS = Limits(max_bytes=1 << 32, max_duration_sec=1e6, max_fps=1e6)
"""For a motion that was scored before: whoever let it in has decided how long it may be, and here it is read again."""


@dataclass(frozen=True, eq=False)
class Motion:
    """A retargeted clip as its file has it: N >= 2 frames, n joints, read-only float64 arrays.

    Args:
      name: the clip's name, by the rule of `clean_name`.
      fps: frames per second.
      root_pos: (N, 3) m, world frame, z up.
      root_rot: (N, 4) unit quaternions xyzw that take body to world.
      dof_pos: (N, n) rad, in the order of `joint_names`; without names, in the robot's.
      source_digest: `sha256:…` of the file's bytes.
      source_format: `pkl`, `npz`, `json` or `csv`.
      lineage: where it comes from, None for an original.
      joint_names: the names of the columns of `dof_pos`, as the file has them; None where it does not name them.
      name_lists: without `joint_names`, lists of texts under other keys of the file that may name the columns; the robot's
        joints tell (`reorder_joints`).
      recording: the controls that the file carries; None where it has none.
      recording_fault: why those that it has cannot be used; None where they can, or where it has none.

    Raises:
      MotionRefused: wrong shapes, fewer than two frames, or a value that is not finite.
    """

    name: str
    fps: float
    root_pos: NDArray[np.float64]
    root_rot: NDArray[np.float64]
    dof_pos: NDArray[np.float64]
    source_digest: str
    source_format: str
    lineage: Lineage | None = None
    joint_names: tuple[str, ...] | None = None
    name_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    recording: Recording | None = None
    recording_fault: MotionRefused | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name))
        object.__setattr__(self, "fps", float(self.fps))
        for key in ("root_pos", "root_rot", "dof_pos"):
            array = np.asarray(getattr(self, key))
            # A read-only view of a writable array could still change under the clip.
            frozen = not array.flags.writeable and (array.base is None or isinstance(_find_owner(array), bytes))
            if not (frozen and array.dtype == np.float64 and array.flags.c_contiguous and array.flags.aligned):
                array = np.array(array, dtype=np.float64, order="C", copy=True)
                array.flags.writeable = False
            object.__setattr__(self, key, array)
        try:
            check_values(self.fps, self.root_pos, self.root_rot, self.dof_pos)
        except MotionRefused as error:
            error.file = self.name
            raise
        shape = None if self.recording is None else self.recording.ctrl.shape
        if shape is not None and (len(shape) != 3 or shape[0] != self.num_frames):
            raise MotionRefused(
                f"its shape is {shape_text(shape)}",
                file=self.name,
                key="ctrl",
                expected=f"({self.num_frames}, nu) or ({self.num_frames}, S, nu): the frames of dof_pos",
                remedy="Cut the controls with the frames: Recording.cut",
            )
        if self.joint_names is not None and not len(set(self.joint_names)) == len(self.joint_names) == self.dof_pos.shape[1]:
            raise MotionRefused(
                f"it names {len(self.joint_names)} joints, dof_pos has {self.dof_pos.shape[1]} columns",
                file=self.name,
                key="joint_names",
                expected="one name for each column of dof_pos, each once",
                remedy="Correct the names, or leave them out",
            )

    @property
    def num_frames(self) -> int:
        return int(self.root_pos.shape[0])

    @property
    def has_controls(self) -> bool:
        """Whether the file carries controls, be they usable or not."""
        return self.recording is not None or self.recording_fault is not None

    @property
    def ancestor(self) -> str:
        """The digest that a clip and all its variants share: that of the original's bytes."""
        return self.lineage.ancestor if self.lineage else self.source_digest

    @property
    def duration_sec(self) -> float:
        """s, from the first frame to the last: (N - 1) / fps."""
        return (self.num_frames - 1) / self.fps


def _find_owner(array: NDArray[Any]) -> object:
    """What the memory of an array belongs to."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


def check_values(
    fps: float,
    root_pos: NDArray[np.float64],
    root_rot: NDArray[np.float64],
    dof_pos: NDArray[np.float64],
    first_frame: int = 0,
) -> None:
    """Check shapes, equal frame counts, N >= 2, everything finite, fps positive.

    Args:
      first_frame: the number that the first row has in the file.

    Raises:
      MotionRefused: names the key and the first offending frame; the caller adds the file.
    """
    if not math.isfinite(fps) or fps <= 0.0:
        raise MotionRefused(
            f"fps is {fps!r}",
            key="fps",
            expected="a positive number of frames per second",
            remedy="Write the rate that the clip was recorded at",
        )
    arrays = {"root_pos": root_pos, "root_rot": root_rot, "dof_pos": dof_pos}
    for key, width in (("root_pos", "3"), ("root_rot", "4"), ("dof_pos", "n")):
        array = arrays[key]
        if array.ndim != 2 or (width != "n" and array.shape[1] != int(width)) or array.shape[1] == 0:
            raise MotionRefused(
                f"its shape is {shape_text(array.shape)}",
                key=key,
                expected=f"shape (N, {width}): one row a frame",
                remedy="Write one row per frame",
            )
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        # The odd one out is named: where two of the three agree, the third is at fault.
        odd = next((key for key, count in counts.items() if list(counts.values()).count(count) == 1), "dof_pos")
        raise MotionRefused(
            "the arrays differ in their number of frames: " + ", ".join(f"{key} has {n}" for key, n in counts.items()),
            key=odd,
            expected="the same number of rows in root_pos, root_rot and dof_pos",
            remedy="Cut them to the same frames and export again",
        )
    if counts["root_pos"] < 2:
        raise MotionRefused(
            f"the clip has {counts['root_pos']} frame{'' if counts['root_pos'] == 1 else 's'}",
            key="root_pos",
            expected="at least 2 frames: a motion needs a velocity",
            remedy="Export the whole clip",
        )
    for key, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            frame, column = (int(i) for i in np.argwhere(~finite)[0])
            is_faulty = np.any([~np.isfinite(values).all(axis=1) for values in arrays.values()], axis=0)
            raise MotionRefused(
                f"column {column} is {float(array[frame, column])}",
                key=key,
                frame=first_frame + frame,
                expected="finite numbers",
                remedy="Fill the frames that the retargeter could not solve, or cut them off: "
                + suggest_cut(is_faulty, first_frame),
            )


def check_limits(motion: Motion, limits: Limits, first_frame: int = 0) -> None:
    """Check the rate, the duration, the distance from the origin and the quaternions' norms.

    Args:
      first_frame: the number that the motion's first frame has in its file.

    Raises:
      MotionRefused: names the clip, the key and the first offending frame.
    """
    file, fps = motion.name, motion.fps
    if not limits.min_fps <= fps <= limits.max_fps:
        raise MotionRefused(
            f"fps is {fps:g}",
            file=file,
            key="fps",
            expected=f"between {limits.min_fps:g} and {limits.max_fps:g} frames per second",
            remedy="Check whether it holds a time step instead of a rate, or resample the clip",
        )
    frames = motion.num_frames
    if motion.duration_sec > limits.max_duration_sec:
        raise MotionRefused(
            f"the clip lasts {motion.duration_sec:.1f} s ({frames} frames at {fps:g} fps)",
            file=file,
            key="root_pos",
            expected=f"at most {limits.max_duration_sec:g} s",
            remedy=(
                f"Cut it into shorter clips ({CUT_COMMAND} --every 20s), or raise the limit (--max-duration; on a service "
                "AMPREF_MAX_DURATION_SEC)"
            ),
        )
    num_joints = motion.dof_pos.shape[1]
    if num_joints > limits.max_joints:
        raise MotionRefused(
            f"it has {num_joints} columns",
            file=file,
            key="dof_pos",
            expected=f"at most {limits.max_joints} joints",
            remedy="Is it transposed? Write one row per frame",
        )
    far = np.abs(motion.root_pos).max(axis=1) > limits.max_distance
    if far.any():
        frame = int(np.argmax(far))
        raise MotionRefused(
            f"the root is at {np.array2string(motion.root_pos[frame], precision=4)} m",
            file=file,
            key="root_pos",
            frame=first_frame + frame,
            expected=f"within {limits.max_distance:g} m of the origin",
            remedy="Positions are in metres; move the clip to the origin",
        )
    with np.errstate(over="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", motion.root_rot, motion.root_rot))
    is_zero = norms < _ZERO_NORM
    if is_zero.any() and not is_zero.all():
        raise _refuse_zeros(file, is_zero, first_frame)
    is_faulty = np.abs(norms - 1.0) > limits.max_norm_error + _NORM_ROUNDING
    if is_faulty.any():
        frame = int(np.argmax(is_faulty))
        raise MotionRefused(
            f"the quaternion's norm is {float(norms[frame]):.4g} ({int(is_faulty.sum())} of {frames} are off)",
            file=file,
            key="root_rot",
            frame=first_frame + frame,
            expected=f"unit quaternions xyzw, to {limits.max_norm_error:g}",
            remedy="Check that root_rot holds quaternions, not Euler angles or a rotation vector, and normalize them",
        )


def _refuse_zeros(file: str, is_zero: NDArray[np.bool_], first_frame: int) -> MotionRefused:
    """Frames without a rotation: padding at the clip's ends, or frames that were not recorded in the midst of it."""
    places, (start, stop) = np.flatnonzero(is_zero), longest_run(~is_zero)
    count, frames = len(places), len(is_zero)
    if stop - start + count == frames:
        ends = []
        if start:
            ends.append(f"up to frame {first_frame + start - 1}")
        if stop < frames:
            ends.append(f"from frame {first_frame + stop} to the end")
        problem = f"{' and '.join(ends)} the quaternions are zero ({count} of {frames} frames): the clip is padded"
        remedy = f"Cut the padding off: {suggest_cut(is_zero, first_frame)}"
    else:
        numbers = ", ".join(str(first_frame + place) for place in places[:MAX_LISTED_FRAMES])
        more = ", …" if count > MAX_LISTED_FRAMES else ""
        problem = f"the quaternions are zero in {count} of {frames} frames ({numbers}{more})"
        remedy = (
            "Fill these frames from their neighbours where the clip is made (scipy's Slerp); the longest part without them has "
            f"{stop - start} frames: {suggest_cut(is_zero, first_frame)}"
        )
    return MotionRefused(
        problem,
        file=file,
        key="root_rot",
        frame=first_frame + int(places[0]),
        expected="unit quaternions xyzw in every frame",
        remedy=remedy,
    )


def longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """The longest run of true values as `start, stop`, the first of several; (0, 0) where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    runs = [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    return max(runs, key=lambda run: run[1] - run[0], default=(0, 0))


def suggest_cut(is_faulty: NDArray[np.bool_], first_frame: int = 0) -> str:
    """The command that leaves the longest run of good frames, which are counted in the file from `first_frame` on."""
    start, stop = longest_run(~is_faulty)
    if stop - start < 2:
        return "no two frames in succession are left"
    return f"{CUT_COMMAND} --frames {first_frame + start}:{first_frame + stop}"


def shape_text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
