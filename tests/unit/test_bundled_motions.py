"""The bundled motions: readable, small, reproducible, and with the tiers that the docs claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amp_core.formats import read_motion
from amp_core.motion import Motion
from amp_core.motions import bundled_motions, reading_options
from amp_core.recipe import PhysicsScale, Recipe
from amp_core.robot import Robot
from amp_core.scoring import score

ROOT = Path(__file__).parents[2]
MOTIONS = bundled_motions()
DOCS = ROOT / "docs" / "robots.md"


def read(path: Path) -> Motion:
    return read_motion(path, name=path.stem, **reading_options(path))


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load("wildrobot")


def make_motions(out: Path) -> None:
    """Runs the generator as its docstring says."""
    command = [sys.executable, str(ROOT / "examples" / "make_motions.py"), "--out", str(out)]
    subprocess.run(command, check=True, cwd=out.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)


def documented_tiers() -> dict[str, int]:
    """File name -> tier, from the table of bundled motions in the docs."""
    names = {"Tier 0": 0, "Tier 1": 1, "Rejected": -1}
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (Tier 0|Tier 1|Rejected) \|", DOCS.read_text(), flags=re.MULTILINE)
    return {file: names[tier] for file, tier in rows}


def test_every_format_and_every_kind_of_verdict_is_shown() -> None:
    assert {path.suffix for path in MOTIONS} == {".npz", ".pkl", ".json", ".csv"}
    assert set(documented_tiers().values()) == {-1, 0, 1}


@pytest.mark.parametrize("path", MOTIONS, ids=lambda path: path.name)
def test_a_bundled_motion_is_small_readable_and_within_the_joints_limits(path: Path, robot: Robot) -> None:
    assert path.stat().st_size < 60_000
    motion = read(path)
    assert motion.dof_pos.shape == (len(motion.root_pos), len(robot.joint_names))
    assert 4.0 <= len(motion.root_pos) / motion.fps <= 8.1
    np.testing.assert_allclose(np.linalg.norm(motion.root_rot, axis=1), 1.0, atol=1e-4)
    low, high = robot.joint_range.T
    assert np.all(motion.dof_pos >= low - 1e-5)
    assert np.all(motion.dof_pos <= high + 1e-5)


def test_two_rates_and_both_quaternion_orders_are_among_them() -> None:
    assert {round(read(path).fps, 1) for path in MOTIONS} >= {33.3, 50.0}
    assert "wxyz" in {reading_options(path).get("quat_order") for path in MOTIONS}


def test_the_generator_writes_these_files(tmp_path: Path) -> None:
    make_motions(tmp_path / "first")
    make_motions(tmp_path / "second")

    made = sorted((tmp_path / "first").iterdir())
    assert [path.name for path in made] == [path.name for path in MOTIONS]
    for path in made:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    for bundled in MOTIONS:
        remade = read_motion(tmp_path / "first" / bundled.name, name=bundled.stem, **reading_options(bundled))
        kept = read(bundled)
        assert remade.fps == kept.fps
        # Another machine's libm may differ in the last digit that is written.
        for key in ("root_pos", "root_rot", "dof_pos"):
            np.testing.assert_allclose(getattr(remade, key), getattr(kept, key), atol=2e-5, err_msg=f"{bundled.name}: {key}")


def test_rollouts_reach_the_tiers_that_the_docs_name(robot: Robot) -> None:
    scores = score([read(path) for path in MOTIONS], robot, Recipe.for_mode("rollout"))
    assert {path.name: result.tier for path, result in zip(MOTIONS, scores, strict=True)} == documented_tiers()


@pytest.mark.parametrize(
    "physics",
    [PhysicsScale(friction=0.85, mass=1.03), PhysicsScale(friction=1.15, mass=0.97)],
    ids=["slippery and heavy", "grippy and light"],
)
def test_the_tiers_are_not_luck(robot: Robot, physics: PhysicsScale) -> None:
    scores = score([read(path) for path in MOTIONS], robot, Recipe.for_mode("rollout", physics=physics))
    assert {path.name: result.tier for path, result in zip(MOTIONS, scores, strict=True)} == documented_tiers()


def test_the_fallen_clip_is_rejected_for_its_fall(robot: Robot) -> None:
    path = next(path for path in MOTIONS if path.stem == "walk_long_stride")
    (result,) = score([read(path)], robot, Recipe.for_mode("rollout"))
    assert result.tier == -1
    assert result.quality_metrics["fell_at_frame"] is not None
