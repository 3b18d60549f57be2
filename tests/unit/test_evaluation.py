"""Existing references: what they prove, and what they do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core.cli.main import run
from amp_core.errors import InputRefused, IntegrityError
from amp_core.evaluation import evaluate
from amp_core.formats import Motion, read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.npz import write_npz
from amp_core.recipe import Recipe
from amp_core.reference import META, REFERENCE_ARRAYS
from amp_core.robot import Robot
from amp_core.scoring import Score, score

Arrays = dict[str, np.ndarray]
Change = Callable[..., Path]


PATHS = {path.stem: path for path in bundled_motions() if path.stem in ("walk", "walk_long_stride")}


@pytest.fixture(scope="module")
def motions() -> Mapping[str, Motion]:
    return {name: read_motion(path, name=name, **reading_options(path)) for name, path in PATHS.items()}


@pytest.fixture(scope="module")
def scores(motions: Mapping[str, Motion]) -> Mapping[str, Score]:
    results = score(list(motions.values()), Robot.load("wildrobot"), Recipe.for_mode("rollout"))
    return {result.name: result for result in results}


@pytest.fixture
def changed(scores: Mapping[str, Score], tmp_path: Path) -> Change:
    def changed(change: Callable[[Arrays], Any] = lambda arrays: None, name: str = "walk") -> Path:
        scores[name].export(tmp_path / "whole.npz")
        arrays = dict(np.load(tmp_path / "whole.npz"))
        write_npz(tmp_path / f"{name}.npz", change(arrays) or arrays)
        return tmp_path / f"{name}.npz"

    return changed


@pytest.mark.parametrize("name", ["walk", "walk_long_stride"])
def test_an_export_and_its_motion_prove_its_score(
    scores: Mapping[str, Score], motions: Mapping[str, Motion], changed: Change, name: str
) -> None:
    found, expected = evaluate(changed(name=name), motion=motions[name]), scores[name]
    assert found.is_proven
    assert found.unverified == ()
    assert all(check.passed for check in found.checks), found.checks
    assert {check.name for check in found.checks} >= {
        "replay", "sum_fn_per_frame", "features", "generation", "quality_metrics", "tier",
    }  # fmt: skip
    assert dict(found.quality_metrics) == expected.quality_metrics
    assert found.tier == expected.tier
    assert found.gates == expected.gates
    assert [segment["start"] for segment in found.segments] == [segment.start for segment in expected.segments]
    json.dumps(found.to_dict(), allow_nan=False)


def forge_reference(arrays: Arrays) -> None:
    """The robot's own poses in the place of the clip's, and nothing stated that they would contradict."""
    for name in ("root_pos", "root_rot", "dof_pos"):
        arrays[f"reference_{name}"] = arrays[name]
    change_meta(arrays, quality_metrics=None)


def change_meta(arrays: Arrays, **facts: Any) -> None:
    """Other facts in `meta`, of which those that are None are left out."""
    meta = json.loads(arrays[META].tobytes()) | facts
    meta = {name: value for name, value in meta.items() if value is not None}
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)


def test_the_robots_poses_in_the_place_of_the_clips_contradict_the_controls(changed: Change) -> None:
    found = evaluate(changed(forge_reference))
    assert (found.tier, found.is_proven) == (-1, False)
    assert "ctrl[0] at frame 0 is" in found.tier_reason
    assert "by reference_dof_pos in mode rollout" in found.tier_reason


def test_what_an_export_says_of_its_clip_is_not_proven_without_the_clip(
    scores: Mapping[str, Score], changed: Change, motions: Mapping[str, Motion]
) -> None:
    """An export of one motion under the name and digest of another agrees with itself in every number."""

    def claim_another_clip(arrays: Arrays) -> None:
        provenance = json.loads(arrays[META].tobytes())["provenance"]
        provenance |= {"name": "walk_long_stride", "source_digest": motions["walk_long_stride"].source_digest}
        change_meta(arrays, provenance=provenance, source_file="walk_long_stride.npz")

    path = changed(claim_another_clip)
    alone = evaluate(path)
    assert (alone.tier, alone.is_proven) == (0, False)
    assert alone.tier_reason == "Tier 0, at best: not verified are reference"
    (gap,) = alone.unverified
    assert "not compared with the clip" in gap.reason
    clip_arrays = {name for name in scores["walk"].rollout.arrays() if name.startswith("reference_")}
    assert clip_arrays | {"clip_frames", "solver_warnings"} == set(gap.reason.split(" are ")[0].split(", "))
    together = evaluate(path, motion=motions["walk_long_stride"])
    assert (together.tier, together.is_proven) == (-1, False)
    assert "generation: features, foot_contacts, dof_pos and" in together.tier_reason
    assert "are not what the motion gives (walk_long_stride, generated again)" in together.tier_reason
    with pytest.raises(InputRefused, match="the motion that the file names"):
        evaluate(path, motion=motions["walk"])


def hide_a_contact(arrays: Arrays) -> None:
    arrays["nonfoot_contact"] = ~arrays["nonfoot_contact"]


def test_contacts_of_other_bodies_are_generated_again(changed: Change, motions: Mapping[str, Motion]) -> None:
    found = evaluate(changed(hide_a_contact), motion=motions["walk"])
    assert "generation: nonfoot_contact are not what the motion gives" in found.tier_reason
    alone = evaluate(changed(hide_a_contact))
    assert "nonfoot_contact: up to 1 from what the controls give, first at frame 0 (1 for 0)" in alone.tier_reason


def test_a_tracked_export_is_simulated_with_its_plan(changed: Change, tmp_path: Path, motions: Mapping[str, Motion]) -> None:
    walk = motions["walk"]
    part = replace(walk, root_pos=walk.root_pos[:30], root_rot=walk.root_rot[:30], dof_pos=walk.dof_pos[:30])
    planner = {"samples": 24, "first_rounds": 1, "horizon_sec": 0.2, "attempts": 1, "branches": 1}
    (result,) = score([part], Robot.load("wildrobot"), Recipe.from_dict({"mode": "tracked", "planner": planner}))
    result.export(tmp_path / "walk.npz")
    assert evaluate(tmp_path / "walk.npz", motion=part).is_proven


def schema_alone(arrays: Arrays) -> Arrays:
    """What the specification's generator writes, in an .npz."""
    loads = {"sum_fn_per_frame": arrays["sum_fn_per_frame"], "stab_force_per_frame": np.abs(arrays["stab_force"])}
    scalars = {
        "fps": np.array(50.0),
        "generation_mode": np.array("rollout"),
        "robot": np.array("wildrobot"),
        "tier": np.array(0),
    }
    return {name: arrays[name] for name in REFERENCE_ARRAYS} | loads | scalars


