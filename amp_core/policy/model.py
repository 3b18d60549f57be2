"""The kinematic tree of a robot, read from its MuJoCo model: the one module of the policy side that needs MuJoCo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.features import rotation_matrix
from amp_core.policy.tree import ROOT, Link, Sole, Vector
from amp_core.rotations import to_xyzw

if TYPE_CHECKING:
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]


def read_tree(robot: Robot) -> tuple[tuple[Link, ...], tuple[tuple[Sole, ...], ...]]:
    """The links between the root and the robot's contact channels, and the channels' geoms: one tuple a channel."""
    model = robot.model
    feature_of = {int(adr): i for i, adr in enumerate(robot.qpos_adr)}
    links: list[Link] = []
    # Of each body: the link that it is fixed to, its position [m] and its axes (3×3) in that link's frame.
    frames: dict[int, tuple[int, Array, Array]] = {robot.root_body: (ROOT, np.zeros(3), np.eye(3))}

    def frame(body: int) -> tuple[int, Array, Array]:
        if body in frames:
            return frames[body]
        link, position, axes = frame(int(model.body_parentid[body]))
        position, axes = position + axes @ model.body_pos[body], axes @ rotation_matrix(to_xyzw(model.body_quat[body]))
        first = int(model.body_jntadr[body])
        for joint in range(first, first + int(model.body_jntnum[body])):
            adr = int(model.jnt_qposadr[joint])
            links.append(
                Link(
                    parent=link,
                    offset=_vector(position),
                    rotation=_rows(axes),
                    axis=_vector(model.jnt_axis[joint]),
                    anchor=_vector(model.jnt_pos[joint]),
                    joint=feature_of[adr],
                    ref=float(model.qpos0[adr]),
                )
            )
            link, position, axes = len(links) - 1, np.zeros(3), np.eye(3)
        frames[body] = (link, position, axes)
        return frames[body]

    def sole(geom: int) -> Sole:
        link, position, axes = frame(int(model.geom_bodyid[geom]))
        center = position + axes @ model.geom_pos[geom]
        geom_axes = axes @ rotation_matrix(to_xyzw(model.geom_quat[geom]))
        kind = mujoco.mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()
        size, points = model.geom_size[geom], _hull_corners(model, geom) if kind == "mesh" else ()
        if points:
            kind = "points"
        elif kind not in ("box", "sphere", "capsule", "cylinder", "ellipsoid"):
            # A shape without a formula is replaced by its bounding box: center and half lengths.
            box = model.geom_aabb[geom]
            kind, size, center = "box", box[3:], center + geom_axes @ box[:3]
        return Sole(link, kind, _vector(center), _rows(geom_axes), _vector(size), points)

    soles = tuple(tuple(sole(geom) for geom in geoms) for geoms in robot.channel_geoms)
    return tuple(links), soles


def _hull_corners(model: Any, geom: int) -> tuple[Vector, ...]:
    """The corners of the convex hull that MuJoCo collides a mesh with, in the geom's frame; none where it was not computed."""
    mesh = int(model.geom_dataid[geom])
    start = int(model.mesh_graphadr[mesh])
    if start < 0:
        return ()
    # The graph: counts of vertices and faces, where each vertex' edges begin, each vertex' number in the mesh, …
    count = int(model.mesh_graph[start])
    numbers = model.mesh_graph[start + 2 + count : start + 2 + 2 * count]
    vertices = model.mesh_vert[int(model.mesh_vertadr[mesh]) + numbers]
    return tuple(_vector(vertex) for vertex in np.unique(vertices, axis=0))


def _vector(values: Sequence[float] | npt.NDArray[Any]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _rows(matrix: Array) -> tuple[Vector, Vector, Vector]:
    return _vector(matrix[0]), _vector(matrix[1]), _vector(matrix[2])
