"""`amp_core.robot_setup` and `ampref robot`: a first robot.yaml for a model, and what of a robot will not work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from amp_core.cli import main as cli
from amp_core.errors import RobotRefused
from amp_core.robot import Robot
from amp_core.robot_setup import draft_robot, inspect_robot

from .test_robot_changes import MODEL

WILDROBOT = Robot.load("wildrobot").model_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "walker.xml"
    path.write_text(MODEL)
    return path


def test_the_draft_of_a_model_with_servos_is_what_a_person_wrote(tmp_path: Path) -> None:
    draft = draft_robot(WILDROBOT)
    written = yaml.safe_load((WILDROBOT.parent / "robot.yaml").read_text())
    assert draft.document["joints"] == written["joints"]
    assert draft.document["contact_channels"] == written["contact_channels"]
    assert draft.document["expected_mass"] == pytest.approx(written["expected_mass"], abs=1e-3)
    assert "servos" not in draft.document
    low, high = draft.document["height_range"]
    assert low < written["height_range"][0] < written["height_range"][1] < high


def test_the_draft_of_a_model_with_motors_loads_and_says_what_it_guessed(model: Path) -> None:
    draft = draft_robot(model)
    (model.parent / "robot.yaml").write_text(draft.to_yaml())
    robot = Robot.load(model.parent)
    assert robot.joint_names == ("shoulder", "left_hip", "left_knee", "right_hip", "right_knee")
    assert draft.document["fixed"] == {"grip": 0.0}
    assert any("grip" in text for text in draft.guesses["fixed"])
    assert list(draft.document["servos"]) == ["shoulder", "(left|right)_hip", "(left|right)_knee"]
    assert draft.document["servos"]["(left|right)_knee"]["limit"] == 40
    assert "put in those of your controller" in draft.guesses["servos"][0]
    assert draft.document["contact_channels"] == {"left": {"body": "left_sole"}, "right": {"body": "right_sole"}}
    assert all(f"# {text}" in draft.to_yaml() for texts in draft.guesses.values() for text in texts)


def test_the_joints_of_a_clip_come_in_its_order_and_the_others_are_fixed(model: Path, tmp_path: Path) -> None:
    names = ["right_knee", "right_hip", "left_knee", "left_hip"]
    clip = tmp_path / "clip.npz"
    count = 5
    np.savez(
        clip,
        **{"fps": 50, "root_pos": np.tile([0, 0, 0.7], (count, 1)), "root_rot": np.tile([0.0, 0, 0, 1], (count, 1))},
        **{"dof_pos": np.zeros((count, 4)), "joint_names": np.array(names)},
    )
    assert cli.run(["robot", "init", str(model), "--joints-from", str(clip), "-q"]) == 0
    robot = Robot.load(model.parent)
    assert list(robot.joint_names) == names
    assert set(yaml.safe_load((model.parent / "robot.yaml").read_text())["fixed"]) == {"shoulder", "grip"}
    with pytest.raises(RobotRefused, match="no joint 'tail', which the clip has"):
        draft_robot(model, ["tail"])


def test_a_file_that_is_there_is_not_replaced(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model.parent / "robot.yaml"
    path.write_text("mine")
    assert cli.run(["robot", "init", str(model)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert cli.run(["robot", "init", str(model), "--force", "-q"]) == 0
    assert "mine" not in path.read_text()


def test_a_quadruped_has_four_feet_by_their_places(tmp_path: Path) -> None:
    legs = "".join(
        f'<body name="{end}{side}" pos="{x} {y} -0.1"><joint name="{end}{side}_hip" axis="0 1 0"/>'
        '<geom type="capsule" fromto="0 0 0 0 0 -0.25" size="0.02"/><geom type="sphere" pos="0 0 -0.27" size="0.03"/></body>'
        for end, x in (("F", 0.2), ("R", -0.2))
        for side, y in (("L", 0.1), ("R", -0.1))
    )
    path = tmp_path / "dog.xml"
    path.write_text(
        '<mujoco model="dog"><worldbody><body name="trunk" pos="0 0 0.4"><freejoint/><geom type="box" size=".25 .1 .05"/>'
        f"{legs}</body></worldbody></mujoco>"
    )
    draft = draft_robot(path)
    assert list(draft.document["contact_channels"]) == ["front_left", "front_right", "rear_left", "rear_right"]
    (tmp_path / "robot.yaml").write_text(draft.to_yaml())
    inspection = inspect_robot(tmp_path)
    assert inspection.standing_height == pytest.approx(0.4)
    assert len(inspection.robot.feet) == 4


def test_the_bundled_robot_needs_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert not [notice for notice in inspect_robot("wildrobot").notices if notice.severity == "warns"]
    assert cli.run(["robot", "check", "wildrobot"]) == 0
    assert "wildrobot can be used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kp": 40_000.0}, "too stiff for the model's step"),
        ({"kd": 0.0}, "have no damping"),
        ({"height_range": [0.2, 0.4]}, "outside of height_range"),
        ({"contact_channels": {"left": {"body": "left_rubber"}, "right": {"body": "left_shin"}}}, "refused"),
        ({"shoulder": None}, "without a limit: shoulder"),
    ],
)
def test_what_will_not_work_is_said(model: Path, changes: dict[str, object], says: str) -> None:
    legs = {"kp": changes.get("kp", 60.0), "kd": changes.get("kd", 2.0)}
    shoulder = {"kp": 20.0, "kd": 1.0} | ({"limit": 5.0} if "shoulder" not in changes else {})
    document = {
        "model": str(model),
        "servos": {".*_(hip|knee)": legs, "shoulder": shoulder},
        "fixed": {"grip": 0.0},
        "contact_channels": changes.get("contact_channels", {"left": {"body": "left_sole"}, "right": {"body": "right_sole"}}),
        "height_range": changes.get("height_range", [0.4, 0.9]),
    }
    path = model.parent / "robot.yaml"
    path.write_text(yaml.safe_dump(document))
    if says == "refused":
        with pytest.raises(RobotRefused, match="also in the channel"):
            inspect_robot(path)
    else:
        assert any(says in notice.message and notice.remedy for notice in inspect_robot(path).notices)


def test_a_foot_whose_frame_leans_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "leaning"
    shutil.copytree(Robot.load("wildrobot").path.parent, folder)
    xml = folder / Robot.load("wildrobot").model_path.name
    text = xml.read_text()
    upright = 'name="left_foot" pos="-0.00004747 -0.179984 0.00044208" quat="0.00000024 -0.00041321 0.00058305 -0.99999974"'
    assert upright in text
    xml.write_text(text.replace(upright, upright.partition("quat")[0] + 'quat="0 0 0.2955 -0.9553"'))
    notices = [notice for notice in inspect_robot(folder).notices if "leans by" in notice.message]
    assert [notice.severity for notice in notices] == ["warns"]
    assert "left" in notices[0].message
    assert "34°" in notices[0].message


def test_robots_that_touch_themselves_or_stand_on_more_than_feet_are_told_so(model: Path) -> None:
    text = MODEL.replace('<geom name="hand" type="sphere" size="0.03"', '<geom name="hand" type="sphere" size="0.3"')
    model.write_text(text.replace("0 0 0 0 0 -0.25", "0 0 0 0 0 -0.33", 1))
    document = {
        "model": str(model),
        "servos": {".*_(hip|knee)|shoulder": {"kp": 60.0, "kd": 2.0}},
        "fixed": {"grip": 0.0},
        "contact_channels": {"right": {"body": "right_sole"}},
        "height_range": [0.4, 0.9],
    }
    path = model.parent / "robot.yaml"
    path.write_text(yaml.safe_dump(document))
    messages = [notice.message for notice in inspect_robot(path).notices]
    assert any("touches itself" in message and "hand" in message for message in messages)
    assert any("no foot: left_shin" in message for message in messages)
    assert any("cannot be mirrored" in message for message in messages)
