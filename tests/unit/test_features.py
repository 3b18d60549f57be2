"""Features: frames, layout, and the properties that a discriminator relies on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amp_core import features
from amp_core.features import FeatureLayout, body_to_world, extract, heading_direction, rotation_matrix, world_to_heading

unit = st.floats(-1, 1, allow_subnormal=False)
quaternions = (
    arrays(np.float64, 4, elements=unit).filter(lambda q: np.linalg.norm(q) > 0.05).map(lambda q: q / np.linalg.norm(q))
)
vectors = arrays(np.float64, 3, elements=st.floats(-10, 10, allow_subnormal=False))
angles = st.floats(-np.pi, np.pi)


def about_z(angle: float) -> np.ndarray:
    return np.array([0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)])


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product of two xyzw quaternions."""
    va, wa, vb, wb = a[:3], a[3], b[:3], b[3]
    return np.concatenate([wa * vb + wb * va + np.cross(va, vb), [wa * wb - va @ vb]])


def row(quat: np.ndarray, linear: np.ndarray, angular: np.ndarray) -> np.ndarray:
    return extract(
        joint_pos=np.zeros((1, 2)),
        joint_vel=np.zeros((1, 2)),
        root_rot=quat[None],
        root_lin_vel=linear[None],
        root_ang_vel=angular[None],
        root_height=np.array([0.4]),
        foot_contacts=np.ones((1, 2)),
    )[0]


def test_the_canonical_layout_of_wildrobot() -> None:
    joints = [f"j{i}" for i in range(8)]
    layout = FeatureLayout.for_robot(joints, ["left_toe", "left_heel", "right_toe", "right_heel"])
    assert layout.dim == 27
    assert [(b.name, b.start, b.stop) for b in layout.blocks] == [
        ("joint_pos", 0, 8),
        ("joint_vel", 8, 16),
        ("root_lin_vel", 16, 19),
        ("root_ang_vel", 19, 22),
        ("root_height", 22, 23),
        ("foot_contacts", 23, 27),
    ]
    assert len(layout.names) == len(set(layout.names)) == 27
    assert layout.names[9] == "joint_vel.j1"
    assert layout.names[-1] == "foot_contacts.right_heel"
    assert layout.block("root_ang_vel").slice == slice(19, 22)
    with pytest.raises(KeyError, match="root_height"):
        layout.block("height")


@given(st.integers(0, 40), st.integers(0, 8))
def test_the_blocks_cover_every_dimension_once(joints: int, channels: int) -> None:
    layout = FeatureLayout.for_robot([f"j{i}" for i in range(joints)], [f"c{i}" for i in range(channels)])
    covered = [i for block in layout.blocks for i in range(block.start, block.stop)]
    assert covered == list(range(layout.dim))
    assert layout.dim == 2 * joints + 7 + channels == len(layout.names) == layout.to_dict()["dim"]


def test_every_block_holds_what_it_says() -> None:
    rng = np.random.default_rng(0)
    rows, n, c = 5, 3, 2
    given_arrays = {
        "joint_pos": rng.normal(size=(rows, n)),
        "joint_vel": rng.normal(size=(rows, n)),
        "root_height": rng.normal(size=rows),
        "foot_contacts": rng.integers(0, 2, (rows, c)),
    }
    level = np.tile([0.0, 0.0, 0.0, 1.0], (rows, 1))
    linear, angular = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3))
    found = extract(root_rot=level, root_lin_vel=linear, root_ang_vel=angular, **given_arrays)
    layout = FeatureLayout.for_robot("abc", "xy")
    assert found.shape == (rows, layout.dim)
    assert found.dtype == np.float32
    expected = {**given_arrays, "root_lin_vel": linear, "root_ang_vel": angular}
    for block in layout.blocks:
        np.testing.assert_array_equal(
            found[:, block.slice], np.asarray(expected[block.name], dtype=np.float32).reshape(rows, block.size)
        )


@given(quaternions, vectors, vectors, angles)
def test_turning_the_world_changes_nothing(quat: np.ndarray, linear: np.ndarray, angular: np.ndarray, yaw: float) -> None:
    assume(np.hypot(*rotation_matrix(quat)[:2, 0]) > 1e-3)
    turn = about_z(yaw)
    turned = row(product(turn, quat), body_to_world(turn, linear), body_to_world(turn, angular))
    np.testing.assert_allclose(turned, row(quat, linear, angular), atol=2e-5)


