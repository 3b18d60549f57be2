"""Contacts: who touches the ground, how hard, and whether feet slide.

Forces are measured by MuJoCo's `contact` sensors, which are added to a copy of the robot's model. They read the true contact
force under either friction cone, for every physics substep, without a Python loop over contacts; and as sensors take no part in
the dynamics, the copy moves bit for bit like the robot's own model. (Reading `efc_force` at the contact's address is only right
under the elliptic cone: under the pyramidal one it is a single edge of the pyramid.)
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import MODEL_FIELDS, Batch, mujoco
from amp_core.errors import PhysicsFailed
from amp_core.recipe import PhysicsScale

if TYPE_CHECKING:
    from amp_core.robot import Foot, Robot

Array = npt.NDArray[np.float64]

_FOUND = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
_FORCE = 1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE)
_REDUCE_NONE = 0
_REDUCE_NETFORCE = 3
_PREFIX = "ampref."
_POSES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class ContactProbe:
    """A robot's model with contact sensors and without its own sensors.

    Args:
      model: the instrumented `MjModel`; same `qpos`, `qvel`, `ctrl` and dynamics as the robot's.
      force_columns: (G,) columns of `sensordata` with the vertical force on each channel geom; a sensor has the count of its
        contacts first, then their net force.
      channel_of: (G,) the channel of each of those geoms.
      channels: C.
      ground_column: the column with the number of all contacts with the ground.
      foot_columns: the columns that count those of them that are on the body of a foot, each contact once.
    """

    model: Any
    force_columns: npt.NDArray[np.int64]
    channel_of: npt.NDArray[np.int64]
    channels: int
    ground_column: int
    foot_columns: npt.NDArray[np.int64]

    def loads(self, sensordata: Array) -> Array:
        """(…, C) N: the normal force of the ground on each channel, from (…, nsensordata).

        Recorded after a substep, these are the forces that acted during it: MuJoCo computes them before it integrates.
        """
        forces = sensordata[..., self.force_columns]
        if len(self.channel_of) == self.channels:
            return forces
        loads = np.zeros((*forces.shape[:-1], self.channels))
        for i, channel in enumerate(self.channel_of):
            loads[..., channel] += forces[..., i]
        return loads

    def nonfoot(self, sensordata: Array) -> npt.NDArray[np.bool_]:
        """(…,) whether anything but a foot's body is in contact with the ground."""
        others: npt.NDArray[np.bool_] = sensordata[..., self.ground_column] > sensordata[..., self.foot_columns].sum(axis=-1)
        return others

    @cached_property
    def kinematics(self) -> Any:
        """The model without contacts, constraints and sensors: all that the places of its bodies need, and cheap."""
        model = copy.copy(self.model)
        disabled = mujoco.mjtDisableBit
        model.opt.disableflags |= int(disabled.mjDSBL_CONSTRAINT) | int(disabled.mjDSBL_CONTACT) | int(disabled.mjDSBL_SENSOR)
        # Where a body is does not depend on whether it sleeps, and a sleeping one would be passed over.
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
        return model


_PROBES: weakref.WeakKeyDictionary[Robot, dict[PhysicsScale, ContactProbe]] = weakref.WeakKeyDictionary()


def instrument(robot: Robot, scale: PhysicsScale) -> ContactProbe:
    """The robot's probe at this physics scale. It is compiled once a robot and scale.

    Raises:
      PhysicsFailed: the model file is not what it was when the robot was loaded.
    """
    probes = _PROBES.setdefault(robot, {})
    if scale not in probes:
        probes[scale] = _instrument(robot, robot.scaled_model(scale))
    return probes[scale]


