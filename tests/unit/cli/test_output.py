"""The sink: what goes where, and how an error reads."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from amp_core.cli.main import run
from amp_core.cli.output import STDOUT, Output, dumps, print_error
from amp_core.cli.text import size, tier_name, time_left
from amp_core.errors import MotionRefused


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_document_goes_into_a_pipe_which_stays_one(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    tmp_path.chmod(0o500)  # Its folder need not be writable, as that of the devices is not.
    try:
        Output(tmp_path / name).print_result({"a": 1})
        assert json.loads(os.read(reader, 100)) == {"a": 1}
    finally:
        tmp_path.chmod(0o700)
        os.close(reader)
    assert (tmp_path / name).is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_an_error_says_what_where_what_was_expected_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = MotionRefused("not finite", file="walk.pkl", key="dof_pos", frame=3, expected="numbers", remedy="Export it again")
    print_error(error)
    assert capsys.readouterr().err.splitlines() == [
        "error: walk.pkl, key 'dof_pos', frame 3: not finite",
        "  expected: numbers",
        "  what to do: Export it again",
    ]


def test_a_hostile_name_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(MotionRefused("no", file="a\x1b[2Jb\nerror: c"))
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert printed == "error: a\\x1b[2Jb\\nerror: c: no\n"


def test_human_output_goes_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.print("answer")
    out.note("by the way")
    out.print_table(("Name", ">n"), [("walk", 3)])
    out.print_result({"a": 1}, ["x"])
    captured = capsys.readouterr()
    assert "answer" in captured.out
    assert "walk" in captured.out
    assert captured.err == "by the way\n"


def test_with_json_stdout_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(STDOUT)
    out.print("answer")
    out.print_table(("Name",), [("walk",)])
    out.print_result({"name": "gehen ä"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "gehen ä"}
    assert "answer" in captured.err
    assert "walk" in captured.err


def test_quiet_prints_only_values(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.print("answer")
    out.note("note")
    out.print_table(("Name",), [("walk",)])
    with out.progress("working", 3) as progress:
        progress.update(2)
    out.print_result({}, ["id-1", "id-2"])
    assert capsys.readouterr() == ("id-1\nid-2\n", "")


def test_there_is_no_colour_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output().print_table(("Tier",), [("Tier 0",), ("Rejected",), ("[red]x[/red]",)])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps({"a": math.nan})


def test_tiers_and_sizes_read_well() -> None:
    assert [tier_name(t) for t in (0, 1, -1, None)] == ["Tier 0", "Tier 1", "Rejected", "-"]
    assert [size(n) for n in (0, 999, 1500, 500_000_000)] == ["0 B", "999 B", "1.5 kB", "500.0 MB"]


def test_a_warning_is_printed_when_quiet_and_a_note_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for out in (Output(quiet=True), Output(STDOUT, quiet=True)):
        out.warn("it was yanked:\x1b[2J wrong")
        out.note("it goes on")
        assert capsys.readouterr() == ("", "warning: it was yanked:\\x1b[2J wrong\n")


def test_the_error_that_ends_a_verb_is_its_json_document_unless_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    error = MotionRefused("not finite", key="dof_pos", frame=3)
    Output(STDOUT).fail(error)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == error.to_dict()
    assert captured.err == "error: key 'dof_pos', frame 3: not finite\n"

    out = Output(STDOUT)
    out.print_result([])
    out.fail(error)
    assert json.loads(capsys.readouterr().out) == []

    Output().fail(error)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["walk.csv"], "--fps 50 and --quat-order xyzw"),
        (["headed.csv", "--fps", "50", "--quat-order", "wxyz"], "--quat-order xyzw"),
        (["clip.json", "--fps", "60"], "(--fps) out"),
    ],
)
def test_remedies_name_what_can_be_typed(
    arguments: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "walk.csv").write_text("0,0,0,0,0,0,1,0\n")
    (tmp_path / "headed.csv").write_text("x,y,z,qx,qy,qz,qw,hip\n0,0,0,0,0,0,1,0\n")
    clip = {"fps": 30, "root_pos": [[0, 0, 0]] * 2, "root_rot": [[0, 0, 0, 1]] * 2, "dof_pos": [[0]] * 2}
    (tmp_path / "clip.json").write_text(json.dumps(clip))
    assert run(["score", str(tmp_path / arguments[0]), *arguments[1:]]) == 1
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, ""), (0.2, "1 s left"), (99.4, "99 s left"), (99.6, "2 min left"), (3600, "60 min left"), (7200, "2.0 h left")],
)
def test_a_time_that_is_left(seconds: float | None, told: str) -> None:
    assert time_left(seconds) == told


def test_progress_tells_the_time_left_by_its_rate_or_by_who_knows_better(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Output().progress("scoring", 4) as progress:
        assert progress.left() is None
        now[0] += 10.0
        progress.update(0.01)
        assert progress.left() is None  # too little to tell
        now[0] += 10.0
        progress.update(1.0, description="walk: planned 30 of 120 frames")
        assert progress.left() == pytest.approx(60.0)
        now[0] += 10.0
        progress.update(2.0, left=500.0)
        assert progress.left() == 500.0
        progress.update(4.0)
        assert progress.left() is None  # nothing is left
    lines = capsys.readouterr().err.splitlines()
    assert "  0%  scoring" in lines
    assert " 25%  walk: planned 30 of 120 frames, 60 s left" in lines
    assert " 50%  walk: planned 30 of 120 frames, 8 min left" in lines
