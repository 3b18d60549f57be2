"""Where a robot stands to be drawn: a camera, a floor, lights, and MuJoCo's renderer.

Robot and ghost are drawn by MuJoCo on black, twice as large as the picture; the floor is computed for each pixel. The mean of
four pixels has smooth edges on every GL, and what covers the floor by half lets half of it through.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from amp_core.engine import make_gl_context, mujoco
from amp_core.kinematics import body_poses, box_corners
from amp_core.robot import Robot
from amp_core.scene import drawn_geoms, merge_vertices

Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Area: TypeAlias = tuple[slice, slice]
"""Rows and columns of a picture."""

_FOVY = 26.0
"""deg; narrow, as of a camera that stands some metres away."""
_MARGIN = 0.94
"""The share of the picture that robots fill at most."""
_ABOVE, _FLOOR, _LINE = (np.array(colour, np.float32) for colour in ((246, 247, 249), (229, 232, 237), (196, 202, 211)))
_GHOST = np.array((64, 132, 255), np.float32)
_GHOST_OVER_FLOOR, _GHOST_OVER_ROBOT = 0.55, 0.3
_SHADOW = 0.26
_LIGHT = np.array((0.35, -0.25, -1.0))
"""Where the light goes that casts the shadow, in the camera's heading: forward, left, up."""
_LARGE_MESHES = 40_000
"""Faces from which on meshes are drawn as coarse as the picture is."""
_CELL = 0.75
"""Pixels between vertices that are drawn as one."""
_CREASE = math.cos(math.radians(35.0))
_POSES = 40
"""… of a clip by which the camera is placed."""
_NEAR, _FAR = 0.05, 200.0
_SAMPLES = 2
"""Pixels of MuJoCo's picture for one of ours, in each direction."""


@dataclass(frozen=True)
class Camera:
    """A camera that goes with the robot's root, at one height.

    Args:
      azimuth: deg, the direction that it looks in, counted from the world's x axis.
      elevation: deg above the robot.
      distance, height: m, of the point that it looks at: from the camera, above the floor.
      reach: m, of the robot around its root; how far the floor is seen.
    """

    azimuth: float
    elevation: float
    distance: float
    height: float
    reach: float

    def axes(self) -> tuple[Array, Array, Array]:
        """Its directions forward, to the right and up, in the world."""
        azimuth, tilt = math.radians(self.azimuth), -math.radians(self.elevation)
        forward = np.array([math.cos(tilt) * math.cos(azimuth), math.cos(tilt) * math.sin(azimuth), math.sin(tilt)])
        right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
        return forward, right, np.cross(right, forward)


def place_camera(robot: Robot, poses: list[Array], size: tuple[int, int], azimuth: float, elevation: float) -> Camera:
    """The camera that has the robot in the picture in some poses, (N, nq) each, with what of the others is near.

    Args:
      size: (width, height) of the picture.
      azimuth, elevation: deg, as of `Camera`.
    """
    corners, bodies = _list_corners(robot)
    rows = np.unique(np.linspace(0, len(poses[0]) - 1, min(_POSES, len(poses[0]))).astype(int))
    first = robot.root_qpos_adr
    root = poses[0][rows, first : first + 3]
    clouds = []
    for qpos in poses:
        places, rotations = body_poses(robot, qpos[rows])
        points = places[:, bodies] + (rotations.reshape(len(rows), -1, 3, 3)[:, bodies] @ corners[:, :, None])[..., 0]
        points[..., :2] -= root[:, None, :2]
        clouds.append(points)
    reach = float(np.linalg.norm(clouds[0] - [0, 0, 1] * root[:, None], axis=-1).max())
    # Of a ghost that went elsewhere no more is shown than what the robot's own picture has.
    near = [clouds[0], *(cloud[np.abs(cloud[..., :2]).max(axis=(1, 2)) < 1.1 * reach] for cloud in clouds[1:])]
    points = np.concatenate([cloud.reshape(-1, 3) for cloud in near])
    height = float((max(0.0, points[:, 2].min()) + points[:, 2].max()) / 2)
    tangent = math.tan(math.radians(_FOVY / 2)) * _MARGIN
    camera = Camera(azimuth, elevation, 1.0, height, reach)
    forward, right, up = camera.axes()
    for _ in range(4):
        offsets = points - [0.0, 0.0, height]
        u, v, w = offsets @ right, offsets @ up, offsets @ forward
        distance = float(max((np.abs(u) / (tangent * size[0] / size[1]) - w).max(), (np.abs(v) / tangent - w).max()))
        # As much room above as below.
        slopes = v / (distance + w)
        height += float(slopes.max() + slopes.min()) / 2 * distance / float(up[2])
    return Camera(azimuth, elevation, distance, height, reach)


