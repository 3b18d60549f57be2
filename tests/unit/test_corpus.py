"""`bench.corpus`: every window of a folder is scored once, whatever ends a run, and the tables say what the lines say."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from amp_core.augment.cutting import cut_motion
from amp_core.digests import digest_of_file
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from amp_core.robot import Robot
from amp_core.scoring import score
from bench import corpus
from bench.corpus_results import Results, key_of
from bench.corpus_summary import Estimate, build_table, class_of, describe_run

MOTIONS = {path.name: path for path in bundled_motions()}
ROOT = Path(corpus.__file__).parents[1]
OPTIONS = ["--mode", "rollout", "--cut", "3s", "--fps", "30", "--quat-order", "wxyz", "--jobs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven windows, a copy and a file that is refused."""
    folder = tmp_path_factory.mktemp("motions")
    shutil.copy(MOTIONS["walk.pkl"], folder / "walk1_subject1.pkl")
    shutil.copy(MOTIONS["walk_long_stride.npz"], folder / "walk2_subject1.npz")
    (folder / "more").mkdir()
    shutil.copy(MOTIONS["weight_shift.csv"], folder / "more")
    shutil.copy(MOTIONS["walk.pkl"], folder / "walk9_copy.pkl")
    (folder / "broken.npz").write_bytes(b"no zip")
    return folder


@pytest.fixture(scope="module")
def finished_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "results.jsonl"
    assert corpus.main([str(folder), *OPTIONS, "--out", str(path)]) == 1, "a file is refused"
    return path


@pytest.fixture
def results_file(finished_file: Path, tmp_path: Path) -> Path:
    """A copy of the results, for a test that changes it."""
    return Path(shutil.copy(finished_file, tmp_path / "results.jsonl"))


def read_windows(path: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "window"]


def test_each_window_has_the_score_that_its_clip_has_alone(folder: Path, finished_file: Path) -> None:
    lines = {line["name"]: line for line in read_windows(finished_file)}
    assert sorted(lines) == [
        *("broken", "walk1_subject1_000-099", "walk1_subject1_100-199", "walk1_subject1_200-266"),
        *("walk2_subject1_000-149", "walk2_subject1_150-249"),
        *("weight_shift_000-089", "weight_shift_090-179"),
    ]
    line = lines["walk2_subject1_000-149"]
    clip = read_motion(folder / "walk2_subject1.npz")
    recipe, robot = Recipe.for_mode("rollout"), Robot.load("wildrobot")
    result = score([cut_motion(clip, 0, 150).motion], robot, recipe)[0]
    assert (line["tier"], line["reason"], line["mode"]) == (result.tier, result.tier_reason, "rollout")
    assert line["metrics"] == {name: result.quality_metrics[name] for name in line["metrics"]}
    assert {"mpjpe_m", "joint_rmse_rad", "root_drift_m", "slip_rate", "unloaded_frame_rate", "contact_agreement"} <= set(
        line["metrics"]
    )
    assert key_of(line) == (digest_of_file(folder / "walk2_subject1.npz"), 0, 149, recipe.digest, robot.digest)
    assert line["cpu_sec"] > 0.0
    assert line["wall_sec"] > 0.0
    assert line["cpu_sec_per_clip_sec"] == pytest.approx(line["cpu_sec"] / line["clip_sec"], abs=1e-4)


def test_a_refused_file_is_a_line_and_the_others_are_scored(finished_file: Path) -> None:
    lines = read_windows(finished_file)
    (refusal,) = [line for line in lines if line["status"] != "scored"]
    assert (refusal["file"], refusal["status"], refusal["frames"]) == ("broken.npz", "refused", None)
    assert refusal["error"]["type"] == "motion-refused"
    assert refusal["source_digest"].startswith("sha256:")


def test_a_finished_run_adds_nothing_and_keeps_its_order(folder: Path, results_file: Path) -> None:
    data = results_file.read_bytes()
    assert corpus.main([str(folder), *OPTIONS, "--out", str(results_file)]) == 1
    assert results_file.read_bytes() == data


