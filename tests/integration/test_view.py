"""`ampref view`: the page of a clip for files on this machine."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score

AMPREF = str(Path(sys.executable).with_name("ampref"))


def motion(name: str) -> Path:
    return next(path for path in bundled_motions() if path.stem == name)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / "fall.npz"
    source = read_motion(motion("walk_long_stride"))
    [result] = score([source], Robot.load("wildrobot"), Recipe.for_mode("rollout"), nthread=1)
    result.export(path)
    return path


@contextmanager
def viewing(*arguments: str) -> Iterator[httpx2.Client]:
    command = [AMPREF, "view", "--no-browser", "--json", "--quiet", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n") and (line := process.stdout.readline()):
            text += line
        try:
            with httpx2.Client(base_url=json.loads(text)["url"]) as http:
                yield http
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, process.stderr and process.stderr.read()


def replay_of(page: str) -> dict:
    return json.loads(re.findall(r'id="replay-data">(.*?)</script>', page, re.DOTALL)[0])


def test_an_export_is_shown_as_it_is_measured(export: Path) -> None:
    with viewing(str(export), "--frame", "95") as http:
        page = http.get("/").text
        assert "Rejected" in page
        assert "max_tilt_deg" in page
        assert "replay" in page
        replay = replay_of(page)
        assert replay["start_frame"] == 95
        assert replay_of(http.get("/?f=7").text)["start_frame"] == 7
        [panel] = replay["rollouts"]
        answer = http.get(panel["frames_url"], params={"arrays": "qpos", "start": 10, "stop": 20})
        with np.load(export) as archive, np.load(io.BytesIO(answer.content)) as rows:
            assert rows.files == ["qpos"]
            assert np.array_equal(rows["qpos"], archive["qpos"][10:20])
        with np.load(io.BytesIO(http.get(replay["scene_url"]).content)) as scene:
            assert json.loads(scene["meta"].tobytes())["robot"] == "wildrobot"
        assert http.get(panel["frames_url"], params={"arrays": "nothing"}).status_code == 422
        assert http.get("/rollouts/1/frames").status_code == 404
        assert http.get("/", headers={"host": "evil.example"}).status_code == 400


def test_motions_are_scored_and_shown_side_by_side(export: Path) -> None:
    with viewing(str(motion("walk")), str(export)) as http:
        page = http.get("/").text
        assert [panel["label"] for panel in replay_of(page)["rollouts"]] == ["walk", "fall"]
        assert "Tier 0" in page
        assert "Rejected" in page


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    for name in ("broken.npz", "none.pkl"):
        done = subprocess.run(
            [AMPREF, "view", str(tmp_path / name), "--no-browser"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        assert name in done.stderr
        assert "Traceback" not in done.stderr
