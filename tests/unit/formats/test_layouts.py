"""Files of the field's other tools: read where that is safe, else named with the mapping to write."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from amp_core import rotations
from amp_core.errors import MotionRefused
from amp_core.formats import Motion, read_motion

KEYS = ("root_pos", "root_rot", "dof_pos")
CASES = Path(__file__).parents[4] / "shared/cases/motions"
NAMES = [f"{side}_{joint}" for side in ("left", "right") for joint in ("hip_pitch", "hip_roll", "knee_pitch", "ankle_pitch")]


def npz(fields: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **fields)
    return out.getvalue()


def as_json(fields: dict[str, Any]) -> bytes:
    return json.dumps({key: np.asarray(value).tolist() for key, value in fields.items()}).encode()


def same(motion: Motion, clip: dict[str, Any]) -> None:
    assert motion.fps == clip["fps"]
    for key in KEYS:
        np.testing.assert_allclose(getattr(motion, key), clip[key], atol=1e-12)


def refused(data: bytes, *needles: str, key: str | None = None, **options: Any) -> MotionRefused:
    with pytest.raises(MotionRefused) as caught:
        read_motion(data, **{"name": "walk", **options})
    text = str(caught.value)
    assert all(needle in text for needle in needles), text
    assert key is None or caught.value.key == key, text
    assert caught.value.expected
    assert caught.value.remedy
    assert len(text) < 1000
    assert text.isprintable()
    return caught.value


def bodies(values: Any, count: int) -> Any:
    """Other bodies behind the root."""
    return np.stack([values, *[np.full_like(values, 0.5)] * (count - 1)], axis=1)


def layouts(clip: dict[str, Any]) -> dict[str, dict[str, Any]]:
    pos, rot, dof = (clip[key] for key in KEYS)
    wxyz = rotations.to_wxyz(rot)
    fps = np.array([50])
    return {
        "qpos": {"fps": fps, "qpos": np.hstack([pos, wxyz, dof])},
        "qpos of loco-mujoco": {
            **{"frequency": 50.0, "qpos": np.hstack([pos, wxyz, dof]), "joint_names": np.array(["root", *NAMES])},
            "split_points": np.array([0, 12]),
        },
        "qpos of holosoma": {"fps": fps, "qpos": np.hstack([wxyz, pos, dof])},
        "IsaacLab AMP": {
            **{"fps": 50, "dof_names": np.array(NAMES), "body_names": np.array(["pelvis", "left_foot"]), "dof_positions": dof},
            **{"body_positions": bodies(pos, 2), "body_rotations": bodies(wxyz, 2), "dof_velocities": dof},
        },
        "BeyondMimic": {
            **{"fps": fps, "joint_pos": dof, "joint_vel": dof, "joint_names": np.array(NAMES)},
            **{"body_pos_w": bodies(pos, 3), "body_quat_w": bodies(wxyz, 3)},
        },
        "holosoma": {
            **{"fps": fps, "joint_pos": np.hstack([pos, wxyz, dof]), "joint_names": np.array(NAMES)},
            **{"body_pos_w": bodies(pos, 3), "body_quat_w": bodies(wxyz, 3)},
        },
        "PHC": {"fps": 50, "root_trans_offset": pos, "root_rot": rot, "dof": dof[:, :, None], "pose_aa": np.zeros((12, 9, 3))},
        "amp-rsl-rl": {
            **{"fps": 50.0, "joints_list": NAMES, "joint_positions": list(dof)},
            **{"root_position": pos, "root_quaternion": rot},
        },
        "ProtoMotions": {"fps": 50, "dof_pos": dof, "rigid_body_pos": bodies(pos, 4), "rigid_body_rot": bodies(rot, 4)},
        "MimicKit": {
            "fps": 50,
            "loop_mode": 1,
            "frames": np.hstack([pos, rotations.rotation_vector(np.tile([0.0, 0.0, 0.0, 1.0], (12, 1)), rot), dof]),
        },
    }


LAYOUTS = list(layouts({"root_pos": np.zeros((12, 3)), "root_rot": np.zeros((12, 4)), "dof_pos": np.zeros((12, 8))}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_are_read(clip: dict[str, Any], layout: str) -> None:
    fields = layouts(clip)[layout]
    writers: list[Callable[[dict[str, Any]], bytes]] = [npz, pickle.dumps]
    if "bodies" not in layout and not any(np.ndim(value) == 3 for value in fields.values()):
        writers.append(as_json)
    for write in writers:
        motion = read_motion(write(fields), name="walk")
        same(motion, clip)
        has_names = any(key in fields for key in ("joint_names", "dof_names", "joints_list"))
        assert motion.joint_names == (tuple(NAMES) if has_names else None)
    if "frequency" not in fields:
        without = {key: value for key, value in fields.items() if key != "fps"}
        same(read_motion(npz(without), name="walk", fps=50), clip)
        refused(npz(without), "'fps' is missing", key="fps")


def test_one_clip_in_a_dictionary_of_clips(clip: dict[str, Any]) -> None:
    phc = layouts(clip)["PHC"]
    same(read_motion(pickle.dumps({"walk_01": phc}), name="walk"), clip)
    same(read_motion(pickle.dumps({"walk_01": clip}), name="walk"), clip)
    refused(pickle.dumps({"walk_01": phc, "walk_02": phc}), "2 clips: walk_01, walk_02", "np.savez")
    refused(pickle.dumps({f"walk_{i:04}": phc for i in range(1000)}), "1000 clips", "(1000 names)")
    refused(pickle.dumps({"a": {"b": 1}}), "'fps' is missing")


def test_another_quaternion_order(clip: dict[str, Any]) -> None:
    # Facing along x, both orders are upright.
    clip["root_rot"] = rotations.rotate_yaw(clip["root_rot"], 1.5)
    pos, rot, dof = (clip[key] for key in KEYS)
    qpos = {"fps": 50.0, "qpos": np.hstack([pos, rot, dof])}
    refused(npz(qpos), "look like xyzw", "--quat-order xyzw")
    same(read_motion(npz(qpos), name="walk", quat_order="xyzw"), clip)
    phc = {**layouts(clip)["PHC"], "root_rot": rotations.to_wxyz(rot)}
    same(read_motion(npz(phc), name="walk", quat_order="wxyz"), clip)
    same(read_motion(npz(layouts(clip)["MimicKit"]), name="walk", quat_order="wxyz"), clip)


def test_qpos_that_is_unclear(clip: dict[str, Any]) -> None:
    pos, rot, dof = (clip[key] for key in KEYS)
    refused(npz({"fps": 50.0, "qpos": np.hstack([pos, 2.0 * rot, dof])}), "no quaternion", "qpos[:, 7:]", key="qpos")
    refused(npz({"fps": 50.0, "qpos": np.hstack([pos, rot])}), "7 columns", key="qpos")
    several = {"frequency": 50.0, "qpos": np.hstack([pos, rot, dof]), "split_points": np.array([0, 6, 12])}
    refused(npz(several), "2 trajectories", key="qpos")


def test_layouts_that_are_named(clip: dict[str, Any]) -> None:
    pos, rot, dof = (clip[key] for key in KEYS)
    frames = np.hstack([pos, rot, dof])
    refused(
        as_json({"FrameDuration": 0.02, "Frames": frames, "LoopMode": "Wrap"}), "DeepMimic", "1 / FrameDuration", key="Frames"
    )
    refused(pickle.dumps({"fps": 50, "root_trans": pos, "root_ori": rot, "dof_pos": dof}), "PHUMA", "root_ori", key="root_ori")
    refused(npz({"poses": frames, "trans": pos, "mocap_framerate": 120.0}), "AMASS", "Retarget", key="poses")
    unnamed = layouts(clip)["BeyondMimic"]
    del unnamed["joint_names"]
    refused(npz(unnamed), "does not name its joints", "breadth-first", key="joint_names")
    isaac = {**layouts(clip)["IsaacLab AMP"], "body_names": np.array(["left_foot", "pelvis"])}
    refused(npz(isaac), "left_foot, pelvis", "body_positions[:, i]", key="body_names")
    refused(
        npz({"fps": 50.0, "positions": pos, "angles": dof}),
        "'root_pos' is missing",
        "'fps', 'positions', 'angles'",
        key="root_pos",
    )


def test_pytorch_files() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("clip/data.pkl", b"\x80\x02}.")
        archive.writestr("clip/data/0", bytes(64))
    for options in ({}, {"format": "pkl"}, {"format": "npz"}):
        refused(out.getvalue(), "a PyTorch file", "weights_only=True", "np.savez", **options)
    refused(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a PyTorch file", "weights_only=True")


def test_a_batch_of_one(clip: dict[str, Any]) -> None:
    for write in (npz, pickle.dumps, as_json):
        same(read_motion(write({**clip, **{key: clip[key][None] for key in KEYS}}), name="walk"), clip)
    middle = {key: clip[key][:, None] for key in KEYS}
    same(read_motion(npz({**clip, **middle}), name="walk"), clip)
    fortran = {key: np.asfortranarray(clip[key][None]) for key in KEYS}
    same(read_motion(pickle.dumps({**clip, **fortran}), name="walk"), clip)
    batch = {key: np.repeat(clip[key][None], 3, axis=0) for key in KEYS}
    refused(npz({**clip, **batch}), "a batch of 3 clips", "root_pos[i]", key="root_pos")


@pytest.mark.parametrize(
    ("shape", "needle"),
    [
        ((12, 3), "Euler angles or a rotation vector"),
        ((12, 3, 3), "rotation matrices"),
        ((12, 9), "from_matrix"),
        ((12, 6), "six-dimensional"),
        ((4, 12), "root_rot.T"),
        ((12, 5), "one row"),
    ],
)
def test_rotations_that_are_no_quaternions(clip: dict[str, Any], shape: tuple[int, ...], needle: str) -> None:
    for write in (npz, pickle.dumps):
        refused(write({**clip, "root_rot": np.zeros(shape)}), needle, key="root_rot")
    refused(npz({**clip, "root_pos": clip["root_pos"].T}), "root_pos.T", key="root_pos")


@pytest.mark.parametrize("axis", [-1, -2])
def test_the_remedies_for_rotations_that_are_no_quaternions(clip: dict[str, Any], axis: int) -> None:
    matrices = Rotation.from_quat(clip["root_rot"]).as_matrix()
    six = np.concatenate([3.0 * np.take(matrices, 0, axis), 2.0 * np.take(matrices, 1, axis)], axis=1)
    for root_rot in (six, matrices, matrices.reshape(-1, 9)):
        with pytest.raises(MotionRefused) as caught:
            read_motion(npz({**clip, "root_rot": root_rot}), name="walk")
        *settings, expression = str(caught.value.remedy).partition(": ")[2].partition(" (axis=")[0].split("; ")
        names: dict[str, Any] = {"np": np, "root_rot": root_rot, "Rotation": Rotation}
        for setting in settings:
            exec(setting, names)
        quaternions = eval(expression.replace("axis=-1", f"axis={axis}") if root_rot is six else expression, names)
        same(read_motion(npz({**clip, "root_rot": quaternions * np.sign(quaternions[:, 3:])}), name="walk"), clip)


def test_a_layout_without_a_rate_lists_its_own_keys(clip: dict[str, Any]) -> None:
    qpos = np.hstack([clip["root_pos"], rotations.to_wxyz(clip["root_rot"]), clip["dof_pos"]])
    error = refused(npz({"qpos": qpos, "ctrl": clip["dof_pos"]}), "'fps' is missing", "'qpos', 'ctrl'", "--fps 50", key="fps")
    assert "root_pos" not in str(error.what)


@pytest.mark.parametrize("fps", [[50], (50.0,), [np.int64(50)], np.array([[50]])])
def test_fps_as_a_list_of_one(clip: dict[str, Any], fps: Any) -> None:
    same(read_motion(pickle.dumps({**clip, "fps": fps}), name="walk"), clip)


def test_fps_that_is_none(clip: dict[str, Any]) -> None:
    data = pickle.dumps({**clip, "fps": None})
    same(read_motion(data, name="walk", fps=50), clip)
    refused(data, "it is None", "--fps", key="fps")
    refused(pickle.dumps({**clip, "fps": [50, 50]}), key="fps")
    refused(pickle.dumps({**clip, "fps": [[50]]}), key="fps")


@pytest.mark.parametrize("noise", [0.0, 1e-5])
@pytest.mark.parametrize("order", ["xyzw", "wxyz", "quaternion first"])
def test_the_root_in_dof_pos(clip: dict[str, Any], order: str, noise: float) -> None:
    pos, rot, dof = (clip[key] for key in KEYS)
    root = {
        "xyzw": np.hstack([pos, rot]),
        "wxyz": np.hstack([pos, -rotations.to_wxyz(rot)]),
        "quaternion first": np.hstack([rotations.to_wxyz(rot), pos]),
    }[order]
    data = npz({**clip, "dof_pos": np.hstack([root + noise, dof])})
    refused(data, "first 7 columns of dof_pos look like the root", "dof_pos[:, 7:]", key="dof_pos")


EXPECTED = {
    "a03_fps_is_dt.pkl": "time step",
    "a08_fps_text.pkl": "the text '30'",
    "a09_fps_none.pkl": "it is None",
    "b07_qpos_in_dof_pos.pkl": "first 7 columns",
    "c27_trailing_nan.pkl": "c27_trailing_nan.pkl --frames 0:162",
    "c28_zero_padded.pkl": "c28_zero_padded.pkl --frames 0:167",
    "d10_five_minutes.pkl": "d10_five_minutes.pkl --every 20s",
    "d12_one_frame.pkl": "1 frame",
    "e01_torch.pt": "a PyTorch file",
    "e01c_torch.pkl": "a PyTorch file",
    "e15_longdouble.npz": "'<f16'",
    "e19_euler_root.pkl": "Euler",
    "f11_header_wxyz_units.csv": "wxyz",
}
"""The cases that reading refuses, and what the refusal says; all others are read."""


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout (../shared/cases/motions)")
def test_the_cases_of_the_field() -> None:
    paths = [CASES / name for name in json.loads((CASES / "index.json").read_text())]
    assert len(paths) > 80
    base = read_motion(CASES / "e12_proto4.pkl", name="base")
    for path in paths:
        options = {"fps": 30.0, "quat_order": "xyzw"} if path.suffix == ".csv" else {}
        if path.name in EXPECTED:
            with pytest.raises(MotionRefused) as caught:
                read_motion(path, name="case", **options)
            assert EXPECTED[path.name] in str(caught.value), path.name
            assert "CLIP" not in str(caught.value)
            assert caught.value.remedy
            continue
        motion = read_motion(path, name="case", **options)
        if path.name[0] in "ef" and path.name != "f12_wxyz_told_xyzw.csv":
            np.testing.assert_allclose(motion.root_pos, base.root_pos, atol=3e-3, err_msg=path.name)
            columns = slice(None) if motion.joint_names is None else [motion.joint_names.index(name) for name in NAMES]
            np.testing.assert_allclose(motion.dof_pos[:, columns], base.dof_pos, atol=3e-3, err_msg=path.name)
            np.testing.assert_allclose(motion.root_rot, base.root_rot, atol=3e-3, err_msg=path.name)
