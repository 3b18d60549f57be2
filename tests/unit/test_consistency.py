"""What an export repeats must agree: arrays with arrays, and meta with them, the recipe and the robot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core.consistency import check_export, find_faults
from amp_core.errors import IntegrityError
from amp_core.formats import Motion, read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.reference import FORCE_ARRAYS, META, REFERENCE_ARRAYS
from amp_core.robot import Robot
from amp_core.scoring import Score, score
from amp_core.verify import Subject, verify

Members = dict[str, np.ndarray]
ROBOT = Robot.load("wildrobot")
PLANNER = {"samples": 24, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 2, "branches": 1}
RECIPES = {
    "rollout": Recipe.for_mode("rollout"),
    "scaled": Recipe.for_mode("rollout", physics=PhysicsScale(mass=1.1, friction=0.8)),
    "at_rest": replace(Recipe.for_mode("rollout"), initial_velocity="zero"),
    "teacher_forced": Recipe.for_mode("teacher_forced"),
    "tracked": Recipe.from_dict({"mode": "tracked", "planner": PLANNER}),
    "assisted": Recipe.from_dict({"mode": "assisted", "planner": PLANNER}),
}


def read_clip(stem: str, frames: int) -> Motion:
    path = next(path for path in bundled_motions() if path.stem == stem)
    motion = read_motion(path, name=stem, **reading_options(path))
    return replace(motion, **{name: getattr(motion, name)[:frames] for name in ("root_pos", "root_rot", "dof_pos")})


def export(motion: Motion, recipe: Recipe, folder: Path) -> Members:
    (result,) = score([motion], ROBOT, recipe)
    return members_of(result, folder)


def members_of(result: Score, folder: Path) -> Members:
    result.export(folder / "clip.npz")
    return dict(np.load(folder / "clip.npz"))


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    return export(read_clip("walk", 60), RECIPES["rollout"], tmp_path_factory.mktemp("walk"))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("stem", ["walk", "walk_long_stride"])
def test_an_export_as_it_was_written_has_no_fault(recipe: Recipe, stem: str, tmp_path: Path) -> None:
    frames = 30 if recipe.planner else 200
    assert find_faults(export(read_clip(stem, frames), recipe, tmp_path), ROBOT) == []


def change_meta(members: Mapping[str, np.ndarray], **facts: Any) -> Members:
    meta = json.loads(members[META].tobytes())
    for place, value in facts.items():
        parent, _, name = place.rpartition("__")
        (meta[parent] if parent else meta)[name] = value
    return {**members, META: np.frombuffer(json.dumps(meta).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("joint_names", [*reversed(ROBOT.joint_names)], "but left_hip_pitch, left_hip_roll, left_knee_pitch, "),
        ("provenance__joint_names", [*reversed(ROBOT.joint_names)], "but left_hip_pitch, "),
        ("provenance__contact_channels", [*reversed(ROBOT.channels)], "but left_toe, left_heel, right_toe, right_heel by"),
        ("provenance__feature_layout", {}, "is {}, but"),
        ("generation_mode", "tracked", "is tracked, but rollout by the recipe"),
        ("num_frames", 3, "is 3, but 89 by the arrays"),
        ("duration_sec", 1.0, "is 1.0, but 1.78 by num_frames and dt"),
        ("fps", 25.0, "is 25.0, but 50.0 by robot wildrobot"),
        ("dt", 0.04, "is 0.04, but 0.02 by robot wildrobot"),
        ("feature_dim", 28, "is 28, but 27 by the arrays"),
        ("harness_params", {"k": 1}, 'is {"k": 1}, but {"height_kp": 60.0, '),
        ("provenance__harness_params", {}, "is {}, but"),
        ("generator_version", "9.9.9", "is 9.9.9, but"),
        ("provenance__generator_version", "9.9.9", "is 9.9.9, but"),
        ("generation_timestamp", "2020-01-01T00:00:00Z", "is 2020-01-01T00:00:00Z, but"),
        ("robot", "g1", "is g1, but wildrobot by meta.provenance"),
        ("provenance__robot_digest", "sha256:" + "0" * 64, "by robot wildrobot"),
        ("provenance__robot_mass_kg", 5.0, "is 5.0, but 3.38"),
        ("provenance__recipe_digest", "sha256:" + "0" * 64, "by the recipe's content"),
        ("provenance__gate_profile", "amp-0.11", "is amp-0.11, but amp-0.12 by the recipe"),
        ("provenance__source_digest", "md5:1", "is md5:1, but sha256: and 64 hex digits by the form of a digest"),
        ("provenance__attempt", 1, "is 1, but from 0 to 0 by the recipe"),
        ("source_file", "other.pkl", "is other.pkl, but walk.FORMAT by meta.provenance.name"),
        ("provenance__attempt", "x", "is x, but from 0 to 0 by the recipe"),
        ("tier", 7, "is 7, but 0, 1 or -1"),
        ("tier", [], "is [], but 0, 1 or -1"),
        ("fps", "fast", "is fast, but 50.0 by robot wildrobot"),
        ("quality_metrics__tier", 7, "is 7, but "),
        ("features", {"member": "features", "dtype": "float64", "shape": [89, 27]}, '"dtype": "float32"'),
    ],
)  # fmt: skip
def test_a_false_fact_is_named_with_the_true_one(
    walk: Mapping[str, np.ndarray], place: str, value: object, expected: str
) -> None:
    faults = find_faults(change_meta(walk, **{place: value}), ROBOT)
    texts = {fault.place: fault.explain() for fault in faults}
    assert f"meta.{place.replace('__', '.')} " in texts[place.replace("__", ".")]
    assert expected in texts[place.replace("__", ".")]


def test_a_recipe_that_was_changed_has_another_digest(walk: Mapping[str, np.ndarray]) -> None:
    recipe = json.loads(walk[META].tobytes())["provenance"]["recipe"]
    faults = find_faults(change_meta(walk, provenance__recipe=recipe | {"seed": 5}), ROBOT)
    assert [fault.place for fault in faults] == ["provenance.recipe_digest"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("root_pos", "qpos"), ("root_rot", "qpos"), ("dof_pos", "qpos"), ("dof_vel", "qvel"), ("root_lin_vel", "qvel"),
        ("root_ang_vel", "qpos and qvel"), ("sum_fn_per_frame", "channel_loads"), ("stab_force_per_frame", "stab_force"),
        ("foot_speed", "the poses"), ("features", "its states"), ("ctrl", "reference_dof_pos in mode rollout"),
        ("stab_force", "the recipe's harness, the states and the clip's heights"), ("reference_contacts", "the clip's frames"),
    ],
)  # fmt: skip
def test_a_value_that_others_contradict_is_named_with_its_frame(walk: Mapping[str, np.ndarray], name: str, source: str) -> None:
    array = walk[name].copy()
    array[20] = ~array[20] if array.dtype == bool else array[20] + 0.05
    (fault, *_) = [fault for fault in find_faults({**walk, name: array}, ROBOT) if fault.member == name]
    assert (fault.frame, fault.source) == (20, source)
    assert fault.place != "" or array.ndim == 1
    assert float(fault.value) == pytest.approx(float(array[20].flat[0]), rel=1e-5)
    assert float(fault.expected) == pytest.approx(float(walk[name][20].flat[0]), rel=1e-5)


@pytest.mark.parametrize(("name", "change"), [("initial_qpos", 1), ("solver_warnings", 1), ("clip_frames", -1)])
def test_a_value_of_the_whole_is_compared(walk: Mapping[str, np.ndarray], name: str, change: int) -> None:
    assert name in {fault.member for fault in find_faults({**walk, name: walk[name] + change}, ROBOT)}


def test_the_pose_that_is_forced_is_the_clips(tmp_path: Path) -> None:
    members = export(read_clip("walk", 30), RECIPES["teacher_forced"], tmp_path)
    members["forced_qpos"] = members["forced_qpos"] + 0.05
    assert "forced_qpos[0] at frame 0 is" in "; ".join(fault.explain() for fault in find_faults(members, ROBOT))


def test_the_other_sign_of_a_quaternion_is_the_same_rotation(walk: Mapping[str, np.ndarray]) -> None:
    assert find_faults({**walk, "root_rot": -walk["root_rot"]}, ROBOT) == []


def test_an_export_without_a_row_contradicts_nothing(walk: Mapping[str, np.ndarray]) -> None:
    """A simulation that failed in its first frame."""
    rows = {name: array[:0] for name, array in walk.items() if array.ndim and name != META and not name.startswith("initial_")}
    shapes = {name: {"member": name, "dtype": array.dtype.name, "shape": list(array.shape)} for name, array in rows.items()}
    facts = {name: shapes[name] for name in REFERENCE_ARRAYS} | {"num_frames": 0, "duration_sec": 0.0}
    forces = {f"quality_metrics__{name}": shapes[name] for name in FORCE_ARRAYS}
    assert find_faults(change_meta({**walk, **rows}, **facts, **forces), ROBOT) == []


def test_an_export_that_lacks_arrays_or_numbers_is_refused(walk: Mapping[str, np.ndarray]) -> None:
    with pytest.raises(IntegrityError, match="qvel is missing, but an array by the form of an export"):
        check_export({name: array for name, array in walk.items() if name != "qvel"}, ROBOT, "walk.npz")
    with pytest.raises(IntegrityError, match="qvel is float64 of shape"):
        check_export({**walk, "qvel": walk["qvel"][:, :3]}, ROBOT, "walk.npz")
    with pytest.raises(IntegrityError, match="qvel is not finite"):
        check_export({**walk, "qvel": walk["qvel"] * np.nan}, ROBOT, "walk.npz")
    check_export(walk, ROBOT, "walk.npz")


def test_test_1c_fails_on_an_export_that_contradicts_itself(walk: Mapping[str, np.ndarray], tmp_path: Path) -> None:
    motion = read_clip("walk", 60)
    (result,) = score([motion], ROBOT, RECIPES["rollout"])
    subject = Subject.of_scores([result], [motion], ROBOT)
    (clip,) = subject.clips

    def test_1c(members: Mapping[str, np.ndarray]) -> Any:
        clips = (replace(clip, load=lambda: members),)
        return verify(replace(subject, clips=clips), only=["1C"]).tests[2]

    def count(members: Mapping[str, np.ndarray]) -> tuple[float, str]:
        report = test_1c(members)
        (row,) = (row for row in report.rows if row.name == "export.contradicted")
        return row.value, report.reason

    assert count(walk) == (0, "")
    value, reason = count(change_meta(walk, joint_names=[*reversed(ROBOT.joint_names)]))
    assert value == 1
    assert "clip walk: its export contradicts itself (meta.joint_names is right_ankle_pitch, " in reason
