"""Contacts: which geoms touch the ground, and how hard.

Forces are measured by MuJoCo's `contact` sensors, which are added to a copy of the robot's model. They read the true contact
force under either friction cone, for every physics substep, without a Python loop over contacts; and as sensors take no part in
the dynamics, the copy moves bit for bit like the robot's own model. (Reading `efc_force` at the contact's address is only right
under the elliptic cone: under the pyramidal one it is a single edge of the pyramid.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import MODEL_FIELDS, mujoco
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
