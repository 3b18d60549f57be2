"""Rotations: against MuJoCo's own functions."""

import math

import numpy as np
import pytest

from amp_core import rotations
from amp_core.engine import mujoco
from amp_core.rotations import to_wxyz, to_xyzw


def random_rotations(count: int = 50) -> np.ndarray:
    quat = np.random.default_rng(0).standard_normal((count, 4))
    return quat / np.linalg.norm(quat, axis=1, keepdims=True)


def matrix(quat: np.ndarray) -> np.ndarray:
    """MuJoCo's rotation matrix of a quaternion xyzw."""
    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, to_wxyz(quat))
    return out.reshape(3, 3)


def test_orders_are_each_others_inverse() -> None:
    np.testing.assert_array_equal(to_wxyz(np.array([1.0, 2.0, 3.0, 4.0])), [4.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(to_xyzw(to_wxyz(random_rotations())), random_rotations())


def test_the_rotation_vector_is_mujocos_difference() -> None:
    for start, end in zip(random_rotations(), random_rotations()[::-1], strict=True):
        expected = np.zeros(3)
        mujoco.mju_subQuat(expected, to_wxyz(end), to_wxyz(start))
        np.testing.assert_allclose(rotations.rotation_vector(start, end), expected, atol=1e-12)
        np.testing.assert_allclose(rotations.rotation_vector(start, -end), expected, atol=1e-12)
        np.testing.assert_allclose(rotations.angular_velocity(start, end, 0.02), expected / 0.02, atol=1e-10)
        np.testing.assert_allclose(rotations.angle_between(start, end), np.linalg.norm(expected), atol=1e-12)
    still = np.array([0.0, 0.0, 0.0, 1.0])
    assert not rotations.rotation_vector(still, still).any()
    assert not rotations.angular_velocity(still, still, 0.02).any()


def test_axes_are_the_columns_of_mujocos_matrix() -> None:
    for quat in random_rotations():
        np.testing.assert_allclose(rotations.x_axis(quat), matrix(quat)[:, 0], atol=1e-12)
        np.testing.assert_allclose(rotations.z_axis(quat), matrix(quat)[:, 2], atol=1e-12)
        np.testing.assert_allclose(rotations.up_in_body(quat), matrix(quat)[2], atol=1e-12)


def test_tilt_is_the_angle_of_the_z_axis_at_any_length() -> None:
    quats = random_rotations()
    expected = np.arccos([matrix(quat)[2, 2] for quat in quats])
    np.testing.assert_allclose(rotations.tilt(3.0 * quats), expected, atol=1e-7)
    np.testing.assert_allclose(rotations.pitch_roll_tilt(quats)[2], expected, atol=1e-7)


def test_pitch_and_roll_of_a_frame_are_those_of_the_table() -> None:
    pitch, roll, _ = rotations.pitch_roll_tilt(random_rotations())
    rows = [rotations.pitch_roll_of_frame(to_wxyz(quat).tolist()) for quat in random_rotations()]
    np.testing.assert_allclose(rows, np.stack([pitch, roll], axis=1), atol=1e-12)


@pytest.mark.parametrize("angle", [0.3, -2.0, math.pi / 2])
def test_a_turn_about_the_vertical(angle: float) -> None:
    quats = random_rotations()
    rotated = rotations.rotate_yaw(quats, angle)
    change = np.angle(np.exp(1j * (rotations.yaw(rotated) - rotations.yaw(quats) - angle)))
    np.testing.assert_allclose(change, 0.0, atol=1e-9)
    np.testing.assert_allclose(rotations.tilt(rotated), rotations.tilt(quats), atol=1e-7)
    np.testing.assert_allclose(
        rotations.x_axis(rotated), rotations.rotate_about_vertical(rotations.x_axis(quats), angle), atol=1e-12
    )
    # The heading frame turns along.
    np.testing.assert_allclose(
        rotations.world_to_heading(rotations.yaw(rotated), rotations.x_axis(rotated)),
        rotations.world_to_heading(rotations.yaw(quats), rotations.x_axis(quats)),
        atol=1e-9,
    )


def test_four_quarter_turns_come_back_exactly() -> None:
    points = centred = np.random.default_rng(1).standard_normal((20, 3)).round(3)
    for _ in range(4):
        centred = rotations.rotate_about_vertical(centred, math.pi / 2)
    np.testing.assert_array_equal(centred, points)


def test_interpolation_meets_both_ends_and_keeps_the_rate() -> None:
    start = np.tile([0.0, 0.0, 0.0, 1.0], (3, 1))
    end = rotations.rotate_yaw(start, 1.0)
    part = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(rotations.yaw(rotations.slerp(start, end, part)), part, atol=1e-12)
    np.testing.assert_allclose(rotations.yaw(rotations.nlerp(start, -end, part[:, None]))[[0, 2]], [0.0, 1.0], atol=1e-12)


def test_signs_are_aligned_with_the_first_frame() -> None:
    path = rotations.rotate_yaw(np.tile([0.0, 0.0, 0.0, -1.0], (5, 1)), 0.1)
    aligned, changed = rotations.align_signs(path * np.array([1.0, -1.0, -1.0, 1.0, -1.0])[:, None])
    np.testing.assert_array_equal(aligned, path)
    assert changed == 3


def test_a_mirrored_rotation_turns_mirrored_vectors() -> None:
    reflect = np.diag([1.0, -1.0, 1.0])
    for quat in random_rotations():
        np.testing.assert_allclose(matrix(rotations.mirror_y(quat)), reflect @ matrix(quat) @ reflect, atol=1e-12)
