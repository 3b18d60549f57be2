"""What an export repeats must agree: its arrays with each other, and its `meta` with its arrays, its recipe and its robot.

An export holds many facts twice: `root_pos` is a part of `qpos`, the force of the harness follows from the states, the recipe
and the clip's heights, and `meta` names the joints of the robot, its rate and the mode of the recipe. `find_faults` compares
all of them, without a simulation. What an export holds once, such as the frames of a planned clip, only the motion proves.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from amp_core import features
from amp_core.errors import IntegrityError
from amp_core.formats.joint_names import match_joint_names
from amp_core.kinematics import FootTracker, kinematic_contacts
from amp_core.recipe import RECORDED, Recipe
from amp_core.reference import FORCE_ARRAYS, META, PROVENANCE, REFERENCE_ARRAYS, TIMESTAMP, decode_meta, describe_member
from amp_core.robot import Robot
from amp_core.strict_json import json_data
from amp_core.tiers import Tier
from amp_core.tracking import harness_force, harness_targets
from amp_core.version import GENERATOR_VERSION

__all__ = [
    "FEATURE_SOURCES",
    "ROUNDING",
    "Fault",
    "array_shapes",
    "check_export",
    "find_array_faults",
    "find_faults",
    "find_meta_faults",
    "relative_error",
]

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]

ROUNDING = 1e-6
"""Relative: the most by which a value may differ from what the others give, which is what float32 changes."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGESTS = ("source_digest", "robot_digest", "recipe_digest", "feature_code_hash")
_MAX_CHARACTERS = 240


@dataclass(frozen=True)
class Fault:
    """A fact of an export that another one contradicts.

    Args:
      member: the array, or `meta`.
      place: in it: `left_knee_pitch` or `[2]` of an array, a key of `meta`; empty for the whole.
      value, expected: as texts.
      source: what the expected value follows from.
      frame: of an array.
    """

    member: str
    place: str
    value: str
    expected: str
    source: str
    frame: int | None = None

    def explain(self) -> str:
        """`root_pos[2] at frame 12 is 0.51, but 0.46 by qpos`."""
        separator = "." if self.place and not self.place.startswith("[") else ""
        frame = "" if self.frame is None else f" at frame {self.frame}"
        return f"{self.member}{separator}{self.place}{frame} is {self.value}, but {self.expected} by {self.source}"


def check_export(members: Arrays, robot: Robot, file: str) -> None:
    """Refuse an export that contradicts itself or is of another robot.

    Args:
      members: of its archive.

    Raises:
      IntegrityError: of the first fault, with the number of the others.
    """
    faults = find_faults(members, robot, file)
    if faults:
        fault, more = faults[0], f"; and {len(faults) - 1} more of its members or facts are contradicted" * (len(faults) > 1)
        raise IntegrityError(
            f"{fault.explain()}{more}",
            file=file,
            key=fault.member,
            frame=fault.frame,
            expected="an export as it was written: arrays and meta that agree with each other, with the recipe and the robot",
            remedy="Score the clip again: ampref score MOTION --export DIR",
        )


