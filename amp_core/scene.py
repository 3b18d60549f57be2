"""A robot's geometry and kinematic tree as one npz, from which a browser draws it. `docs/pages.md` lists the arrays.

What is drawn is what MuJoCo's viewer shows: the geoms of the groups 0 to 2 that are not transparent. A kinematic tree without
such geoms is drawn by all that it has. The ground plane is left out. Shapes that a browser does not have become some that it
has: a plane a thin box, a height field a mesh.

A mesh of a robot is made to be seen from near: its vertices are merged to a grid of a 300th of the robot's reach before they
are sent. The same model gives the same bytes.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.kinematics import box_corners
from amp_core.npz import write_npz
from amp_core.robot import Robot
from amp_core.strict_json import finite_data

__all__ = ["FORMAT", "build_scene", "drawn_geoms", "write_scene"]

FORMAT = "ampref-scene/1"

_VISIBLE_GROUPS = 3
_DEFAULT_RGBA = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
_CELLS = 300
"""Cells of the grid of vertices within the robot's reach: 3 mm of a robot of human size."""
_PLANE_SIZE = 20.0
"""m, half the side of a plane that has no end."""
_PLANE_THICKNESS = 0.001
_STEPS = 65535

_SHAPES = mujoco.mjtGeom
_PLANE, _HFIELD, _BOX, _MESH, _SDF = (
    int(shape)
    for shape in (_SHAPES.mjGEOM_PLANE, _SHAPES.mjGEOM_HFIELD, _SHAPES.mjGEOM_BOX, _SHAPES.mjGEOM_MESH, _SHAPES.mjGEOM_SDF)
)

Vertices = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int64]


def write_scene(robot: Robot) -> bytes:
    """The npz of `build_scene`."""
    buffer = io.BytesIO()
    write_npz(buffer, build_scene(robot))
    return buffer.getvalue()


def build_scene(robot: Robot) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a robot's scene, `meta` first."""
    model = robot.model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    geoms, rgba = drawn_geoms(robot)
    root = data.xpos[robot.root_body]
    own_geoms = geoms[model.body_rootid[model.geom_bodyid[geoms]] == robot.root_body]
    reach = np.linalg.norm(data.geom_xpos[own_geoms] - root, axis=1) + model.geom_rbound[own_geoms]
    radius = float(reach.max(initial=0.0)) or float(robot.height_range[1])
    meta = {
        "format": FORMAT,
        "robot": robot.name,
        "digest": robot.digest,
        "control_dt": robot.control_dt,
        "mass_kg": robot.mass,
        "weight_n": robot.mg,
        "joints": list(robot.joint_names),
        "joint_range": [[low, high] if np.isfinite([low, high]).all() else None for low, high in robot.joint_range.tolist()],
        "force_limit": robot.force_limit.tolist(),
        "channels": list(robot.channels),
        "bodies": [model.body(body).name for body in range(model.nbody)],
        "root_qpos": robot.root_qpos_adr,
        "root_body": robot.root_body,
        "height": float(root[2]),
        "radius": radius,
    }
    soles = [box_corners(model, channel) for channel in robot.channel_geoms]
    sole_bodies = [int(model.geom_bodyid[channel[0]]) for channel in robot.channel_geoms]
    points = [len(sole) for sole in soles]
    return {
        "meta": np.frombuffer(json.dumps(finite_data(meta), separators=(",", ":")).encode(), np.uint8),
        "body_parent": model.body_parentid.astype(np.int32),
        "body_pos": model.body_pos.astype(np.float32),
        "body_quat": model.body_quat.astype(np.float32),
        "joint_type": model.jnt_type.astype(np.int32),
        "joint_body": model.jnt_bodyid.astype(np.int32),
        "joint_qpos": model.jnt_qposadr.astype(np.int32),
        "joint_pos": model.jnt_pos.astype(np.float32),
        "joint_axis": model.jnt_axis.astype(np.float32),
        "qpos0": model.qpos0.astype(np.float32),
        **_list_geoms(model, geoms, rgba, cell=radius / _CELLS),
        "joint_adr": robot.qpos_adr.astype(np.int32),
        "joint_actuator": robot.ctrl_adr.astype(np.int32),
        "sole_channel": np.repeat(np.arange(len(soles), dtype=np.int32), points),
        "sole_body": np.repeat(np.array(sole_bodies, np.int32), points),
        "sole_point": np.concatenate(soles).astype(np.float32),
    }


