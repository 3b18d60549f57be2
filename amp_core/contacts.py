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
    from amp_core.robot import Robot

Array = npt.NDArray[np.float64]

_COUNT = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
_FORCE = 1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE)
_REDUCE_NONE = 0
_REDUCE_NETFORCE = 3
_GROUND_SENSOR = "ampref.ground"


@dataclass(frozen=True, eq=False)
class ContactProbe:
    """A robot's model with contact sensors and without its own sensors.

    Args:
      model: the instrumented `MjModel`; same `qpos`, `qvel`, `ctrl` and dynamics as the robot's.
      force_columns: (G,) columns of `sensordata` with the vertical force on each channel geom.
      channel_of: (G,) the channel of each of those geoms.
      channels: C.
      ground_column: the column with the number of all contacts with the ground.
      foot_columns: the columns with the numbers of those contacts that are on the body of a foot; each contact counts once.
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
        foot_contacts = sensordata[..., self.foot_columns].sum(axis=-1)
        return np.asarray(sensordata[..., self.ground_column] > foot_contacts)


_PROBES: weakref.WeakKeyDictionary[Robot, dict[PhysicsScale, ContactProbe]] = weakref.WeakKeyDictionary()


def instrument(robot: Robot, scale: PhysicsScale) -> ContactProbe:
    """The robot's probe at this physics scale. It is compiled once a robot and scale.

    Raises:
      PhysicsFailed: the model file is not what it was when the robot was loaded.
    """
    probes = _PROBES.setdefault(robot, {})
    if scale not in probes:
        probes[scale] = _build_probe(robot, robot.scaled_model(scale))
    return probes[scale]


def _build_probe(robot: Robot, source: Any) -> ContactProbe:
    """The probe of `source`, the robot's model at some physics scale."""
    force_sensors = {geom: f"ampref.force.{geom}" for geoms in robot.channel_geoms for geom in geoms}
    collides = (source.geom_contype != 0) | (source.geom_conaffinity != 0)
    collides[source.pair_geom1] = collides[source.pair_geom2] = True
    # The sensors whose counts add up to the contacts of the feet.
    foot_sensors: list[str] = []

    def add_sensors(spec: Any, geoms: Mapping[int, str], bodies: Mapping[int, str]) -> None:
        ground = geoms[robot.ground_geom]
        for geom, name in force_sensors.items():
            add_force_sensor(spec, name, ground, geoms[geom], count=True)
        _add_contact_sensor(spec, _GROUND_SENSOR, ground, data=_COUNT, reduce=_REDUCE_NONE)
        for foot in robot.feet:
            if set(np.flatnonzero(collides & np.isin(source.geom_bodyid, foot.bodies)).tolist()) <= set(foot.geoms):
                # Nothing on the foot but its channels' geoms can touch anything. Their own sensors count its contacts already,
                # and every sensor costs time in every substep.
                foot_sensors.extend(force_sensors[geom] for geom in foot.geoms)
            else:
                for body in foot.bodies:
                    if collides[source.geom_bodyid == body].any():
                        foot_sensors.append(f"ampref.foot.{body}")
                        partner = (mujoco.mjtObj.mjOBJ_BODY, bodies[body])
                        _add_contact_sensor(spec, foot_sensors[-1], ground, partner, data=_COUNT, reduce=_REDUCE_NONE)

    model = replace_sensors(robot, source, add_sensors)
    # A force sensor has the count of its contacts first, then the three components of their net force.
    return ContactProbe(
        model=model,
        force_columns=np.array([int(model.sensor(name).adr[0]) + 3 for name in force_sensors.values()]),
        channel_of=np.array([channel for channel, geoms in enumerate(robot.channel_geoms) for _ in geoms]),
        channels=len(robot.channels),
        ground_column=int(model.sensor(_GROUND_SENSOR).adr[0]),
        foot_columns=np.array([int(model.sensor(name).adr[0]) for name in foot_sensors], dtype=np.int64),
    )


def add_force_sensor(spec: Any, name: str, ground: str, geom: str, *, count: bool = False) -> None:
    """Adds a sensor of the net force [N] of the ground on a geom: three numbers in world axes.

    The ground is a horizontal plane, so the third is the normal force.

    Args:
      spec: the `MjSpec`.
      ground, geom: names of geoms.
      count: the number of contacts precedes the force.
    """
    data = _COUNT | _FORCE if count else _FORCE
    _add_contact_sensor(spec, name, ground, (mujoco.mjtObj.mjOBJ_GEOM, geom), data=data, reduce=_REDUCE_NETFORCE)


def _add_contact_sensor(
    spec: Any, name: str, ground: str, partner: tuple[Any, str] | None = None, *, data: int, reduce: int
) -> None:
    """Adds a sensor of the ground's contacts with `partner`, an object's type and name, or with anything."""
    geom = mujoco.mjtObj.mjOBJ_GEOM
    sensor = spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_CONTACT, objtype=geom, objname=ground)
    if partner is not None:
        sensor.reftype, sensor.refname = partner
    # (which data, how several contacts become one record, how many records)
    sensor.intprm[:3] = [data, reduce, 1]


def replace_sensors(robot: Robot, source: Any, add_sensors: Callable[[Any, Mapping[int, str], Mapping[int, str]], None]) -> Any:
    """A compiled copy of `source`, the robot's model at some physics scale, with other sensors than its own.

    Args:
      add_sensors: called with the `MjSpec` to add sensors to, and with the names of the ground's and the channels' geoms and
        those of the feet's bodies and the root's, by id; unnamed elements have been named by then.

    Raises:
      PhysicsFailed: the model file is not what it was when the robot was loaded.
    """
    spec = robot.make_spec()
    # The robot's own sensors have no part in the dynamics and cost time. Plugin sensors stay: a plugin may do anything.
    for sensor in list(spec.sensors):
        if sensor.type != mujoco.mjtSensor.mjSENS_PLUGIN:
            spec.delete(sensor)
    geoms = {geom: str(source.geom(geom).name) for geom in (robot.ground_geom, *(g for foot in robot.feet for g in foot.geoms))}
    bodies = {body: str(source.body(body).name) for body in sorted({robot.root_body, *robot.foot_bodies})}
    if not all((*geoms.values(), *bodies.values())):
        # Sensors refer to names. The elements have their numbers once the spec is compiled.
        spec.compile()
        for kind, elements, names in (("geom", spec.geoms, geoms), ("body", spec.bodies, bodies)):
            for element in list(elements):
                if names.get(int(element.id)) == "":
                    element.name = names[int(element.id)] = f"ampref.{kind}.{element.id}"
    add_sensors(spec, geoms, bodies)
    model = spec.compile()
    _copy_physics(robot, source, model)
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    return model


def _copy_physics(robot: Robot, source: Any, model: Any) -> None:
    """Copies every physical field of `source`, which is the same model at some physics scale, into `model`."""
    change_error = PhysicsFailed(
        "the model file has changed since the robot was loaded",
        file=str(robot.model_path),
        expected="the model that its digest names",
        remedy="Load the robot again",
    )
    for field in sorted(MODEL_FIELDS):
        if field.startswith(("sensor_", "name_", "names_")):
            continue
        if field.startswith("opt."):
            name = field.removeprefix("opt.")
            setattr(model.opt, name, getattr(source.opt, name))
            continue
        value, target = getattr(source, field), getattr(model, field)
        if np.shape(value) != np.shape(target):
            raise change_error
        target[...] = value
    if (model.nq, model.nv, model.nu, model.na) != (source.nq, source.nv, source.nu, source.na):
        raise change_error
