"""Foot kinematics: where a robot's feet are in given poses, how low they reach and how fast they move.

A **sole** is the underside of a foot's contact geoms. Two measures of it are used. `sole_heights` is exact for every shape and
fits clips to the floor. `FootTracker` takes the corners of the geoms' bounding boxes, which also have speeds: its figures are
those of the slip metrics, of `kinematic_contacts` and of the diagnosis. The floor is z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from amp_core.engine import Batch, mujoco
from amp_core.robot import Robot

Array = npt.NDArray[np.float64]
BodyPoses: TypeAlias = tuple[Array, Array]

KINEMATIC_HEIGHT = 0.015
"""m; a foot of a clip can only be in contact with its lowest corner below this height above the ground."""

KINEMATIC_SPEED = 0.3
"""m/s; … and with its slowest corner slower than this."""

_POSES_AT_ONCE = 1024
_VERTICES_AT_ONCE = 2_000_000


def iterate_poses(model: Any, qpos: Array) -> Iterator[Any]:
    """Yields one `MjData` with the forward kinematics of each pose (N, nq) in turn."""
    data = mujoco.MjData(model)
    for row in qpos:
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        yield data


def body_poses(robot: Robot, qpos: Array) -> BodyPoses:
    """(N, nbody, 3) m and (N, nbody, 9): the places of the bodies' origins and their rotation matrices in the poses (N, nq)."""
    model = robot.kinematic_model
    data = mujoco.MjData(model)
    xpos, xmat = np.empty((len(qpos), model.nbody, 3)), np.empty((len(qpos), model.nbody, 9))
    state, place, axes, kinematics = data.qpos, data.xpos, data.xmat, mujoco.mj_kinematics
    for k, row in enumerate(qpos):
        state[:] = row
        kinematics(model, data)
        xpos[k], xmat[k] = place, axes
    return xpos, xmat


def geom_poses(model: Any, geoms: Sequence[int] | npt.NDArray[np.int64], qpos: Array) -> tuple[Array, Array]:
    """(N, G, 3) m, the geoms' centres in the world, and (N, G, 3), the world's up axis in each geom's frame."""
    ids = np.asarray(geoms)
    centres, ups = np.empty((2, len(qpos), len(ids), 3))
    for k, data in enumerate(iterate_poses(model, qpos)):
        centres[k] = data.geom_xpos[ids]
        # The third row of a geom's rotation matrix.
        ups[k] = data.geom_xmat[ids, 6:9]
    return centres, ups


def sole_heights(robot: Robot, qpos: Array) -> Array:
    """(N, F) m, the height of the lowest point of each foot's contact geoms in the poses (N, nq)."""
    geoms = [geom for foot in robot.feet for geom in foot.geoms]
    centres, ups = geom_poses(robot.model, geoms, qpos)
    reach = np.stack([support(robot.model, geom, ups[:, i]) for i, geom in enumerate(geoms)], axis=1)
    return np.stack([low.min(axis=1) for low in _split_by_foot(robot, centres[:, :, 2] - reach)], axis=1)


def reference_height(robot: Robot) -> float:
    """m, how high the root is above the lowest sole in the model's reference pose."""
    pose = np.array(robot.model.qpos0)[None]
    return float(pose[0, robot.root_qpos_adr + 2] - sole_heights(robot, pose).min())


def foot_centres(robot: Robot, qpos: Array) -> Array:
    """(N, F, 3) m, the mean of the centres of each foot's contact geoms in the poses (N, nq)."""
    geoms = [geom for foot in robot.feet for geom in foot.geoms]
    centres, _ = geom_poses(robot.model, geoms, qpos)
    return np.stack([foot.mean(axis=1) for foot in _split_by_foot(robot, centres)], axis=1)


def _split_by_foot(robot: Robot, values: Array) -> list[Array]:
    """Columns (N, G, …), a geom each in the order of the feet, as one array a foot."""
    return np.split(values, np.cumsum([len(foot.geoms) for foot in robot.feet])[:-1], axis=1)