def _list_corners(robot: Robot) -> tuple[Array, npt.NDArray[Any]]:
    """The corners (K, 3) of the boxes around what is drawn of the robot, m in the frames of their bodies, and these (K,)."""
    geoms, _ = drawn_geoms(robot)
    bodies = robot.model.geom_bodyid[geoms]
    is_own = robot.model.body_rootid[bodies] == robot.root_body
    corners = np.concatenate([box_corners(robot.model, (int(geom),)) for geom in geoms[is_own]])
    return corners, np.repeat(bodies[is_own], 8)


class Stage:
    """Draws a robot. It belongs to the thread that made it, and is closed at the end of its block.

    Args:
      platform: the GL (`gl.GlProbe`).
      size: (width, height) of the pictures.
    """

    def __init__(self, robot: Robot, camera: Camera, size: tuple[int, int], platform: str) -> None:
        self._robot = robot
        self._camera = camera
        self.size = size
        width, height = (_SAMPLES * side for side in size)
        self._model = _make_model(
            robot, width, height, cell=2 * camera.distance * math.tan(math.radians(_FOVY / 2)) / size[1] * _CELL
        )
        self._data = mujoco.MjData(self._model)
        self._floor = _Floor(camera, size)
        self._frame = slice(0, size[1]), slice(0, size[0])
        self._corners, self._bodies = _list_corners(robot)
        self._has_scenery = len(drawn_geoms(robot)[0]) * 8 > len(self._corners)
        self._context = make_gl_context(platform, width, height)
        self._context.make_current()
        self._scene = mujoco.MjvScene(self._model, 1000 + 2 * self._model.ngeom)
        self._scene.flags[:] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._option.tendongroup[:] = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._buffers = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._buffers)
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._view.azimuth, self._view.elevation = camera.azimuth, -camera.elevation
        self._view.distance = camera.distance
        forward, right, _ = camera.axes()
        heading = np.array([forward[0], forward[1], 0.0]) / math.hypot(forward[0], forward[1])
        light = _LIGHT[0] * heading - _LIGHT[1] * right + _LIGHT[2] * np.array([0.0, 0.0, 1.0])
        self._light = light / np.linalg.norm(light)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._buffers.free()
        self._context.free()

    def draw(self, qpos: Array, ghost_qpos: Array | None = None, centre: Array | None = None) -> Picture:
        """The picture (height, width, 3) of a pose.

        Args:
          ghost_qpos: another pose, drawn as a translucent ghost.
          centre: (2,) m, where the camera looks on the floor; the root's place by default.
        """
        first = self._robot.root_qpos_adr
        centre = qpos[first : first + 2] if centre is None else centre
        self._view.lookat[:] = [*centre, self._camera.height]
        self._pose(qpos, mujoco.mjtCatBit.mjCAT_ALL)
        area = self._frame if self._has_scenery else self._find_area(centre)
        colour, depth = self._render(area, has_colour=True)
        flat = np.eye(3)
        flat[:, 2] -= self._light / self._light[2]
        # What stands in the scene, pressed onto the floor along the light, is its shadow.
        for geom in self._scene.geoms[: self._scene.ngeom]:
            geom.mat[:] = flat @ geom.mat
            geom.pos[:] = flat @ geom.pos
        shadow_area = self._frame if self._has_scenery else self._find_area(centre, flat)
        picture = self._floor.draw(centre)
        _, shadow_depth = self._render(shadow_area, has_colour=False)
        shadow = _SHADOW * _blur(_mean(shadow_depth < 1.0)) * self._floor.share[shadow_area]
        picture[shadow_area] *= 1 - shadow[..., None]
        cover = _mean(depth < 1.0)[..., None]
        # What MuJoCo has drawn on black is as dark as it covers little of a pixel.
        picture[area] = _mean(colour) + (1 - cover) * picture[area]
        if ghost_qpos is not None:
            self._pose(ghost_qpos, mujoco.mjtCatBit.mjCAT_DYNAMIC)
            self._draw_ghost(picture, self._find_area(centre), area, depth)
        return np.asarray(np.rint(picture.clip(0, 255)), np.uint8)

    def _draw_ghost(self, picture: Float32, area: Area, robot_area: Area, robot_depth: Float32) -> None:
        """Draw what stands in the scene as a ghost onto a picture, where the robot is not before it."""
        colour, depth = self._render(area, has_colour=True)
        robot = np.ones((_SAMPLES * self.size[1], _SAMPLES * self.size[0]), np.float32)
        robot[_enlarge(robot_area)] = robot_depth
        robot = robot[_enlarge(area)]
        # Nearer by a hand's breadth: a ghost within the robot is not seen in patches.
        step = _NEAR * _FAR / (_FAR - _NEAR) / self._camera.distance**2 * 0.03
        is_seen = (depth < 1.0) & ((robot == 1.0) | (depth < robot - step))
        share, light = _mean(is_seen)[..., None], _mean(colour[..., 1] * is_seen)[..., None] / 255
        cover = _mean(robot < 1.0)[..., None]
        opacity = share * (_GHOST_OVER_FLOOR + (_GHOST_OVER_ROBOT - _GHOST_OVER_FLOOR) * cover)
        tint = np.minimum(_GHOST * (0.5 + 0.7 * light / np.maximum(share, 1e-6)), 255)
        picture[area] += (tint - picture[area]) * opacity

    def _find_area(self, centre: Array, flat: Array | None = None) -> Area:
        """The pixels that the robot may cover as it stands, or what it is after a linear map of the world."""
        points = (
            self._data.xpos[self._bodies]
            + (self._data.xmat.reshape(-1, 3, 3)[self._bodies] @ self._corners[:, :, None])[..., 0]
        )
        if flat is not None:
            points = points @ flat.T
        offsets = points - [*centre, self._camera.height]
        forward, right, up = self._camera.axes()
        depth = np.maximum(offsets @ forward + self._camera.distance, _NEAR) * math.tan(math.radians(_FOVY / 2))
        width, height = self.size
        columns = (offsets @ right / depth * height / width + 1) / 2 * width
        rows = (1 - offsets @ up / depth) / 2 * height
        return _span(rows, height), _span(columns, width)

    def _pose(self, qpos: Array, categories: Any) -> None:
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        scene = self._scene
        mujoco.mjv_updateScene(self._model, self._data, self._option, None, self._view, categories.value, scene)
        forward, right, up = self._camera.axes()
        scene.nlight = 2
        for light, direction, strength in (
            (scene.lights[0], self._light, 0.62),
            (scene.lights[1], forward - 0.5 * right - 0.2 * up, 0.34),
        ):
            light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
            light.headlight = light.castshadow = 0
            light.pos[:] = -10 * direction
            light.dir[:] = direction / np.linalg.norm(direction)
            light.attenuation[:] = [1, 0, 0]
            light.cutoff, light.exponent = 180, 0
            light.diffuse[:], light.ambient[:], light.specular[:] = strength, 0.16, 0.08

    def _render(self, area: Area, *, has_colour: bool) -> tuple[Picture, Float32]:
        """MuJoCo's picture of the scene and the depth of each pixel; where there is nothing, it is black, and the depth 1."""
        rows, columns = _enlarge(area)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        colour, depth = np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.float32)
        if height and width:
            mujoco.mjr_render(self._rect, self._scene, self._buffers)
            rect = mujoco.MjrRect(columns.start, _SAMPLES * self.size[1] - rows.stop, width, height)
            mujoco.mjr_readPixels(colour if has_colour else None, depth, rect, self._buffers)
        return colour[::-1], depth[::-1]


