"""`ampref track`: what it writes and says, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amp_core.cli import main as cli
from amp_core.formats import read_motion
from amp_core.motion import condition
from amp_core.motions import bundled_motions
from amp_core.robot import Robot

EXAMPLES = Path(__file__).parents[3] / "examples"
POLICY, SPEC = EXAMPLES / "walk_tracker.onnx", EXAMPLES / "walk_tracker.yaml"
CLIP = next(path for path in bundled_motions() if path.stem == "walk_long_stride")


def arguments(out: Path, *more: str, clip: Path = CLIP, policy: Path = POLICY, spec: Path = SPEC) -> list[str]:
    return ["track", str(clip), "--policy", str(policy), "--spec", str(spec), "-o", str(out), *more]


def test_the_example_walks_a_clip_that_falls_open_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`walk_long_stride` falls at 1.9 s on its own angles."""
    out = tmp_path / "recording.npz"
    assert cli.run(arguments(out, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["frames"], document["fell_at_frame"]) == (250, None)
    assert document["joint_rmse_rad"] < 0.13
    assert document["root_drift_m"] < 0.15
    assert [term["size"] for term in document["observation"]] == [3, 3, 3, 3, 6, 8, 8, 8, 24]
    motion, robot = read_motion(out), Robot.load("wildrobot")
    assert condition(motion, robot).num_frames == 250
    arrays = np.load(out, allow_pickle=False)
    assert arrays["ctrl"].shape == (250, 8)
    assert arrays["recorded_qpos"].shape == (250, 15)
    np.testing.assert_array_equal(arrays["initial_qpos"], condition(read_motion(CLIP), robot).initial_qpos)
    assert json.loads(arrays["recording"].tobytes()) == document["provenance"]


def test_what_the_example_did_is_tier_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recording.npz"
    assert cli.run(arguments(out, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert cli.run(["score", str(out), "--mode", "recorded", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["tier"], result["mode"]) == (0, "recorded"), result["tier_reason"]
    reproduction = result["ingest"]["recording"]
    assert (reproduction["exact"], reproduction["against"], reproduction["rows"]) == (True, "recorded_qpos", "before")
    for name in ("joint_rmse_rad", "root_drift_m"):
        assert result["quality_metrics"][name] == pytest.approx(document[name])


def test_two_runs_give_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    assert cli.run(arguments(first, "-q")) == 0
    assert capsys.readouterr().out == f"{first}\n"
    assert cli.run(arguments(second, "-q")) == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_person_is_told_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recording.npz"
    assert cli.run(arguments(out)) == 0
    printed = capsys.readouterr().out
    assert "walk_long_stride" in printed
    assert f"next: ampref score {out} --mode recorded" in printed


def test_wrong_files_are_refused_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recording.npz"
    assert cli.run(arguments(out, policy=SPEC)) == 1
    assert "no ONNX model" in capsys.readouterr().err
    assert cli.run(arguments(out, spec=POLICY)) == 1
    assert "over 65536 bytes" in capsys.readouterr().err
    assert cli.run(arguments(out, clip=tmp_path / "none.npz")) == 1
    assert "no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recording_is_an_npz_and_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments(tmp_path / "recording.pkl")) == 2
    assert "does not end in .npz" in capsys.readouterr().err
    clip = tmp_path / "clip.npz"
    shutil.copy(CLIP, clip)
    assert cli.run(arguments(clip, clip=clip)) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path) -> None:
    """In an interpreter of its own, in which the package cannot be found."""
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "onnxruntime" else find(name, *more)
from amp_core.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(tmp_path / "recording.npz")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "needs the package 'onnxruntime'" in done.stderr
    assert "pip install '.[track]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
