"""`ampref verify`, with made-up findings in the place of the tests' own; the integration tests run real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verificationkit import failed, report, verification, warned

from amp_core.cli import main as cli
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.readiness import TEST_IDS
from amp_core.verify import SKIP, Subject, TestReport, Verification

Asked = dict[str, Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the tests were called with; `asked["found"]` is what they find."""
    seen: Asked = {"found": ()}

    def verify(
        subject: Subject,
        only: Sequence[str] | None,
        nthread: int,
        seed: int,
        progress: Callable[..., None],
        **limits: int | None,
    ) -> Verification:
        progress(0.5, "6: half")
        seen.update(subject=subject, only=only, nthread=nthread, seed=seed, **limits)
        left_out = [report(test, SKIP, "not asked for") for test in TEST_IDS if only and test not in only]
        found: tuple[TestReport, ...] = seen["found"]
        return verification(*left_out, *found, clips=len(subject.clips), **subject.facts)

    monkeypatch.setattr("amp_core.verify.verify", verify)
    monkeypatch.delenv("AMPREF_URL", raising=False)
    return seen


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first moments of the bundled walk."""
    source = next(path for path in bundled_motions() if path.stem == "walk")
    read = read_motion(source, name="walk")
    path = tmp_path_factory.mktemp("motions") / "walk.npz"
    np.savez(path, fps=read.fps, **{key: np.asarray(getattr(read, key))[:20] for key in ("root_pos", "root_rot", "dof_pos")})
    return path


def test_motions_are_scored_and_tested_as_one_set(
    asked: Asked, motion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.npz"
    again.write_bytes(motion.read_bytes())
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    options = ["--mode", "rollout", "--seed", "7", "--threads", "1", "--json", str(out), "--html", str(page)]
    assert cli.run(["verify", str(motion), str(again), *options]) == 0
    subject = asked["subject"]
    assert [clip.name for clip in subject.clips] == ["walk", "again"]
    assert {clip.recipe.mode for clip in subject.clips} == {"rollout"}
    assert {clip.recipe.seed for clip in subject.clips} == {7}
    assert subject.clips[1].motion().name == "again"
    assert (asked["seed"], asked["nthread"], asked["only"]) == (7, 1, None)
    document = json.loads(out.read_text())
    assert [test["id"] for test in document["tests"]] == list(TEST_IDS)
    assert all(test["name"].startswith(test["id"]) and test["status"] == "PASS" for test in document["tests"])
    assert document["status"] == "PASS"
    assert document["ready"] is False  # Nothing is locked.
    assert next(group["name"] for group in document["groups"]) == "Feature parity"
    assert document["refused"] == []
    assert page.read_text().startswith("<!doctype html>")
    said = capsys.readouterr().out
    assert "6 distribution sanity" in said
    assert "PASS: 10 passed" in said
    assert f"page: {page}" in said


def test_a_failure_is_told_with_its_reason_and_ends_with_1(
    asked: Asked, motion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked["found"] = (failed("6"), warned("2"), report("3", SKIP, "JAX is not installed"))
    assert cli.run(["verify", str(motion), "--mode", "rollout"]) == 1
    said = capsys.readouterr().out
    assert "6 FAIL: differing is wrong in clip walk: mend it" in said
    assert "2 WARN: look at clip walk" in said
    assert "3 SKIP: JAX is not installed" in said
    assert "FAIL: 1 failed, 1 with a warning, 1 not run, 7 passed" in said
    assert "docs/verification.md" in said


def test_a_warning_or_a_test_that_was_not_run_is_no_failure(asked: Asked, motion: Path) -> None:
    asked["found"] = (warned("2"), report("3", SKIP, "JAX is not installed"))
    assert cli.run(["verify", str(motion), "--mode", "rollout"]) == 0


def test_a_refused_file_costs_itself_and_the_exit_code(
    asked: Asked, motion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"not a zip")
    assert cli.run(["verify", str(bad), str(motion), "--mode", "rollout", "--json", "-"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [clip.name for clip in asked["subject"].clips] == ["walk"]
    assert document["status"] == "PASS"
    assert document["refused"][0]["file"] == str(bad)
    assert "error: " in captured.err


def test_nothing_but_refused_files_is_nothing_to_test(asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", str(tmp_path / "none.pkl"), "--json", "-"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["tests"] == []
    assert document["status"] == "SKIP"
    assert document["ready"] is False
    assert "subject" not in asked


def test_some_tests_alone_can_be_asked_for(asked: Asked, motion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", str(motion), "--mode", "rollout", "--only", "6", "--only", "1A"]) == 0
    assert asked["only"] == ["6", "1A"]
    said = capsys.readouterr().out
    assert "not asked for" not in said
    assert "smoke" not in said
    assert cli.run(["verify", str(motion), "--mode", "rollout", "--only", "6", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[7] == "6\tPASS"


def test_the_sample_and_the_training_can_be_shortened(asked: Asked, motion: Path) -> None:
    assert cli.run(["verify", str(motion), "--mode", "rollout", "--frames", "300", "--iterations", "7"]) == 0
    assert (asked["frames"], asked["iterations"]) == (300, 7)
    assert cli.run(["verify", str(motion), "--mode", "rollout"]) == 0
    assert (asked["frames"], asked["iterations"]) == (None, None)
    assert cli.run(["verify", str(motion), "--iterations", "0"]) == 2


def test_all_are_the_bundled_motions(asked: Asked) -> None:
    assert cli.run(["verify", "--all", "--mode", "rollout"]) == 0
    assert [clip.name for clip in asked["subject"].clips] == [path.stem for path in bundled_motions()]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk.npz", "--all"],
        ["walk==0.1.0", "walk.npz"],
        ["walk==0.1.0", "squat==0.1.0"],
        ["walk==0.1.0", "--all"],
        ["walk==0.1.0", "--mode", "rollout"],
        ["walk==0.1.0", "--fps", "50"],
        ["walk.npz", "--url", "http://127.0.0.1:1"],
        ["walk.npz", "--only", "8"],
        ["walk.npz", "--mode", "flying"],
        ["walk.npz", "--quat-order", "zyxw"],
    ],
)
def test_wrong_usage_is_told_before_any_work(asked: Asked, arguments: list[str]) -> None:
    assert cli.run(["verify", *arguments]) == cli.USAGE
    assert "subject" not in asked


def test_a_report_that_cannot_be_written_is_told_before_the_work(asked: Asked, motion: Path, tmp_path: Path) -> None:
    assert cli.run(["verify", str(motion), "--html", str(tmp_path / "no" / "page.html")]) == 1
    assert cli.run(["verify", str(motion), "--json", str(tmp_path)]) == 1
    assert "subject" not in asked


def test_without_a_service_a_version_cannot_be_tested(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify", "walk==0.1.0", "--url", "http://127.0.0.1:1"]) == 1
    assert "error: " in capsys.readouterr().err