def with_sensors(robot: Robot, source: Any, add: Callable[[Any, Mapping[int, str], Mapping[int, str]], None]) -> Any:
    """A compiled copy of `source`, the robot's model at some physics scale, with other sensors than its own.

    Args:
      add: called with the `MjSpec` to add sensors to, and with the names of the ground's and the channels' geoms and those of
        the feet's bodies and the root's, by id; an element that had no name has one by then.

    Raises:
      PhysicsFailed: the model file is not what it was when the robot was loaded.
    """
    spec = mujoco.MjSpec.from_file(str(robot.model_path))
    # The robot's own sensors have no part in the dynamics and cost time. Plugin sensors stay: a plugin may do anything.
    for sensor in list(spec.sensors):
        if sensor.type != mujoco.mjtSensor.mjSENS_PLUGIN:
            spec.delete(sensor)
    geoms = {geom: str(source.geom(geom).name) for geom in (robot.ground_geom, *(g for foot in robot.feet for g in foot.geoms))}
    bodies = {body: str(source.body(body).name) for body in (robot.root_body, *(foot.body for foot in robot.feet))}
    if not all((*geoms.values(), *bodies.values())):
        # Sensors refer to names: what has none is given one, once compiling has numbered the elements.
        spec.compile()
        _name(spec.geoms, geoms, "geom")
        _name(spec.bodies, bodies, "body")
    add(spec, geoms, bodies)
    model = spec.compile()
    _copy_physics(robot, source, model)
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    return model


def _instrument(robot: Robot, source: Any) -> ContactProbe:
    channel_of: list[int] = []
    counts: list[str] = []

    def add(spec: Any, geoms: Mapping[int, str], bodies: Mapping[int, str]) -> None:
        ground = geoms[robot.ground_geom]
        geom, body = mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtObj.mjOBJ_BODY
        for channel, members in enumerate(robot.channel_geoms):
            for member in members:
                # The net force of the first on the second, in world axes; the ground is a horizontal plane, so z is the normal.
                both = _FOUND | _FORCE
                _contact_sensor(spec, f"force.{member}", (geom, ground), (geom, geoms[member]), both, _REDUCE_NETFORCE)
                channel_of.append(channel)
        _contact_sensor(spec, "ground", (geom, ground), None, _FOUND, _REDUCE_NONE)
        for foot in robot.feet:
            if _channels_are_all(source, foot):
                # The channels' own sensors count its contacts already, and every sensor costs time in every substep.
                counts.extend(f"force.{member}" for member in foot.geoms)
                continue
            _contact_sensor(spec, f"foot.{foot.body}", (geom, ground), (body, bodies[foot.body]), _FOUND, _REDUCE_NONE)
            counts.append(f"foot.{foot.body}")

    model = with_sensors(robot, source, add)
    return ContactProbe(
        model=model,
        force_columns=np.array([_column(model, f"force.{g}") + 3 for members in robot.channel_geoms for g in members]),
        channel_of=np.array(channel_of),
        channels=len(robot.channels),
        ground_column=_column(model, "ground"),
        foot_columns=np.array([_column(model, name) for name in counts], dtype=np.int64),
    )


def _channels_are_all(model: Any, foot: Foot) -> bool:
    """Whether nothing on the foot's body can touch anything, but its channel geoms."""
    first = int(model.body_geomadr[foot.body])
    others = set(range(first, first + int(model.body_geomnum[foot.body]))) - set(foot.geoms)
    paired = {int(geom) for geom in (*model.pair_geom1, *model.pair_geom2)}
    return not any(model.geom_contype[g] or model.geom_conaffinity[g] or g in paired for g in others)


def _name(elements: Any, names: dict[int, str], kind: str) -> None:
    """Give a name to the elements in `names` that have none, in the spec and in `names`."""
    for element in list(elements):
        number = int(element.id)
        if number in names and not names[number]:
            element.name = names[number] = f"{_PREFIX}{kind}.{number}"


def _contact_sensor(
    spec: Any, name: str, first: tuple[Any, str], second: tuple[Any, str] | None, data: int, reduce: int
) -> None:
    sensor = spec.add_sensor(name=_PREFIX + name, type=mujoco.mjtSensor.mjSENS_CONTACT, objtype=first[0], objname=first[1])
    if second is not None:
        sensor.reftype, sensor.refname = second
    # (which data, how several contacts become one record, how many records)
    sensor.intprm[:3] = [data, reduce, 1]


