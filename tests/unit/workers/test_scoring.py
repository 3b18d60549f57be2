"""Finding the robot that a job names, and the row that a result becomes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from amp_core.errors import MotionRefused, RobotRefused
from amp_core.formats import Limits
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from ampref_workers.protocol import SOURCE, Reading, RobotReference, RolloutRequest, export_name
from ampref_workers.robots import load_robot
from ampref_workers.rollout_job import new_rollout
from ampref_workers.scoring import handle

TRILEG = Path(__file__).parents[2] / "robots" / "trileg" / "robot.yaml"


def test_a_bundled_robot_is_found_by_name() -> None:
    digest = Robot.load("wildrobot").digest
    assert load_robot(RobotReference("wildrobot", digest, ())).digest == digest


def test_an_operators_robot_is_found_among_broken_files(tmp_path: Path) -> None:
    broken = tmp_path / "robot.yaml"
    broken.write_text("name: [")
    robot = Robot.load(TRILEG)
    paths = (str(broken), str(tmp_path / "missing.yaml"), str(TRILEG))
    assert load_robot(RobotReference(robot.name, robot.digest, paths)).name == robot.name


def test_a_robot_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(RobotRefused, match="no robot 'atlas' is installed on this worker; expected one of g1, wildrobot"):
        load_robot(RobotReference("atlas", "sha256:0", ()))


def test_a_robot_that_changed_since_the_upload_is_refused() -> None:
    with pytest.raises(RobotRefused, match="has changed since the clip was uploaded"):
        load_robot(RobotReference("wildrobot", "sha256:0", ()))


def test_a_result_keeps_the_frames_that_were_simulated() -> None:
    score = {
        "mode": "rollout",
        "tier": -1,
        "tier_reason": "Rejected: it fell",
        "quality_metrics": {"max_tilt_deg": 90.0},
        "frames": 100,
        "simulated_frames": 40,
        "duration_sec": 2.0,
        "segments": [{"start": 0, "end": 30, "tier": 0, "score": 0.5, "quality_metrics": {}}],
        "provenance": {
            "gate_profile": "amp-0.11",
            "feature_code_hash": "sha256:f",
            "mujoco_version": "4.0.1",
            "recipe": {"mode": "rollout"},
            "recipe_digest": "sha256:r",
        },
    }
    row = new_rollout(score, "sha256:a", 10)
    assert (row.tier, row.frames, row.arrays_digest, row.arrays_size) == (-1, 40, "sha256:a", 10)
    assert [(segment.start, segment.end, segment.tier) for segment in row.segments] == [(0, 30, 0)]
    assert row.result == score
    assert row.recipe is not None
    assert (row.recipe.digest, row.recipe.mode) == ("sha256:r", "rollout")


@pytest.mark.parametrize(("max_fps", "accepted"), [(2000.0, True), (1000.0, False)])
def test_the_operators_limits_hold_in_the_child(tmp_path: Path, max_fps: float, accepted: bool) -> None:
    frames = 301
    motion = {
        "fps": 1500,
        "root_pos": [[0.0, 0.0, 0.45]] * frames,
        "root_rot": [[0.0, 0.0, 0.0, 1.0]] * frames,
        "dof_pos": [[0.0] * 8] * frames,
    }
    data = json.dumps(motion).encode()
    (tmp_path / SOURCE).write_bytes(data)
    request = RolloutRequest(
        name="quick",
        source_digest="sha256:" + hashlib.sha256(data).hexdigest(),
        robot=RobotReference("wildrobot", Robot.load("wildrobot").digest, ()),
        recipe=Recipe.for_mode("rollout").to_dict(),
        reading=Reading("json", None, None, Limits(max_bytes=1 << 20, max_duration_sec=10.0, max_fps=max_fps)),
        threads=1,
    )
    if accepted:
        found = handle(tmp_path, request, lambda share, text: None)
        assert [score["mode"] for score in found.scores] == ["rollout"]
        assert (found.selected, found.triage) == (0, None)
        assert (tmp_path / export_name(0)).exists()
    else:
        with pytest.raises(MotionRefused, match="1500"):
            handle(tmp_path, request, lambda share, text: None)
