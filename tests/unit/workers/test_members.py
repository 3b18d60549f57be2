"""The gate before the lock, on members that differ in one thing at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from amp_core.errors import Conflict, FeatureCodeMismatch, IntegrityError
from amp_core.features import feature_code_hash
from amp_core.metrics import METRICS
from amp_core.robot import Robot
from amp_core.version import GENERATOR_VERSION
from ampref_workers.members import CHECKS, check_members
from ampref_workers.protocol import Member


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def member(folder: Path, name: str, **changes: Any) -> Member:
    path = folder / name
    path.write_bytes(name.encode())
    metrics: dict[str, Any] = dict.fromkeys((metric.name for metric in METRICS), 0.0)
    metrics |= {"mean_sum_fn_over_mg": 1.0, "contact_rate": 0.6, "height_std": 0.01, "height_min": 0.44, "height_max": 0.46}
    values = {
        "name": name,
        "path": str(path),
        "arrays_digest": "sha256:" + hashlib.sha256(name.encode()).hexdigest(),
        "robot_digest": "sha256:r",
        "mujoco_version": "4.0.1",
        "gate_profile": "amp-0.11",
        "generator_version": GENERATOR_VERSION,
        "feature_code_hash": feature_code_hash(),
        "mode": "rollout",
        "tier": 0,
        "metrics": metrics | {"finite_frame_rate": 1.0},
        "source_digest": "sha256:s",
        "recipe_digest": "sha256:c",
    }
    return Member(**(values | changes))


def test_good_members_pass_every_check(tmp_path: Path, robot: Robot) -> None:
    told: list[float] = []
    report = check_members([member(tmp_path, "a"), member(tmp_path, "b")], robot, told.append)
    assert [check["name"] for check in report["checks"]] == ["one_origin", "feature_code_hash", "tier", "arrays"]
    assert all(check["passed"] and check["members"] == 2 for check in report["checks"])
    assert len(report["checks"]) == len(CHECKS)
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"robot_digest": "sha256:other"}, Conflict, "robot_digest is not the same for all"),
        ({"mujoco_version": "4.1.0"}, Conflict, "mujoco_version"),
        ({"generator_version": "0.10.0"}, Conflict, "clip 'b' was made by generator 0.10.0"),
        ({"feature_code_hash": "sha256:old"}, FeatureCodeMismatch, "clip 'b' has features of other code"),
        ({"tier": 1}, Conflict, "clip 'b' is stored as tier 1, but its metrics give 0"),
        ({"mode": "teacher_forced"}, Conflict, "clip 'b' is stored as tier 0, but its metrics give 1"),
        ({"arrays_digest": "sha256:0"}, IntegrityError, "the arrays of clip 'b' have another digest"),
        ({"path": "/nowhere/at/all"}, IntegrityError, "the arrays of clip 'b' cannot be read"),
    ],
)
def test_a_member_that_is_not_as_it_was_scored_is_named(
    tmp_path: Path, robot: Robot, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match="the gate before the lock found 1 problem: ") as caught:
        check_members([member(tmp_path, "a"), member(tmp_path, "b", **change)], robot)
    assert said in str(caught.value)


def test_every_problem_is_counted_and_the_first_are_named(tmp_path: Path, robot: Robot) -> None:
    members = [member(tmp_path, f"m{number}", tier=1) for number in range(8)]
    with pytest.raises(Conflict, match=r"found 8 problems: .*'m4'.*; and 3 more"):
        check_members(members, robot)