def force_sensor(spec: Any, name: str, ground: str, geom: str) -> None:
    """Add a sensor of three numbers: the net force [N] of the ground on a geom, in world axes."""
    kind = mujoco.mjtObj.mjOBJ_GEOM
    sensor = spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_CONTACT, objtype=kind, objname=ground)
    sensor.reftype, sensor.refname = kind, geom
    sensor.intprm[:3] = [_FORCE, _REDUCE_NETFORCE, 1]


def _column(model: Any, name: str) -> int:
    return int(model.sensor(_PREFIX + name).adr[0])


def _copy_physics(robot: Robot, source: Any, model: Any) -> None:
    """Give `model` every physical field of `source`, which is the same model at some physics scale."""
    for field in sorted(MODEL_FIELDS):
        if field.startswith(("sensor_", "name_", "names_")):
            continue
        if field.startswith("opt."):
            name = field.removeprefix("opt.")
            value = getattr(source.opt, name)
            if isinstance(value, np.ndarray):
                getattr(model.opt, name)[:] = value
            else:
                setattr(model.opt, name, value)
            continue
        value, target = getattr(source, field), getattr(model, field)
        if np.shape(value) != np.shape(target):
            raise _changed(robot)
        target[...] = value
    if (model.nq, model.nv, model.nu, model.na) != (source.nq, source.nv, source.nu, source.na):
        raise _changed(robot)


def _changed(robot: Robot) -> PhysicsFailed:
    return PhysicsFailed(
        "the model file has changed since the robot was loaded",
        file=str(robot.model_path),
        expected="the model that its digest names",
        remedy="Load the robot again",
    )


