"""Pictures of robots, drawn by the GL of this machine. It must have one: apt-get install libegl1 libgl1-mesa-dri."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from amp_core.errors import InputRefused
from amp_core.render import gl, pictures
from amp_core.render.gl import GlProbe, NoGraphics, list_platforms
from amp_core.render.stage import Stage, place_camera
from amp_core.render.takes import Take
from amp_core.robot import Robot

TRILEG = Path(__file__).parents[1] / "robots" / "trileg"
SIZE = (120, 160)


@pytest.fixture(scope="module")
def platform() -> str:
    return GlProbe().find_platform()


@pytest.fixture(scope="module")
def robot() -> Robot:
    return Robot.load(TRILEG)


def make_poses(robot: Robot, count: int = 40, step: float = 0.01) -> Any:
    """The robot in its reference pose, a little further along x each time."""
    qpos = np.tile(robot.model.qpos0, (count, 1))
    qpos[:, 0] = step * np.arange(count)
    return qpos


def make_take(robot: Robot, count: int = 40, ghost: Any = None, **changes: Any) -> Take:
    return Take(
        **{"name": "walk", "robot": robot, "qpos": make_poses(robot, count), "ghost_qpos": ghost, "fps": 20.0} | changes
    )


def draw(robot: Robot, platform: str, qpos: Any, ghost: Any = None, azimuth: float = 220.0) -> Any:
    camera = place_camera(robot, [qpos[None]] if ghost is None else [qpos[None], ghost[None]], SIZE, azimuth, 12.0)
    with Stage(robot, camera, SIZE, platform) as stage:
        return stage.draw(qpos, ghost).astype(int)


# The stage


def test_the_robot_fills_the_picture_and_nothing_of_it_is_cut_off(robot: Robot, platform: str) -> None:
    """The robot is dark, floor and sky are light."""
    for azimuth in (0.0, 130.0, 220.0):
        picture = draw(robot, platform, make_poses(robot)[0], azimuth=azimuth)
        assert picture.shape == (SIZE[1], SIZE[0], 3)
        dark = picture.max(axis=-1) < 140
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        assert rows.min() > 0
        assert rows.max() < SIZE[1] - 1
        assert columns.min() > 0
        assert columns.max() < SIZE[0] - 1
        assert rows.max() - rows.min() > 0.75 * SIZE[1]


def test_a_ghost_is_blue_and_stands_beside_the_robot(robot: Robot, platform: str) -> None:
    qpos = make_poses(robot)[0]
    ghost = qpos.copy()
    ghost[1] += 0.2
    plain, picture = draw(robot, platform, qpos), draw(robot, platform, qpos, ghost)
    assert not (plain[..., 2] - plain[..., 0] > 60).any()
    blue = picture[..., 2] - picture[..., 0] > 60
    assert blue.sum() > 300
    dark = picture.max(axis=-1) < 140
    # From its front the robot's left is at the right.
    assert np.flatnonzero(blue.any(axis=0)).mean() > np.flatnonzero(dark.any(axis=0)).mean()
    # A ghost in the same pose cannot be seen.
    same = draw(robot, platform, qpos, qpos)
    assert not (same[..., 2] - same[..., 0] > 60).any()


def test_a_robot_in_the_air_has_its_shadow_on_the_floor(robot: Robot, platform: str) -> None:
    standing = make_poses(robot)[0]
    flying = standing.copy()
    flying[2] += 0.4
    camera = place_camera(robot, [np.stack([standing, flying])], SIZE, 220.0, 12.0)
    with Stage(robot, camera, SIZE, platform) as stage:
        low, high = (stage.draw(qpos).astype(int) for qpos in (standing, flying))
    lowest = [np.flatnonzero((picture.max(axis=-1) < 140).any(axis=1)).max() for picture in (low, high)]
    assert lowest[1] < lowest[0] - 20
    below = high[lowest[1] + 4 :]
    assert ((below.max(axis=-1) < 200) & (below.max(axis=-1) > 140)).sum() > 20


def test_the_floor_moves_under_the_robot(robot: Robot, platform: str) -> None:
    qpos = make_poses(robot, 2, step=0.23)
    camera = place_camera(robot, [qpos], SIZE, 220.0, 12.0)
    with Stage(robot, camera, SIZE, platform) as stage:
        first, second, again = stage.draw(qpos[0]), stage.draw(qpos[1]), stage.draw(qpos[0])
    np.testing.assert_array_equal(first, again)
    dark = first.max(axis=-1) < 140
    # The robot stays where it is, but for a pixel at an edge, and the lines of the floor do not.
    assert (dark != (second.max(axis=-1) < 140)).sum() < 10
    assert (np.abs(first[~dark].astype(int) - second[~dark]) > 10).sum() > 100


def test_a_model_with_meshes_and_a_terrain_is_drawn(tmp_path: Path, platform: str) -> None:
    text = (TRILEG / "trileg.xml").read_text()
    ball = "0 0 0  0.2 0 0  0 0.2 0  0 0 0.2"
    text = text.replace(
        "<worldbody>",
        f'<asset><mesh name="horn" vertex="{ball}"/>'
        '<hfield name="hills" nrow="2" ncol="2" size="1 1 0.3 0.1" elevation="0 0 1 1"/></asset>'
        '<worldbody><geom type="hfield" hfield="hills" pos="-1 0 0" rgba="0 0.6 0 1"/>',
    ).replace('<freejoint name="base"/>', '<freejoint name="base"/><geom type="mesh" mesh="horn" rgba="1 0 0 1" mass="0"/>')
    (tmp_path / "parts").mkdir()
    for name in ("robot.yaml", "parts/defaults.xml"):
        (tmp_path / name).write_text((TRILEG / name).read_text())
    (tmp_path / "trileg.xml").write_text(text)
    robot = Robot.load(tmp_path)
    picture = draw(robot, platform, robot.model.qpos0)
    assert (picture[..., 1] - picture[..., 0] > 60).sum() > 50
    assert (picture[..., 0] - picture[..., 1] > 60).sum() > 20


# Pictures


def write(take: Take, target: Path, platform: str, **options: Any) -> list[float]:
    shares: list[float] = []
    style = pictures.Style(**{"size": SIZE, "count": 4} | options)
    pictures.write_picture(take, target, target.suffix, style, lambda: platform, shares.append)
    return shares


def test_a_filmstrip_has_poses_side_by_side(robot: Robot, platform: str, tmp_path: Path) -> None:
    shares = write(make_take(robot), tmp_path / "strip.png", platform)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    with Image.open(tmp_path / "strip.png") as image:
        assert image.width == 4 * SIZE[0] + 3 * 4
        assert SIZE[1] + 15 < image.height < SIZE[1] + 60
        pixels = np.asarray(image).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 90) & (pixels[..., 0] - pixels[..., 2] > 90)
    assert not red.any()
    write(make_take(robot, fell_at=20), tmp_path / "fall.png", platform)
    with Image.open(tmp_path / "fall.png") as image:
        pixels = np.asarray(image).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 90) & (pixels[..., 0] - pixels[..., 2] > 90)
    strip = red[-SIZE[1] :]
    assert not strip[:, : 2 * SIZE[0]].any(), "the first two poses stand"
    assert strip[:, 2 * SIZE[0] + 8 : 3 * SIZE[0]].any()
    assert strip[:, 3 * SIZE[0] + 12 :].any()


def test_an_animation_and_a_video_last_as_long_as_the_clip(robot: Robot, platform: str, tmp_path: Path) -> None:
    take = make_take(robot)
    write(take, tmp_path / "walk.webp", platform, fps=10.0)
    with Image.open(tmp_path / "walk.webp") as image:
        assert image.n_frames == 20  # type: ignore[attr-defined]
        assert image.size == SIZE
    write(take, tmp_path / "walk.mp4", platform, fps=10.0, size=(121, 161))
    with av.open(str(tmp_path / "walk.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
        assert float(container.duration or 0) / 1e6 == pytest.approx(2.0, abs=0.11)
    assert len(frames) == 20
    assert frames[0].shape == (160, 120, 3)
    assert (frames[0].max(axis=-1) < 140).any()


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_one_pose_and_more_poses_than_there_are(robot: Robot, platform: str, tmp_path: Path) -> None:
    write(make_take(robot, 1), tmp_path / "one.png", platform, count=8)
    assert width_of(tmp_path / "one.png") == SIZE[0]
    write(make_take(robot, 3), tmp_path / "few.png", platform, count=8)
    assert width_of(tmp_path / "few.png") == 3 * SIZE[0] + 2 * 4
    with pytest.raises(InputRefused, match="too wide"):
        write(make_take(robot, 64), tmp_path / "wide.png", platform, count=64, size=(2000, 100))


def test_a_thumbnail_is_small(robot: Robot, platform: str) -> None:
    qpos = make_poses(robot)
    data = pictures.draw_thumbnail(make_take(robot, ghost=qpos + 0.0), lambda: platform)
    assert len(data) < 15_000
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (480, 96))
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for pose in np.split(pixels, 6, axis=1):
        assert (pose.max(axis=-1) < 140).sum() > 100


def test_a_part_of_a_take_keeps_its_times(robot: Robot) -> None:
    take = make_take(robot, fell_at=30).cut(10, 35)
    assert len(take.qpos) == 25
    assert take.seconds(0) == 0.5
    assert not take.has_fallen(19)
    assert take.has_fallen(20)
    for start, stop in ((0, 41), (40, None), (5, 5)):
        with pytest.raises(InputRefused, match="not in it"):
            make_take(robot).cut(start, stop)


# The GL


def test_the_environment_chooses_what_draws() -> None:
    assert list_platforms({"MUJOCO_GL": "osmesa"}) == ("osmesa",)
    assert list_platforms({"MUJOCO_GL": "EGL "}) == ("egl",)
    assert list_platforms({}) == list_platforms({"MUJOCO_GL": "on"})
    with pytest.raises(NoGraphics, match="forbids"):
        list_platforms({"MUJOCO_GL": "off"})


TRIALS = """
import os, sys
if sys.argv[1] == "egl":
    os.kill(os.getpid(), 11)
"""


def test_a_gl_that_crashes_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_TRIAL", TRIALS + "print('usable')")
    assert GlProbe().find_platform() == "osmesa"


def test_without_any_gl_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_TRIAL", TRIALS + "raise OSError('no such library')")
    with pytest.raises(NoGraphics) as caught:
        GlProbe().find_platform()
    text = str(caught.value)
    assert "egl crashed (signal 11); osmesa cannot be used (OSError: no such library)" in text
    assert "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6" in text


def test_a_gl_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(gl, "_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(gl, "_TRIAL_SEC", 0.2)
    with pytest.raises(NoGraphics, match=r"egl did not answer within 0\.2 s"):
        GlProbe().find_platform()
    GlProbe().close()