def test_a_limit_scores_a_part_and_the_next_run_the_rest(
    folder: Path, finished_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    command = [str(folder), *OPTIONS, "--out", str(path)]
    corpus.main([*command, "--limit", "2"])
    assert "3 of 8 windows" in capsys.readouterr().out, "two and the refusal"
    first = path.read_bytes()
    corpus.main(command)
    assert path.read_bytes().startswith(first)
    assert {key_of(line) for line in read_windows(path)} == {key_of(line) for line in read_windows(finished_file)}
    assert len(read_windows(path)) == 8
    assert "7 windows, 2 of them finished" in capsys.readouterr().err


def test_a_torn_last_line_is_dropped_and_scored_again(
    folder: Path, results_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = results_file.read_bytes().splitlines(keepends=True)
    results_file.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert Results.read(results_file).torn == 40
    corpus.main([str(folder), *OPTIONS, "--out", str(results_file)])
    assert "a last line of 40 bytes was not whole and is dropped" in capsys.readouterr().err
    names = [line["name"] for line in read_windows(results_file)]
    assert len(names) == len(set(names)) == 8


def test_a_killed_run_leaves_no_process_and_goes_on(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    arguments = [str(folder), *OPTIONS, "--out", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.corpus", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children: list[psutil.Process] = []
    while process.poll() is None and not (path.exists() and b'"scored"' in path.read_bytes()):
        children = psutil.Process(process.pid).children() or children
        time.sleep(0.02)
    process.kill()
    process.wait(30)
    assert children
    assert not psutil.wait_procs(children, timeout=30)[1]
    finished = {line["name"] for line in read_windows(path)} if path.read_bytes().endswith(b"\n") else set()
    assert corpus.main(arguments) == 1
    names = [line["name"] for line in read_windows(path)]
    assert len(names) == len(set(names)) == 8
    assert finished <= set(names)


def test_an_interrupt_keeps_what_is_finished(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    # A shell's background jobs begin with SIGINT ignored.
    start = (
        "import signal, sys; signal.signal(2, signal.default_int_handler); from bench import corpus; sys.exit(corpus.main())"
    )
    command = [sys.executable, "-c", start, str(folder), *OPTIONS, "--out", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (path.exists() and b"session" in path.read_bytes()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on with the rest" in errors
    assert "Traceback" not in errors
    assert Results.read(path).torn == 0


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--seed", "1"], "recipe.seed is 0 there and 1 here"),
        (["--profile", "amp-0.12-dynamic"], 'recipe.gate_profile is "amp-0.12" there and "amp-0.12-dynamic" here'),
        (["--robot", "g1"], 'robot is "wildrobot" there and "g1" here'),
        (["--fps", "50"], "fps is 30.0 there and 50.0 here"),
    ],
)
def test_results_of_other_settings_are_not_mixed(
    folder: Path, results_file: Path, options: list[str], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = results_file.read_bytes()
    assert corpus.main([str(folder), *OPTIONS, "--out", str(results_file), *options]) == 1
    errors = capsys.readouterr().err
    assert difference in errors
    assert "a file of their own with --out" in errors
    assert results_file.read_bytes() == data


def test_other_windows_are_other_settings(folder: Path, results_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main([str(folder), *OPTIONS[:2], "--out", str(results_file), "--cut", "0:50", "--cut", "50:"]) == 1
    assert "cut.frames is null there and [[0, 50], [50, null]] here; cut.seconds is 3.0 there" in capsys.readouterr().err


def test_one_run_at_a_time_writes_to_a_file(folder: Path, results_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with results_file.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert corpus.main([str(folder), *OPTIONS, "--out", str(results_file)]) == 1
        assert "another run writes to it" in capsys.readouterr().err
        assert corpus.main(["--out", str(results_file)]) == 1, "it may be looked at"
        assert "8 of 8 windows" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"name": "walk"}\n', "no results\n", '{"kind": "settings", "format": 99, "settings": {}}\n'])
def test_a_file_with_something_else_is_not_touched(
    folder: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    assert corpus.main([str(folder), *OPTIONS, "--out", str(path)]) == 1
    assert "line 1 is not one that bench.corpus writes" in capsys.readouterr().err
    assert path.read_text() == text


DYING_CHILD = """
import os, sys
from bench import corpus_child
score = corpus_child.answer
def answer(request, robot, recipe):
    if request["file"].startswith("walk2"):
        print("a reason", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    return score(request, robot, recipe)
corpus_child.answer = answer
corpus_child.main()
"""


def test_a_window_whose_process_dies_is_tried_again_by_the_next_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.jsonl"
    command = [str(folder), *OPTIONS, "--out", str(path)]
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "CHILD", (sys.executable, "-c", DYING_CHILD))
        assert corpus.main(command) == 1
    failures = [line for line in read_windows(path) if line["status"] == "failed"]
    assert [line["file"] for line in failures] == ["walk2_subject1.npz"] * 2
    assert failures[0]["reason"] == "the process ended by SIGKILL: a reason"
    assert len(read_windows(path)) == 8, "the others are scored"
    corpus.main(command)
    statuses = {line["name"]: line["status"] for line in Results.read(path).windows.values()}
    assert [name for name, status in statuses.items() if status != "scored"] == ["broken"]


def test_a_child_that_does_not_come_up_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus, "CHILD", (sys.executable, "-c", "raise SystemExit('no luck')"))
    path = tmp_path / "results.jsonl"
    assert corpus.main([str(folder), *OPTIONS, "--out", str(path)]) == 1
    assert "the process ended with 1: no luck" in capsys.readouterr().err
    assert [line["name"] for line in read_windows(path)] == ["broken"]


def test_a_window_beyond_the_end_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    corpus.main([str(folder), *OPTIONS[:2], *OPTIONS[4:], "--cut", "0:200", "--cut", "210:260", "--out", str(path)])
    statuses = {line["name"]: line["status"] for line in read_windows(path)}
    assert statuses["walk1_subject1_000-199"] == statuses["walk1_subject1_210-259"] == "scored"
    assert statuses["walk2_subject1_210-259"] == "refused"


def test_lines_of_a_file_that_has_changed_are_left_out(
    folder: Path, results_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(folder, tmp_path / "motions")
    shutil.copy(MOTIONS["walk_backward.npz"], changed / "walk2_subject1.npz")
    corpus.main([str(changed), *OPTIONS, "--out", str(results_file), "--limit", "0", "--by", "clip"])
    table = capsys.readouterr().out
    assert "walk2_subject1" not in table
    assert "weight_shift_000-089" in table


@pytest.mark.parametrize(
    ("file", "pattern", "expected"),
    [
        ("walk1_subject1.csv", None, "walk"),
        ("g1/fallAndGetUp2_subject3.csv", None, "fallAndGetUp"),
        ("brisk2.csv", None, "brisk2"),
        ("walking_medium01.pkl", None, "walking_medium01"),
        ("kicks/left_03.npz", r"^(\w+)/", "kicks"),
        ("kicks/left_03.npz", r"left|right", "left"),
        ("kicks/jump_03.npz", r"left|right", "jump_03"),
    ],
)
def test_the_class_of_a_file(file: str, pattern: str | None, expected: str) -> None:
    assert class_of(file, pattern and re.compile(pattern)) == expected


def make_line(file: str, first: int, tier: int | None, cpu_sec: float, code: str = "fell") -> dict[str, Any]:
    line: dict[str, Any] = {
        "kind": "window",
        "file": file,
        "name": f"{file}_{first}",
        "source_digest": f"sha256:{file}",
        "frames": [first, first + 149],
        "recipe_digest": "r",
        "robot_digest": "b",
        "status": "refused" if tier is None else "scored",
        "reason": "a | reason",
        "cpu_sec": cpu_sec,
        "wall_sec": cpu_sec,
    }
    if tier is None:
        return line
    findings = [{"code": code, "severity": "failed", "message": f"{code} at 1 s: forward; more"}] if tier else []
    metrics = dict.fromkeys(("joint_rmse_rad", "root_drift_m", "slip_rate", "unloaded_frame_rate", "contact_agreement"), 0.05)
    scored = {"tier": tier, "clip_sec": 5.0, "cpu_sec_per_clip_sec": cpu_sec / 5.0, "findings": findings, "mode": "tracked"}
    return line | scored | {"metrics": metrics | {"mpjpe_m": 0.0314}}


@pytest.fixture
def results() -> Results:
    lines = [
        make_line("walk1_subject1.csv", 0, 0, 100.0),
        make_line("walk1_subject1.csv", 150, 0, 150.0),
        make_line("walk2_subject1.csv", 0, -1, 500.0),
        make_line("walk2_subject1.csv", 150, 1, 250.0, "unloaded"),
        make_line("dance1_subject1.csv", 0, -1, 3600.0),
        make_line("dance1_subject1.csv", 150, None, 0.0),
    ]
    session = {"processor": "A", "jobs": 2, "windows": 12, "clip_sec": 50.0, "code": "c"}
    recipe = {"mode": "tracked", "seed": 0, "gate_profile": "amp-0.12", "generator_version": "0.12.0"}
    settings = {"robot": "g1", "recipe": recipe, "mujoco_version": "4.0.1", "cut": {"seconds": 5.0}}
    return Results(settings, [session], {key_of(line): line for line in lines})


def read_table(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in table.splitlines()
        if "---" not in line and "--:" not in line
    ]


def test_the_table_by_class_adds_up(results: Results) -> None:
    heads, *rows = read_table(build_table(results, "class"))
    assert [dict(zip(heads, row, strict=True)) for row in rows] == [
        dict(zip(heads, row, strict=True))
        for row in (
            ["dance", "1", "0%", "0%", "100%", "1", "5 s", "0 s", "720.0", "720.0", "1.00", "`fell` 1"],
            ["walk", "4", "50%", "25%", "25%", "0", "20 s", "10 s", "40.0", "50.0", "0.28", "`fell` 1, `unloaded` 1"],
            ["**all**", "5", "40%", "20%", "40%", "1", "25 s", "10 s", "50.0", "184.0", "1.28", "`fell` 2, `unloaded` 1"],
        )
    ]


def test_the_table_by_clip_says_why_a_window_is_not_tier_0(results: Results) -> None:
    rows = {row[0]: row for row in read_table(build_table(results, "clip"))}
    assert rows["walk1_subject1.csv_0"][1:7] == ["g1", "5.0 s", "tracked", "Tier 0", "31 mm", "0.050 rad"]
    assert rows["walk1_subject1.csv_0"][-2:] == ["20.0", ""]
    assert rows["walk2_subject1.csv_0"][-1] == "fell at 1 s: forward"
    assert rows["dance1_subject1.csv_150"][4:] == ["refused", *[""] * 7, r"a \| reason"]


def test_what_is_missing_is_estimated_from_what_is_finished(results: Results) -> None:
    settings, count, left = describe_run(results)
    assert settings.endswith("generator 0.12.0, MuJoCo 4.0.1; windows of 5 s.")
    assert count == "6 of 12 windows; A, 2 at once."
    assert left.startswith("The other 6 windows would take 1.28 ± "), "25 s at 184 CPU seconds a second"


def test_an_estimate_knows_its_spread() -> None:
    assert Estimate.of([(5.0, 50.0)] * 4, [5.0] * 10, 2) is None
    steady = Estimate.of([(5.0, 50.0)] * 6, [5.0] * 10, 2)
    assert steady == Estimate(250.0, 0.0)
    assert str(steady) == "4 ± 0 min left"
    uneven = Estimate.of([(5.0, 10.0), (5.0, 90.0)] * 3, [5.0] * 10, 2)
    assert uneven is not None
    assert uneven.left_sec == 250.0
    # 40 s of spread a window: the mean of six, for ten windows, and ten windows themselves, in two processes.
    assert uneven.margin_sec == pytest.approx(2 * (40**2 * 6 / 5 * (10**2 / 6 + 10)) ** 0.5 / 2)


def test_the_markdown_file_holds_the_table(results_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "table.md"
    corpus.main(["--out", str(results_file), "--markdown", str(target), "--class-of", r"^\w+?(?=\d|_|\.|/)"])
    prose, _, table = target.read_text().partition("\n\n")
    assert max(map(len, prose.splitlines())) <= 120
    assert [row[0] for row in read_table(table)] == ["class", "broken", "more", "walk", "**all**"]
    assert read_table(table) == read_table(capsys.readouterr().out.partition("\n\n")[2])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "neither a folder nor a results file"),
        (["missing"], 1, "is no folder"),
        (["."], 1, "there is no motion file in it"),
        ([".", "--cut", "5s", "--cut", "0:50"], 1, "do not go together"),
        ([".", "--markdown", "missing/table.md"], 1, "there is no such folder"),
    ],
)
def test_wrong_usage_is_refused_with_what_to_do(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpus.main(arguments) == code
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) in ([], [f"corpus-{tmp_path.name}.jsonl"])


@pytest.mark.parametrize(
    "options", [["--cut", "0.5s"], ["--cut", "5:6"], ["--mode", "walk"], ["--limit", "-1"], ["--class-of", "("]]
)
def test_an_option_that_cannot_be_meant_is_wrong_usage(options: list[str], folder: Path) -> None:
    with pytest.raises(SystemExit) as exit_info:
        corpus.main([str(folder), *options])
    assert exit_info.value.code == 2