def find_faults(members: Arrays, robot: Robot, file: str | None = None) -> list[Fault]:
    """The facts of an export that contradict each other, its recipe or the robot that it is used with.

    Args:
      members: of its archive, with `meta`.

    Raises:
      IntegrityError: `meta` is not a JSON object, or a member cannot be read.
      RecipeRefused: its recipe cannot be read.
    """
    meta = decode_meta(members[META], file)
    provenance = meta.get(PROVENANCE)
    provenance = provenance if isinstance(provenance, Mapping) else {}
    recipe = Recipe.from_dict(provenance["recipe"]) if "recipe" in provenance else None
    arrays = {name: members[name] for name in members if name != META}
    shapes = array_shapes(robot, len(arrays["dof_pos"]) if "dof_pos" in arrays and arrays["dof_pos"].ndim else 0)
    missing = [
        name
        for name in shapes
        if name not in arrays
        and name != "ctrl_substeps"
        and (name != "forced_qpos" or meta.get("generation_mode") == "teacher_forced")
    ]
    faults = [Fault(name, "", "missing", "an array", "the form of an export") for name in missing]
    if "dof_pos" in missing:
        return faults
    faults += [
        Fault(name, "", f"{arrays[name].dtype.name} of shape {arrays[name].shape}", f"of shape {shape}", f"robot {robot.name}")
        for name, shape in shapes.items()
        if name in arrays and (arrays[name].shape != shape or arrays[name].dtype.kind not in "bfiu")
    ]
    if not faults:
        infinite = [name for name in shapes if name in arrays and not np.isfinite(arrays[name]).all()]
        faults += [Fault(name, "", "not finite", "all numbers", "the form of an export") for name in infinite]
    faults += find_meta_faults(meta, arrays, robot, recipe)
    if (digest := provenance.get("robot_digest")) != robot.digest:
        faults.append(Fault(META, "provenance.robot_digest", _quote(digest), robot.digest, f"robot {robot.name}"))
    tier, metrics = meta.get("tier"), meta.get("quality_metrics")
    if isinstance(tier, bool) or not isinstance(tier, int) or tier not in set(Tier):
        faults.append(Fault(META, "tier", _quote(tier), "0, 1 or -1", "the form of an export"))
    elif isinstance(metrics, Mapping) and metrics.get("tier", tier) != tier:
        faults.append(Fault(META, "quality_metrics.tier", _quote(metrics["tier"]), str(tier), "meta.tier"))
    attempt = provenance.get("attempt")
    if not faults:  # Arrays of other shapes cannot be compared, nor by another recipe.
        faults += find_array_faults(arrays, robot, recipe, attempt if isinstance(attempt, int) else 0)
    return faults


