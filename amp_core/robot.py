"""Robots: a `robot.yaml`, the MJCF it names, and every check that makes the two fit.

`Robot.load("wildrobot")` loads a bundled robot, `Robot.load("my/robot.yaml")` one of your own. The file says which joints,
in which order, make a clip's columns; which geoms feel the ground; and how fast the controller runs. Nothing is looked up by
position: names come from the file, addresses from the compiled model, and a name that the model does not have is refused
with the list of the names that it has.

A robot file can make MuJoCo read any file on this machine (`<include>`, meshes), so robots are installed by whoever runs the
service and are never accepted over HTTP.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from amp_core.engine import mujoco
from amp_core.errors import RobotRefused
from amp_core.features import FeatureLayout
from amp_core.rotations import to_wxyz, to_xyzw

if TYPE_CHECKING:
    from amp_core.recipe import PhysicsScale

__all__ = ["Foot", "Robot", "bundled_robots"]

BUNDLED_DIR = Path(__file__).parent / "robots"
SPEC_FILE = "robot.yaml"

REQUIRED_KEYS = ("model", "joints", "contact_channels", "height_range")
OPTIONAL_KEYS = ("name", "control_dt", "ground_geom", "expected_mass")

DEFAULT_CONTROL_DT = 0.02
MASS_TOLERANCE = 0.01
MAX_SPEC_BYTES = 64 * 1024
MAX_NAMES = 256
# Names become file names, URL parts and column values, so they stay plain.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_HINGE = int(mujoco.mjtJoint.mjJNT_HINGE)
_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


@dataclass(frozen=True)
class Foot:
    """The contact channels that sit on one body.

    Args:
      name: the body's name.
      channels: indices into `Robot.channels`, in channel order.
      body: the body's id.
      geoms: the geom ids of all its channels.
    """

    name: str
    channels: tuple[int, ...]
    body: int
    geoms: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Robot:
    """A checked robot. Arrays are read-only; n joints, C contact channels.

    Args:
      name: the robot's name.
      path: the `robot.yaml` it was loaded from.
      digest: `sha256:…` over the checked spec and the bytes of every model file; independent of where the files lie.
      model_path: the main MJCF file, for a part that has to compile it again with something added (`contacts`).
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
    model: Any
    control_dt: float
    substeps: int
    joint_names: tuple[str, ...]
    qpos_adr: NDArray[np.int64]
    qvel_adr: NDArray[np.int64]
    ctrl_adr: NDArray[np.int64]
    joint_range: NDArray[np.float64]
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
          name_or_path: a bundled name (see `bundled_robots`), a `robot.yaml`, or a folder that holds one.

        Raises:
          RobotRefused: the file or its model cannot be used; says where and why.
        """
        path = _find(name_or_path)
        spec = _Spec.read(path)
        _silence_mujoco_log()
        model, files = _compile(spec, path)
        return _check(spec, path, model, files)

    @property
    def sim_dt(self) -> float:
        """s, the physics step."""
        return float(self.model.opt.timestep)

    @cached_property
    def layout(self) -> FeatureLayout:
        """The feature layout: 2·n + 7 + C dimensions."""
        return FeatureLayout(self.joint_names, self.channels)

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

    def root_rotation(self, qpos: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…, 4) the root's quaternion xyzw, body to world, in the states (…, nq)."""
        first = self.root_qpos_adr + 3
        return to_xyzw(qpos[..., first : first + 4])

    def poses(
        self, root_pos: NDArray[np.float64], root_rot: NDArray[np.float64], dof_pos: NDArray[np.float64]
    ) -> NDArray[np.float64]:
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

    def mg_for(self, scale: PhysicsScale) -> float:
        """N, the scaled robot's weight."""
        return self.mg * scale.mass


def bundled_robots() -> list[str]:
    """The names of the robots that come with this package."""
    return sorted(entry.parent.name for entry in BUNDLED_DIR.glob(f"*/{SPEC_FILE}"))


