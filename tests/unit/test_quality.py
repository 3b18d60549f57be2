"""Metrics: each one against a case whose answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from amp_core.metrics import METRICS
from amp_core.quality import FrameSeries, contact_warnings, measure, sides
from amp_core.robot import Foot, Robot
from amp_core.rotations import pitch_roll_tilt, to_xyzw


def series(n: int = 10, **changed: Any) -> FrameSeries:
    plain: dict[str, Any] = {
        "load": np.ones(n),
        "stab": np.zeros(n),
        "height": np.full(n, 0.45),
        "pitch": np.zeros(n),
        "roll": np.zeros(n),
        "tilt": np.zeros(n),
        "feet": np.ones((n, 2), dtype=bool),
        "nonfoot": np.zeros(n, dtype=bool),
        "nonfoot_excess": np.zeros(n, dtype=bool),
        "standing": np.full(n, 2),
        "slipping": np.zeros(n, dtype=int),
        "saturation": np.zeros(n),
        **{
            name: np.zeros(n)
            for name in (
                "joint_error",
                "joint_error_raw",
                "body_error",
                "body_error_global",
                "heading_error",
                "tilt_error",
                "height_error",
                "drift",
                "travel",
                "clip_travel",
                "clip_push",
                "clip_pitch",
                "clip_roll",
                "clip_tilt",
                "clip_slide",
                "clip_ground",
            )
        },
        "chord": 5,
        "clip_feet": np.ones((n, 2), dtype=bool),
        "clip_height": np.full(n, 0.45),
        "clip_flight": np.zeros(n, dtype=bool),
        "clip_still": np.zeros(n, dtype=bool),
        "left": (0,),
        "right": (1,),
        "height_range": (0.35, 0.55),
        "dt": 0.1,
        "clip_frames": n,
        "solver_warnings": 0,
        "contact_middle": 0.625,
    }
    return FrameSeries(**{**plain, **changed})


def test_measure_gives_exactly_the_metrics_of_the_table() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for rows in (series(), series(0)):
        assert list(measure(rows)) == names
    for name, value in measure(series()).items():
        kind = next(metric.type for metric in METRICS if metric.name == name)
        assert value is None or type(value) is kind, name


def test_loads() -> None:
    found = measure(series(load=np.array([1.0, 1.0, 0.5, 0.6, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0])))
    assert found["mean_sum_fn_over_mg"] == pytest.approx(0.93)
    assert found["unloaded_frame_rate"] == 0.1  # 0.6 itself is loaded
    assert found["p10_sum_fn_over_mg"] == pytest.approx(np.percentile([1, 1, 0.5, 0.6, 1.2, 1, 1, 1, 1, 1], 10))


def test_feet() -> None:
    left = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    right = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], dtype=bool)
    found = measure(series(feet=np.stack([left, right], axis=1)))
    assert found["left_foot_contact_rate"] == 0.4
    assert found["right_foot_contact_rate"] == 0.6
    assert found["both_feet_contact_rate"] == 0.1
    assert found["no_feet_contact_rate"] == 0.1
    assert found["contact_rate"] == 0.4  # 0.4 is further from the middle, 0.625, than 0.6


def test_a_hop_on_one_leg_does_not_hide_behind_the_other() -> None:
    one_leg = np.stack([np.arange(20) % 2 == 0, np.zeros(20, dtype=bool)], axis=1)
    assert measure(series(20, feet=one_leg))["contact_rate"] == 0.0


def test_four_feet_have_no_left_and_right() -> None:
    four = np.zeros((10, 4), dtype=bool)
    four[:5] = True
    four[5:, 0] = True
    found = measure(series(feet=four, clip_feet=four, left=(), right=()))
    assert found["left_foot_contact_rate"] is None
    assert found["right_foot_contact_rate"] is None
    assert found["both_feet_contact_rate"] == 0.5
    assert found["no_feet_contact_rate"] == 0.0
    assert found["contact_rate"] == 1.0


def test_height_and_posture() -> None:
    height = 0.45 + 0.01 * np.array([-1, 1] * 5)
    found = measure(series(height=height, tilt=np.linspace(0, 20, 10), pitch=np.linspace(0, 10, 10)))
    assert found["height_std"] == pytest.approx(0.01)
    assert found["height_variance"] == pytest.approx(1e-4)
    assert (found["height_min"], found["height_max"]) == (pytest.approx(0.44), pytest.approx(0.46))
    assert found["max_tilt_deg"] == 20
    assert found["p95_pitch_deg"] == pytest.approx(9.5)
    assert found["fell_at_frame"] is None


@pytest.mark.parametrize(
    ("changed", "frame"),
    [({"tilt": np.array([0, 0, 60.0, 60.1] + [0] * 6)}, 3), ({"height": np.array([0.45] * 5 + [0.34] * 5)}, 5)],
)
def test_the_frame_of_a_fall(changed: dict[str, Any], frame: int) -> None:
    assert measure(series(**changed))["fell_at_frame"] == frame


def test_shares() -> None:
    found = measure(
        series(
            nonfoot=np.arange(10) < 2,
            standing=np.array([2] * 5 + [0] * 5),
            slipping=np.array([1, 2, 0, 0, 0] + [0] * 5),
            saturation=np.array([0.5] * 4 + [0.0] * 6),
            joint_error=np.full(10, 0.04),
            drift=np.array([0, 0.1, 0.3, 0.2, 0, 0, 0, 0, 0, 0]),
        )
    )
    assert found["nonfoot_contact_rate"] == 0.2
    assert found["slip_rate"] == 0.3
    assert found["actuator_saturation_rate"] == pytest.approx(0.2)
    assert found["joint_rmse_rad"] == pytest.approx(0.2)
    assert found["root_drift_m"] == 0.3
    assert measure(series(standing=np.zeros(10, dtype=int)))["slip_rate"] is None


def test_a_failed_simulation_counts_against_the_clip_not_against_a_window_before_it() -> None:
    failed = series(10, clip_frames=40, solver_warnings=3)
    whole, window = measure(failed), measure(failed, 0, 10)
    assert (whole["finite_frame_rate"], whole["solver_warnings"]) == (0.25, 3.0)
    assert (window["finite_frame_rate"], window["solver_warnings"]) == (1.0, 0.0)


def test_nothing_simulated_has_no_values() -> None:
    found = measure(series(0, clip_frames=30, solver_warnings=1))
    assert found["finite_frame_rate"] == 0.0
    assert found["solver_warnings"] == 1.0
    assert all(value is None for name, value in found.items() if name not in ("finite_frame_rate", "solver_warnings"))


def test_a_window_is_its_rows() -> None:
    rng = np.random.default_rng(3)
    long = series(50, load=rng.uniform(0, 2, 50), height=rng.uniform(0.4, 0.5, 50), drift=rng.uniform(0, 1, 50))
    short = series(20, load=long.load[12:32], height=long.height[12:32], drift=long.drift[12:32])
    assert measure(long, 12, 32) == measure(short)


@pytest.mark.parametrize(
    ("quat", "pitch", "roll", "tilt"),
    [
        ((1, 0, 0, 0), 0, 0, 0),
        ((np.cos(0.2), 0, np.sin(0.2), 0), 0.4, 0, 0.4),
        ((np.cos(0.2), np.sin(0.2), 0, 0), 0, 0.4, 0.4),
        ((np.cos(1.0), 0, 0, np.sin(1.0)), 0, 0, 0),
        ((0, 1, 0, 0), 0, np.pi, np.pi),
    ],
)
def test_angles(quat: tuple[float, ...], pitch: float, roll: float, tilt: float) -> None:
    found = pitch_roll_tilt(to_xyzw(np.array([quat], dtype=float)))
    np.testing.assert_allclose([abs(angle[0]) for angle in found], [pitch, roll, tilt], atol=1e-7)


def robot_with(channels: tuple[str, ...], feet: list[tuple[int, ...]]) -> Robot:
    wildrobot = Robot.load("wildrobot")
    return dataclasses.replace(
        wildrobot,
        channels=channels,
        feet=tuple(Foot(name=f"foot{i}", channels=own, body=i, bodies=(i,), geoms=()) for i, own in enumerate(feet)),
    )


def test_sides_come_from_the_channels_names() -> None:
    assert sides(Robot.load("wildrobot")) == ((0,), (1,))
    assert sides(robot_with(("R_sole", "L_sole"), [(0,), (1,)])) == ((1,), (0,))
    assert sides(robot_with(("front_left", "front_right"), [(0,), (1,)])) == ((), ())
    assert sides(robot_with(("left_toe", "tail"), [(0,), (1,)])) == ((), ())


def test_the_seeds_contact_warnings() -> None:
    robot = Robot.load("wildrobot")
    contacts = np.zeros((100, 4), dtype=np.float32)
    contacts[:, 0] = 1  # left toe always, left heel never
    contacts[:81, 2] = 1
    contacts[:50, 3] = 1
    found = contact_warnings(contacts, robot)
    assert [(w["kind"], w["channel"]) for w in found] == [
        ("always_on", "left_toe"),
        ("always_off", "left_heel"),
        ("all_feet_grounded", None),
    ]
    assert found[2]["rate"] == 0.81
    contacts[80, 2] = 0
    contacts[:5, 0] = 0
    contacts[:5, 1] = 1
    assert contact_warnings(contacts, robot) == []
    assert contact_warnings(contacts[:0], robot) == []


def test_contact_agreement_counts_pairs() -> None:
    assert measure(series())["contact_agreement"] == 1.0
    clip_feet = np.ones((10, 2), dtype=bool)
    clip_feet[5:9, 0] = False
    clip_feet[9] = False
    found = series(clip_feet=clip_feet)
    assert measure(found)["contact_agreement"] == 14 / 20
    assert measure(found, 5, 10)["contact_agreement"] == 4 / 10
    assert measure(found)["contact_rate_error"] == 0.5
    assert measure(series(0))["contact_agreement"] is None