def array_shapes(robot: Robot, frames: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the members of an export with so many rows."""
    joints, channels, feet, model = len(robot.joint_names), len(robot.channels), len(robot.feet), robot.model
    widths = {
        "dof_pos": joints, "dof_vel": joints, "root_pos": 3, "root_rot": 4, "root_lin_vel": 3, "root_ang_vel": 3,
        "features": robot.layout.dim, "foot_contacts": channels, "channel_loads": channels, "qpos": model.nq,
        "qvel": model.nv, "ctrl": model.nu, "forced_qpos": model.nq, "actuator_force": model.nu,
        "reference_root_pos": 3, "reference_root_rot": 4, "reference_dof_pos": joints, "reference_dof_pos_raw": joints,
        "reference_contacts": feet, "foot_speed": feet,
    }  # fmt: skip
    series = ("sum_fn_per_frame", "sum_fn_last_substep", "stab_force", "stab_force_per_frame", "nonfoot_contact")
    shapes: dict[str, tuple[int, ...]] = {name: (frames, width) for name, width in widths.items()}
    shapes |= {name: (frames,) for name in series}
    shapes["ctrl_substeps"] = (frames, robot.substeps, model.nu)
    return shapes | {"initial_qpos": (model.nq,), "initial_qvel": (model.nv,), "clip_frames": (), "solver_warnings": ()}


def find_meta_faults(meta: Mapping[str, Any], arrays: Arrays, robot: Robot, recipe: Recipe | None) -> list[Fault]:
    """The facts of `meta` that its arrays, the recipe, the robot or another fact contradict; a fact that is missing does not.

    Args:
      meta: decoded.
      recipe: of its provenance; None where it has none, as in a file of another generator.
    """
    provenance = meta.get(PROVENANCE)
    provenance = provenance if isinstance(provenance, Mapping) else {}
    metrics = meta.get("quality_metrics")
    values = {
        **meta,
        **{f"quality_metrics.{name}": value for name, value in (metrics if isinstance(metrics, Mapping) else {}).items()},
        **{f"{PROVENANCE}.{name}": value for name, value in provenance.items()},
    }
    faults = []
    for place, expected, source in _expected_facts(values, arrays, robot, recipe):
        value = values.get(place, expected)
        if not _is_same(value, expected):
            faults.append(Fault(META, place, _quote(value), _quote(expected), source))
    for name in _DIGESTS:
        value = provenance.get(name)
        if name in provenance and not (isinstance(value, str) and _DIGEST.fullmatch(value)):
            faults.append(
                Fault(META, f"{PROVENANCE}.{name}", _quote(value), "sha256: and 64 hex digits", "the form of a digest")
            )
    attempts = recipe.planner.attempts if recipe and recipe.planner else 1
    attempt = provenance.get("attempt", 0)
    if recipe and (isinstance(attempt, bool) or attempt not in range(attempts)):
        faults.append(Fault(META, f"{PROVENANCE}.attempt", _quote(attempt), f"from 0 to {attempts - 1}", "the recipe"))
    return faults


def _expected_facts(
    values: Mapping[str, Any], arrays: Arrays, robot: Robot, recipe: Recipe | None
) -> Iterator[tuple[str, Any, str]]:
    """The places in `meta`, what must stand there, and what that follows from."""
    frames, source = len(arrays["dof_pos"]), "the arrays"
    yield "num_frames", frames, source
    if "features" in arrays:
        yield "feature_dim", int(arrays["features"].shape[-1]), source
    for name in (name for name in REFERENCE_ARRAYS if name in arrays):
        yield name, describe_member(arrays, name), source
    for name in (name for name in FORCE_ARRAYS if name in arrays):
        yield f"quality_metrics.{name}", describe_member(arrays, name), source
    source = f"robot {robot.name}"
    names = values.get("joint_names")
    if recipe or not _is_text_list(names) or match_joint_names(names, robot.joint_names) != [*range(len(names))]:
        yield "joint_names", list(robot.joint_names), source  # Another generator may spell them otherwise.
    yield f"{PROVENANCE}.joint_names", list(robot.joint_names), source
    yield f"{PROVENANCE}.contact_channels", list(robot.channels), source
    yield f"{PROVENANCE}.feature_layout", json_data(robot.layout.to_dict()), source
    if values.get(f"{PROVENANCE}.robot_digest") == robot.digest:
        yield f"{PROVENANCE}.robot", robot.name, "its digest"
    yield "robot", values.get(f"{PROVENANCE}.robot", values.get("robot")), f"meta.{PROVENANCE}.robot"
    if f"{PROVENANCE}.name" in values:
        name = str(values[f"{PROVENANCE}.name"])
        file = values.get("source_file")
        is_named = isinstance(file, str) and (file == name or file.rpartition(".")[0] == name)
        yield "source_file", file if is_named else f"{name}.FORMAT", f"meta.{PROVENANCE}.name"
    if recipe is None:
        return
    source = "the recipe"
    harness = recipe.harness_params(robot.mg_for(recipe.physics))
    yield "dt", robot.control_dt, f"robot {robot.name}"
    yield "fps", 1.0 / robot.control_dt, f"robot {robot.name}"
    yield "duration_sec", frames * robot.control_dt, "num_frames and dt"
    yield "generation_mode", recipe.mode, source
    for key in ("harness_params", f"{PROVENANCE}.harness_params"):
        yield key, harness, "the recipe's harness on this robot"
    yield "generator_version", recipe.generator_version, source
    yield f"{PROVENANCE}.generator_version", recipe.generator_version, source
    yield f"{PROVENANCE}.gate_profile", recipe.gate_profile, source
    yield f"{PROVENANCE}.recipe_digest", recipe.digest, "the recipe's content"
    if values.get(f"{PROVENANCE}.robot_digest") == robot.digest:
        yield f"{PROVENANCE}.robot_mass_kg", robot.mass * recipe.physics.mass, f"robot {robot.name}"
    if recipe.generator_version == GENERATOR_VERSION:
        yield "generation_timestamp", TIMESTAMP, "the generator's version"


def _is_text_list(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _is_same(value: Any, expected: Any) -> bool:
    if isinstance(expected, int | float):
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isclose(value, expected, rel_tol=ROUNDING)
        )
    return type(value) is type(expected) and value == expected


def _quote(value: Any) -> str:
    """A value of `meta` for a message."""
    text = ", ".join(value) if _is_text_list(value) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def find_array_faults(arrays: Arrays, robot: Robot, recipe: Recipe | None = None, attempt: int = 0) -> list[Fault]:
    """The first value of each array that is not what others give; an array that follows from no other is passed over.

    Args:
      arrays: finite, of the shapes of `array_shapes`.
      recipe: None where it is not known, and with it what drives the robot.
      attempt: of the recipe's planner.
    """
    if len(arrays["dof_pos"]) == 0:
        return []
    relations = [*_STATE_RELATIONS, *(_drive_relations(arrays, recipe, attempt) if recipe else ())]
    faults = []
    for relation in relations:
        name = relation.member
        if any(member not in arrays for member in (name, *relation.sources)):
            continue
        values, expected = (np.asarray(array, np.float64) for array in (arrays[name], relation.derive(arrays, robot)))
        if name == "root_rot":  # Both signs of a quaternion are the same rotation.
            expected = np.where((values * expected).sum(axis=1, keepdims=True) < 0.0, -expected, expected)
        is_wrong = ~(relative_error(values, expected) <= ROUNDING)
        if not is_wrong.any():
            continue
        index = tuple(np.argwhere(is_wrong)[0].tolist())
        is_series = values.ndim > 0 and not name.startswith("initial_")
        frame, column = (index[0], index[1:]) if is_series else (None, index)
        labels = {"features": robot.layout.names, "dof_pos": robot.joint_names, "dof_vel": robot.joint_names}.get(name)
        place = "" if not column else labels[column[0]] if labels else f"[{column[0]}]"
        value, right = (f"{array[index]:.6g}" for array in (values, expected))
        faults.append(Fault(name, place, value, right, relation.origin or " and ".join(relation.sources), frame))
    return faults


def relative_error(values: npt.NDArray[Any], expected: npt.NDArray[Any]) -> Array:
    """|values − expected| over max(1, |expected|): float32 rounds in proportion."""
    v, e = np.asarray(values, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.asarray(np.abs(v - e) / np.maximum(1.0, np.abs(e)))


@dataclass(frozen=True)
class _Relation:
    """An array that follows from others.

    Args:
      sources: the members that it needs.
      derive: gives it from the members and the robot.
      origin: in words, where the names of the sources do not say it.
    """

    member: str
    sources: tuple[str, ...]
    derive: Callable[[Arrays, Robot], npt.NDArray[Any]]
    origin: str = ""


def _root_rows(arrays: Arrays, robot: Robot, width: int, skip: int = 0) -> npt.NDArray[Any]:
    first = robot.root_qvel_adr + skip
    return np.asarray(arrays["qvel"][:, first : first + width])


_CLIP_POSES = ("reference_root_pos", "reference_root_rot", "reference_dof_pos")
FEATURE_SOURCES = ("dof_pos", "dof_vel", "root_rot", "root_lin_vel", "root_ang_vel", "root_pos", "foot_contacts")


def _clip_qpos(arrays: Arrays, robot: Robot) -> Array:
    """(N, nq) the clip's poses."""
    return robot.poses(*(np.asarray(arrays[name], np.float64) for name in _CLIP_POSES))


def _start_poses(arrays: Arrays) -> npt.NDArray[Any]:
    """(N, nq) the pose at the start of each frame."""
    return arrays["forced_qpos"] if "forced_qpos" in arrays else np.vstack([arrays["initial_qpos"][None], arrays["qpos"][:-1]])


_STATE_RELATIONS = (
    _Relation("root_pos", ("qpos",), lambda a, robot: a["qpos"][:, robot.root_qpos_adr : robot.root_qpos_adr + 3]),
    _Relation("root_rot", ("qpos",), lambda a, robot: robot.root_rotation(a["qpos"])),
    _Relation("dof_pos", ("qpos",), lambda a, robot: a["qpos"][:, robot.qpos_adr]),
    _Relation("dof_vel", ("qvel",), lambda a, robot: a["qvel"][:, robot.qvel_adr]),
    _Relation("root_lin_vel", ("qvel",), lambda a, robot: _root_rows(a, robot, 3)),
    _Relation(
        "root_ang_vel",
        ("qpos", "qvel"),
        lambda a, robot: features.body_to_world(robot.root_rotation(a["qpos"]), _root_rows(a, robot, 3, skip=3)),
    ),
    _Relation("sum_fn_per_frame", ("channel_loads",), lambda a, robot: a["channel_loads"].sum(axis=1)),
    _Relation("stab_force_per_frame", ("stab_force",), lambda a, robot: np.abs(a["stab_force"])),
    _Relation(
        "foot_speed",
        ("initial_qpos", "qpos"),
        lambda a, robot: FootTracker(robot).speeds(_start_poses(a), a["qpos"]),
        "the poses",
    ),
    _Relation(
        "features",
        FEATURE_SOURCES,
        lambda a, robot: features.extract(
            joint_pos=a["dof_pos"],
            joint_vel=a["dof_vel"],
            root_rot=a["root_rot"],
            root_lin_vel=a["root_lin_vel"],
            root_ang_vel=a["root_ang_vel"],
            root_height=a["root_pos"][:, 2],
            foot_contacts=a["foot_contacts"],
        ),
        "its states",
    ),
)
"""What follows from the states and the loads, whatever made them."""


def _drive_relations(arrays: Arrays, recipe: Recipe, attempt: int) -> Iterator[_Relation]:
    """What follows from the clip's frames under the recipe: the start, the controls, the forces of the harness."""
    rows = len(arrays["dof_pos"])
    clip_frames = int(arrays.get("clip_frames", -1))
    is_whole = clip_frames == rows
    yield _Relation("clip_frames", (), lambda a, robot: np.array(max(clip_frames, rows)), "the rows, which are no more")
    if recipe.mode == RECORDED:
        yield _Relation("ctrl", ("ctrl_substeps",), lambda a, robot: a["ctrl_substeps"][:, -1])
    else:
        yield _Relation("initial_qpos", _CLIP_POSES, lambda a, robot: _clip_qpos(a, robot)[0], "the clip's first frame")
    if rows > 1:  # The only row of a longer clip may stand or swing by its second frame.
        yield _Relation(
            "reference_contacts",
            _CLIP_POSES,
            lambda a, robot: kinematic_contacts(robot, _clip_qpos(a, robot)),
            "the clip's frames",
        )
    if is_whole:
        yield _Relation("solver_warnings", (), lambda a, robot: np.array(0), "as many rows as clip_frames")
    if recipe.mode == "teacher_forced":
        yield _Relation("forced_qpos", _CLIP_POSES, _clip_qpos, "the clip's frames")
    if recipe.planner is None and recipe.mode != RECORDED:

        def controls(arrays: Arrays, robot: Robot) -> Array:
            ctrl = np.zeros((rows, robot.model.nu))
            ctrl[:, robot.ctrl_adr] = arrays["reference_dof_pos"]
            return np.clip(ctrl, *robot.ctrl_range)

        yield _Relation("ctrl", ("reference_dof_pos",), controls, f"reference_dof_pos in mode {recipe.mode}")
    # Of a clip of which rows are missing, the mean height is not known.
    if is_whole or recipe.mode == "assisted" or recipe.harness.is_off:

        def forces(arrays: Arrays, robot: Robot) -> Array:
            harness = recipe.harness_of(attempt, robot.mg_for(recipe.physics))
            targets = harness_targets(arrays["reference_root_pos"], recipe).tolist()
            starts, first = _start_poses(arrays), robot.root_qpos_adr + 2
            velocities = np.vstack([arrays["initial_qvel"][None], arrays["qvel"][:-1]])[:, robot.root_qvel_adr + 2].tolist()
            states = zip(targets, starts[:, first : first + 5].tolist(), velocities, strict=True)
            return np.array([harness_force(harness, z, pose[0], velocity, pose[1:]) for z, pose, velocity in states])

        yield _Relation(
            "stab_force", ("reference_root_pos", "initial_qpos", "initial_qvel", "qpos", "qvel"), forces,
            "the recipe's harness, the states and the clip's heights",
        )  # fmt: skip
