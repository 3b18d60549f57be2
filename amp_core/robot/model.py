"""The compiled model of a robot: compiling it, and finding in it what the `robot.yaml` names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amp_core.engine import mujoco
from amp_core.errors import RobotRefused
from amp_core.robot.changes import change_model, is_changed
from amp_core.robot.spec import NAME_PATTERN, RobotSpec
from amp_core.strict_yaml import quote

MASS_TOLERANCE = 0.01

SERVO_REMEDY = (
    "Give the gains of your controller in robot.yaml, `servos: {PATTERN: {kp: 40, kd: 2.5}}`, or weld a passive joint "
    "with `fixed: {NAME: 0}`"
)

_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


@dataclass(frozen=True)
class Foot:
    """The contact channels that sit on one body, or on bodies that are welded to each other.

    Args:
      name: the body's name.
      channels: indices into `Robot.channels`, in channel order.
      body: the id of the body of its first geom.
      bodies: the ids of that body and of all that are welded to it.
      geoms: the geom ids of all its channels.
    """

    name: str
    channels: tuple[int, ...]
    body: int
    bodies: tuple[int, ...]
    geoms: tuple[int, ...]


def compile_model(spec: RobotSpec, path: Path) -> tuple[Any, list[Path]]:
    """Compiles the model of a robot file, with the changes that the file makes.

    Args:
      path: the `robot.yaml`; its `model` is relative to the folder of that.

    Returns:
      The `MjModel`, and every file that it was made from with the main one first.

    Raises:
      RobotRefused: a file is missing, or MuJoCo cannot compile the model, or a change cannot be made.
    """
    main = (path.parent / spec.model).resolve()
    if not main.is_file():
        models = sorted(entry.name for entry in path.parent.glob("*.xml"))
        raise RobotRefused(
            f"the model file {spec.model!r} does not exist",
            file=str(path),
            key="model",
            expected=f"an MJCF file relative to this folder, which has: {', '.join(models) or 'no .xml file'}",
            remedy="Correct the path",
        )
    _silence_mujoco_log()
    try:
        # What is listed but missing may be needed by nobody: the list knows one folder of meshes alone.
        dependencies = {Path(file).resolve() for file in mujoco.mju_getXMLDependencies(str(main))} - {main}
        _check_files(main, (file for file in dependencies if file.exists()))
        model_spec = mujoco.MjSpec.from_file(str(main))
        assets = {file.resolve() for file in _list_assets(model_spec, main.parent)}
        _check_files(main, assets)
        if is_changed(model_spec, spec):
            change_model(model_spec, spec, str(path))
            model = model_spec.compile()
        else:
            model = mujoco.MjModel.from_xml_path(str(main))
    except (ValueError, mujoco.FatalError) as error:
        raise RobotRefused(
            f"MuJoCo cannot compile the model: {' '.join(str(error).split())}",
            file=str(main),
            expected=f"MJCF that MuJoCo {mujoco.__version__} accepts",
            remedy="Open it in MuJoCo's viewer (python -m mujoco.viewer --mjcf=FILE) to see the fault",
        ) from error
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model, [main, *{file for file in dependencies if file.exists()} | assets]


def _list_assets(model_spec: Any, folder: Path) -> Iterator[Path]:
    """The files of an `MjSpec`'s meshes, textures, height fields and skins, where the compiler looks for them."""
    for elements, directory in (
        (model_spec.meshes, "meshdir"),
        (model_spec.skins, "meshdir"),
        (model_spec.hfields, "meshdir"),
        (model_spec.textures, "texturedir"),
    ):
        for element in elements:
            names = [element.file, *getattr(element, "cubefiles", ())]
            base = folder / str(getattr(element.compiler, directory))
            for name in filter(None, names):
                yield base / (Path(name).name if model_spec.strippath else name)


def _check_files(main: Path, files: Iterable[Path]) -> None:
    """Refuse what is not there, and a named pipe, which would block the compiler without end."""
    for file in sorted(files):
        if not file.is_file():
            raise RobotRefused(
                f"the model needs the file {str(file)!r}, which is not there (or is no regular file)",
                file=str(main),
                expected="every <include>, mesh, texture and height field beside the model",
                remedy="Copy it there, or correct the MJCF",
            )


def _silence_mujoco_log() -> None:
    """Keeps MuJoCo from writing `MUJOCO_LOG.TXT` into the current folder and warnings to the console.

    The warnings are counted in `data.warning`, which the rollout reads after every frame. A log file that the embedding program
    configured is left alone.
    """
    config = mujoco.MjLogConfig.get()
    if config.logfile == "MUJOCO_LOG.TXT" and (config.logto_file or config.logto_console):
        config.logto_file = False
        config.logto_console = False
        config.set()


