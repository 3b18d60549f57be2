"""Rotations in numpy: quaternions, yaw, heading frame and tilt.

Quaternions are (…, 4) in the order xyzw and take the body's frame to the world's, as clips have them; `to_wxyz` and `to_xyzw`
convert to and from MuJoCo's order. q and −q are the same rotation. The world's z axis points up. Yaw is counter-clockwise seen
from above; the heading frame is the world turned about z by the root's yaw.

Two modules keep formulae of their own: `amp_core.features`, whose source is hashed into every dataset, and `amp_core.policy`,
which computes in JAX. The order of operations is part of the contract here: results reach digests, and equal inputs must keep
giving equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def to_wxyz(quat: Array) -> Array:
    """(…, 4) quaternions xyzw in MuJoCo's order, wxyz."""
    return quat[..., [3, 0, 1, 2]]


def to_xyzw(quat_wxyz: Array) -> Array:
    """(…, 4) quaternions wxyz, as MuJoCo has them, in the order xyzw."""
    return quat_wxyz[..., [1, 2, 3, 0]]


def normalize(quat: Array) -> Array:
    """(…, 4) quaternions of any length but zero, at length 1."""
    return np.asarray(quat / np.linalg.norm(quat, axis=-1, keepdims=True))


def align_signs(quat: Array) -> tuple[Array, int]:
    """(N, 4) with signs such that neighbours have a non-negative dot product, and the number of frames that changed sign.

    The first frame keeps its sign.
    """
    dots = np.einsum("ij,ij->i", quat[1:], quat[:-1])
    signs = np.concatenate([[1.0], np.cumprod(np.where(dots < 0.0, -1.0, 1.0))])
    return quat * signs[:, None], int((signs < 0.0).sum())


def multiply(left: Array, right: Array) -> Array:
    """(…, 4) left ⊗ right, of quaternions that broadcast against each other: first `right`, then `left`."""
    ax, ay, az, aw = np.moveaxis(left, -1, 0)
    bx, by, bz, bw = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ],
        axis=-1,
    )


def conjugate(quat: Array) -> Array:
    """(…, 4) the inverse rotations of unit quaternions (…, 4)."""
    return np.asarray(quat * np.array([-1.0, -1.0, -1.0, 1.0]))


def relative_rotation(start: Array, end: Array) -> Array:
    """(…, 4) conj(start) ⊗ end: the rotation from `start` to `end` in the frame of `start`."""
    return multiply(conjugate(start), end)


def angle_between(start: Array, end: Array) -> Array:
    """(…,) rad from 0 to π between (…, 4) rotations, by 2·atan2(|v|, |w|), which keeps small angles exact."""
    relative = relative_rotation(start, end)
    return np.asarray(2.0 * np.arctan2(np.linalg.norm(relative[..., :3], axis=-1), np.abs(relative[..., 3])))


def rotation_vector(start: Array, end: Array) -> Array:
    """(…, 3) rad: axis times angle, in the frame of `start`, of the shorter rotation from `start` to `end`."""
    relative = relative_rotation(start, end)
    real = relative[..., 3]
    vector = np.where(real[..., None] < 0, -relative[..., :3], relative[..., :3])
    sine = np.sqrt((vector**2).sum(axis=-1))
    # 2·atan2(s, c)/s, whose limit at s = 0 is 2.
    factor = np.where(sine > 1e-9, 2.0 * np.arctan2(sine, np.abs(real)) / np.maximum(sine, 1e-9), 2.0)
    return vector * factor[..., None]


def from_rotation_vector(vector: Array) -> Array:
    """(…, 4) unit quaternions of (…, 3) rad, axis times angle: the exponential map."""
    half = 0.5 * np.linalg.norm(vector, axis=-1, keepdims=True)
    # sin(h) / (2 h), which np.sinc has at h = 0 too.
    return np.concatenate([0.5 * np.sinc(half / np.pi) * vector, np.cos(half)], axis=-1)


def angular_velocity(start: Array, end: Array, dt: float) -> Array:
    """(3,) rad/s in the body's frame, as MuJoCo's free joint has it, that takes `start` (4,) to `end` (4,) in `dt` seconds."""
    relative = relative_rotation(start, end)
    length = float(np.linalg.norm(relative[:3]))
    if length == 0.0:
        return np.zeros(3)
    angle = 2.0 * math.atan2(length, abs(float(relative[3])))
    return np.asarray(relative[:3] * math.copysign(angle / (length * dt), float(relative[3])))


def slerp(start: Array, end: Array, fraction: Array) -> Array:
    """(N, 4) Shoemake's spherical interpolation of unit quaternions (N, 4) on one hemisphere.

    Args:
      fraction: (N,) from 0, which gives `start`, to 1.
    """
    angle = np.arccos(np.clip(np.einsum("ij,ij->i", start, end), -1.0, 1.0))
    sine = np.sin(angle)
    # Below about 1e-4 rad the sines cancel; there the chord and the arc agree to 1e-9 and the chord is used.
    small = sine < 1e-4
    safe = np.where(small, 1.0, sine)
    from_start = np.where(small, 1.0 - fraction, np.sin((1.0 - fraction) * angle) / safe)
    from_end = np.where(small, fraction, np.sin(fraction * angle) / safe)
    return normalize(from_start[:, None] * start + from_end[:, None] * end)


def nlerp(start: Array, end: Array, fraction: Array) -> Array:
    """(N, 4) along the chord between unit quaternions (N, 4) of any signs: for rotations so near that it serves as the arc.

    Args:
      fraction: (N, 1) from 0, which gives `start`, to 1.
    """
    end = end * np.where(np.einsum("ij,ij->i", start, end) < 0.0, -1.0, 1.0)[:, None]
    return normalize((1.0 - fraction) * start + fraction * end)


