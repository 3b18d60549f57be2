"""`ampref augment` on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amp_core.cli import main as cli
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions

WALK = str(next(path for path in bundled_motions() if path.stem == "walk"))


def test_files_are_written_that_are_read_back_with_their_parent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    options = ["--mirror", "--warp", "0.9", "--warp", "1.1", "--loop", "2", "--apply", "heading=90+mirror"]
    assert cli.run(["augment", WALK, *options, "--out", str(folder), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    texts = ["mirror", "warp=0.9", "warp=1.1", "loop=2", "mirror+heading=90"]
    assert [item["augmentation"] for item in made] == texts
    assert [item["seam"] is not None for item in made] == [text == "loop=2" for text in texts]
    source = read_motion(Path(WALK), name="walk")
    for item in made:
        motion = read_motion(Path(item["file"]), name="x")
        assert motion.source_digest == item["source_digest"]
        assert motion.lineage is not None
        assert motion.lineage.parent == source.source_digest == item["parent"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"walk+{text}.npz" for text in texts)


def test_a_file_that_cannot_be_read_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no")
    assert cli.run(["augment", str(bad), WALK, "--mirror", "--out", str(tmp_path / "o"), "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert "bad.npz" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mirror"],
        [WALK, "--mirror"],
        [WALK, "--out", "x"],
        [WALK, "--warp", "0.5", "--out", "x"],
        [WALK, "--apply", "flip", "--out", "x"],
        [WALK, "--clip", "a", "--mirror", "--out", "x"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert cli.run(["augment", *arguments]) == 2