@given(quaternions, vectors, vectors)
def test_the_sign_of_a_quaternion_changes_no_bit(quat: np.ndarray, linear: np.ndarray, angular: np.ndarray) -> None:
    np.testing.assert_array_equal(row(quat, linear, angular), row(-quat, linear, angular))
    np.testing.assert_array_equal(body_to_world(quat, angular), body_to_world(-quat, angular))


@given(quaternions, vectors)
def test_heading_keeps_lengths_and_the_vertical(quat: np.ndarray, vector: np.ndarray) -> None:
    turned = world_to_heading(quat, vector)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(vector), abs=1e-9)
    assert turned[2] == vector[2]
    assert np.linalg.norm(body_to_world(quat, vector)) == pytest.approx(np.linalg.norm(vector), abs=1e-9)


def test_heading_of_a_turned_robot() -> None:
    # It faces +y, and moves along +y: that is forward.
    np.testing.assert_allclose(heading_direction(about_z(np.pi / 2)), [0, 1], atol=1e-12)
    np.testing.assert_allclose(world_to_heading(about_z(np.pi / 2), [0.0, 2.0, 0.5]), [2.0, 0.0, 0.5], atol=1e-12)


@pytest.mark.parametrize("nose", [-1.0, 1.0])
@given(yaw=angles, speed=vectors)
def test_a_vertical_body_still_has_a_heading(nose: float, yaw: float, speed: np.ndarray) -> None:
    pitched = np.array([0.0, nose * np.sin(np.pi / 4), 0.0, np.cos(np.pi / 4)])
    direction = heading_direction(product(about_z(yaw), pitched))
    np.testing.assert_allclose(direction, [np.cos(yaw), np.sin(yaw)], atol=1e-6)
    assert np.isfinite(world_to_heading(product(about_z(yaw), pitched), speed)).all()


@given(quaternions, vectors)
def test_a_length_is_no_part_of_a_rotation(quat: np.ndarray, vector: np.ndarray) -> None:
    np.testing.assert_allclose(body_to_world(3 * quat, vector), body_to_world(quat, vector), atol=1e-12)


def test_body_and_world_rates_differ_as_soon_as_the_body_leans() -> None:
    """A body on its side that spins about its own z axis turns about the world's −y or +y, never about z."""
    on_its_side = np.array([np.sin(np.pi / 4), 0.0, 0.0, np.cos(np.pi / 4)])
    np.testing.assert_allclose(body_to_world(on_its_side, [0.0, 0.0, 1.0]), [0.0, -1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("name", ["joint_vel", "root_rot", "root_lin_vel", "root_ang_vel", "root_height", "foot_contacts"])
def test_shapes_that_do_not_fit_are_named(name: str) -> None:
    good = {
        "joint_pos": np.zeros((4, 2)),
        "joint_vel": np.zeros((4, 2)),
        "root_rot": np.tile([0.0, 0, 0, 1], (4, 1)),
        "root_lin_vel": np.zeros((4, 3)),
        "root_ang_vel": np.zeros((4, 3)),
        "root_height": np.zeros(4),
        "foot_contacts": np.zeros((4, 2)),
    }
    assert extract(**good).shape == (4, 13)
    with pytest.raises(ValueError, match=name):
        extract(**{**good, name: good[name][:3]})


def test_the_code_hash_is_of_the_source_whatever_its_line_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Path(features.__file__).read_bytes()
    expected = features.feature_code_hash()
    assert expected == "sha256:" + hashlib.sha256(source).hexdigest()
    for i, variant in enumerate((source.replace(b"\n", b"\r\n"), source.replace(b"\n", b"\r"))):
        copy = tmp_path / f"features{i}.py"
        copy.write_bytes(variant)
        monkeypatch.setattr(features, "__file__", str(copy))
        assert features.feature_code_hash() == expected
    (tmp_path / "other.py").write_bytes(source + b"\n")
    monkeypatch.setattr(features, "__file__", str(tmp_path / "other.py"))
    assert features.feature_code_hash() != expected


def test_a_training_node_needs_no_physics_to_import_it() -> None:
    code = "import sys, amp_core.features as f; f.feature_code_hash(); sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(features.__file__).parents[1]).returncode == 0