def _find(name_or_path: str | Path) -> Path:
    if isinstance(name_or_path, str) and name_or_path in bundled_robots():
        return BUNDLED_DIR / name_or_path / SPEC_FILE
    path = Path(name_or_path)
    if path.is_dir():
        path = path / SPEC_FILE
    if not path.is_file():
        raise RobotRefused(
            f"there is no robot {str(name_or_path)!r}",
            expected=f"a path to a {SPEC_FILE}, or a bundled name: {', '.join(bundled_robots())}",
            remedy="Check the spelling, or write a robot.yaml (docs/robots.md)",
        )
    return path.resolve()


# --- The robot.yaml -------------------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML without what a robot file never needs: aliases (they can blow up) and repeated keys (one would be lost)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed here", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key_node.value in seen:
                what = f"the key {key_node.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class _Spec:
    """What a robot.yaml says, types checked, nothing looked up yet."""

    name: str | None
    model: str
    control_dt: float
    joints: tuple[str, ...]
    contact_channels: tuple[tuple[str, tuple[str, ...]], ...]
    ground_geom: str | None
    height_range: tuple[float, float]
    expected_mass: float | None

    @classmethod
    def read(cls, path: Path) -> _Spec:
        document = _read_yaml(path)
        known = REQUIRED_KEYS + OPTIONAL_KEYS
        for key in document:
            if key not in known:
                raise RobotRefused(
                    f"unknown key {_short(key)}",
                    file=str(path),
                    key=str(key)[:64],
                    expected=f"one of: {', '.join(known)}",
                    remedy="Correct or remove it",
                )
        for key in REQUIRED_KEYS:
            if key not in document:
                raise RobotRefused(
                    f"the key {key!r} is missing",
                    file=str(path),
                    key=key,
                    expected=f"at least: {', '.join(REQUIRED_KEYS)}",
                    remedy="Add it (docs/robots.md explains each key)",
                )
        fields = _Fields(document, str(path))
        return cls(
            name=fields.name("name") if "name" in document else None,
            model=fields.text("model"),
            control_dt=fields.positive("control_dt") if "control_dt" in document else DEFAULT_CONTROL_DT,
            joints=fields.names("joints"),
            contact_channels=fields.channels("contact_channels"),
            ground_geom=fields.text("ground_geom") if "ground_geom" in document else None,
            height_range=fields.interval("height_range"),
            expected_mass=fields.positive("expected_mass") if "expected_mass" in document else None,
        )