class FootTracker:
    """Where the feet of a robot are in given states, and how fast they moved between two.

    The corners of a foot are those of the bounding boxes of its channel geoms.

    Args:
      nthread: threads for the kinematics; no result depends on it.
      size: how many states will be asked for at once, about.
    """

    def __init__(self, robot: Robot, *, nthread: int = 1, size: int = _POSES_AT_ONCE) -> None:
        self._robot = robot
        probe = instrument(robot, PhysicsScale())
        self._model = probe.kinematics
        self._nthread = nthread
        self._size = min(size, _POSES_AT_ONCE)
        self._corners = [box_corners(self._model, foot.geoms) for foot in robot.feet]

    def speeds(self, before: Array, after: Array) -> Array:
        """(N, F) m/s: how fast the slowest corner of each foot moved horizontally during each frame.

        A foot that rolls over its toe has a corner at rest; a foot that slides has none. The speed is the distance between a
        corner's places before and after the frame, over the frame's time.

        Args:
          before: (N, nq) the state that each frame started from.
          after: (N, nq) the state that it ended in.
        """
        # A rollout's frames start where the one before ended, so that one pass over the states serves both ends.
        if len(after) > 1 and np.array_equal(before[1:], after[:-1]):
            path = self._places(np.concatenate([before[:1], after]))
            start, end = [p[:, :-1] for p in path], [p[:, 1:] for p in path]
        else:
            start, end = self._places(before), self._places(after)
        speeds = np.empty((len(after), len(self._corners)))
        for i in range(len(self._corners)):
            moved = end[i] - start[i]
            speeds[:, i] = np.sqrt((moved[0] ** 2 + moved[1] ** 2).min(axis=-1)) / self._robot.control_dt
        return speeds

    def heights(self, qpos: Array) -> Array:
        """(N, F) m: the height of the lowest corner of each foot in the states (N, nq)."""
        heights = np.empty((len(qpos), len(self._corners)))
        for first in range(0, len(qpos), self._size):
            xpos, xmat = self._poses(qpos[first : first + self._size])
            stop = first + len(xpos)
            for i, (foot, corners) in enumerate(zip(self._robot.feet, self._corners, strict=True)):
                row = xmat[:, foot.body, 6:9]
                turned = row[:, 0, None] * corners[:, 0] + row[:, 1, None] * corners[:, 1] + row[:, 2, None] * corners[:, 2]
                heights[first:stop, i] = turned.min(axis=1) + xpos[:, foot.body, 2]
        return heights

    def _places(self, qpos: Array) -> list[Array]:
        """For each foot the (2, N, corners) horizontal places, x then y, of its corners in the states (N, nq)."""
        places = [np.empty((2, len(qpos), len(corners))) for corners in self._corners]
        for first in range(0, len(qpos), self._size):
            xpos, xmat = self._poses(qpos[first : first + self._size])
            stop = first + len(xpos)
            for foot, corners, place in zip(self._robot.feet, self._corners, places, strict=True):
                # Written out: quicker than a matrix product of this shape, and no BLAS that may add in another order elsewhere.
                for axis in range(2):
                    row = xmat[:, foot.body, 3 * axis : 3 * axis + 3]
                    turned = row[:, 0, None] * corners[:, 0] + row[:, 1, None] * corners[:, 1] + row[:, 2, None] * corners[:, 2]
                    place[axis, first:stop] = turned + xpos[:, foot.body, axis, None]
        return places

    def _poses(self, qpos: Array) -> tuple[Array, Array]:
        """(N, nbody, 3) and (N, nbody, 9): the bodies' places and axes in the states (N, nq); views, perhaps."""
        if self._nthread == 1:
            # The one function that is needed costs half of what a batch's position stage does, which also factors the inertia.
            data, model = self._data, self._model
            xpos, xmat = np.empty((len(qpos), model.nbody, 3)), np.empty((len(qpos), model.nbody, 9))
            state, place, axes, kinematics = data.qpos, data.xpos, data.xmat, mujoco.mj_kinematics
            for k, row in enumerate(qpos):
                state[:] = row
                kinematics(model, data)
                xpos[k], xmat[k] = place, axes
            return xpos, xmat
        batch, count = self._batch, len(qpos)
        batch.bind("qpos")[:count] = qpos
        xpos, xmat = batch.bind("xpos"), batch.bind("xmat")
        batch.forward(ids=np.arange(count), stage=mujoco.mjtStage.mjSTAGE_POS)
        return xpos[:count], xmat[:count]

    @cached_property
    def _data(self) -> Any:
        return mujoco.MjData(self._model)

    @cached_property
    def _batch(self) -> Batch:
        return Batch(self._model, self._size, nthread=self._nthread)


KINEMATIC_HEIGHT = 0.015
"""m; a foot of a clip can only be in contact with its lowest corner below this height above the ground."""

KINEMATIC_SPEED = 0.3
"""m/s; … and with its slowest corner slower than this."""


def kinematic_contacts(robot: Robot, qpos: Array) -> npt.NDArray[np.bool_]:
    """(N, F) which feet a motion means to stand on, by their height and speed alone.

    A foot is in contact when its lowest corner is less than 15 mm above the ground, and its slowest corner moves horizontally
    at less than 0.3 m/s: the two usual signs of a stance in motion capture, with room for the errors of retargeting.

    Args:
      qpos: (N, nq) the poses of consecutive control steps.
    """
    tracker = FootTracker(robot, size=len(qpos) + 1)
    before = np.concatenate([qpos[:1], qpos[:-1]])
    speeds = tracker.speeds(before, qpos)
    if len(qpos) > 1:
        speeds[0] = speeds[1]  # The first frame has none before it.
    contacts: npt.NDArray[np.bool_] = (tracker.heights(qpos) < KINEMATIC_HEIGHT) & (speeds < KINEMATIC_SPEED)
    return contacts


def box_corners(model: Any, geoms: tuple[int, ...]) -> Array:
    """(8·geoms, 3) the corners of the geoms' bounding boxes, in the frame of their body."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = []
    for geom in geoms:
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        local = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
        corners.append(model.geom_pos[geom] + local @ rotation.reshape(3, 3).T)
    return np.concatenate(corners)
