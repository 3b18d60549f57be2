"""AMP features: what the discriminator sees, computed one way everywhere.

A training node imports this module without MuJoCo: it needs numpy and nothing else, and `feature_code_hash` covers all of it.

Frames. The world frame is MuJoCo's (z up). The **heading frame** is the world frame turned about z by the root's yaw,
`yaw = atan2(R[1,0], R[0,0])`, where R is the root's rotation matrix: the direction of the body's x axis on the ground.
MuJoCo gives a free joint's linear velocity in the world frame and its angular velocity in the **body** frame, so the latter
has to be rotated to the world first (`body_to_world`) and then to the heading frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_GIMBAL = 1e-6
"""Below this length of the body x axis' shadow on the ground, the yaw is taken from the body z axis instead."""


class FeatureBlock(NamedTuple):
    """One run of feature dimensions."""

    name: str
    start: int
    stop: int
    unit: str
    frame: str
    source: str

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class FeatureLayout:
    """The canonical layout as data: joint positions, joint velocities, root linear and angular velocity, root height, contacts.

    Args:
      joint_names: the n joints, in feature order.
      channels: the C contact channels, in feature order.
    """

    joint_names: tuple[str, ...]
    channels: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        object.__setattr__(self, "channels", tuple(self.channels))

    @classmethod
    def for_robot(cls, joint_names: Sequence[str], channels: Sequence[str]) -> FeatureLayout:
        """The layout of a robot with these joints and contact channels."""
        return cls(tuple(joint_names), tuple(channels))

    @property
    def dim(self) -> int:
        """2·n + 7 + C."""
        return 2 * len(self.joint_names) + 7 + len(self.channels)

    @cached_property
    def blocks(self) -> tuple[FeatureBlock, ...]:
        """The blocks in order; they cover `0 … dim` without gaps."""
        n, c = len(self.joint_names), len(self.channels)
        rows = (
            ("joint_pos", n, "rad", "joint", "qpos of the joints"),
            ("joint_vel", n, "rad/s", "joint", "qvel of the joints"),
            ("root_lin_vel", 3, "m/s", "heading", "qvel of the free joint, linear (world frame)"),
            ("root_ang_vel", 3, "rad/s", "heading", "qvel of the free joint, angular (body frame), through the world frame"),
            ("root_height", 1, "m", "world", "qpos of the free joint, z"),
            ("foot_contacts", c, "0 or 1", "none", "normal force of the channel above the recipe's threshold"),
        )
        blocks, start = [], 0
        for name, size, unit, frame, source in rows:
            blocks.append(FeatureBlock(name, start, start + size, unit, frame, source))
            start += size
        return tuple(blocks)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name a dimension, such as `joint_vel.left_knee_pitch` or `root_lin_vel.x`."""
        parts: dict[str, Sequence[str]] = {
            "joint_pos": self.joint_names,
            "joint_vel": self.joint_names,
            "root_lin_vel": "xyz",
            "root_ang_vel": "xyz",
            "root_height": ("z",),
            "foot_contacts": self.channels,
        }
        return tuple(f"{block.name}.{part}" for block in self.blocks for part in parts[block.name])

    def block(self, name: str) -> FeatureBlock:
        """The block called `name`.

        Raises:
          KeyError: no such block; the message lists those there are.
        """
        for block in self.blocks:
            if block.name == name:
                return block
        raise KeyError(f"no feature block {name!r}; there are {', '.join(b.name for b in self.blocks)}")

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON-ready data."""
        return {
            "dim": self.dim,
            "dtype": "float32",
            "joint_names": list(self.joint_names),
            "contact_channels": list(self.channels),
            "blocks": [
                {
                    "name": b.name,
                    "start": b.start,
                    "stop": b.stop,
                    "size": b.size,
                    "unit": b.unit,
                    "frame": b.frame,
                    "source": b.source,
                }
                for b in self.blocks
            ],
            "names": list(self.names),
        }


