"""Writes what the kinematics are tested against: scenes of our own robots, poses, and where MuJoCo places the bodies in them.

python service/web/test/make_fixtures.py [ROBOT.yaml …]: further robots go beside the others, and are not for the repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amp_core.engine import mujoco
from amp_core.robot import Robot
from amp_core.scene import FORMAT, build_scene

TESTS = Path(__file__).parent
ROBOTS = ["wildrobot", str(TESTS.parents[2] / "tests/robots/trileg/robot.yaml")]
POSES = 6

Arrays = dict[str, npt.NDArray[Any]]


def sample_poses(model: Any) -> npt.NDArray[np.float64]:
    """(POSES, nq) configurations all over the place, the reference pose first; quaternions are not all of length 1."""
    random = np.random.default_rng(5)
    qpos = np.tile(model.qpos0, (POSES, 1))
    qpos[1:] += random.normal(0.0, 0.7, (POSES - 1, model.nq))
    return qpos.astype(np.float32).astype(np.float64)


def write_fixture(path: Path, model: Any, scene: Arrays) -> None:
    data = mujoco.MjData(model)
    qpos = sample_poses(model)
    xpos, xquat = np.empty((POSES, model.nbody, 3)), np.empty((POSES, model.nbody, 4))
    for pose, row in enumerate(qpos):
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        xpos[pose], xquat[pose] = data.xpos, data.xquat
    np.savez(path, **scene, poses=qpos, xpos=xpos, xquat=xquat)


def build_chain(model: Any) -> Arrays:
    """The scene of a model that is no robot of the service: it has slides and balls."""
    names = [model.joint(joint).name for joint in range(model.njnt)]
    hinges = [joint for joint in range(model.njnt) if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE]
    meta = {
        "format": FORMAT,
        "robot": "chain",
        "digest": "",
        "control_dt": 0.02,
        "mass_kg": 1.0,
        "weight_n": 9.81,
        "joints": [names[joint] for joint in hinges],
        "joint_range": [None] * len(hinges),
        "force_limit": [None] * len(hinges),
        "channels": [],
        "bodies": [model.body(body).name for body in range(model.nbody)],
        "root_qpos": 0,
        "root_body": 1,
        "height": 0.5,
        "radius": 0.5,
    }
    integers, floats = np.int32, np.float32
    rows = {"geom_size": 3, "geom_pos": 3, "geom_quat": 4, "geom_rgba": 4, "mesh_low": 3, "mesh_high": 3, "sole_point": 3}
    lists = ("geom_body", "geom_type", "geom_mesh", "sole_channel", "sole_body")
    return {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "body_parent": model.body_parentid.astype(integers),
        "body_pos": model.body_pos.astype(floats),
        "body_quat": model.body_quat.astype(floats),
        "joint_type": model.jnt_type.astype(integers),
        "joint_body": model.jnt_bodyid.astype(integers),
        "joint_qpos": model.jnt_qposadr.astype(integers),
        "joint_pos": model.jnt_pos.astype(floats),
        "joint_axis": model.jnt_axis.astype(floats),
        "qpos0": model.qpos0.astype(floats),
        "joint_adr": model.jnt_qposadr[hinges].astype(integers),
        "mesh_vertex": np.zeros(1, integers),
        "mesh_face": np.zeros(1, integers),
        "vertices": np.empty((0, 3), np.uint16),
        "faces": np.empty((0, 3), np.uint32),
        **{name: np.empty((0, width), floats) for name, width in rows.items()},
        **{name: np.empty(0, integers) for name in lists},
    }


def main() -> None:
    folder = TESTS / "fixtures"
    chain = mujoco.MjModel.from_xml_path(str(TESTS / "chain.xml"))
    write_fixture(folder / "chain.npz", chain, build_chain(chain))
    for name in ROBOTS + sys.argv[1:]:
        robot = Robot.load(name)
        prefix = "" if name in ROBOTS else f"{Path(name).parent.name}-"
        write_fixture(folder / f"{prefix}{robot.name}.npz", robot.model, build_scene(robot))


if __name__ == "__main__":
    main()