def _read_yaml(path: Path) -> dict[Any, Any]:
    size = path.stat().st_size
    if size > MAX_SPEC_BYTES:
        raise RobotRefused(
            f"the file has {size} bytes",
            file=str(path),
            expected=f"at most {MAX_SPEC_BYTES}",
            remedy="A robot.yaml is a page of text: is this the right file?",
        )
    try:
        document = yaml.load(path.read_bytes().decode("utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError as error:
        raise RobotRefused("the file is not UTF-8 text", file=str(path), remedy="Save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:400] or type(error).__name__
        raise RobotRefused(
            f"the file is not the YAML that is expected here: {problem}", file=str(path), remedy="Correct it (docs/robots.md)"
        ) from error
    if isinstance(document, str) and document.lstrip().startswith("<"):
        raise RobotRefused(
            "this is XML, such as an MJCF model",
            file=str(path),
            expected="a robot.yaml that names the model",
            remedy=f"Write a robot.yaml with `model: {path.name}`, joints and feet (docs/robots.md)",
        )
    if not isinstance(document, dict):
        raise RobotRefused(
            f"the file holds {_kind(document)}", file=str(path), expected="keys and values", remedy="See docs/robots.md"
        )
    return document


class _Fields:
    """Typed access to a YAML mapping, with refusals that name the key."""

    def __init__(self, document: Mapping[Any, Any], file: str) -> None:
        self._document = document
        self._file = file

    def _refuse(self, key: str, what: str, expected: str) -> RobotRefused:
        return RobotRefused(what, file=self._file, key=key, expected=expected, remedy="See docs/robots.md")

    def text(self, key: str) -> str:
        return self._text(key, self._document[key])

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._refuse(key, f"it is {_kind(value)}", "a name (quote it if it looks like a number)")
        return value

    def name(self, key: str) -> str:
        return self._name(key, self._document[key])

    def _name(self, key: str, value: Any) -> str:
        text = self._text(key, value)
        if not NAME_PATTERN.fullmatch(text):
            raise self._refuse(key, f"{_short(text)} cannot be a name", "1 to 64 letters, digits, '.', '_' or '-'")
        return text

    def positive(self, key: str) -> float:
        value = self._document[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1e6:
            raise self._refuse(key, f"it is {_kind(value)}", "a positive number such as 0.02 (YAML reads 2e-2 as text)")
        return float(value)

    def interval(self, key: str) -> tuple[float, float]:
        value = self._document[key]
        expected = "[low, high] in metres with 0 < low < high"
        if not isinstance(value, list) or len(value) != 2:
            raise self._refuse(key, f"it is {_kind(value)}", expected)
        if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in value):
            raise self._refuse(key, "a bound is not a number", expected)
        low, high = (float(bound) for bound in value)
        if not 0.0 < low < high < 1e3:
            raise self._refuse(key, f"it is [{low:g}, {high:g}]", expected)
        return low, high

    def names(self, key: str) -> tuple[str, ...]:
        return self._names(key, self._document[key])

    def _names(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or len(value) > MAX_NAMES:
            raise self._refuse(key, f"it is {_kind(value)}", f"a list of 1 to {MAX_NAMES} names")
        names = tuple(self._text(key, item) for item in value)
        repeated = _repeated(names)
        if repeated is not None:
            raise self._refuse(key, f"{_short(repeated)} appears twice", "each name once")
        return names

    def channels(self, key: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        value = self._document[key]
        if not isinstance(value, dict) or not value or len(value) > MAX_NAMES:
            raise self._refuse(key, f"it is {_kind(value)}", "channel: [geom, …], one line a contact channel")
        channels = tuple((self._name(key, name), self._names(f"{key}.{name}", geoms)) for name, geoms in value.items())
        repeated = _repeated(geom for _, geoms in channels for geom in geoms)
        if repeated is not None:
            raise self._refuse(key, f"the geom {_short(repeated)} is in two channels", "each geom in one channel")
        return channels


# --- The model ------------------------------------------------------------------------------------------------------------


def _silence_mujoco_log() -> None:
    """Keeps MuJoCo from writing `MUJOCO_LOG.TXT` into the current folder and warnings to the console.

    What it would say there is in `data.warning`, which the rollout reads after every frame. Whoever gave MuJoCo a log file of
    their own keeps it.
    """
    config = mujoco.MjLogConfig.get()
    if config.logfile == "MUJOCO_LOG.TXT" and (config.logto_file or config.logto_console):
        config.logto_file = False
        config.logto_console = False
        config.set()


def _compile(spec: _Spec, path: Path) -> tuple[Any, list[Path]]:
    """The compiled model, and every file that it was made from with the main one first."""
    main = (path.parent / spec.model).resolve()
    if not main.is_file():
        there = sorted(entry.name for entry in path.parent.glob("*.xml"))
        raise RobotRefused(
            f"the model file {spec.model!r} does not exist",
            file=str(path),
            key="model",
            expected=f"an MJCF file relative to this folder, which has: {', '.join(there) or 'no .xml file'}",
            remedy="Correct the path",
        )
    try:
        others = {Path(name).resolve() for name in mujoco.mju_getXMLDependencies(str(main))} - {main}
        for other in sorted(others):
            # A named pipe as a mesh would block the compiler without end.
            if not other.is_file():
                raise RobotRefused(
                    f"the model needs the file {str(other)!r}, which is not there (or is no regular file)",
                    file=str(main),
                    expected="every <include>, mesh, texture and height field beside the model",
                    remedy="Copy it there, or correct the MJCF",
                )
        model = mujoco.MjModel.from_xml_path(str(main))
    except (ValueError, mujoco.FatalError) as error:
        raise RobotRefused(
            f"MuJoCo cannot compile the model: {' '.join(str(error).split())}",
            file=str(main),
            expected=f"MJCF that MuJoCo {mujoco.__version__} accepts",
            remedy="Open it in MuJoCo's viewer (python -m mujoco.viewer --mjcf=FILE) to see the fault",
        ) from error
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model, [main, *others]


def _digest(spec: dict[str, Any], files: Iterable[Path]) -> str:
    """`sha256:…` over the spec and the files' contents. File names are left out: they are in the MJCF's own bytes."""
    parts = []
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256").hexdigest())
    document = json.dumps({"spec": spec, "main": parts[0], "others": sorted(parts[1:])}, sort_keys=True)
    return "sha256:" + hashlib.sha256(document.encode()).hexdigest()


def _check(spec: _Spec, path: Path, model: Any, files: list[Path]) -> Robot:
    """Everything that must hold between the spec and the compiled model."""
    look = _Model(model, str(path))
    root = look.free_joint()
    root_body = int(model.jnt_bodyid[root])
    joints = look.hinges(spec.joints, root_body)
    actuators = look.servos(spec.joints, joints)
    ground = look.ground(spec.ground_geom)
    channel_geoms = look.channel_geoms(spec.contact_channels, ground, root_body)
    feet = look.feet(channel_geoms)
    substeps = look.substeps(spec.control_dt)
    gravity = look.gravity()
    mass = look.mass(root_body, spec.expected_mass)
    name = look.name(spec.name)

    limited = model.jnt_limited[joints].astype(bool)
    joint_range = np.where(limited[:, None], model.jnt_range[joints], np.array([-np.inf, np.inf]))
    canonical = {
        "name": name,
        "control_dt": spec.control_dt,
        "joints": list(spec.joints),
        "contact_channels": [[channel, list(geoms)] for channel, geoms in spec.contact_channels],
        "ground_geom": model.geom(ground).name,
        "height_range": list(spec.height_range),
        "expected_mass": spec.expected_mass,
    }
    return Robot(
        name=name,
        path=path,
        digest=_digest(canonical, files),
        model_path=files[0],
        model=model,
        control_dt=spec.control_dt,
        substeps=substeps,
        joint_names=spec.joints,
        qpos_adr=_frozen(model.jnt_qposadr[joints].astype(np.int64)),
        qvel_adr=_frozen(model.jnt_dofadr[joints].astype(np.int64)),
        ctrl_adr=_frozen(np.array(actuators, dtype=np.int64)),
        joint_range=_frozen(joint_range.astype(np.float64)),
        root_qpos_adr=int(model.jnt_qposadr[root]),
        root_qvel_adr=int(model.jnt_dofadr[root]),
        root_body=root_body,
        channels=tuple(channel for channel, _ in spec.contact_channels),
        channel_geoms=channel_geoms,
        feet=feet,
        ground_geom=ground,
        height_range=spec.height_range,
        mass=mass,
        mg=mass * gravity,
    )


class _Model:
    """Checks of one compiled model; each method finds one thing or refuses."""

    def __init__(self, model: Any, file: str) -> None:
        self.m = model
        self.file = file

    def _refuse(self, key: str | None, what: str, expected: str, remedy: str = "See docs/robots.md") -> RobotRefused:
        return RobotRefused(what, file=self.file, key=key, expected=expected, remedy=remedy)

    def _joint_name(self, joint: int) -> str:
        return self.m.joint(joint).name or f"(joint {joint}, unnamed)"

    def _geom_id(self, key: str, name: str) -> int:
        geom = int(mujoco.mj_name2id(self.m, mujoco.mjtObj.mjOBJ_GEOM, name))
        if geom < 0:
            raise self._refuse(key, f"the model has no geom {_short(name)}", f"one of: {_listed(self._geom_names())}")
        return geom

    def _geom_names(self) -> list[str]:
        return [name for name in (self.m.geom(i).name for i in range(self.m.ngeom)) if name]

    def name(self, name: str | None) -> str:
        if name is not None:
            return name
        # A compiled model's names buffer begins with the model's own name.
        own = bytes(self.m.names).split(b"\0", 1)[0].decode("utf-8", "replace")
        if not NAME_PATTERN.fullmatch(own):
            raise self._refuse("name", f"the MJCF's model name {_short(own)} cannot be a name", "a key 'name'", "Add it")
        return own

    def free_joint(self) -> int:
        free = [joint for joint in range(self.m.njnt) if self.m.jnt_type[joint] == _FREE]
        if len(free) != 1:
            raise self._refuse("model", f"the model has {len(free)} free joints", "exactly one, on the robot's root body")
        return free[0]

    def hinges(self, names: tuple[str, ...], root_body: int) -> list[int]:
        there = [joint for joint in range(self.m.njnt) if self.m.jnt_type[joint] != _FREE]
        by_name = {self._joint_name(joint): joint for joint in there}
        listing = f"hinge joints of the model: {_listed(by_name)}"
        for joint in there:
            if self.m.jnt_type[joint] != _HINGE:
                kind = mujoco.mjtJoint(self.m.jnt_type[joint]).name.removeprefix("mjJNT_").lower()
                raise self._refuse(
                    "model", f"the joint {self._joint_name(joint)!r} is a {kind} joint", "one free joint and hinge joints"
                )
            if self.m.body_rootid[self.m.jnt_bodyid[joint]] != root_body:
                raise self._refuse(
                    "model", f"the joint {self._joint_name(joint)!r} is not part of the robot", "one kinematic tree"
                )
        for name in names:
            if name not in by_name:
                raise self._refuse("joints", f"the model has no joint {_short(name)}", listing)
        missing = [name for name in by_name if name not in names]
        if missing:
            raise self._refuse(
                "joints",
                f"the model also has the joints {_listed(missing)}",
                "every hinge joint of the model in the list",
                "List them, or take them out of the model",
            )
        joints = [by_name[name] for name in names]
        # With one free joint and all hinges listed this holds by construction; it is the layout that clips rely on.
        if self.m.nq != 7 + len(joints) or self.m.nv != 6 + len(joints):
            raise self._refuse(
                "joints",
                f"the model has nq = {self.m.nq} and nv = {self.m.nv}",
                f"nq = {7 + len(joints)} and nv = {6 + len(joints)} with {len(joints)} joints",
            )
        return joints

    def servos(self, names: tuple[str, ...], joints: list[int]) -> list[int]:
        """For each joint, the one actuator whose control is its target angle [rad]."""
        model = self.m
        transmissions = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
        driven: dict[int, list[int]] = {joint: [] for joint in joints}
        expected = "one position actuator (<position>, gear 1) for each joint and no other actuators"
        for actuator in range(model.nu):
            label = model.actuator(actuator).name or f"(actuator {actuator}, unnamed)"
            joint = int(model.actuator_trnid[actuator, 0])
            if model.actuator_trntype[actuator] not in transmissions or joint not in driven:
                raise self._refuse("joints", f"the actuator {label!r} does not drive a listed joint", expected)
            gain = float(model.actuator_gainprm[actuator, 0])
            position_like = (
                model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
                and model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE
                and model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_NONE
                and gain > 0.0
                and math.isclose(float(model.actuator_biasprm[actuator, 1]), -gain, rel_tol=1e-9)
                and float(model.actuator_biasprm[actuator, 0]) == 0.0
                and float(model.actuator_gear[actuator, 0]) == 1.0
            )
            if not position_like:
                raise self._refuse(
                    "joints",
                    f"the actuator {label!r} is not a position servo, so a clip's joint angle cannot be its control",
                    expected,
                    "Use <position kp=… kv=…> in the MJCF",
                )
            driven[joint].append(actuator)
        for name, joint in zip(names, joints, strict=True):
            if len(driven[joint]) != 1:
                raise self._refuse("joints", f"the joint {name!r} has {len(driven[joint])} actuators", expected)
        return [driven[joint][0] for joint in joints]

    def ground(self, name: str | None) -> int:
        model = self.m
        planes = [
            geom
            for geom in range(model.ngeom)
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE and model.body_weldid[model.geom_bodyid[geom]] == 0
        ]
        listing = f"a plane on the world; the model has: {_listed(model.geom(geom).name or '(unnamed)' for geom in planes)}"
        if name is not None:
            ground = self._geom_id("ground_geom", name)
        elif len(planes) == 1:
            ground = planes[0]
        else:
            raise self._refuse("ground_geom", f"the key is missing and the model has {len(planes)} planes", listing)
        if ground not in planes:
            raise self._refuse("ground_geom", f"{_short(name)} is not a plane on the world", listing)
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        normal = data.geom_xmat[ground].reshape(3, 3)[:, 2]
        height = float(data.geom_xpos[ground, 2])
        if normal[2] < 1.0 - 1e-9 or abs(height) > 1e-6:
            raise self._refuse(
                "ground_geom",
                f"the plane {_short(name)} has its normal at {np.round(normal, 4).tolist()} and its height at {height:g} m",
                "a horizontal plane at z = 0, facing up: root height is measured from it",
            )
        return ground

    def _collides(self, geom: int, ground: int) -> bool:
        model = self.m
        for pair in range(model.npair):
            if {int(model.pair_geom1[pair]), int(model.pair_geom2[pair])} == {geom, ground}:
                return True
        bodies = sorted((int(model.geom_bodyid[geom]), int(model.geom_bodyid[ground])))
        if (bodies[0] << 16) + bodies[1] in {int(signature) for signature in model.exclude_signature}:
            return False
        types, affinities = model.geom_contype, model.geom_conaffinity
        return bool(types[geom] & affinities[ground]) or bool(types[ground] & affinities[geom])

    def channel_geoms(
        self, channels: tuple[tuple[str, tuple[str, ...]], ...], ground: int, root_body: int
    ) -> tuple[tuple[int, ...], ...]:
        model = self.m
        found = []
        for channel, names in channels:
            key = f"contact_channels.{channel}"
            geoms = tuple(self._geom_id(key, name) for name in names)
            for name, geom in zip(names, geoms, strict=True):
                if model.body_rootid[model.geom_bodyid[geom]] != root_body:
                    raise self._refuse(key, f"the geom {_short(name)} is not part of the robot", "a geom on the robot's feet")
                if not self._collides(geom, ground):
                    raise self._refuse(
                        key,
                        f"the geom {_short(name)} can never touch the ground {model.geom(ground).name!r}",
                        "contype and conaffinity that let the two collide",
                        "Set them in the MJCF, or name the collision geom rather than the visual one",
                    )
            bodies = {int(model.geom_bodyid[geom]) for geom in geoms}
            if len(bodies) != 1:
                listed = _listed(model.body(body).name for body in sorted(bodies))
                raise self._refuse(key, f"its geoms sit on several bodies: {listed}", "the geoms of one body (one foot)")
            found.append(geoms)
        return tuple(found)

    def feet(self, channel_geoms: tuple[tuple[int, ...], ...]) -> tuple[Foot, ...]:
        by_body: dict[int, list[int]] = {}
        for channel, geoms in enumerate(channel_geoms):
            by_body.setdefault(int(self.m.geom_bodyid[geoms[0]]), []).append(channel)
        return tuple(
            Foot(
                name=self.m.body(body).name or f"body_{body}",
                channels=tuple(channels),
                body=body,
                geoms=tuple(geom for channel in channels for geom in channel_geoms[channel]),
            )
            for body, channels in by_body.items()
        )

    def substeps(self, control_dt: float) -> int:
        timestep = float(self.m.opt.timestep)
        ratio = control_dt / timestep
        substeps = round(ratio)
        if substeps < 1 or abs(ratio - substeps) > 1e-9 * max(1.0, ratio):
            raise self._refuse(
                "control_dt",
                f"{control_dt:g} s is {ratio:g} times the model's timestep of {timestep:g} s",
                "a whole multiple of the timestep",
                "Change control_dt, or <option timestep> in the MJCF",
            )
        return substeps

    def gravity(self) -> float:
        x, y, z = (float(component) for component in self.m.opt.gravity)
        if x != 0.0 or y != 0.0 or z >= 0.0:
            raise self._refuse("model", f"gravity is [{x:g}, {y:g}, {z:g}]", "gravity along -z, as loads are shares of weight")
        return -z

    def mass(self, root_body: int, expected: float | None) -> float:
        mass = float(self.m.body_subtreemass[root_body])
        if expected is not None and abs(mass - expected) > MASS_TOLERANCE * expected:
            raise self._refuse(
                "expected_mass",
                f"the model weighs {mass:.4f} kg, the file says {expected:g} kg",
                f"agreement to {MASS_TOLERANCE:.0%}",
                "Is this the right model? Then correct expected_mass",
            )
        return mass


# --- Small things ---------------------------------------------------------------------------------------------------------


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else _kind(value)
    return text if len(text) <= 80 else text[:77] + "…'"


def _kind(value: Any) -> str:
    """What a YAML value is, for an error, without printing a page of it."""
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return f"the {type(value).__name__} {str(value)[:60]}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:40]) or "none"
    return shown if len(names) <= 40 else f"{shown}, … ({len(names)} in all)"
