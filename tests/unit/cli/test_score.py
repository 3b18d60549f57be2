"""`ampref score`, on short motions cut from the bundled ones and the real physics."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from amp_core.cli import main as cli
from amp_core.cli.score import export_names
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.scoring import Score

FRAMES = 20

QUICK_AUTO = {"mode": "auto", "planner": {"samples": 16, "first_rounds": 1, "horizon_sec": 0.2}}
"""Plans badly, and in no time."""


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first moments of the bundled walk and squat, as small npz files."""
    folder = tmp_path_factory.mktemp("motions")
    made = {}
    for source in bundled_motions():
        if source.stem in ("walk", "squat"):
            motion = read_motion(source, name=source.stem)
            arrays = {key: np.asarray(getattr(motion, key))[:FRAMES] for key in ("root_pos", "root_rot", "dof_pos")}
            made[source.stem] = folder / f"{source.stem}.npz"
            np.savez(made[source.stem], fps=motion.fps, **arrays)
    assert set(made) == {"walk", "squat"}
    return made


def test_results_come_in_the_order_of_the_files_and_refused_files_cost_only_themselves(
    motions: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a zip")
    out, folder = tmp_path / "out.json", tmp_path / "deep" / "exports"
    files = [str(motions["walk"]), str(bad), str(motions["squat"]), str(tmp_path / "none.pkl"), str(tmp_path)]
    assert cli.run(["score", *files, "--mode", "rollout", "--json", str(out), "--export", str(folder)]) == 1
    documents = json.loads(out.read_text())
    assert [document["name"] for document in documents] == ["walk", "squat"]
    keys = {"name", "source_digest", "frames", "duration_sec", "mode", "tier", "tier_reason", "gates", "quality_metrics"}
    keys |= {"segments", "ingest", "provenance", "wall_sec"}
    for document in documents:
        assert keys <= document.keys()
        assert document["mode"] == "rollout"
        assert document["auto"] is None
        assert document["tier"] in (0, 1, -1)
        with np.load(folder / f"{document['name']}.npz", allow_pickle=False) as export:
            assert export["features"].shape == (document["frames"], 27)
            assert export["features"].dtype == np.float32
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert [Path(line.removeprefix("error: ").partition(":")[0].partition(",")[0]).name for line in errors] == [
        "bad.npz",
        "none.pkl",
        tmp_path.name,
    ]
    assert "walk" in captured.out
    assert "2 scored" in captured.out
    assert "3 refused" in captured.out
    assert sorted(path.name for path in folder.iterdir()) == ["squat.npz", "walk.npz"]


def test_the_same_bytes_come_out_alone_in_a_batch_and_on_any_number_of_threads(
    motions: dict[str, Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "quick.json"
    recipe.write_text(json.dumps(QUICK_AUTO))
    both = ["--recipe", str(recipe), str(motions["walk"]), str(motions["squat"])]
    assert cli.run(["score", *both, "--export", str(tmp_path / "a"), "--threads", "2", "--quiet"]) == 0
    assert cli.run(["score", *both[:2], both[3], "--export", str(tmp_path / "b"), "--threads", "1", "--quiet"]) == 0
    assert (tmp_path / "a/squat.npz").read_bytes() == (tmp_path / "b/squat.npz").read_bytes()


def test_a_dash_writes_the_document_to_stdout_and_nothing_else(motions: dict[str, Path]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "amp_core.cli",
            "score",
            str(motions["walk"]),
            "--json",
            "-",
            "--mode",
            "teacher_forced",
            "--seed",
            "3",
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)
    assert document["mode"] == "teacher_forced"
    assert document["tier"] != 0
    assert document["provenance"]["recipe"]["seed"] == 3
    assert "walk" in done.stderr


def test_a_recipe_that_cannot_be_used_is_refused_by_its_file(
    motions: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "a.json"
    recipe.write_text(json.dumps({"mode": "tracked", "planner": {"samples": 1}}))
    assert cli.run(["score", str(motions["walk"]), "--recipe", str(recipe)]) == 1
    assert f"error: {recipe}, key 'planner.samples': 1 is not valid" in capsys.readouterr().err


def test_a_result_can_be_made_again_from_its_own_recipe(motions: dict[str, Path], tmp_path: Path) -> None:
    first, second, recipe = tmp_path / "1.json", tmp_path / "2.json", tmp_path / "recipe.json"
    assert cli.run(["score", str(motions["walk"]), "--json", str(first), "--mode", "rollout", "--seed", "5", "--quiet"]) == 0
    (document,) = json.loads(first.read_text())
    recipe.write_text(json.dumps(document["provenance"]["recipe"]))
    assert cli.run(["score", str(motions["walk"]), "--json", str(second), "--recipe", str(recipe), "--quiet"]) == 0
    (again,) = json.loads(second.read_text())
    assert document.pop("wall_sec") >= 0
    again.pop("wall_sec")
    assert again == document


def test_motions_with_one_name_do_not_overwrite_each_other(motions: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other" / "walk.npz"
    other.parent.mkdir()
    other.write_bytes(motions["squat"].read_bytes())
    folder = tmp_path / "exports"
    assert cli.run(["score", str(motions["walk"]), str(other), "--mode", "rollout", "--export", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["walk-2.npz", "walk.npz"]
    assert (folder / "walk.npz").read_bytes() != (folder / "walk-2.npz").read_bytes()


def test_an_export_without_room_costs_only_itself(
    motions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Score.export

    def export(score: Score, path: Path) -> None:
        if score.name == "walk":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(score, path)

    monkeypatch.setattr(Score, "export", export)
    files = [str(motions["walk"]), str(motions["squat"])]
    out, folder = tmp_path / "out.json", tmp_path / "exports"
    assert cli.run(["score", *files, "--mode", "rollout", "--json", str(out), "--export", str(folder)]) == 1
    assert [document["name"] for document in json.loads(out.read_text())] == ["walk", "squat"]
    assert [path.name for path in folder.iterdir()] == ["squat.npz"]
    text = capsys.readouterr().err
    assert f"error: {folder / 'walk.npz'}: cannot be written: No space left on device" in text
    assert "what to do: Make room there" in text


def test_export_names_are_all_different_even_where_case_does_not_count() -> None:
    names = export_names([Path("a/x.pkl"), Path("b/x.npz"), Path("x-2.pkl"), Path("X.pkl"), Path("c/x-2.json")])
    assert names[0] == "x"
    assert names[2] == "x-2"
    assert len({name.casefold() for name in names}) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(motions: dict[str, Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert cli.run(["score", str(motions["walk"]), "--export", str(closed / "x")]) == 1


def test_a_target_that_is_no_folder_is_noticed_before_the_work(
    motions: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["score", str(motions["walk"]), "--export", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert cli.run(["score", str(motions["walk"]), "--json", str(tmp_path)]) == 1
    assert "scored" not in capsys.readouterr().out


def test_an_unknown_robot_or_mode_is_refused_with_the_choices(
    motions: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["score", str(motions["walk"]), "--robot", "nobody"]) == 1
    assert "wildrobot" in capsys.readouterr().err
    assert cli.run(["score", str(motions["walk"]), "--mode", "flying"]) == 2
    assert "teacher_forced" in capsys.readouterr().err


def test_robots_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["robots", "--json"]) == 0
    robots = json.loads(capsys.readouterr().out)
    assert [(robot["name"], robot["feature_dim"]) for robot in robots] == [("g1", 69), ("wildrobot", 27)]


def test_results_are_not_written_into_a_folder_that_is_not_there(
    motions: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nosuch" / "out.json"
    assert cli.run(["score", str(motions["walk"]), "--json", str(out)]) == 1
    assert str(out) in capsys.readouterr().err
    assert not out.parent.exists()


def test_what_a_csv_lacks_is_named_by_the_options_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "walk.csv"
    csv.write_text("0,0,0.5,0,0,0,1\n" * 20)
    assert cli.run(["score", str(csv)]) == 1
    said = capsys.readouterr().err
    assert "--fps 50 and --quat-order xyzw" in said
    assert "fps=" not in said


def _children_sec() -> float:
    """s of the processor that the child processes which have ended took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("count", [1, 3])
def test_ctrl_c_while_it_plans_ends_it_and_leaves_nothing(motions: dict[str, Path], tmp_path: Path, count: int) -> None:
    recipe = tmp_path / "slow.json"
    recipe.write_text(json.dumps({"mode": "tracked", "planner": {"samples": 256, "rounds": 4}}))
    files = []
    for number in range(count):
        files.append(tmp_path / f"walk{number}.npz")
        files[-1].write_bytes(motions["walk"].read_bytes())
    exports, out = tmp_path / "exports", tmp_path / "out.json"
    command = [sys.executable, "-m", "amp_core.cli", "score", *map(str, files), "--recipe", str(recipe), "--threads", "2"]
    earlier_sec = _children_sec()
    process = subprocess.Popen(
        [*command, "--export", str(exports), "--json", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stderr is not None
    said = ""
    # The bar has moved, so it plans.
    while "%" not in said:
        said += process.stderr.read(1) or pytest.fail(said)
    planning_sec = sum(psutil.Process(process.pid).cpu_times()[:2])
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    # Of the processor, because the machine may have much else to do.
    assert _children_sec() - earlier_sec - planning_sec < 5
    assert process.returncode == 130
    assert "Traceback" not in said + rest
    assert not out.exists()
    assert not exports.exists()


def test_suspicious_contacts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A squat never lifts a foot."""
    squat = next(path for path in bundled_motions() if path.stem == "squat")
    assert cli.run(["score", str(squat), "--mode", "rollout"]) == 0
    text = capsys.readouterr().out
    assert "squat: suspicious contacts: left_toe touches in 100.0% of the frames; " in text
    assert "; all feet are on the ground in 100.0% of the frames\n" in text
