"""`ampref render`, with the GL of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from answerkit import CLIP, SUMMARY
from PIL import Image

from amp_core.cli import main as cli
from amp_core.client import ApiClient, Retry
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score

TRILEG = Path(__file__).parents[2] / "robots" / "trileg" / "robot.yaml"
SMALL = ["--size", "80x96", "--count", "3"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first moments of the bundled walk as a motion, and as the export of its rollout."""
    folder = tmp_path_factory.mktemp("files")
    [source] = [path for path in bundled_motions() if path.stem == "walk"]
    motion = read_motion(source, name="walk")
    arrays = {key: np.asarray(getattr(motion, key))[:20] for key in ("root_pos", "root_rot", "dof_pos")}
    np.savez(folder / "walk.npz", fps=motion.fps, **arrays)
    [result] = score([read_motion(folder / "walk.npz")], Robot.load("wildrobot"), Recipe.for_mode("rollout"))
    result.export(folder / "export.npz")
    return {"motion": folder / "walk.npz", "export": folder / "export.npz"}


def test_a_motion_is_drawn_as_it_is_and_the_document_says_what_was_written(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "walk.png"
    assert cli.run(["render", str(files["motion"]), "-o", str(target), *SMALL, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "file": str(target),
        "bytes": target.stat().st_size,
        "clip_name": "walk",
        "robot": "wildrobot",
        "frames": [0, 20],
        "fell_at_frame": None,
    }
    with Image.open(target) as image:
        assert image.size == (3 * 80 + 2 * 4, 96 + 22)
    assert list(tmp_path.iterdir()) == [target]
    assert cli.run(["render", str(files["motion"]), "-o", str(target), *SMALL, "--quiet", "--frames", "5:15"]) == 0
    assert capsys.readouterr().out == f"{target}\n"


def test_a_rollout_is_drawn_with_its_clip_as_a_ghost(files: dict[str, Path], tmp_path: Path) -> None:
    export = str(files["export"])
    assert cli.run(["render", export, "-o", str(tmp_path / "ghost.png"), *SMALL, "--quiet"]) == 0
    assert cli.run(["render", export, "-o", str(tmp_path / "alone.png"), *SMALL, "--quiet", "--no-ghost"]) == 0
    with Image.open(tmp_path / "ghost.png") as first, Image.open(tmp_path / "alone.png") as second:
        ghost, alone = np.asarray(first), np.asarray(second)
    assert ghost.shape == alone.shape
    assert (ghost != alone).any()
    for ending, options in ((".webp", ["--rate", "5"]), (".mp4", ["--rate", "5", "--camera", "90,5"])):
        target = tmp_path / f"walk{ending}"
        assert cli.run(["render", export, "-o", str(target), "--size", "80x96", *options, "--quiet"]) == 0
        assert target.stat().st_size > 500


def test_a_clip_of_the_service_is_drawn_by_its_best_rollout(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [SUMMARY | {"id": f"rollout_{n}"} for n in range(2)]
    calls: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        calls.append(request.url.path)
        if request.url.path.endswith("/arrays"):
            return httpx2.Response(200, content=files["export"].read_bytes())
        return httpx2.Response(200, json=CLIP | {"name": "marsch", "rollouts": rollouts, "jobs": []})

    def connect(*_: Any, **__: Any) -> ApiClient:
        return ApiClient("http://service", retry=Retry(attempts=1), transport=httpx2.MockTransport(handle))

    monkeypatch.setattr("amp_core.cli.render.connect", connect)
    command = ["render", "clip_0", "-o", str(tmp_path / "clip.png"), *SMALL, "--json"]
    assert cli.run(command) == 0
    assert json.loads(capsys.readouterr().out)["clip_name"] == "marsch"
    assert calls[-1] == "/v1/rollouts/rollout_0/arrays"
    assert cli.run([*command, "--rollout", "rollout_1"]) == 0
    assert calls[-1] == "/v1/rollouts/rollout_1/arrays"
    assert cli.run([*command, "--rollout", "rollout_7"]) == 1
    assert "rollout_0, rollout_1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "words"),
    [("walk.gif", ".png for a filmstrip, .webp for an animation, .mp4 for a video"), ("walk", ".mp4 for a video")],
)
def test_an_unknown_ending_lists_the_three(target: str, words: str, files: Any, capsys: Any) -> None:
    assert cli.run(["render", str(files["motion"]), "-o", target]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--size", "80"], ["--size", "9000x10"], ["--camera", "north"], ["--camera", "10,90"], ["--frames", "5"]]
)
def test_what_cannot_be_meant_is_wrong_usage(options: list[str], files: Any, tmp_path: Path) -> None:
    assert cli.run(["render", str(files["motion"]), "-o", str(tmp_path / "walk.png"), *options]) == 2
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_drawn_is_refused_and_nothing_is_left(files: Any, tmp_path: Path, capsys: Any) -> None:
    target = str(tmp_path / "walk.png")

    def refuse(*arguments: str) -> str:
        assert cli.run(["render", *arguments]) == 1
        assert not list(tmp_path.glob("*.png*"))
        return str(capsys.readouterr().err)

    assert "there is no such file" in refuse(str(tmp_path / "none.pkl"), "-o", target)
    assert "there is no such folder" in refuse(str(files["motion"]), "-o", str(tmp_path / "deep" / "walk.png"))
    assert "not in it" in refuse(str(files["motion"]), "-o", target, "--frames", "0:100")
    assert "15 numbers" in refuse(str(files["export"]), "-o", target, "--robot", str(TRILEG))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    assert "junk.npz" in refuse(str(tmp_path / "junk.npz"), "-o", target)
    os.mkfifo(tmp_path / "pipe.webp")
    assert "is no file" in refuse(str(files["motion"]), "-o", str(tmp_path / "pipe.webp"))
    assert cli.run(["render", str(files["motion"]), "-o", target, "--rollout", "rollout_1"]) == 2


def test_another_model_of_the_robot_is_a_warning(files: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("amp_core.render.takes.differs_in_model", lambda path, robot: True)
    assert cli.run(["render", str(files["export"]), "-o", str(tmp_path / "walk.png"), *SMALL]) == 0
    assert "another model" in capsys.readouterr().err


def test_a_missing_gl_is_an_error_for_people(files: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amp_core.cli", "render", str(files["motion"]), "-o", str(tmp_path / "walk.png")]
    for choice, words in (("off", "MUJOCO_GL forbids drawing"), ("nowhere", "apt-get install libegl1")):
        process = subprocess.run(command, env=os.environ | {"MUJOCO_GL": choice}, capture_output=True, text=True, check=False)
        assert process.returncode == 1
        assert words in process.stderr
        assert "Traceback" not in process.stderr
    assert not list(tmp_path.iterdir())


def test_physics_needs_no_gl() -> None:
    """A machine that has not what MUJOCO_GL names can score."""
    command = [sys.executable, "-m", "amp_core.cli", "robots", "--quiet"]
    process = subprocess.run(command, env=os.environ | {"MUJOCO_GL": "nowhere"}, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (0, "g1\nwildrobot\n")


def test_a_missing_package_names_the_extra(files: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "amp_core.render.pictures", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "amp_core.render.pictures")
    monkeypatch.delattr("amp_core.render.pictures", raising=False)
    assert cli.run(["render", str(files["motion"]), "-o", str(tmp_path / "walk.png")]) == 1
    assert "[render]" in capsys.readouterr().err
