"""The gate before the lock, on members that differ in one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amp_core import admission
from amp_core.admission import CHECKS
from amp_core.dataset.candidate import Candidate
from amp_core.digests import digest_of_file
from amp_core.errors import Conflict, FeatureCodeMismatch, IntegrityError
from amp_core.features import feature_code_hash
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import Score, score
from amp_core.version import GENERATOR_VERSION

Make = Callable[..., Candidate]


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


@pytest.fixture(scope="module")
def stand(robot: Robot) -> Score:
    path = next(path for path in bundled_motions() if path.stem == "walk")
    motion = read_motion(path, name="walk", **reading_options(path))
    return score([motion], robot, Recipe.for_mode("rollout"))[0]


@pytest.fixture
def member(tmp_path: Path, stand: Score) -> Make:
    def make(name: str, **changes: Any) -> Candidate:
        path = tmp_path / f"{name}.npz"
        stand.export(path)
        values = {
            "name": name,
            "path": str(path),
            "arrays_digest": digest_of_file(path),
            "robot_digest": "sha256:r",
            "mujoco_version": "4.0.1",
            "gate_profile": stand.rollout.recipe.gate_profile,
            "generator_version": GENERATOR_VERSION,
            "feature_code_hash": feature_code_hash(),
            "mode": "rollout",
            "tier": int(stand.tier),
            "metrics": stand.quality_metrics,
            "ranges": ((0, stand.frames, changes.get("tier", int(stand.tier))),),
            "range_metrics": (stand.quality_metrics,),
            "source_digest": "sha256:s",
            "recipe_digest": "sha256:c",
        }
        return Candidate(**(values | changes))

    return make


check_candidates = partial(admission.check_candidates, remedy="Score it again")


def test_good_members_pass_every_check(member: Make, robot: Robot) -> None:
    told: list[float] = []
    report = check_candidates([member("a"), member("b")], robot, told.append)
    assert [check["name"] for check in report["checks"]] == ["one_origin", "feature_code_hash", "tier", "arrays", "metrics"]
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
    member: Make, robot: Robot, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match="the gate before the lock found 1 problem: ") as caught:
        check_candidates([member("a"), member("b", **change)], robot)
    assert said in str(caught.value)
    assert caught.value.remedy == "Score it again"


def test_every_problem_is_counted_and_the_first_are_named(member: Make, robot: Robot) -> None:
    members = [member(f"m{number}", tier=1) for number in range(8)]
    with pytest.raises(Conflict, match=r"found 8 problems: .*'m4'.*; and 3 more"):
        check_candidates(members, robot)


@pytest.mark.parametrize(
    ("metric", "value"), [("slip_rate", 0.0), ("mean_sum_fn_over_mg", 1.01), ("fell_at_frame", 3), ("joint_rmse_rad", None)]
)
def test_a_metric_that_was_changed_after_it_was_measured_is_named(
    member: Make, robot: Robot, stand: Score, metric: str, value: float | None
) -> None:
    """Each of these values passes every gate, so that no check but the measurement notices it."""
    falsified = member("b", metrics={**stand.quality_metrics, metric: value})
    with pytest.raises(IntegrityError, match=f"clip 'b' has other metrics than its arrays give .{metric} {value}") as refused:
        check_candidates([member("a"), falsified], robot)
    assert refused.value.key == "metrics"


def test_the_metrics_of_a_sampling_weight_are_measured_again(member: Make, robot: Robot, stand: Score) -> None:
    falsified = member("b", range_metrics=({**stand.quality_metrics, "slip_rate": 0.0},))
    with pytest.raises(IntegrityError, match=r"slip_rate 0.0 for .* of frames 0 to 400"):
        check_candidates([falsified], robot)


def test_a_window_must_have_earned_its_tier(member: Make, robot: Robot) -> None:
    """Ten frames of a walk in which one foot never leaves the ground."""
    with pytest.raises(IntegrityError, match="frames 0 to 10 are stored as tier 0 and give"):
        check_candidates([member("b", ranges=((0, 10, 0),), range_metrics=())], robot)
    with pytest.raises(IntegrityError, match="frames 0 to 900 are taken of 400"):
        check_candidates([member("b", ranges=((0, 900, 0),), range_metrics=())], robot)