def x_axis(quat: Array) -> Array:
    """(…, 3) the body's x axis in the world, of unit quaternions (…, 4)."""
    x, y, z, w = np.moveaxis(quat, -1, 0)
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1)


def z_axis(quat: Array) -> Array:
    """(…, 3) the body's z axis in the world, of unit quaternions (…, 4)."""
    x, y, z, w = np.moveaxis(quat, -1, 0)
    return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1)


def up_in_body(quat: Array) -> Array:
    """(…, 3) the world's up axis in the body's frame, of unit quaternions (…, 4): the tilt without the heading."""
    x, y, z, w = np.moveaxis(quat, -1, 0)
    return np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1)


def world_to_body(quat: Array, vectors: Array) -> Array:
    """(N, B, 3) vectors of the world in the body's frame, of unit quaternions (N, 4)."""
    axis, real = quat[:, None, :3], quat[:, None, 3:]
    turn = 2.0 * np.cross(vectors, axis)
    return np.asarray(vectors + real * turn + np.cross(turn, axis))


def yaw(quat: Array) -> Array:
    """(…,) rad in (−π, π]: the direction of the body's x axis on the ground, of unit quaternions (…, 4)."""
    x, y, z, w = np.moveaxis(quat, -1, 0)
    return np.asarray(np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))


def heading_direction(quat: Array) -> Array:
    """(…, 2) unit vectors along the body's x axis on the ground, of unit quaternions (…, 4); shorter where it is vertical."""
    forward = x_axis(quat)[..., :2]
    length = np.linalg.norm(forward, axis=-1, keepdims=True)
    return np.asarray(forward / np.where(length > 1e-9, length, 1.0))


def world_to_heading(heading: Array, vector: Array) -> Array:
    """(N, 3) vectors of the world, in the frames turned about z by `heading` (N,) rad."""
    cosine, sine = np.cos(heading), np.sin(heading)
    forward = cosine * vector[:, 0] + sine * vector[:, 1]
    sideways = cosine * vector[:, 1] - sine * vector[:, 0]
    return np.stack([forward, sideways, vector[:, 2]], axis=1)


def rotate_yaw(quat: Array, angle: float) -> Array:
    """(…, 4) quaternions turned about the world's z axis by `angle` rad: q_z ⊗ q."""
    w, z = math.cos(angle / 2.0), math.sin(angle / 2.0)
    bx, by, bz, bw = np.moveaxis(quat, -1, 0)
    return np.stack([w * bx - z * by, w * by + z * bx, w * bz + z * bw, w * bw - z * bz], axis=-1)


def rotate_about_vertical(points: Array, angle: float, centre: Sequence[float] | Array = (0.0, 0.0)) -> Array:
    """(…, 3) points turned by `angle` rad about the vertical through `centre`; multiples of a right angle are exact.

    Args:
      centre: x and y; further components are ignored.
    """
    quarters = angle / (math.pi / 2.0)
    if abs(quarters - round(quarters)) < 1e-12:
        # Exact, so that four quarter turns come back.
        cosine, sine = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[round(quarters) % 4]
    else:
        cosine, sine = math.cos(angle), math.sin(angle)
    x, y = points[..., 0] - centre[0], points[..., 1] - centre[1]
    return np.stack([centre[0] + cosine * x - sine * y, centre[1] + sine * x + cosine * y, points[..., 2]], axis=-1)


def mirror_y(quat: Array) -> Array:
    """(…, 4) the rotations reflected in the world's xz plane; an axis is a pseudo-vector, so x and z change sign."""
    return np.asarray(quat * np.array([-1.0, 1.0, -1.0, 1.0]))


def cosine_of_tilt(quat: Array) -> Array:
    """(…,) the vertical part of the body's z axis, of quaternions (…, 4) of any length but zero."""
    square = quat * quat
    return np.asarray(1.0 - 2.0 * (square[..., 0] + square[..., 1]) / square.sum(axis=-1))


def tilt(quat: Array) -> Array:
    """(…,) rad from 0 to π between the body's z axis and the vertical, of quaternions (…, 4) of any length but zero."""
    return np.asarray(np.arccos(np.clip(cosine_of_tilt(quat), -1.0, 1.0)))


def pitch_roll_tilt(quat: Array) -> tuple[Array, Array, Array]:
    """(N,) pitch, roll and tilt in rad of unit quaternions (N, 4).

    Pitch is about y, positive nose down; roll is about x, positive to the right, as the specification's harness has
    them. Tilt is the angle between the body's z axis and the vertical.
    """
    x, y, z, w = quat.T
    pitch: Array = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    up = 1 - 2 * (x * x + y * y)
    roll: Array = np.arctan2(2 * (w * x + y * z), up)
    return pitch, roll, np.arccos(np.clip(up, -1.0, 1.0))


def pitch_roll_of_frame(quat_wxyz: Sequence[float]) -> tuple[float, float]:
    """Pitch and roll in rad, as `pitch_roll_tilt`, of one unit quaternion wxyz.

    Plain floats and libm: numpy's vector kernels may round differently in batches of another size, and the harness force that
    depends on these angles must not.
    """
    w, x, y, z = quat_wxyz
    sine = 2 * (w * y - z * x)
    pitch = math.asin(1.0 if sine > 1.0 else -1.0 if sine < -1.0 else sine)
    return pitch, math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