def test_a_foreign_file_by_the_schema_is_measured_as_far_as_it_goes(changed: Change, scores: Mapping[str, Score]) -> None:
    found, expected = evaluate(changed(schema_alone)), scores["walk"].quality_metrics
    assert (found.tier, found.best_tier) == (None, 0)
    assert not found.is_proven
    assert "Tier 0 at best, and no tier yet" in found.tier_reason
    for name in (
        "mean_sum_fn_over_mg",
        "p90_stab_force_over_mg",
        "unloaded_frame_rate",
        "contact_rate",
        "height_std",
        "max_tilt_deg",
    ):
        assert found.quality_metrics[name] == pytest.approx(expected[name])
    open_things = {entry.what: entry.reason for entry in found.unverified}
    assert open_things["replay"] == "the file lacks ctrl, initial_qpos, initial_qvel, qpos, qvel"
    assert open_things["loads"].startswith("stab_force, sum_fn_per_frame, foot_contacts are the file's own claim")
    assert "reference_root_pos" in open_things["heading_error_deg"]
    assert {"loads", "solver_warnings", "nonfoot_contact", "mpjpe_m", "clip_flight_rate"} <= set(open_things)
    assert not {gate.name for gate in found.gates} & set(open_things)
    assert found.quality_metrics["mpjpe_m"] is None
    assert [check.name for check in found.checks] == ["features", "clip", "tier"]


