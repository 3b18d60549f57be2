"""The part of a robot's kinematic tree that the heights of its contact channels depend on, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]

ROOT = -1
"""The index that stands for the root where a link's index is expected."""


@dataclass(frozen=True)
class Link:
    """One hinge between the root and a contact channel; the rigid bodies before it are folded into `offset` and `rotation`.

    Args:
      parent: index of the link that it hangs on, or `ROOT`.
      offset: m, origin of the hinge's body in the parent's frame.
      rotation: its axes in the parent's frame at the reference angle; a 3×3 matrix by rows.
      axis, anchor: of the hinge, in the body's frame; a unit vector, and m.
      joint: the joint's index in feature order.
      ref: rad, the joint's angle in the pose that the MJCF draws (`qpos0`).
    """

    parent: int
    offset: Vector
    rotation: tuple[Vector, Vector, Vector]
    axis: Vector
    anchor: Vector
    joint: int
    ref: float


@dataclass(frozen=True)
class Sole:
    """One geom of a contact channel.

    Args:
      link: index of the link that it is fixed to, or `ROOT`.
      kind: box, sphere, capsule, cylinder, ellipsoid or points.
      center: m, in the link's frame.
      axes: of the geom, in the link's frame; a 3×3 matrix whose columns are the axes, by rows.
      size: m, MuJoCo's: half lengths of a box or an ellipsoid; radius and half length of the others.
      points: m, corners of the convex hull in the geom's frame; only for the kind `points`.
    """

    link: int
    kind: str
    center: Vector
    axes: tuple[Vector, Vector, Vector]
    size: Vector
    points: tuple[Vector, ...] = ()