def support(model: Any, geom: int, up: Array) -> Array:
    """(N,) m: how far a geom reaches below its centre, by the support function of its shape.

    For a mesh it is the farthest vertex, which is the lowest point of the convex hull. A shape without a simple support
    function (a signed distance field) counts as its bounding sphere.

    Args:
      up: (N, 3) the world's up axis in the geom's frame.
    """
    shapes = mujoco.mjtGeom
    shape = int(model.geom_type[geom])
    size = np.asarray(model.geom_size[geom])
    along = np.abs(up)
    if shape == shapes.mjGEOM_SPHERE:
        return np.full(len(up), float(size[0]))
    if shape == shapes.mjGEOM_CAPSULE:
        return np.asarray(along[:, 2] * size[1] + size[0])
    if shape == shapes.mjGEOM_CYLINDER:
        return np.asarray(along[:, 2] * size[1] + size[0] * np.sqrt(np.maximum(0.0, 1.0 - up[:, 2] ** 2)))
    if shape == shapes.mjGEOM_BOX:
        return np.asarray(along @ size)
    if shape == shapes.mjGEOM_ELLIPSOID:
        return np.asarray(np.linalg.norm(up * size, axis=1))
    if shape == shapes.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        first = int(model.mesh_vertadr[mesh])
        vertices = np.asarray(model.mesh_vert[first : first + int(model.mesh_vertnum[mesh])], dtype=np.float64)
        # In blocks, so that a fine mesh and a long clip do not make one huge product.
        block = max(1, _VERTICES_AT_ONCE // max(1, len(vertices)))
        return np.concatenate([-(up[k : k + block] @ vertices.T).min(axis=1) for k in range(0, len(up), block)])
    return np.full(len(up), float(model.geom_rbound[geom]))


def box_corners(model: Any, geoms: tuple[int, ...]) -> Array:
    """(8·geoms, 3) m, the corners of the geoms' bounding boxes, in the frame of the first one's body.

    Args:
      geoms: ids of geoms of one body, or of bodies that are welded to each other.
    """
    first = int(model.geom_bodyid[geoms[0]])
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = []
    for geom in geoms:
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        local = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
        places = model.geom_pos[geom] + local @ rotation.reshape(3, 3).T
        corners.append(_change_frame(model, places, int(model.geom_bodyid[geom]), first))
    return np.concatenate(corners)


def _change_frame(model: Any, points: Array, body: int, target: int) -> Array:
    """(N, 3) m, points in the frame of a body in that of another one, to which it is welded."""
    if body == target:
        return points
    weld = int(model.body_weldid[body])
    for outwards, start in ((False, body), (True, target)):
        chain = []
        while start != weld:
            chain.append(start)
            start = int(model.body_parentid[start])
        for link in reversed(chain) if outwards else chain:
            rotation = np.empty(9)
            mujoco.mju_quat2Mat(rotation, model.body_quat[link])
            axes = rotation.reshape(3, 3)
            points = (points - model.body_pos[link]) @ axes if outwards else model.body_pos[link] + points @ axes.T
    return points


class FootTracker:
    """The corners of a robot's feet in given states, and how fast they moved between two.

    The corners of a foot are those of the bounding boxes of its channel geoms.

    Args:
      size: about how many states are asked for at once.
    """

    def __init__(self, robot: Robot, *, nthread: int = 1, size: int = _POSES_AT_ONCE) -> None:
        self._robot = robot
        self._size = min(size, _POSES_AT_ONCE)
        self._corners = [box_corners(robot.model, foot.geoms) for foot in robot.feet]
        self._batch = None if nthread == 1 else Batch(robot.kinematic_model, self._size, nthread=nthread)

    def speeds(self, start: Array, end: Array) -> Array:
        """(N, F) m/s: how fast the slowest corner of each foot moved horizontally during each control step.

        A foot that rolls over its toe has a corner at rest; a foot that slides has none. The speed is the distance between a
        corner's places at the start and at the end of the step, over the step's time.

        Args:
          start, end: (N, nq) the states in which each step started and ended.
        """
        # The steps of a rollout start where the last one ended, so that one pass over the states serves both ends.
        if len(end) > 1 and np.array_equal(start[1:], end[:-1]):
            path = self._coordinates(np.concatenate([start[:1], end]), axes=(0, 1))
            starts, ends = [p[:, :-1] for p in path], [p[:, 1:] for p in path]
        else:
            starts, ends = self._coordinates(start, axes=(0, 1)), self._coordinates(end, axes=(0, 1))
        speeds = np.empty((len(end), len(self._corners)))
        for i in range(len(self._corners)):
            x, y = ends[i] - starts[i]
            speeds[:, i] = np.sqrt((x**2 + y**2).min(axis=-1)) / self._robot.control_dt
        return speeds

    def heights(self, qpos: Array) -> Array:
        """(N, F) m: the height of the lowest corner of each foot in the states (N, nq)."""
        return np.stack([foot[0].min(axis=-1) for foot in self._coordinates(qpos, axes=(2,))], axis=1)

    def corners(self, qpos: Array, poses: BodyPoses | None = None) -> tuple[Array, ...]:
        """For each foot the (N, corners, 3) m places of its corners in the states (N, nq).

        Args:
          poses: the `body_poses` of these states, where they are known.
        """
        return tuple(np.moveaxis(foot, 0, -1) for foot in self._coordinates(qpos, (0, 1, 2), poses))

    def _coordinates(self, qpos: Array, axes: tuple[int, ...], poses: BodyPoses | None = None) -> list[Array]:
        """For each foot the (axes, N, corners) m coordinates of its corners along some of the world's axes."""
        feet = [np.empty((len(axes), len(qpos), len(corners))) for corners in self._corners]
        for first in range(0, len(qpos), self._size):
            rows = slice(first, first + self._size)
            xpos, xmat = self._body_poses(qpos[rows]) if poses is None else (poses[0][rows], poses[1][rows])
            for foot, corners, coordinates in zip(self._robot.feet, self._corners, feet, strict=True):
                # Written out: quicker than a matrix product of this shape, and no BLAS that may add in another order elsewhere.
                for i, axis in enumerate(axes):
                    x, y, z = xmat[:, foot.body, 3 * axis : 3 * axis + 3, None].swapaxes(0, 1)
                    offsets = x * corners[:, 0] + y * corners[:, 1] + z * corners[:, 2]
                    coordinates[i, rows] = offsets + xpos[:, foot.body, axis, None]
        return feet

    def _body_poses(self, qpos: Array) -> BodyPoses:
        """(N, nbody, 3) and (N, nbody, 9): the bodies' places and axes in at most `size` states; possibly views."""
        if self._batch is None:
            # The one function that is needed costs half of what a batch's position stage does, which also factors the inertia.
            return body_poses(self._robot, qpos)
        batch, count = self._batch, len(qpos)
        batch.bind("qpos")[:count] = qpos
        xpos, xmat = batch.bind("xpos"), batch.bind("xmat")
        batch.forward(ids=np.arange(count), stage=mujoco.mjtStage.mjSTAGE_POS)
        return xpos[:count], xmat[:count]


def kinematic_contacts(robot: Robot, qpos: Array, size: float = 1.0) -> npt.NDArray[np.bool_]:
    """(N, F) which feet a motion intends to stand on, by their height and speed alone.

    Args:
      size: factor on the height, whose square root is that on the speed.

    Low (`KINEMATIC_HEIGHT`) and slow (`KINEMATIC_SPEED`) are the two usual signs of a stance in motion capture, with room for
    the errors of retargeting. The poses (N, nq) are those of consecutive control steps.
    """
    tracker = FootTracker(robot, size=len(qpos) + 1)
    speeds = tracker.speeds(np.concatenate([qpos[:1], qpos[:-1]]), qpos)
    if len(qpos) > 1:
        speeds[0] = speeds[1]  # No frame precedes the first.
    is_low, is_slow = tracker.heights(qpos) < KINEMATIC_HEIGHT * size, speeds < KINEMATIC_SPEED * math.sqrt(size)
    contacts: npt.NDArray[np.bool_] = is_low & is_slow
    return contacts
