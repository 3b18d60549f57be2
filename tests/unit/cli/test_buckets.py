"""`--physics` and `ampref buckets`, on short motions cut from the bundled ones and the real physics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amp_core.cli import main as cli
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import PhysicsScale, Recipe

FRAMES = 30


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The first moments of the bundled squat and walk."""
    folder = tmp_path_factory.mktemp("motions")
    for source in bundled_motions():
        if source.stem in ("walk", "squat"):
            motion = read_motion(source, name=source.stem)
            arrays: dict[str, Any] = {
                key: np.asarray(getattr(motion, key))[:FRAMES] for key in ("root_pos", "root_rot", "dof_pos")
            }
            np.savez(folder / f"{source.stem}.npz", fps=motion.fps, **arrays)
    return sorted(str(path) for path in folder.iterdir())


def test_each_motion_is_scored_in_each_bucket(motions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a zip")
    folder = tmp_path / "exports"
    physics = ["--physics", "friction=0.7,mass=1.1", "--physics", "canonical", "--physics", "mass=1.10,friction=0.7"]
    arguments = ["score", motions[0], str(bad), motions[1], "--mode", "rollout", *physics]
    assert cli.run([*arguments, "--json", "-", "--export", str(folder)]) == 1
    said = capsys.readouterr()
    documents = json.loads(said.out)
    assert [document["name"] for document in documents] == ["squat", "squat", "walk", "walk"]
    scales = [PhysicsScale(**document["provenance"]["recipe"]["physics"]).name for document in documents]
    assert scales == ["friction=0.7,mass=1.1", "canonical"] * 2
    assert said.err.count("bad.npz") == 1, "refused once, and not in every bucket"
    assert "walk [friction=0.7,mass=1.1]" in said.err
    exports = sorted(path.name for path in folder.iterdir())
    assert exports == sorted(f"{name}@{scale}.npz" for name in ("squat", "walk") for scale in set(scales))
    own, other = (np.load(folder / f"walk@{scale}.npz")["qpos"] for scale in ("canonical", "friction=0.7,mass=1.1"))
    assert own.shape == other.shape
    assert not np.array_equal(own, other)


def test_one_bucket_is_the_recipe_with_its_physics(
    motions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def digests(*options: str) -> list[str]:
        assert cli.run(["score", motions[1], "--json", "-", "-q", *options]) == 0
        return [document["provenance"]["recipe_digest"] for document in json.loads(capsys.readouterr().out)]

    heavy = Recipe.for_mode("rollout", physics=PhysicsScale(mass=1.1))
    assert digests("--mode", "rollout", "--physics", "mass=1.1") == [heavy.digest]
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(heavy.to_dict()))
    assert digests("--recipe", str(file)) == [heavy.digest]
    assert digests("--recipe", str(file), "--physics", "mass=1.1") == [heavy.digest], "both say the same"
    assert cli.run(["score", motions[1], "--recipe", str(file), "--physics", "mass=1.2"]) == 2
    assert "physics of its own" in capsys.readouterr().err
    file.write_text(json.dumps(Recipe.for_mode("rollout").to_dict()))
    assert digests("--recipe", str(file), "--physics", "mass=1.1") == [heavy.digest], "the same recipe in another bucket"
    assert cli.run(["score", motions[1], "--mode", "rollout", "--physics", "mass=1.1", "--export", str(tmp_path), "-q"]) == 0
    assert (tmp_path / "walk.npz").exists()


def test_the_comparison(motions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared.json"
    options = ["--mode", "rollout", "--friction", "0.7,1.0", "--mass", "1.1", "--replay"]
    assert cli.run(["buckets", *motions, str(tmp_path / "none.pkl"), *options, "--json", str(out)]) == 1
    said = capsys.readouterr()
    assert "none.pkl" in said.err
    found = json.loads(out.read_text())
    names = ["canonical", "friction=0.7", "mass=1.1"]
    assert [bucket["name"] for bucket in found["buckets"]] == names
    assert [clip["name"] for clip in found["clips"]] == ["squat", "walk"]
    for clip in found["clips"]:
        assert [bucket["name"] for bucket in clip["buckets"]] == names
        for bucket in clip["buckets"]:
            assert bucket["share"] == bucket["tier_0_frames"] / clip["frames"]
            assert bucket["replay"]["share"] == bucket["share"], "rollout replays its own controls"
    lines = said.out.splitlines()
    for name in names:
        assert any(line.startswith("walk ") and f" {name} " in line for line in lines)
        assert any(line.startswith(f"{name} ") for line in lines)
    assert cli.run(["buckets", motions[1], *options, "--grid", "--json", "-"]) == 0
    grid = json.loads(capsys.readouterr().out)
    assert [bucket["name"] for bucket in grid["buckets"]] == [*names, "friction=0.7,mass=1.1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "a.npz", "--physics", "grip=1"], "--physics"),
        (["score", "a.npz", "--physics", "friction=0"], "--physics"),
        (["submit", "a.npz", "--physics", "slippery"], "--physics"),
        (["buckets", "a.npz", "--friction", "a,b"], "--friction"),
        (["buckets", "a.npz", "--mass", "0"], "--mass"),
        (["buckets", "a.npz", "--quat-order", "zyx"], "--quat-order"),
        (["buckets", "a.npz", "--mode", "none"], "--mode"),
        (["buckets"], "MOTION"),
        (["dataset", "lock", "walk", "1.0.0", "--bucket", "all", "--bucket", "canonical"], "--bucket"),
        (["dataset", "lock", "walk", "1.0.0", "--bucket", "own"], "--bucket"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert said in capsys.readouterr().err