class ModelReader:
    """Looks up in a compiled model what a robot file names.

    Every method raises `RobotRefused` for a model that does not fit, with the key of the robot file and what the model has.
    """

    def __init__(self, model: Any, file: str) -> None:
        self._model = model
        self._file = file

    def find_name(self, name: str | None) -> str:
        """The robot's name: that of the robot file, else that of the model, in the characters that a name may have."""
        if name is not None:
            return name
        # A compiled model's names buffer begins with the model's own name.
        model_name = bytes(self._model.names).split(b"\0", 1)[0].decode("utf-8", "replace")
        result = derive_name(model_name)
        problem = f"no name can be made of the MJCF's model name {quote(model_name)}"
        self._check(result, "name", problem, "a key 'name'", "Add it")
        return result

    def find_free_joint(self) -> int:
        """The id of the model's one free joint."""
        free = np.flatnonzero(self._model.jnt_type == _FREE)
        problem = f"the model has {len(free)} free joints"
        self._check(len(free) == 1, "model", problem, "exactly one, on the robot's root body")
        return int(free[0])

    def find_hinges(self, names: tuple[str, ...] | None, root_body: int) -> list[int]:
        """The ids of the joints with these names, which must be all joints of the model but the free one; None for all."""
        model = self._model
        by_name = {}
        for joint in np.flatnonzero(model.jnt_type != _FREE).tolist():
            name = model.joint(joint).name or f"(joint {joint}, unnamed)"
            kind = mujoco.mjtJoint(model.jnt_type[joint]).name.removeprefix("mjJNT_").lower()
            self._check(kind == "hinge", "model", f"the joint {name!r} is a {kind} joint", "one free joint and hinge joints")
            is_own = model.body_rootid[model.jnt_bodyid[joint]] == root_body
            self._check(is_own, "model", f"the joint {name!r} is not part of the robot", "one kinematic tree")
            by_name[name] = joint
        if names is None:
            nameless = [name for name in by_name if name.startswith("(")]
            self._check(
                not nameless, "joints", f"the model has joints without names: {_join_names(nameless)}", "a name for each"
            )
            self._check(by_name, "joints", "the model has no hinge joint", "at least one")
            return list(by_name.values())
        listing = f"hinge joints of the model: {_join_names(by_name)}"
        for name in names:
            self._check(name in by_name, "joints", f"the model has no joint {quote(name)}", listing)
        missing = [name for name in by_name if name not in names]
        problem, expected = (
            f"the model also has the joints {_join_names(missing)}",
            "every hinge joint of the model in the list",
        )
        self._check(
            not missing,
            "joints",
            problem,
            expected,
            f"List them, or weld them with `fixed: {{{missing[0] if missing else ''}: 0}}`",
        )
        return [by_name[name] for name in names]

    def find_servos(self, names: tuple[str, ...], joints: list[int]) -> list[int]:
        """For each joint the id of the one actuator whose control is its target angle [rad]."""
        model = self._model
        transmissions = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
        actuators: dict[int, list[int]] = {joint: [] for joint in joints}
        expected = "one position actuator (<position>, gear 1) for each joint and no other actuators"
        for actuator in range(model.nu):
            label = model.actuator(actuator).name or f"(actuator {actuator}, unnamed)"
            joint = int(model.actuator_trnid[actuator, 0])
            drives_joint = model.actuator_trntype[actuator] in transmissions and joint in actuators
            problem = f"the actuator {label!r} does not drive a listed joint"
            self._check(drives_joint, "joints", problem, expected, "Take it out of the MJCF, or weld its joint with `fixed:`")
            gain = float(model.actuator_gainprm[actuator, 0])
            is_position_servo = (
                model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
                and model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE
                and model.actuator_dyntype[actuator] == mujoco.mjtDyn.mjDYN_NONE
                and gain > 0.0
                and math.isclose(float(model.actuator_biasprm[actuator, 1]), -gain, rel_tol=1e-9)
                and float(model.actuator_biasprm[actuator, 0]) == 0.0
                and float(model.actuator_gear[actuator, 0]) == 1.0
            )
            problem = f"the actuator {label!r} is not a position servo, so a clip's joint angle cannot be its control"
            self._check(is_position_servo, "joints", problem, expected, SERVO_REMEDY)
            actuators[joint].append(actuator)
        for name, joint in zip(names, joints, strict=True):
            count = len(actuators[joint])
            remedy = SERVO_REMEDY if count == 0 else "Take the others out of the MJCF"
            self._check(count == 1, "joints", f"the joint {name!r} has {count} actuators", expected, remedy)
        return [actuators[joint][0] for joint in joints]

    def find_ground(self, name: str | None) -> int:
        """The id of the ground plane, the named one or the only one; its surface must be z = 0."""
        model = self._model
        planes = [
            geom
            for geom in range(model.ngeom)
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE and model.body_weldid[model.geom_bodyid[geom]] == 0
        ]
        plane_names = _join_names(model.geom(geom).name or "(unnamed)" for geom in planes)
        listing = f"a plane on the world; the model has: {plane_names}"
        if name is None:
            problem = f"the key is missing and the model has {len(planes)} planes"
            self._check(len(planes) == 1, "ground_geom", problem, listing)
            ground = planes[0]
        else:
            ground = self._find_geom("ground_geom", name)
            self._check(ground in planes, "ground_geom", f"{quote(name)} is not a plane on the world", listing)
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        normal = data.geom_xmat[ground].reshape(3, 3)[:, 2]
        height = float(data.geom_xpos[ground, 2])
        problem = f"the plane {quote(name)} has its normal at {np.round(normal, 4).tolist()} and its height at {height:g} m"
        is_floor = normal[2] >= 1.0 - 1e-9 and abs(height) <= 1e-6
        expected = "a horizontal plane at z = 0, facing up: root height is measured from it"
        self._check(is_floor, "ground_geom", problem, expected)
        return ground

    def find_channel_geoms(
        self, channels: tuple[tuple[str, tuple[str, ...] | str], ...], ground: int, root_body: int
    ) -> tuple[tuple[int, ...], ...]:
        """The geom ids of each channel: geoms that can touch the ground, on one body of the robot or on bodies welded to it."""
        model = self._model
        channel_geoms = []
        channel_of: dict[int, str] = {}
        for channel, names in channels:
            key = f"contact_channels.{channel}"
            if isinstance(names, str):
                geoms = self._find_body_geoms(f"{key}.body", names, ground)
            else:
                geoms = tuple(self._find_geom(key, name) for name in names)
            for geom in geoms:
                label = quote(model.geom(geom).name)
                is_own = model.body_rootid[model.geom_bodyid[geom]] == root_body
                self._check(is_own, key, f"the geom {label} is not part of the robot", "a geom on the robot's feet")
                problem = f"the geom {label} can never touch the ground {model.geom(ground).name!r}"
                expected = "contype and conaffinity that let the two collide"
                remedy = "Set them in the MJCF, or name the collision geom rather than the visual one"
                self._check(self._can_collide(geom, ground), key, problem, expected, remedy)
                problem = f"the geom {label} is also in the channel {channel_of.get(geom)!r}"
                self._check(geom not in channel_of, key, problem, "each geom in one channel")
                channel_of[geom] = channel
            bodies = {int(model.geom_bodyid[geom]) for geom in geoms}
            problem = f"its geoms sit on several bodies: {_join_names(model.body(body).name for body in sorted(bodies))}"
            is_one = len({int(model.body_weldid[body]) for body in bodies}) == 1
            self._check(is_one, key, problem, "the geoms of one body (one foot), or of bodies that are welded to it")
            channel_geoms.append(geoms)
        return tuple(channel_geoms)

    def _find_body_geoms(self, key: str, name: str, ground: int) -> tuple[int, ...]:
        """The geoms of a body, and of the bodies below that are welded to it, that can touch the ground."""
        model = self._model
        body = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name))
        names = filter(None, (model.body(i).name for i in range(1, model.nbody)))
        self._check(body >= 0, key, f"the model has no body {quote(name)}", f"one of: {_join_names(names)}")
        bodies = {body}
        for child in range(body + 1, model.nbody):  # a child comes after its parent
            if int(model.body_parentid[child]) in bodies and model.body_weldid[child] == model.body_weldid[body]:
                bodies.add(child)
        geom_ids = np.flatnonzero(np.isin(model.geom_bodyid, list(bodies))).tolist()
        geoms = tuple(geom for geom in geom_ids if self._can_collide(geom, ground))
        expected = "a body with collision geoms, on it or on what is welded to it"
        self._check(geoms, key, f"no geom of the body {quote(name)} can touch the ground {model.geom(ground).name!r}", expected)
        return geoms

    def _can_collide(self, geom: int, ground: int) -> bool:
        model = self._model
        for pair in range(model.npair):
            if {int(model.pair_geom1[pair]), int(model.pair_geom2[pair])} == {geom, ground}:
                return True
        low, high = sorted((int(model.geom_bodyid[geom]), int(model.geom_bodyid[ground])))
        if (low << 16) + high in model.exclude_signature.tolist():
            return False
        types, affinities = model.geom_contype, model.geom_conaffinity
        return bool(types[geom] & affinities[ground]) or bool(types[ground] & affinities[geom])

    def group_feet(self, channel_geoms: tuple[tuple[int, ...], ...]) -> tuple[Foot, ...]:
        """The channels grouped by body, bodies welded to each other being one, in channel order."""
        model = self._model
        by_weld: dict[int, list[int]] = {}
        for channel, geoms in enumerate(channel_geoms):
            by_weld.setdefault(int(model.body_weldid[model.geom_bodyid[geoms[0]]]), []).append(channel)
        feet = []
        for weld, channels in by_weld.items():
            geoms = tuple(geom for channel in channels for geom in channel_geoms[channel])
            body = int(model.geom_bodyid[geoms[0]])
            bodies = tuple(np.flatnonzero(model.body_weldid == weld).tolist())
            feet.append(Foot(model.body(body).name or f"body_{body}", tuple(channels), body, bodies, geoms))
        return tuple(feet)

    def count_substeps(self, control_dt: float) -> int:
        """Physics steps a control step, which must be a whole number."""
        timestep = float(self._model.opt.timestep)
        ratio = control_dt / timestep
        substeps = round(ratio)
        is_whole = substeps >= 1 and abs(ratio - substeps) <= 1e-9 * max(1.0, ratio)
        problem = f"{control_dt:g} s is {ratio:g} times the model's timestep of {timestep:g} s"
        remedy = "Change control_dt, or <option timestep> in the MJCF"
        self._check(is_whole, "control_dt", problem, "a whole multiple of the timestep", remedy)
        return substeps

    def read_gravity(self) -> float:
        """m/s², downwards."""
        x, y, z = self._model.opt.gravity.tolist()
        problem = f"gravity is [{x:g}, {y:g}, {z:g}]"
        self._check(x == y == 0.0 and z < 0.0, "model", problem, "gravity along -z, as loads are shares of weight")
        return float(-z)

    def read_mass(self, root_body: int, expected: float | None) -> float:
        """kg, of the root body's whole subtree; checked to 1 % where the robot file has the mass."""
        mass = float(self._model.body_subtreemass[root_body])
        if expected is not None:
            is_near = abs(mass - expected) <= MASS_TOLERANCE * expected
            problem = f"the model weighs {mass:.4f} kg, the file says {expected:g} kg"
            remedy = "Is this the right model? Then correct expected_mass"
            self._check(is_near, "expected_mass", problem, f"agreement to {MASS_TOLERANCE:.0%}", remedy)
        return mass

    def _find_geom(self, key: str, name: str) -> int:
        geom = int(mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_GEOM, name))
        expected = f"one of: {_join_names(filter(None, (self._model.geom(i).name for i in range(self._model.ngeom))))}"
        if nameless := self._describe_nameless():
            expected += f"; or the body of geoms without names, {{body: NAME}}: {_join_names(nameless)}"
        self._check(geom >= 0, key, f"the model has no geom {quote(name)}", expected)
        return geom

    def _describe_nameless(self) -> list[str]:
        """Of each body with collision geoms that have no names, its name and how many there are."""
        model, counts = self._model, Counter[str]()
        for geom in np.flatnonzero(model.geom_contype | model.geom_conaffinity).tolist():
            if not model.geom(geom).name and (body := model.body(int(model.geom_bodyid[geom])).name):
                counts[body] += 1
        return [f"{body} ({count} geoms)" for body, count in counts.items()]

    def _check(self, holds: Any, key: str, problem: str, expected: str, remedy: str = "See docs/robots.md") -> None:
        if not holds:
            raise RobotRefused(problem, file=self._file, key=key, expected=expected, remedy=remedy)


def derive_name(text: str) -> str:
    """A robot's name made of a text: other characters than names may have become `_`; empty where nothing is left."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip("_.-")[:64]
    return name if NAME_PATTERN.fullmatch(name) else ""


def _join_names(names: Iterable[str]) -> str:
    """At most 40 names, and how many there are."""
    names = list(names)
    text = ", ".join(names[:40]) or "none"
    return text if len(names) <= 40 else f"{text}, … ({len(names)} in all)"
