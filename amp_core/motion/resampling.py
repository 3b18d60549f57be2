"""Interpolation of a clip between its frames."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from amp_core import rotations

Array = NDArray[np.float64]

FRAME_EPS = 1e-6
"""A time lies on a frame, or within the clip, up to a rounding error of this many frames."""


def resampled_count(frames: int, fps_in: float, fps_out: float) -> int:
    """Frames at `fps_out` whose time lies within the clip: floor((N - 1) · fps_out / fps_in) + 1.

    The last source frame is at (N - 1) / fps_in; nothing is extrapolated past it. 106 frames at 33.33 fps last 3.15 s and
    give 158 frames at 50 fps.
    """
    return math.floor((frames - 1) / fps_in * fps_out + FRAME_EPS) + 1


def interpolate(values: Array, times: Array) -> Array:
    """(M, k) linear interpolation of rows (N, k) at the times (M,), in frames."""
    index, fraction = _split_times(len(values), times)
    fraction = fraction[:, None]
    # This form gives both end points exactly.
    return np.asarray((1.0 - fraction) * values[index] + fraction * values[index + 1])


def interpolate_rotations(quat: Array, times: Array) -> Array:
    """(M, 4) spherical interpolation of unit quaternions (N, 4) at the times (M,), in frames.

    Neighbours must be on one hemisphere (`rotations.align_signs`).
    """
    index, fraction = _split_times(len(quat), times)
    return rotations.slerp(quat[index], quat[index + 1], fraction)


def _split_times(count: int, times: Array) -> tuple[NDArray[np.int64], Array]:
    """For each time the frame at or before it, at most the last but one, and the fraction of a frame from there."""
    nearest = np.rint(times)
    times = np.where(np.abs(times - nearest) < FRAME_EPS, nearest, times)
    index = np.clip(np.floor(times).astype(np.int64), 0, count - 2)
    return index, np.clip(times - index, 0.0, 1.0)
