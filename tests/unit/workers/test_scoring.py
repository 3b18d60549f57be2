"""Finding the robot that a job names, and the row that a result becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from amp_core.errors import RobotRefused
from amp_core.robot import Robot
from workers.scoring import find_robot, new_rollout

TRILEG = Path(__file__).parents[2] / "robots" / "trileg" / "robot.yaml"


def test_a_bundled_robot_is_found_by_name() -> None:
    digest = Robot.load("wildrobot").digest
    assert find_robot("wildrobot", [], digest).digest == digest


def test_an_operators_robot_is_found_among_broken_files(tmp_path: Path) -> None:
    broken = tmp_path / "robot.yaml"
    broken.write_text("name: [")
    robot = Robot.load(TRILEG)
    assert find_robot(robot.name, [str(broken), str(tmp_path / "missing.yaml"), str(TRILEG)], robot.digest).name == robot.name


def test_a_robot_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(RobotRefused, match="no robot 'atlas' is installed on this worker; expected one of wildrobot"):
        find_robot("atlas", [], "sha256:0")


def test_a_robot_that_changed_since_the_upload_is_refused() -> None:
    with pytest.raises(RobotRefused, match="has changed since the clip was uploaded"):
        find_robot("wildrobot", [], "sha256:0")


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
        "provenance": {"gate_profile": "amp-0.11", "feature_code_hash": "sha256:f", "mujoco_version": "4.0.1"},
    }
    row = new_rollout(score, "sha256:a", 10)
    assert (row.tier, row.frames, row.arrays_digest, row.arrays_size) == (-1, 40, "sha256:a", 10)
    assert [(segment.start, segment.end, segment.tier) for segment in row.segments] == [(0, 30, 0)]
    assert row.result == score