def drawn_geoms(robot: Robot) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The ids of the geoms that are drawn, and their (G, 4) colours.

    A geom has its own colour where that is not MuJoCo's default, else that of its material, as in MuJoCo's viewer. Geoms that
    stand in for a tree without visible ones are opaque: they are often made to be looked through.
    """
    model = robot.model
    rgba = model.geom_rgba.copy()
    has_material = (model.geom_matid >= 0) & (rgba == _DEFAULT_RGBA).all(axis=1)
    rgba[has_material] = model.mat_rgba[model.geom_matid[has_material]]
    is_visible = (model.geom_group < _VISIBLE_GROUPS) & (rgba[:, 3] > 0)
    is_ground = np.arange(model.ngeom) == robot.ground_geom
    trees = model.body_rootid[model.geom_bodyid]
    stands_in = ~np.isin(trees, trees[is_visible & ~is_ground])
    rgba[stands_in, 3] = 1.0
    geoms = np.flatnonzero((is_visible | stands_in) & ~is_ground)
    return geoms, rgba[geoms].astype(np.float32)


def _list_geoms(
    model: Any, geoms: npt.NDArray[np.int64], rgba: npt.NDArray[np.float32], cell: float
) -> dict[str, npt.NDArray[Any]]:
    """The arrays `geom_…` and those of the meshes that the geoms use, each mesh once."""
    types, sizes, meshes = (
        model.geom_type[geoms].astype(np.int32),
        model.geom_size[geoms].copy(),
        np.full(len(geoms), -1, np.int32),
    )
    shapes: dict[tuple[int, int], int] = {}
    parts: list[tuple[Vertices, Faces]] = []
    for i, geom in enumerate(geoms.tolist()):
        source = int(types[i])
        if source == _PLANE:
            types[i] = _BOX
            sizes[i] = [*(size if size > 0 else _PLANE_SIZE for size in sizes[i, :2]), _PLANE_THICKNESS]
        elif source in (_HFIELD, _MESH, _SDF):
            types[i] = _MESH
            number = int(model.geom_dataid[geom])
            key = (_HFIELD if source == _HFIELD else _MESH, number)
            if key not in shapes:
                shapes[key] = len(parts)
                parts.append(
                    _hfield_mesh(model, number) if source == _HFIELD else merge_vertices(*_read_mesh(model, number), cell)
                )
            meshes[i] = shapes[key]
    low = np.array([vertices.min(axis=0, initial=np.inf) for vertices, _ in parts], np.float32).reshape(-1, 3)
    high = np.array([vertices.max(axis=0, initial=-np.inf) for vertices, _ in parts], np.float32).reshape(-1, 3)
    steps = [_to_steps(vertices, *box) for (vertices, _), *box in zip(parts, low, high, strict=True)]
    return {
        "geom_body": model.geom_bodyid[geoms].astype(np.int32),
        "geom_type": types,
        "geom_mesh": meshes,
        "geom_size": sizes.astype(np.float32),
        "geom_pos": model.geom_pos[geoms].astype(np.float32),
        "geom_quat": model.geom_quat[geoms].astype(np.float32),
        "geom_rgba": rgba,
        "mesh_vertex": np.cumsum([0, *(len(vertices) for vertices, _ in parts)], dtype=np.int32),
        "mesh_face": np.cumsum([0, *(len(faces) for _, faces in parts)], dtype=np.int32),
        "mesh_low": low,
        "mesh_high": high,
        "vertices": np.concatenate([np.empty((0, 3), np.uint16), *steps]),
        "faces": np.concatenate([np.empty((0, 3), np.uint32), *(faces.astype(np.uint32) for _, faces in parts)]),
    }


def _to_steps(vertices: Vertices, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Vertices as 65,535ths of the way from one corner of their box to the other."""
    extent = (high - low).astype(np.float64)
    share = (vertices - low) / np.where(extent > 0, extent, 1.0)
    steps: npt.NDArray[np.uint16] = np.rint(share.clip(0.0, 1.0) * _STEPS).astype(np.uint16)
    return steps


def _read_mesh(model: Any, mesh: int) -> tuple[Vertices, Faces]:
    vertices, faces = int(model.mesh_vertadr[mesh]), int(model.mesh_faceadr[mesh])
    return (
        model.mesh_vert[vertices : vertices + int(model.mesh_vertnum[mesh])].astype(np.float64),
        model.mesh_face[faces : faces + int(model.mesh_facenum[mesh])].astype(np.int64),
    )


def merge_vertices(vertices: Vertices, faces: Faces, cell: float) -> tuple[Vertices, Faces]:
    """A mesh whose vertices in one cell of a grid are one, at their mean, without the faces that this leaves no area.

    Vertices that no face has are left out. A mesh that would vanish in the grid stays as it is.
    """
    if not len(faces):
        return vertices[:0], faces
    cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    strides = np.cumprod([1, *(cells.max(axis=0)[:2] + 1)])
    _, place = np.unique(cells @ strides, return_inverse=True)
    count = np.bincount(place)
    mean = np.stack([np.bincount(place, vertices[:, axis]) / count for axis in range(3)], axis=1)
    corners = place[faces]
    has_area = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    if not has_area.any():
        return vertices, faces
    # Each face from its lowest corner on, so that two on the same corners are found and equal ones are sent once.
    corners = corners[has_area]
    first = corners.argmin(axis=1)[:, None]
    corners = np.take_along_axis(corners, (first + np.arange(3)) % 3, axis=1)
    numbers = (corners[:, 0] * len(mean) + corners[:, 1]) * len(mean) + corners[:, 2]
    _, index = np.unique(numbers, return_index=True)
    used_vertices, corners = np.unique(corners[index], return_inverse=True)
    return mean[used_vertices], corners.reshape(-1, 3)


def _hfield_mesh(model: Any, hfield: int) -> tuple[Vertices, Faces]:
    """The surface of a height field in its geom's frame."""
    rows, columns = int(model.hfield_nrow[hfield]), int(model.hfield_ncol[hfield])
    first = int(model.hfield_adr[hfield])
    x, y, top, _ = model.hfield_size[hfield]
    heights = np.asarray(model.hfield_data[first : first + rows * columns], np.float64) * top
    across, along = np.meshgrid(np.linspace(-x, x, columns), np.linspace(-y, y, rows))
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1)
    lower = np.stack([corner, corner + 1, corner + columns + 1], axis=1)
    upper = np.stack([corner, corner + columns + 1, corner + columns], axis=1)
    return np.stack([across.ravel(), along.ravel(), heights], axis=1), np.concatenate([lower, upper])