def _span(places: Array, size: int) -> slice:
    """The pixels between the least and the largest of some places, with one more at each end."""
    low, high = math.floor(places.min()) - 1, math.ceil(places.max()) + 1
    return slice(min(max(low, 0), size), min(max(high, 0), size))


def _enlarge(area: Area) -> Area:
    """The same part of MuJoCo's picture."""
    rows, columns = (slice(_SAMPLES * side.start, _SAMPLES * side.stop) for side in area)
    return rows, columns


class _Floor:
    """The floor with lines each half metre, which fades with the distance, as the camera sees it."""

    def __init__(self, camera: Camera, size: tuple[int, int]) -> None:
        width, height = size
        forward, right, up = camera.axes()
        tangent = math.tan(math.radians(_FOVY / 2))
        x = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :, None] * tangent * width / height
        y = (1 - (np.arange(height) + 0.5) / height * 2)[:, None, None] * tangent
        rays = forward + x * right + y * up
        place = np.array([0.0, 0.0, camera.height]) - camera.distance * forward
        below = rays[..., 2] < -1e-3
        time = np.where(below, -place[2] / np.where(below, rays[..., 2], -1.0), 0.0)
        points = (place + time[..., None] * rays)[..., :2].astype(np.float32)
        self._spacing = 0.5 if camera.reach > 0.5 else 0.25
        line = 0.01 * max(1.0, camera.reach)
        distance = np.linalg.norm(points, axis=-1) / (4.5 * camera.reach)
        self.share = (np.exp(-(distance**2)) * below).astype(np.float32)
        """(height, width) how much of the floor is seen, 0 at its end."""
        self._base = (_ABOVE + (_FLOOR - _ABOVE) * self.share[..., None]).astype(np.float32)
        self._line = (_LINE - self._base) * self.share[..., None]
        # Of each axis: where a pixel is, the slope and the most of a line's strength in it, and that on the line itself.
        self._axes = []
        for axis in range(2):
            across = sum(np.abs(slope) for slope in np.gradient(points[..., axis])) + np.float32(1e-6)
            peak, most = (line + across) / (2 * across), np.minimum(1, line / across)
            self._axes.append((points[..., axis] / self._spacing, self._spacing / across, peak, most))

    def draw(self, centre: Array) -> Float32:
        """(height, width, 3), with the camera over `centre`."""
        strengths = []
        for (places, slope, peak, most), shift in zip(self._axes, centre / self._spacing, strict=True):
            gaps = places + np.float32(shift % 1)
            gaps -= np.rint(gaps)
            strengths.append(np.clip(peak - np.abs(gaps) * slope, 0, most))
        return np.asarray(self._base + self._line * np.maximum(*strengths)[..., None], np.float32)