def test_a_foreign_file_that_has_fallen_is_rejected_whatever_it_says(changed: Change) -> None:
    found = evaluate(changed(schema_alone, "walk_long_stride"))
    assert found.tier == -1
    assert "max_tilt_deg" in found.tier_reason
    assert ("tier", False) in [(check.name, check.passed) for check in found.checks]


def test_poses_alone_give_little(changed: Change) -> None:
    keys = ("root_pos", "root_rot", "dof_pos")
    found = evaluate(changed(lambda arrays: {key: arrays[key] for key in keys}))
    open_things = {entry.what for entry in found.unverified}
    assert {"fps", "features", "mean_sum_fn_over_mg", "contact_rate", "mode", "replay"} <= open_things
    assert found.quality_metrics["mean_sum_fn_over_mg"] is None
    assert found.contact_warnings == ()
    assert found.to_dict()["tier"] is None


def test_poses_that_tremble_are_rejected(changed: Change) -> None:
    """A file without the clip's frames is checked as a clip by itself."""

    def tremble(arrays: Arrays) -> Arrays:
        noise = np.random.default_rng(0).normal(0.0, 0.1, arrays["dof_pos"].shape)
        return {"root_pos": arrays["root_pos"], "root_rot": arrays["root_rot"], "dof_pos": arrays["dof_pos"] + noise}

    found = evaluate(changed(tremble))
    assert found.tier == -1
    assert "clip: the joints tremble" in found.tier_reason


def shift_control(arrays: Arrays) -> None:
    arrays["ctrl"] = arrays["ctrl"].copy()
    arrays["ctrl"][20] += 1e-3


def lie_about_loads(arrays: Arrays) -> None:
    arrays["sum_fn_per_frame"] = arrays["sum_fn_per_frame"] * 1.1


def turn_features(arrays: Arrays) -> None:
    arrays["features"] = arrays["features"].copy()
    arrays["features"][7, 16] += 0.1


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (shift_control, "replay", "from frame 20 on"),
        (lie_about_loads, "sum_fn_per_frame", "from what the controls give"),
        (turn_features, "features", "at frame 7"),
    ],
)
def test_what_the_arrays_contradict_is_rejected(changed: Change, change: Any, check: str, words: str) -> None:
    found = evaluate(changed(change))
    assert found.tier == -1
    assert words in found.tier_reason
    assert [entry.passed for entry in found.checks if entry.name == check] == [False]


@pytest.mark.parametrize(
    "name",
    [
        "features", "dof_pos", "dof_vel", "root_pos", "root_rot", "root_lin_vel", "root_ang_vel", "qpos", "qvel", "ctrl",
        "stab_force", "stab_force_per_frame", "sum_fn_per_frame", "sum_fn_last_substep", "channel_loads", "foot_contacts",
        "actuator_force", "foot_speed", "reference_dof_pos",
    ],
)  # fmt: skip
def test_an_edit_of_one_value_is_seen_without_the_motion(changed: Change, name: str) -> None:
    def edit(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][200] += 0.05

    found = evaluate(changed(edit))
    assert found.tier == -1
    wrong = " ".join(
        check.detail for check in found.checks if not check.passed and check.name not in ("quality_metrics", "tier")
    )
    assert "frame 200" in wrong


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"generation_mode": "tracked"}, "meta.generation_mode is tracked, but rollout by the recipe"),
        ({"num_frames": 3}, "meta.num_frames is 3, but 400 by the arrays"),
        ({"generator_version": "9.9.9"}, "meta.generator_version is 9.9.9, but"),
        ({"fps": "fast"}, "meta.fps is fast, but 50.0 by robot wildrobot"),
        ({"joint_names": [*"abcdefgh"]}, "meta.joint_names is a, b, c, d, e, f, g, h, but left_hip_pitch, left_hip_roll, "),
    ],
)
def test_a_false_fact_of_meta_is_named_with_the_true_one(changed: Change, facts: dict[str, Any], words: str) -> None:
    found = evaluate(changed(lambda arrays: change_meta(arrays, **facts)))
    assert found.tier == -1
    assert words in found.tier_reason


