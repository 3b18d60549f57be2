"""The scene of a robot: what it draws, and that its kinematics are MuJoCo's."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from amp_core.robot import Robot
from amp_core.scene import build_scene, merge_vertices, write_scene

TRILEG = Path(__file__).parents[1] / "robots" / "trileg"


def make_robot(folder: Path, world: str = "", trunk: str = "", assets: str = "") -> Robot:
    """The test robot with more in its model."""
    shutil.copytree(TRILEG, folder, dirs_exist_ok=True)
    text = (folder / "trileg.xml").read_text()
    text = text.replace("<worldbody>", f"<asset>{assets}</asset><worldbody>{world}", 1)
    text = text.replace('<freejoint name="base"/>', f'<freejoint name="base"/>{trunk}', 1)
    (folder / "trileg.xml").write_text(text)
    with open(folder / "robot.yaml", "a") as spec:
        spec.write("ground_geom: table\n")
    return Robot.load(folder)


def read_meta(scene: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(bytes(scene["meta"])))


def multiply(a: Any, b: Any) -> Any:
    result = np.empty(4)
    mujoco.mju_mulQuat(result, a, b)
    return result


def place_bodies(scene: dict[str, Any], qpos: Any) -> tuple[Any, Any]:
    """The forward kinematics that a browser does: (B, 3) and (B, 4) wxyz, from nothing but the scene."""

    def turn(quat: Any, vector: Any) -> Any:
        result = np.empty(3)
        mujoco.mju_rotVecQuat(result, np.asarray(vector, float), np.asarray(quat, float))
        return result

    places, quats = np.zeros((2, len(scene["body_parent"]), 4))
    places = places[:, :3]
    quats[0, 0] = 1
    for body in range(1, len(places)):
        parent = scene["body_parent"][body]
        place = places[parent] + turn(quats[parent], scene["body_pos"][body])
        quat = multiply(quats[parent], scene["body_quat"][body].astype(float))
        for joint in np.flatnonzero(scene["joint_body"] == body):
            first = scene["joint_qpos"][joint]
            if scene["joint_type"][joint] == 0:
                place, quat = qpos[first : first + 3], qpos[first + 3 : first + 7]
                continue
            assert scene["joint_type"][joint] == 3
            anchor = place + turn(quat, scene["joint_pos"][joint])
            angle, axis = qpos[first] - scene["qpos0"][first], scene["joint_axis"][joint].astype(float)
            quat = multiply(quat, np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)]))
            place = anchor - turn(quat, scene["joint_pos"][joint])
        places[body], quats[body] = place, quat
    return places, quats


@pytest.mark.parametrize("source", ["wildrobot", TRILEG])
def test_forward_kinematics_from_the_scene_are_those_of_mujoco(source: Any) -> None:
    robot = Robot.load(source)
    scene, data = build_scene(robot), mujoco.MjData(robot.model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        data.qpos[:] = rng.normal(size=robot.model.nq)
        data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
        mujoco.mj_kinematics(robot.model, data)
        places, quats = place_bodies(scene, data.qpos)
        np.testing.assert_allclose(places, data.xpos, atol=1e-6)
        np.testing.assert_allclose(np.abs((quats * data.xquat).sum(axis=1)), 1, atol=1e-6)


def test_what_a_browser_needs_to_know_of_the_robot() -> None:
    robot = Robot.load(TRILEG)
    scene = build_scene(robot)
    meta = read_meta(scene)
    assert meta["format"] == "ampref-scene/1"
    assert (meta["robot"], meta["digest"], meta["control_dt"]) == ("trileg", robot.digest, 0.01)
    assert meta["joints"] == ["hip_l", "knee_l", "ankle_l", "hip_r", "knee_r", "ankle_r"]
    assert (meta["joint_range"][0], meta["force_limit"], meta["channels"]) == ([-0.5, 1.2], [20.0] * 6, ["left", "right"])
    assert meta["bodies"][:3] == ["world", "trunk", "thigh_r"]
    assert meta["height"] == 0.52
    assert 0.5 < meta["radius"] < 0.7
    assert meta["weight_n"] == pytest.approx(meta["mass_kg"] * 9.81)
    # The clip's joints come in another order than the model's.
    np.testing.assert_array_equal(scene["joint_adr"], robot.qpos_adr)
    np.testing.assert_array_equal(scene["joint_actuator"], [2, 1, 0, 3, 4, 5])
    # The sole of a box is its own corners, in the frame of the foot.
    left = scene["sole_channel"] == 0
    assert {meta["bodies"][body] for body in scene["sole_body"][left]} == {"foot_l"}
    np.testing.assert_allclose(scene["sole_point"][left].min(axis=0), [-0.06, -0.05, -0.04], atol=1e-6)
    np.testing.assert_allclose(scene["sole_point"][left].max(axis=0), [0.12, 0.05, -0.02], atol=1e-6)


def test_a_limit_that_is_not_there_is_null(tmp_path: Path) -> None:
    shutil.copytree(TRILEG, tmp_path, dirs_exist_ok=True)
    defaults = tmp_path / "parts" / "defaults.xml"
    defaults.write_text(defaults.read_text().replace(' forcerange="-20 20"', ""))
    model = tmp_path / "trileg.xml"
    text = model.read_text().replace('range="0 1.6"/>', 'actuatorfrcrange="-7 5"/>', 1)
    model.write_text(text)
    meta = read_meta(build_scene(Robot.load(tmp_path)))
    assert meta["force_limit"] == [None, None, None, None, 7.0, None]
    assert meta["joint_range"][4] is None
    assert meta["joint_range"][1] == [0.0, 1.6]


def test_the_same_robot_is_the_same_bytes_of_an_npz_without_pickle() -> None:
    data = write_scene(Robot.load("wildrobot"))
    assert data == write_scene(Robot.load("wildrobot"))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert len(arrays["geom_body"]) == 20


# What is drawn


def test_the_floor_and_what_the_viewer_hides_are_left_out(tmp_path: Path) -> None:
    robot = make_robot(
        tmp_path,
        trunk='<geom name="hull" type="sphere" size="0.3" group="3" mass="0"/>'
        '<geom name="ghost" type="sphere" size="0.2" rgba="1 0 0 0" mass="0"/>'
        '<geom name="hat" type="sphere" size="0.1" material="red" mass="0"/>'
        '<geom name="scarf" type="sphere" size="0.1" material="red" rgba="0 1 0 1" mass="0"/>',
        assets='<material name="red" rgba="0.9 0.1 0.1 0.5"/>',
    )
    scene = build_scene(robot)
    names = [mujoco.mjtGeom(kind).name for kind in scene["geom_type"]]
    assert names.count("mjGEOM_SPHERE") == 2
    assert "mjGEOM_PLANE" not in names
    hat, scarf = scene["geom_rgba"][scene["geom_type"] == mujoco.mjtGeom.mjGEOM_SPHERE]
    np.testing.assert_allclose(hat, [0.9, 0.1, 0.1, 0.5])
    np.testing.assert_allclose(scarf, [0, 1, 0, 1])


def test_a_robot_without_visible_geoms_is_drawn_by_those_that_collide(tmp_path: Path) -> None:
    shutil.copytree(TRILEG, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "trileg.xml"
    text = model.read_text()
    for name in ("trunk", "thigh_r", "shin_r", "sole_r", "thigh_l", "shin_l", "sole_l"):
        text = text.replace(f'<geom name="{name}"', f'<geom name="{name}" group="3" rgba="0 1 0 0.2"')
    model.write_text(text)
    scene = build_scene(Robot.load(tmp_path))
    assert len(scene["geom_body"]) == 7
    np.testing.assert_array_equal(scene["geom_rgba"], np.tile(np.array([0, 1, 0, 1], np.float32), (7, 1)))


def test_a_terrain_is_a_mesh_and_a_wall_a_thin_box(tmp_path: Path) -> None:
    robot = make_robot(
        tmp_path,
        world='<geom name="hills" type="hfield" hfield="hills" pos="4 0 0"/>'
        '<geom name="wall" type="plane" size="0 1.5 1" zaxis="1 0 0" pos="-5 0 0"/>'
        '<geom name="step" type="box" size="0.2 0.2 0.05" pos="2 0 0.05"/>',
        assets='<hfield name="hills" nrow="2" ncol="3" size="2 1 0.4 0.1" elevation="0 0 0.5  0 1 0"/>',
    )
    scene = build_scene(robot)
    kinds = {mujoco.mjtGeom(kind).name for kind in scene["geom_type"]}
    assert kinds == {"mjGEOM_MESH", "mjGEOM_BOX", "mjGEOM_CAPSULE"}
    assert len(scene["geom_body"]) == 10
    [terrain] = np.flatnonzero(scene["geom_type"] == mujoco.mjtGeom.mjGEOM_MESH)
    assert scene["geom_mesh"][terrain] == 0
    assert set(scene["geom_mesh"].tolist()) == {0, -1}
    wall = np.flatnonzero(np.isclose(scene["geom_size"][:, 1], 1.5))
    np.testing.assert_allclose(scene["geom_size"][wall], [[20, 1.5, 0.001]])
    low, high = scene["mesh_low"][0], scene["mesh_high"][0]
    points = low + scene["vertices"] / 65535 * (high - low)
    np.testing.assert_allclose(points.min(axis=0), [-2, -1, 0], atol=1e-4)
    np.testing.assert_allclose(points.max(axis=0), [2, 1, 0.4], atol=1e-4)
    # Every face is seen from above.
    a, b, c = points[scene["faces"]].swapaxes(0, 1)
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()
    assert scene["mesh_vertex"].tolist() == [0, 6]
    assert scene["mesh_face"].tolist() == [0, 4]


def test_a_mesh_that_two_geoms_share_is_sent_once_and_another_not_at_all(tmp_path: Path) -> None:
    box = "0 0 0  0.1 0 0  0 0.1 0  0 0 0.1"
    robot = make_robot(
        tmp_path,
        trunk='<geom type="mesh" mesh="horn" mass="0"/><geom type="mesh" mesh="horn" pos="0 0.1 0" mass="0"/>'
        '<geom type="mesh" mesh="hidden" group="4" mass="0"/>',
        assets=f'<mesh name="horn" vertex="{box}"/><mesh name="hidden" vertex="{box}" scale="2 2 2"/>',
    )
    scene = build_scene(robot)
    assert sorted(scene["geom_mesh"].tolist()) == [*[-1] * 7, 0, 0]
    assert scene["mesh_vertex"].tolist() == [0, 4]
    model = robot.model
    points = scene["mesh_low"][0] + scene["vertices"] / 65535 * (scene["mesh_high"][0] - scene["mesh_low"][0])
    compiled_points = model.mesh_vert[: model.mesh_vertnum[0]]
    for point in compiled_points:
        assert np.abs(points - point).sum(axis=1).min() < 1e-5


def test_vertices_that_nobody_can_tell_apart_are_merged() -> None:
    """A fine sphere becomes a coarse one of the same size and no face without area."""
    t, p = np.meshgrid(np.linspace(0, np.pi, 200), np.linspace(0, 2 * np.pi, 200), indexing="ij")
    vertices = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=-1).reshape(-1, 3)
    corner = (np.arange(199)[:, None] * 200 + np.arange(199)).reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + 200, corner + 201], axis=1), np.stack([corner, corner + 201, corner + 1], axis=1)]
    )
    points, triangles = merge_vertices(vertices, faces, 0.1)
    assert len(points) < len(vertices) / 10
    assert triangles.max() == len(points) - 1
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=0.02)
    a, b, c = points[triangles].swapaxes(0, 1)
    normals = np.cross(b - a, c - a)
    assert (np.linalg.norm(normals, axis=1) > 0).all()
    assert ((normals * a).sum(axis=1) > 0).mean() > 0.99, "faces still look outwards"
    # A mesh below the grid's size is not lost.
    tiny, kept_faces = merge_vertices(vertices * 0.01, faces, 0.1)
    assert len(tiny) == len(vertices)
    assert len(kept_faces) == len(faces)


def test_a_robot_of_many_fine_meshes_is_built_in_time_and_is_not_large(tmp_path: Path) -> None:
    """As many faces as a humanoid's CAD model has, 400,000 in 10 meshes; measured: 0.1 s."""
    t, p = np.meshgrid(np.linspace(0, np.pi, 142), np.linspace(0, 2 * np.pi, 142), indexing="ij")
    vertices = 0.05 * np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=-1).reshape(-1, 3)
    corner = (np.arange(141)[:, None] * 142 + np.arange(141)).reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + 142, corner + 143], axis=1), np.stack([corner, corner + 143, corner + 1], axis=1)]
    )
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a} {b} {c}" for a, b, c in faces + 1]
    assets = ""
    for i in range(10):
        (tmp_path / f"part{i}.obj").write_text("\n".join(lines))
        assets += f'<mesh name="part{i}" file="part{i}.obj" inertia="shell"/>'
    trunk = "".join(f'<geom type="mesh" mesh="part{i}" contype="0" conaffinity="0" mass="0"/>' for i in range(10))
    robot = make_robot(tmp_path, trunk=trunk, assets=assets)
    start = time.perf_counter()
    data = write_scene(robot)
    assert time.perf_counter() - start < 2
    assert len(data) < 3 << 20
