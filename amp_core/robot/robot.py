"""A checked robot, and loading the robots of a machine."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amp_core.digests import digest_of, digest_of_file
from amp_core.engine import mujoco
from amp_core.errors import RobotRefused
from amp_core.features import FeatureLayout
from amp_core.recipe import PhysicsScale
from amp_core.robot.changes import change_model
from amp_core.robot.model import Foot, ModelReader, compile_model
from amp_core.robot.spec import SPEC_FILE, RobotSpec, read_document
from amp_core.rotations import to_wxyz, to_xyzw

Array = NDArray[np.float64]

_BUNDLED_DIR = Path(__file__).parents[1] / "robots"
_WILDROBOT_HEIGHT = 0.45  # m, the middle of its height range


@dataclass(frozen=True, eq=False)
class Robot:
    """A checked robot. Arrays are read-only; n joints, C contact channels.

    Args:
      path: the `robot.yaml` it was loaded from.
      digest: `sha256:…` over the checked spec and the bytes of every model file; independent of where the files lie.
      model_path: the main MJCF file.
      spec: what the robot file says.
      model: the compiled `MjModel`, with `mjDSBL_AUTORESET` set: a state that goes bad stays bad and is seen.
      control_dt: s between two controls.
      substeps: physics steps a control step.
      joint_names: n names in feature and clip order.
      qpos_adr, qvel_adr, ctrl_adr: (n,) addresses of each joint's angle [rad], velocity [rad/s] and target [rad].
      joint_range: (n, 2) rad; ±inf where the joint has no limit.
      root_qpos_adr, root_qvel_adr: the free joint's addresses (position, quaternion wxyz; linear velocity in the world
        frame, angular velocity in the body frame).
      root_body: id of the body that the free joint moves.
      channels: C channel names in feature order.
      channel_geoms: geom ids of each channel.
      feet: the channels grouped by body, in channel order.
      ground_geom: geom id of the ground plane, whose surface is z = 0.
      height_range: (low, high) m, the root's plausible height.
      mass: kg, of the free joint's whole subtree.
      mg: N, its weight.
    """

    name: str
    path: Path
    digest: str
    model_path: Path
    spec: RobotSpec
    model: Any
    control_dt: float
    substeps: int
    joint_names: tuple[str, ...]
    qpos_adr: NDArray[np.int64]
    qvel_adr: NDArray[np.int64]
    ctrl_adr: NDArray[np.int64]
    joint_range: Array
    root_qpos_adr: int
    root_qvel_adr: int
    root_body: int
    channels: tuple[str, ...]
    channel_geoms: tuple[tuple[int, ...], ...]
    feet: tuple[Foot, ...]
    ground_geom: int
    height_range: tuple[float, float]
    mass: float
    mg: float

    @classmethod
    def load(cls, name_or_path: str | Path) -> Robot:
        """Loads and checks a robot.

        Args:
          name_or_path: a bundled name, a `robot.yaml`, or a folder that holds one.

        Raises:
          RobotRefused: there is no such file, or it or its model cannot be used; says where and why.
        """
        if isinstance(name_or_path, str) and name_or_path in bundled_robots():
            path = _BUNDLED_DIR / name_or_path / SPEC_FILE
        else:
            path = Path(name_or_path)
            path = path / SPEC_FILE if path.is_dir() else path
            if not path.is_file():
                raise RobotRefused(
                    f"there is no robot {str(name_or_path)!r}",
                    expected=f"a path to a {SPEC_FILE}, or a bundled name: {', '.join(bundled_robots())}",
                    remedy="Check the spelling, or write a robot.yaml (docs/robots.md)",
                )
            path = path.resolve()
        spec = RobotSpec.read(path)
        model, files = compile_model(spec, path)
        reader = ModelReader(model, str(path))
        root = reader.find_free_joint()
        root_body = int(model.jnt_bodyid[root])
        joints = reader.find_hinges(spec.joints, root_body)
        joint_names = tuple(str(model.joint(joint).name) for joint in joints)
        actuators = reader.find_servos(joint_names, joints)
        ground = reader.find_ground(spec.ground_geom)
        channel_geoms = reader.find_channel_geoms(spec.contact_channels, ground, root_body)
        substeps = reader.count_substeps(spec.control_dt)
        gravity = reader.read_gravity()
        mass = reader.read_mass(root_body, spec.expected_mass)
        name = reader.find_name(spec.name)
        has_limit = model.jnt_limited[joints].astype(bool)
        joint_range = np.where(has_limit[:, None], model.jnt_range[joints], np.array([-np.inf, np.inf]))
        canonical_spec = asdict(replace(spec, name=name, joints=joint_names, ground_geom=model.geom(ground).name))
        del canonical_spec["model"]
        for key in ("servos", "fixed"):
            if not canonical_spec[key]:
                # Robots from before there were such changes keep their digests.
                del canonical_spec[key]
        # The files by their contents: their names are in the MJCF's own bytes.
        main, *included = (digest_of_file(file).removeprefix("sha256:") for file in files)
        document = json.dumps({"spec": canonical_spec, "main": main, "others": sorted(included)}, sort_keys=True)
        return cls(
            name=name,
            path=path,
            digest=digest_of(document.encode()),
            model_path=files[0],
            spec=spec,
            model=model,
            control_dt=spec.control_dt,
            substeps=substeps,
            joint_names=joint_names,
            qpos_adr=_read_only(model.jnt_qposadr[joints].astype(np.int64)),
            qvel_adr=_read_only(model.jnt_dofadr[joints].astype(np.int64)),
            ctrl_adr=_read_only(np.array(actuators, dtype=np.int64)),
            joint_range=_read_only(joint_range.astype(np.float64)),
            root_qpos_adr=int(model.jnt_qposadr[root]),
            root_qvel_adr=int(model.jnt_dofadr[root]),
            root_body=root_body,
            channels=tuple(channel for channel, _ in spec.contact_channels),
            channel_geoms=channel_geoms,
            feet=reader.group_feet(channel_geoms),
            ground_geom=ground,
            height_range=spec.height_range,
            mass=mass,
            mg=mass * gravity,
        )

    @cached_property
    def foot_bodies(self) -> frozenset[int]:
        """The ids of the feet's bodies, and of all that are welded to them: a contact of another one is none of a foot."""
        return frozenset(body for foot in self.feet for body in foot.bodies)

    def make_spec(self) -> Any:
        """The `MjSpec` that the model is compiled from, for a part that adds something to it."""
        model_spec = mujoco.MjSpec.from_file(str(self.model_path))
        change_model(model_spec, self.spec, str(self.path))
        return model_spec

    @property
    def height_factor(self) -> float:
        """The middle of its height range over WildRobot's: the factor on lengths that were found on WildRobot.

        Speeds go with its square root (Froude's law). It is exactly 1 for WildRobot.
        """
        return sum(self.height_range) / 2 / _WILDROBOT_HEIGHT

    @property
    def sim_dt(self) -> float:
        """s, the physics step."""
        return float(self.model.opt.timestep)

    @cached_property
    def layout(self) -> FeatureLayout:
        """The feature layout: 2·n + 7 + C dimensions."""
        return FeatureLayout(self.joint_names, self.channels)

    @cached_property
    def kinematic_model(self) -> Any:
        """The model without contacts, constraints and sensors: all that the places of its bodies need, and cheap."""
        model, bits = copy.copy(self.model), mujoco.mjtDisableBit
        model.opt.disableflags |= int(bits.mjDSBL_CONSTRAINT) | int(bits.mjDSBL_CONTACT) | int(bits.mjDSBL_SENSOR)
        # Where a body is does not depend on whether it sleeps, and a sleeping one would be passed over.
        model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
        return model

    def scaled_model(self, scale: PhysicsScale) -> Any:
        """The model with its physics scaled; the same object back when nothing changes.

        Friction scales every geom's and contact pair's coefficients (sliding, torsional and rolling alike: MuJoCo combines
        two geoms by the larger value, so scaling all of them scales the contact's by exactly that factor). Mass scales every
        body's mass and inertia, after which the model's derived constants are recomputed. Damping scales the hinge joints'
        passive damping; the servos' own velocity gain is part of the controller and stays.

        Args:
          scale: factors, 1.0 for unchanged.
        """
        if scale.friction == 1.0 and scale.mass == 1.0 and scale.damping == 1.0:
            return self.model
        model = copy.copy(self.model)
        model.geom_friction[:] *= scale.friction
        model.pair_friction[:] *= scale.friction
        for dof in self.qvel_adr:
            model.dof_damping[dof] *= scale.damping
            model.dof_dampingpoly[dof] *= scale.damping
        if scale.mass != 1.0:
            model.body_mass[:] *= scale.mass
            model.body_inertia[:] *= scale.mass
            mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def root_rotation(self, qpos: Array) -> Array:
        """(…, 4) the root's quaternion xyzw, body to world, in the states (…, nq)."""
        first = self.root_qpos_adr + 3
        return to_xyzw(qpos[..., first : first + 4])

    def poses(self, root_pos: Array, root_rot: Array, dof_pos: Array) -> Array:
        """(N, nq) MuJoCo's states of a clip's poses.

        Args:
          root_pos: (N, 3) m, world.
          root_rot: (N, 4) xyzw, body to world.
          dof_pos: (N, n) rad, in the order of `joint_names`.
        """
        qpos = np.tile(self.model.qpos0, (len(root_pos), 1))
        first = self.root_qpos_adr
        qpos[:, first : first + 3] = root_pos
        qpos[:, first + 3 : first + 7] = to_wxyz(root_rot)
        qpos[:, self.qpos_adr] = dof_pos
        return qpos

    @property
    def ctrl_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(nu,) rad, the lowest and the highest control of each actuator; infinite where it has no limit."""
        has_limit = self.model.actuator_ctrllimited.astype(bool)
        low, high = self.model.actuator_ctrlrange.T
        return np.where(has_limit, low, -np.inf), np.where(has_limit, high, np.inf)

    @cached_property
    def force_limit(self) -> NDArray[np.float64]:
        """(n,) N·m, the most that each joint's servo can push either way; infinite where it has no limit."""
        model, joints = self.model, self.model.dof_jntid[self.qvel_adr]
        servo = np.abs(model.actuator_forcerange).max(axis=1)
        servo = np.where(model.actuator_forcelimited.astype(bool), servo, np.inf)[self.ctrl_adr]
        joint = np.abs(model.jnt_actfrcrange).max(axis=1)[joints]
        limit = np.minimum(servo, np.where(model.jnt_actfrclimited[joints].astype(bool), joint, np.inf))
        return _read_only(limit)

    @cached_property
    def servo_frequency(self) -> NDArray[np.float64]:
        """(n,) rad/s, √(kp·(M⁻¹)ⱼⱼ) of each joint in the reference pose: how fast its servo answers while all else hangs free.

        A step of more than about 0.5 over the highest of them cannot follow the servos, whatever the integrator.
        """
        return _read_only(np.sqrt(self.model.actuator_gainprm[self.ctrl_adr, 0] * self._mobility))

    @cached_property
    def servo_response(self) -> NDArray[np.float64]:
        """(n,) how much of a change of its target a joint has followed after one control step, by the linear servo alone."""
        model, mobility = self.model, self._mobility
        kp = model.actuator_gainprm[self.ctrl_adr, 0]
        damping = model.dof_damping[self.qvel_adr] - model.actuator_biasprm[self.ctrl_adr, 2]
        # x'' = -ω²·x - 2δ·x' from x = 1 at rest.
        delta = (damping * mobility / 2).astype(np.complex128)
        root = np.sqrt(delta**2 - kp * mobility + 1e-12j)
        t = self.control_dt
        left = np.exp(-delta * t) * (np.cosh(root * t) + delta / root * np.sinh(root * t))
        return _read_only(np.clip(1.0 - left.real, 0.0, 1.0))

    @cached_property
    def _mobility(self) -> NDArray[np.float64]:
        """(n,) 1/(kg·m²), (M⁻¹)ⱼⱼ of each joint in the reference pose."""
        model = self.model
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        inertia = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, inertia)
        return np.asarray(np.diag(np.linalg.inv(inertia))[self.qvel_adr])

    def mg_for(self, scale: PhysicsScale) -> float:
        """N, the scaled robot's weight."""
        return self.mg * scale.mass