def rotation_matrix(quat_xyzw: npt.ArrayLike) -> Array:
    """(…, 3, 3) rotation matrices, body to world, of (…, 4) quaternions in xyzw order: any length but zero."""
    q = np.asarray(quat_xyzw, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    matrix = np.empty((*q.shape[:-1], 3, 3))
    matrix[..., 0, 0] = 1 - 2 * (y * y + z * z)
    matrix[..., 0, 1] = 2 * (x * y - w * z)
    matrix[..., 0, 2] = 2 * (x * z + w * y)
    matrix[..., 1, 0] = 2 * (x * y + w * z)
    matrix[..., 1, 1] = 1 - 2 * (x * x + z * z)
    matrix[..., 1, 2] = 2 * (y * z - w * x)
    matrix[..., 2, 0] = 2 * (x * z - w * y)
    matrix[..., 2, 1] = 2 * (y * z + w * x)
    matrix[..., 2, 2] = 1 - 2 * (x * x + y * y)
    return matrix


def body_to_world(quat_xyzw: npt.ArrayLike, vector: npt.ArrayLike) -> Array:
    """(…, 3) vectors of the body frame, in the world frame."""
    rotated: Array = np.einsum("...ij,...j->...i", rotation_matrix(quat_xyzw), np.asarray(vector, dtype=np.float64))
    return rotated


def heading_direction(quat_xyzw: npt.ArrayLike) -> Array:
    """(…, 2) unit vectors `(cos yaw, sin yaw)`: where the root faces, on the ground.

    The body x axis' shadow, normalized. When that axis is vertical the shadow has no direction; then the body z axis tells it:
    nose up it points backwards, nose down forwards. q and −q give the same bits.
    """
    matrix = rotation_matrix(quat_xyzw)
    forward = matrix[..., :2, 0]
    length = np.linalg.norm(forward, axis=-1, keepdims=True)
    vertical = length < _GIMBAL
    if np.any(vertical):
        instead = -np.sign(matrix[..., 2:3, 0]) * matrix[..., :2, 2]
        forward = np.where(vertical, instead, forward)
        length = np.linalg.norm(forward, axis=-1, keepdims=True)
    unit: Array = forward / length
    return unit


def world_to_heading(quat_xyzw: npt.ArrayLike, vector: npt.ArrayLike) -> Array:
    """(…, 3) vectors of the world frame, in the heading frame of the root with these quaternions."""
    v = np.asarray(vector, dtype=np.float64)
    direction = heading_direction(quat_xyzw)
    cos, sin = direction[..., 0], direction[..., 1]
    turned = np.empty(np.broadcast_shapes(v.shape, (*cos.shape, 3)))
    turned[..., 0] = cos * v[..., 0] + sin * v[..., 1]
    turned[..., 1] = cos * v[..., 1] - sin * v[..., 0]
    turned[..., 2] = v[..., 2]
    return turned


def extract(
    *,
    joint_pos: npt.ArrayLike,
    joint_vel: npt.ArrayLike,
    root_rot: npt.ArrayLike,
    root_lin_vel: npt.ArrayLike,
    root_ang_vel: npt.ArrayLike,
    root_height: npt.ArrayLike,
    foot_contacts: npt.ArrayLike,
) -> npt.NDArray[np.float32]:
    """AMP features in the canonical layout, (N, 2n+7+C) float32, computed in float64 and rounded once.

    Args:
      joint_pos: (N, n) rad, in feature order.
      joint_vel: (N, n) rad/s, true `qvel`.
      root_rot: (N, 4) quaternion, xyzw, body to world.
      root_lin_vel: (N, 3) m/s, world frame: `qvel[0:3]` of the free joint.
      root_ang_vel: (N, 3) rad/s, **world** frame: `body_to_world(root_rot, qvel[3:6])` of the free joint.
      root_height: (N,) m.
      foot_contacts: (N, C), 0 or 1.

    Raises:
      ValueError: shapes that do not fit together.
    """
    pos = np.asarray(joint_pos, dtype=np.float64)
    vel = np.asarray(joint_vel, dtype=np.float64)
    rot = np.asarray(root_rot, dtype=np.float64)
    linear = np.asarray(root_lin_vel, dtype=np.float64)
    angular = np.asarray(root_ang_vel, dtype=np.float64)
    height = np.asarray(root_height, dtype=np.float64)
    contacts = np.asarray(foot_contacts, dtype=np.float64)
    if pos.ndim != 2 or contacts.ndim != 2:
        raise ValueError(f"joint_pos and foot_contacts must be (N, n) and (N, C), not {pos.shape} and {contacts.shape}")
    rows, joints = pos.shape
    for name, array, shape in (
        ("joint_vel", vel, (rows, joints)),
        ("root_rot", rot, (rows, 4)),
        ("root_lin_vel", linear, (rows, 3)),
        ("root_ang_vel", angular, (rows, 3)),
        ("root_height", height, (rows,)),
        ("foot_contacts", contacts, (rows, contacts.shape[1])),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} is {array.shape} where joint_pos is {pos.shape}; expected {shape}")
    return np.concatenate(
        [pos, vel, world_to_heading(rot, linear), world_to_heading(rot, angular), height[:, None], contacts], axis=1
    ).astype(np.float32)


def feature_code_hash() -> str:
    """`sha256:…` over this file's source with its line ends normalized: the same on every machine that has the same code."""
    source = Path(__file__).read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return "sha256:" + hashlib.sha256(source).hexdigest()