def test_a_foreign_file_may_spell_the_joints_otherwise_and_not_order_them_otherwise(changed: Change) -> None:
    names = [f"{name}_joint" for name in Robot.load("wildrobot").joint_names]

    def named(names: list[str]) -> Callable[[Arrays], Arrays]:
        return lambda arrays: schema_alone(arrays) | {"joint_names": np.array(names)}

    assert evaluate(changed(named(names))).best_tier == 0
    assert evaluate(changed(lambda arrays: named(names)(arrays) | {"fps": np.array(49.9)})).best_tier == 0
    found = evaluate(changed(named(names[::-1])))
    assert found.tier == -1
    assert f"meta.joint_names is {', '.join(names[::-1])}, but left_hip_pitch, " in found.tier_reason


def falsify_meta(arrays: Arrays) -> None:
    meta = json.loads(arrays[META].tobytes())
    meta["quality_metrics"]["slip_rate"] = 0.0
    meta["quality_metrics"]["fell_at_frame"] = 17
    meta["tier"] = 1
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)


def test_what_it_states_of_itself_is_compared(changed: Change) -> None:
    found = evaluate(changed(falsify_meta))
    assert found.tier == 0
    wrong = {check.name: check.detail for check in found.checks if not check.passed}
    assert wrong.keys() == {"quality_metrics", "tier"}
    assert wrong["quality_metrics"].startswith("stated are slip_rate 0.0 for")
    assert wrong["quality_metrics"].endswith("fell_at_frame 17 for None")
    assert wrong["tier"] == "Tier 1 is stated, Tier 0 is measured"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda arrays: {"root_pos": arrays["root_pos"]}, InputRefused, "lacks root_rot, dof_pos"),
        (lambda arrays: arrays | {"dof_pos": arrays["dof_pos"][:, :5]}, InputRefused, "dof_pos"),
        (lambda arrays: schema_alone(arrays) | {"fps": np.array(30.0)}, InputRefused, "30 frames per second"),
        (lambda arrays: arrays | {"root_pos": arrays["root_pos"] * np.nan}, InputRefused, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(changed: Change, change: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        evaluate(changed(change))


def test_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(IntegrityError):
        evaluate(tmp_path / "a.npz")
    (tmp_path / "a.pkl").write_bytes(b"nothing")
    with pytest.raises(InputRefused, match=r"no \.npz"):
        evaluate(tmp_path / "a.pkl")


def test_the_verb_says_what_it_could_not_verify(changed: Change, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["evaluate", str(changed(schema_alone)), "--json", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    assert "≤ Tier 0" in text
    assert "Tier 0 at best, and no tier yet" in text
    assert "not verified  replay: the file lacks ctrl" in text
    (document,) = json.loads((tmp_path / "out.json").read_text())
    assert (document["tier"], document["best_tier"], document["proven"]) == (None, 0, False)
    assert run(["evaluate", str(changed(shift_control))]) == 1
    assert "WRONG  replay" in capsys.readouterr().out


def test_the_verb_finds_the_motion_by_its_digest(changed: Change, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    references = [str(changed()), str(changed(name="walk_long_stride"))]
    assert run(["evaluate", *references]) == 0
    text = capsys.readouterr().out
    assert "walk: Tier 0, at best: not verified are reference\n" in text
    assert "is not at hand; --motions PATH names it" in text
    assert run(["evaluate", *references, "--motions", str(PATHS["walk"].parent), "--json", str(tmp_path / "o.json")]) == 0
    text = capsys.readouterr().out
    assert "walk: Tier 0\n" in text
    assert "not verified" not in text
    assert [document["proven"] for document in json.loads((tmp_path / "o.json").read_text())] == [True, True]
    assert run(["evaluate", *references, "--motions", str(tmp_path / "nowhere")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().err