def bundled_robots() -> list[str]:
    """The names of the robots that come with this package."""
    return sorted(entry.parent.name for entry in _BUNDLED_DIR.glob(f"*/{SPEC_FILE}"))


def load_robots(paths: Iterable[str | Path]) -> dict[str, Robot]:
    """The bundled robots and those of some files, by name.

    Raises:
      RobotRefused: a robot cannot be used, or two have one name.
    """
    robots: dict[str, Robot] = {}
    for source in (*bundled_robots(), *paths):
        robot = Robot.load(source)
        if robot.name in robots:
            raise RobotRefused(
                f"two robots are called {robot.name!r}",
                file=str(source),
                expected="one name a robot",
                remedy="Change `name` in one of their files; AMPREF_ROBOTS lists them",
            )
        robots[robot.name] = robot
    return robots


def find_robot(name: str, paths: Iterable[str | Path]) -> Robot | None:
    """The robot of that name among some files and the bundled robots; None where there is none.

    Files that cannot be read are passed over, unless they name that robot.

    Raises:
      RobotRefused: the file that names this robot cannot be used.
    """
    for path in paths:
        try:
            document = read_document(Path(path))
        except (OSError, RobotRefused):
            continue
        # The first line tells most robots apart; a file without a name has its model's, which has to be compiled for it.
        if document.get("name", name) != name:
            continue
        try:
            robot = Robot.load(path)
        except RobotRefused:
            if "name" in document:
                raise
            continue
        if robot.name == name:
            return robot
    return Robot.load(name) if name in bundled_robots() else None


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