def _blur(values: Float32) -> Float32:
    """The mean of 3 by 3 pixels."""
    if not values.size:
        return values
    canvas = np.pad(values, 1, mode="edge")
    rows = canvas[:-2] + canvas[1:-1] + canvas[2:]
    return np.asarray((rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9, np.float32)


def _mean(values: npt.NDArray[Any]) -> Float32:
    """The mean of each block of pixels."""
    total = sum(
        values[row::_SAMPLES, column::_SAMPLES].astype(np.float32) for row in range(_SAMPLES) for column in range(_SAMPLES)
    )
    return np.asarray(total / np.float32(_SAMPLES**2), np.float32)


def _make_model(robot: Robot, width: int, height: int, cell: float) -> Any:
    """The robot's model as it is drawn: only what is seen is, in its own colour, and no finer than `cell` (m)."""
    model = copy.copy(robot.kinematic_model)
    geoms, rgba = drawn_geoms(robot)
    model.geom_group[:] = 5
    model.geom_group[geoms] = 0
    model.geom_rgba[geoms] = rgba
    # MuJoCo takes the material's colour where a geom's is this one.
    is_default = (model.geom_rgba == (0.5, 0.5, 0.5, 1.0)).all(axis=1)
    model.geom_rgba[is_default, 0] = 0.501
    model.geom_matid[:] = -1
    visual = model.vis
    visual.global_.offwidth, visual.global_.offheight, visual.global_.fovy = width, height, _FOVY
    visual.quality.offsamples = visual.quality.shadowsize = 0
    model.stat.extent, visual.map.znear, visual.map.zfar = 1.0, _NEAR, _FAR
    model.mesh_graphadr[:] = -1  # No convex hulls, which nobody sees.
    used_meshes = {int(model.geom_dataid[geom]) for geom in geoms if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH}
    is_fine = sum(int(model.mesh_facenum[mesh]) for mesh in used_meshes) > _LARGE_MESHES
    for mesh in range(model.nmesh):
        if mesh not in used_meshes:
            model.mesh_facenum[mesh] = 0
        elif is_fine:
            _coarsen(model, mesh, cell)
    return model


def _coarsen(model: Any, mesh: int, cell: float) -> None:
    """Merge a mesh's vertices that are nearer than `cell` (m), where what it needs then fits into its place."""
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    first_face, num_faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    first_normal, num_normals = int(model.mesh_normaladr[mesh]), int(model.mesh_normalnum[mesh])
    vertices, faces = merge_vertices(
        model.mesh_vert[first : first + count].astype(np.float64),
        model.mesh_face[first_face : first_face + num_faces].astype(np.int64),
        cell,
    )
    if len(faces) >= num_faces or len(vertices) + len(faces) > num_normals or model.mesh_texcoordadr[mesh] >= 0:
        return
    a, b, c = vertices[faces].swapaxes(0, 1)
    across = np.cross(b - a, c - a)
    flat = across / np.maximum(np.linalg.norm(across, axis=1), 1e-12)[:, None]
    smooth = np.stack(
        [sum(np.bincount(faces[:, corner], across[:, axis], len(vertices)) for corner in range(3)) for axis in range(3)], axis=1
    )
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1), 1e-12)[:, None]
    # A corner takes the smooth normal, but for one at an edge.
    is_smooth = (smooth[faces] * flat[:, None]).sum(axis=-1) > _CREASE
    normals = np.where(is_smooth, faces, len(vertices) + np.arange(len(faces))[:, None])
    model.mesh_vert[first : first + len(vertices)] = vertices
    model.mesh_face[first_face : first_face + len(faces)] = faces
    model.mesh_normal[first_normal : first_normal + len(vertices) + len(faces)] = np.concatenate([smooth, flat])
    model.mesh_facenormal[first_face : first_face + len(faces)] = normals
    model.mesh_vertnum[mesh], model.mesh_facenum[mesh] = len(vertices), len(faces)
    model.mesh_normalnum[mesh] = len(vertices) + len(faces)
