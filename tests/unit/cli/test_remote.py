"""The verbs that talk to a service, with a service that is a function."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from answerkit import CLIP, COVERAGE, JOB, SUBMISSION, SUMMARY, VERSION
from answerkit import ROLLOUT as COMPLETE_ROLLOUT

from amp_core.cli import main as cli
from amp_core.cli.bulk import JOURNAL
from amp_core.cli.output import Output
from amp_core.cli.results import diagnosis_lines, print_results
from amp_core.cli.webhook import COLUMNS
from amp_core.client import ApiClient, Retry
from amp_core.errors import Unavailable

Answer = Callable[[str, str], tuple[int, Any]]
LOCK = ["dataset", "lock", "walk", "1.0.0"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[str]]:
    """Let every verb talk to `answer(method, path)`, which gives status and JSON; the calls are listed."""

    def install(answer: Answer) -> list[str]:
        calls: list[str] = []

        def handle(request: httpx2.Request) -> httpx2.Response:
            calls.append(f"{request.method} {request.url.path}")
            status, body = answer(request.method, request.url.path)
            return httpx2.Response(status, json=body)

        def connect(*_: Any, **__: Any) -> ApiClient:
            return ApiClient("http://service", retry=Retry(attempts=1), transport=httpx2.MockTransport(handle))

        for verb in ("clips", "dataset", "submit", "jobs", "events"):
            monkeypatch.setattr(f"amp_core.cli.{verb}.connect", connect)
        return calls

    return install


def _locking(
    tiers: dict[str, int], recipes: list[str], alias: tuple[int, Any] = (200, VERSION), taken: dict[str, int] | None = None
) -> Answer:
    frames = {tier: 100 * count for tier, count in (taken or tiers).items()}
    manifest = {
        "gates": {"clips_by_tier": tiers, "frames_by_tier": frames},
        "clips": [{"recipe_digest": digest} for digest in recipes],
    }

    def answer(method: str, path: str) -> tuple[int, Any]:
        if method == "POST":
            return 202, {"dataset": "walk", "version": "1.0.0", "state": "locking", "job": JOB, "pending_clips": 0}
        if "/aliases/" in path:
            return alias
        return 200, JOB if "/jobs/" in path else manifest if path == "/v1/manifest" else VERSION

    return answer


def test_clips_that_another_profile_alone_passed_are_noted(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    locking = {"dataset": "walk", "version": "1.0.0", "state": "locking", "job": JOB, "pending_clips": 0}
    service(lambda *_: (202, locking | {"other_profile_clips": 2}))
    assert cli.run([*LOCK, "--no-wait"]) == 0
    assert "note: 2 clips of these tiers by another gate profile alone: not in it, see --profile" in capsys.readouterr().err


def test_clips_that_are_still_being_scored_are_named(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    locking = {"dataset": "walk", "version": "1.0.0", "state": "locking", "job": JOB}
    for count, names, text in (
        (1, {"pending_names": ["a"]}, "1 clip that fits is still being scored (a); what"),
        (9, {"pending_names": ["a", "b"]}, "9 clips that fit are still being scored (a, b, …); what"),
        (9, {}, "9 clips that fit are still being scored; what"),
    ):
        service(lambda *_, names=names, count=count: (202, locking | {"pending_clips": count} | names))
        assert cli.run([*LOCK, "--no-wait"]) == 0
        assert f"warning: {text}" in capsys.readouterr().err


def test_a_bad_alias_is_refused_before_anything_is_sent(service: Callable[[Answer], list[str]]) -> None:
    calls = service(_locking({"0": 1}, ["a"]))
    assert cli.run([*LOCK, "--alias", "good", "--alias", "latest"]) == 2
    assert calls == []


def test_an_alias_that_cannot_be_set_does_not_hide_that_the_version_is_locked(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"type": "conflict", "title": "no", "what": "somebody is at it"}
    service(_locking({"0": 2}, ["a", "a"], alias=(409, problem)))
    assert cli.run([*LOCK, "--alias", "production", "--json"]) == 1
    captured = capsys.readouterr()
    assert "walk==1.0.0 is locked, but the alias 'production' is not set: somebody is at it" in captured.err
    assert "ampref dataset alias walk production 1.0.0" in captured.err
    assert json.loads(captured.out)["manifest_sha256"] == "sha256:2"


def test_a_version_says_what_it_is_made_of_and_warns_of_what_no_training_set_holds(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    service(_locking({"0": 2}, ["sha256:a", "sha256:a"]))
    assert cli.run(LOCK) == 0
    captured = capsys.readouterr()
    assert "2 Tier 0\n" in captured.out
    assert "sha256:a\n" in captured.out
    assert "warning" not in captured.err

    service(_locking({"0": 2, "1": 3}, ["sha256:a", "sha256:b", "sha256:a"]))
    for verb in ([*LOCK, "-q"], ["dataset", "show", "walk", "1.0.0", "-q"]):
        assert cli.run(verb) == 0
        captured = capsys.readouterr()
        assert captured.out == "sha256:2\n"
        assert "holds 200 frames of Tier 0, 300 frames of Tier 1: for a curriculum, not for training" in captured.err
        assert "rollouts of 2 recipes" in captured.err

    assert cli.run(["dataset", "show", "walk", "1.0.0", "--json"]) == 0
    contents = {
        "clips_by_tier": {"0": 2, "1": 3},
        "frames_by_tier": {"0": 200, "1": 300},
        "recipes": ["sha256:a", "sha256:b"],
        "weighting": None,
    }
    assert json.loads(capsys.readouterr().out)["contents"] == contents

    service(_locking({"0": 2, "-1": 1}, ["sha256:a"], taken={"0": 3}))
    assert cli.run(["dataset", "show", "walk", "1.0.0"]) == 0
    captured = capsys.readouterr()
    assert "2 Tier 0, 1 Rejected (clips; of those that are not Tier 0, Tier 0 windows)" in captured.out
    assert "warning" not in captured.err, "windows that are Tier 0 are training data"


def test_a_version_says_what_it_covers(service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    coverage = COVERAGE | {"sources": [{"name": f"clip{number}", "seconds": 30.0 - number} for number in range(7)]}
    answer = _locking({"0": 7}, ["sha256:a"])
    weighting = {"least": 0.7, "greatest": 1.125, "effective_share": 0.98}

    def covered(method: str, path: str) -> tuple[int, Any]:
        status, body = answer(method, path)
        if path == "/v1/manifest":
            return status, body | {"weighting": weighting}
        return status, body | {"coverage": coverage} if "manifest_sha256" in body else body

    service(covered)
    assert cli.run(["dataset", "show", "walk", "1.0.0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for said in (
        "seconds 189.0 s of Tier 0 from 7 sources",
        "sources clip0 30.0 s, clip1 29.0 s, clip2 28.0 s, clip3 27.0 s, clip4 26.0 s, and 2 more",
        "forward speed -0.2 ▂ █ 0.1 m/s",
        "stance single 41%, double 57%, flight 2%; 1.9 steps/s",
        "feature space 5.1 effective dimensions of 25 that vary; 312 poses and 96 velocities, effectively",
        "weights 0.70 to 1.12; a weighted sample is worth 98% of the frames",
    ):
        assert said in shown
    assert cli.run(["dataset", "show", "walk", "1.0.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coverage"] == coverage


def _clips(names: list[str]) -> Answer:
    listed = [CLIP | {"id": f"clip_{place}", "name": name, "rollout": None} for place, name in enumerate(names)]

    def answer(method: str, path: str) -> tuple[int, Any]:
        if method == "DELETE":
            return 204, None
        if path == "/v1/clips":
            return 200, {"items": listed, "next_cursor": None}
        found = next((clip for clip in listed if path.endswith(f"/{clip['id']}")), None)
        return (200, found | {"rollouts": [], "jobs": []}) if found else (404, {"type": "not-found", "what": "no such clip"})

    return answer


def test_a_clip_is_found_by_its_name_when_that_is_unique(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = service(_clips(["walk", "walk fast", "turn", "turn"]))
    for name, clip in (("walk", "clip_0"), ("walk fast", "clip_1"), ("clip_3", "clip_3")):
        assert cli.run(["clip", name, "--delete"]) == 0
        assert calls[-1] == f"DELETE /v1/clips/{clip}"
    capsys.readouterr()
    assert cli.run(["clip", "turn", "--delete", "--json"]) == 1
    captured = capsys.readouterr()
    assert "clip_2, clip_3" in captured.err
    assert json.loads(captured.out)["type"] == "conflict"
    assert cli.run(["clip", "wal", "--delete"]) == 1
    assert sum(call.startswith("DELETE") for call in calls) == 3


def test_clips_show_the_rollouts_duration_beside_the_sources(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rollout = SUMMARY | {"mode": "teacher_forced"}
    items = [CLIP | {"rollout": rollout}, CLIP | {"name": "new", "rollout": None}]
    service(
        lambda _, path: (200, {"name": "r", "control_dt": 0.02} if "robots" in path else {"items": items, "next_cursor": None})
    )
    assert cli.run(["clips"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Clip"))
    heading, _, first, second = lines[start : start + 4]
    columns = [heading.split().index(name) for name in ("Mode", "s")]
    assert heading.endswith("source s")
    assert first.split()[2:6] == ["teacher_forced", "Tier", "0", "8.00"]
    assert columns == sorted(columns)
    assert first.endswith(" 7.98")
    assert second.endswith(" 7.98")
    assert "8.00" not in second


@pytest.mark.parametrize(("profiles", "is_shown"), [(["amp-0.12"] * 2, False), (["amp-0.12", "amp-0.11"], True)])
def test_a_list_names_the_profiles_of_its_verdicts_unless_all_are_the_usual_one(
    service: Callable[[Answer], list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    profiles: list[str],
    is_shown: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    items = [CLIP | {"rollout": SUMMARY | {"gate_profile": profile}} for profile in profiles]
    calls = service(
        lambda _, path: (200, {"name": "r", "control_dt": 0.02} if "robots" in path else {"items": items, "next_cursor": None})
    )
    assert cli.run(["clips", "--profile", "amp-0.11"]) == 0
    text = capsys.readouterr().out
    assert ("Profile" in text, "amp-0.11" in text) == (is_shown, is_shown)
    assert calls[0] == "GET /v1/clips"


def test_a_clip_shows_the_profile_of_each_rollout(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    service(lambda *_: (200, CLIP | {"rollouts": [SUMMARY], "jobs": [], "control_dt": 0.02}))
    assert cli.run(["clip", "clip_0"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Rollout", "Mode", "Profile", "Tier"] in [line[:4] for line in lines]
    assert ["rollout_0", "rollout", "amp-0.12"] in [line[:3] for line in lines]


def test_the_refusal_of_an_empty_selection_names_no_key(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    service(lambda *_: (422, {"type": "urn:ampref:error:input-refused", "what": "the selection is empty", "key": "select"}))
    assert cli.run(LOCK) == 1
    assert capsys.readouterr().err == "error: the selection is empty\n"


def _problem(slug: str, what: str, **facts: Any) -> dict[str, Any]:
    return {"type": f"urn:ampref:error:{slug}", "title": slug, "status": 400, "detail": what, "what": what, **facts}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.json").write_text(name)
    return folder


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """A service that takes batches; by the file's name, the status and the problem that it has instead."""

    def install(problems: dict[str, tuple[int, dict[str, Any]]]) -> None:
        def handle(request: httpx2.Request) -> httpx2.Response:
            if request.url.path != "/v1/clips:batch":
                return httpx2.Response(200, json=JOB | {"kind": "rollout", "state": "queued"})
            lines = []
            with tarfile.open(fileobj=io.BytesIO(request.read())) as archive:
                names = archive.getnames()
            for name in names:
                status, problem = problems.get(name.partition("/")[2], (202, None))
                result = {"submitted": SUBMISSION} if problem is None else {"problem": problem}
                lines.append(json.dumps({"member": name, "status": status, **result}))
            return httpx2.Response(200, content="\n".join([*lines, json.dumps({"num_members": len(lines)}), ""]).encode())

        def connect(*_: Any, **__: Any) -> ApiClient:
            return ApiClient("http://service", retry=Retry(attempts=1), transport=httpx2.MockTransport(handle))

        monkeypatch.setattr("amp_core.cli.submit.connect", connect)

    return install


def _journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def test_a_quota_ends_a_folder_with_one_error_and_the_same_command_goes_on(
    batches: Callable[[dict[str, Any]], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = _problem("quota", "the key 'node' is at its quota", remedy="Wait until some have ended")
    batches({"b.json": (429, problem), "c.json": (429, problem)})
    assert cli.run(["submit", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "error: the key 'node' is at its quota; 1 file accepted, 2 not sent\n" in err
    assert "what to do: Wait until some have ended; then the same command goes on" in err
    assert len(_journal(folder)) == 1
    batches({})
    assert cli.run(["submit", str(folder)]) == 0
    output = capsys.readouterr()
    assert "1 of 3 files are in the journal; 2 to send" in output.err
    assert "queued" not in output.out, "the journal knows no state"
    assert [entry["job"] for entry in _journal(folder)] == [{"id": "job_1"}] * 3


def test_what_a_service_cannot_take_at_the_moment_is_not_in_the_journal(
    batches: Callable[[dict[str, Any]], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches({"b.json": (503, _problem("disk-full", "the disk is full"))})
    assert cli.run(["submit", str(folder)]) == 1
    assert "the service could not take 1 file at the moment; the same command goes on" in capsys.readouterr().err
    entry = _journal(folder)[0] | {"file": str(folder / "b.json"), "refused": {"type": "busy", "what": "of an earlier release"}}
    with (folder / JOURNAL).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    batches({})
    assert cli.run(["submit", str(folder)]) == 0
    assert "2 of 3 files are in the journal; 1 to send" in capsys.readouterr().err


def test_the_next_run_names_what_was_refused_and_why(
    batches: Callable[[dict[str, Any]], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "d.json").write_text("d")
    batches({f"{name}.json": (422, _problem("motion-refused", "holds NaN", key="dof_pos")) for name in "abcd"})
    assert cli.run(["submit", str(folder)]) == 1
    capsys.readouterr()
    assert cli.run(["submit", str(folder)]) == 1
    err = capsys.readouterr().err
    assert f"error: {folder / 'a.json'}, key 'dof_pos': holds NaN" in err
    assert err.count("holds NaN") == 3
    assert "error: 4 files were refused before and have not changed since, the first 3 are named above" in err
    assert "Mend them, then the same command sends them; to send them without a change: --retry-refused" in err


def test_an_empty_journal_is_not_left(
    service: Callable[[Answer], list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service(lambda *_: (403, _problem("forbidden", "the key lacks the scope clips:write")))
    assert cli.run(["submit", str(folder)]) == 1
    assert not (folder / JOURNAL).exists()


def test_ctrl_c_while_sending_says_how_far_it_came(
    batches: Callable[[dict[str, Any]], None],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches({})

    def submit(_: ApiClient, files: Any, report: Callable[[Path, Any], None], **__: Any) -> None:
        report(files[0].path, SUBMISSION)
        raise KeyboardInterrupt

    monkeypatch.setattr(ApiClient, "submit_batch", submit)
    assert cli.run(["submit", str(folder)]) == 130
    assert "1 file accepted, 2 not sent; the same command goes on" in capsys.readouterr().err


def test_what_is_not_finished_in_time_is_told_once(
    batches: Callable[[dict[str, Any]], None],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches({})
    assert cli.run(["submit", str(folder), "--wait", "--timeout", "0"]) == 1
    err = capsys.readouterr().err
    assert err.count("error: ") == 1
    assert "error: 3 of 3 not finished after 0 s" in err
    assert "to follow it: the same command, or ampref jobs" in err

    def wait(*_: Any, timeout: float, **__: Any) -> None:
        assert timeout <= 0.01
        time.sleep(timeout)
        raise Unavailable("job job_1 has not finished")

    monkeypatch.setattr(ApiClient, "wait_for_job", wait)
    assert cli.run(["submit", str(folder / "a.json"), "--journal", str(folder / JOURNAL), "--wait", "--timeout", "0.01"]) == 1
    assert "error: 1 of 1 not finished after 0.01 s\n  what to do: " in (err := capsys.readouterr().err)
    assert "ampref job job_1 --wait" in err


def test_a_name_for_a_known_file_is_said_to_change_nothing(
    service: Callable[[Answer], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.npz").touch()
    answer = {"clip": CLIP, "job": None, "rollout": {"id": "rollout_0"}}
    service(lambda *_: (200, answer))
    assert cli.run(["submit", str(tmp_path / "x.npz"), "--name", "other"]) == 0
    assert "already known as walk (clip_0); name unchanged" in capsys.readouterr().err
    assert cli.run(["submit", str(tmp_path / "x.npz"), "--name", "walk"]) == 0
    assert "already known" not in capsys.readouterr().err


def test_ctrl_c_while_waiting_says_that_the_jobs_go_on(
    service: Callable[[Answer], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ApiClient, "wait_for_job", interrupt)
    (tmp_path / "x.npz").touch()
    answer = {"clip": CLIP | {"name": "x"}, "job": JOB, "rollout": None}
    service(lambda method, path: (202, answer) if path == "/v1/clips" else (200, JOB))
    assert cli.run(["submit", str(tmp_path / "x.npz"), "--wait"]) == 130
    assert "the job goes on: ampref job job_1 --wait" in capsys.readouterr().err
    assert cli.run(["job", "job_1", "--wait"]) == 130
    assert "the job goes on: ampref job job_1 --wait" in capsys.readouterr().err


ROLLOUT = COMPLETE_ROLLOUT | {
    "id": "rollout_1",
    "tier": -1,
    "tier_reason": "Rejected: the root is tilted; max_tilt_deg 90 is over 60",
    "frames": 200,
    "duration_sec": 4.0,
    "segments": [{"start": 150, "end": 200}, {"start": 0, "end": 26}, {"start": 30, "end": 60}, {"start": 70, "end": 140}],
    "ingest": {"notes": ["Root frame: the root is tilted.", "Ground: it floats."]},
    "diagnosis": {
        "findings": [
            {"severity": "fatal", "message": "the clip's root is in another frame"},
            {"severity": "failed", "message": "falls forward"},
            {"severity": "note", "message": "the left foot slides"},
        ],
        "suggestions": [{"message": "export it again"}, {"message": "score it slower"}, {"message": "a third"}],
    },
}


def test_what_is_not_tier_0_says_why_what_to_try_and_what_of_it_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(Output(), [ROLLOUT])
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("walk: Rejected: the root is tilted; max_tilt_deg 90 is over 60") + 1 :] == [
        "  why: the clip's root is in another frame",
        "  why: falls forward",
        "  try: export it again",
        "  try: score it slower",
        "  best segments: 0.60–1.20 s, 1.40–2.80 s, 3.00–4.00 s",
        "walk: Ground: it floats.",
    ]


def test_tier_0_and_results_of_earlier_releases_have_no_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(Output(), [ROLLOUT | {"tier": 0, "ingest": {}}, ROLLOUT | {"diagnosis": None, "segments": [], "ingest": {}}])
    said = capsys.readouterr().out
    assert "why:" not in said
    assert "try:" not in said
    assert "best segments" not in said


def test_a_verdict_by_another_profile_than_was_asked_for_says_so_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    auto = {"recipe": {"gate_profile": "amp-0.12"}, "triage": {"reason": "by amp-0.12 this clip cannot be Tier 0"}}
    print_results(Output(), [ROLLOUT | {"tier": 0, "ingest": {}, "gate_profile": "amp-0.12-dynamic", "auto": auto}])
    said = capsys.readouterr().out
    assert "Profile" in said.splitlines()[0]
    assert "walk: judged by amp-0.12-dynamic: by amp-0.12 this clip cannot be Tier 0" in said.splitlines()
    print_results(Output(), [ROLLOUT])
    said = capsys.readouterr().out
    assert "Profile" not in said
    assert "judged by" not in said


def test_a_note_speaks_where_nothing_weightier_was_found() -> None:
    note = {"severity": "note", "message": "the left foot slides"}
    assert diagnosis_lines({"diagnosis": {"findings": [note], "suggestions": []}}) == ["why: the left foot slides"]


def test_waiting_tells_the_time_left_of_the_job_and_of_all_of_them(
    service: Callable[[Answer], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amp_core.cli.progress.SECONDS_BETWEEN_PLAIN_LINES", 0.0)
    going = JOB | {
        "kind": "rollout",
        "state": "running",
        "progress": 0.4,
        "message": "planned 40 of 100 frames",
        "eta_sec": 90.0,
    }

    def wait(_: ApiClient, __: str, *, timeout: float | None, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        progress(going)
        return JOB | {"kind": "rollout", "result": {"rollout_id": "rollout_1", "tier": 0}}

    monkeypatch.setattr(ApiClient, "wait_for_job", wait)
    service(lambda method, path: (200, going))
    assert cli.run(["job", "job_1"]) == 0
    assert "planned 40 of 100 frames, 90 s left" in capsys.readouterr().out

    service(
        lambda method, path: (
            (202, {"clip": CLIP | {"name": "x"}, "job": going, "rollout": None}) if path == "/v1/clips" else (200, ROLLOUT)
        )
    )
    for name in ("x", "y"):
        (tmp_path / f"{name}.npz").touch()
    assert cli.run(["submit", str(tmp_path / "x.npz"), "--wait"]) == 0
    assert " 40%  x: planned 40 of 100 frames, 90 s left" in capsys.readouterr().err
    assert cli.run(["submit", str(tmp_path / "x.npz"), str(tmp_path / "y.npz"), "--wait"]) == 0
    assert " 20%  0 of 2 clips (x: planned 40 of 100 frames, 90 s left)\n" in capsys.readouterr().err
    going["eta_sec"] = None
    assert cli.run(["submit", str(tmp_path / "x.npz"), "--wait"]) == 0
    assert " 40%  x: planned 40 of 100 frames\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "key", "place"),
    [
        (["jobs", "--state", "x"], "query.state", "--state"),
        (["clips", "--max", "slip=1"], "query.max_slip", "--max slip"),
        (["clips", "--min-duration-sec", "1"], "query.min_duration_sec", "--min-duration-sec"),
        (["job", "no id"], "path.job_id", "ID"),
        ([*LOCK, "--tag", "a,b"], "body.select.tags.0", "--tag"),
        (["dataset", "show", "walk", "x y"], "path.version", "VERSION"),
        (LOCK, "select.clips", "--clip"),
        (["events", "--kind", "nope"], "query.kind.0", "--kind"),
        (["events"], "body.kinds.0", "--kind"),
        (["events"], "authorization", "the Authorization header"),
        (LOCK, "body.select.gate_profile", "--profile"),
    ],
)
def test_a_parameter_that_the_service_refuses_is_called_as_the_command_calls_it(
    arguments: list[str], key: str, place: str, service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "/docs says of it: what it is"
    service(lambda *_: (422, {"type": "urn:ampref:error:parameter-refused", "what": "it is bad", "key": key, "remedy": remedy}))
    assert cli.run(arguments) == 1
    assert capsys.readouterr().err == f"error: {place}: it is bad\n  what to do: what it is\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lock", "walk", "1.2"], "'1.2' is not a version"),
        (["lock", "Walk", "1.2.0"], "'Walk' is not a dataset name"),
        (["show", "Walk==1.2.0"], "'Walk' is not a dataset name"),
        (["yank", "walk", "v1.2.0", "--undo"], "'v1.2.0' is not a version"),
    ],
)
def test_a_name_or_version_that_cannot_be_one_is_refused_before_the_service_is_asked(
    arguments: list[str], text: str, service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = service(lambda *_: (200, VERSION))
    assert cli.run(["dataset", *arguments]) == 1
    assert text in capsys.readouterr().err
    assert calls == []


def test_the_numbers_of_a_clip_are_rounded_for_people(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = CLIP | {"fps_in": 100 / 3, "duration_sec": 7.9799999999999995}
    service(lambda *_: (200, clip | {"rollouts": [], "jobs": [], "control_dt": 0.02}))
    assert cli.run(["clip", "clip_0"]) == 0
    text = capsys.readouterr().out
    assert "7.98 " in text
    assert "33.33 " in text


EVENT = {
    "id": "event_1",
    "position": 7,
    "kind": "job.failed",
    "at": "2026-11-29T11:31:50Z",
    "dataset": None,
    "robot": "wildrobot",
}
FAILED = EVENT | {"data": {"job_id": "job_1", "reason": "its knee is a hinge"}}
LOCKED = EVENT | {"position": 8, "kind": "version.locked", "dataset": "walk", "data": {"version": "0.11.0"}}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"failures": 1, "last_failure": "503", "pending": 1}, "failed 1 time: 503"),
        ({"failures": 2, "last_failure": "503", "pending": 1}, "failed 2 times: 503"),
        ({"failures": 0, "pending": 1}, "1 event waits"),
        ({"failures": 0, "pending": 2}, "2 events wait"),
    ],
)
def test_the_state_of_a_webhook_counts_in_english(state: dict[str, Any], text: str) -> None:
    describe = COLUMNS["State"]
    assert callable(describe)
    assert describe({"state": "active", **state}) == text


def test_events_are_listed(service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    scored = EVENT | {"kind": "clip.scored", "data": {"name": "walk", "tier": 0, "mode": "rollout"}}
    page = {"items": [FAILED, LOCKED, scored], "next_after": 8, "gap": {"after": 1, "oldest": 7}}
    service(lambda *_: (200, page))
    assert cli.run(["events", "--after", "1"]) == 0
    captured = capsys.readouterr()
    assert "walk: Tier 0, rollout" in captured.out
    assert "job_1: its knee is a hinge" in captured.out
    assert "walk==0.11.0" in captured.out
    assert "next: ampref events --follow --after 8" in captured.out
    assert "events behind position 1 are missing here; the oldest that is kept is 7" in captured.err


def test_followed_events_are_lines_until_ctrl_c(
    service: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    pages = iter([[FAILED], [], [LOCKED]])

    def answer(*_: str) -> tuple[int, Any]:
        items = next(pages, None)
        if items is None:
            raise KeyboardInterrupt
        return 200, {"items": items, "next_after": 8 if LOCKED in items else 7, "gap": None}

    service(answer)
    assert cli.run(["events", "--follow", "--json"]) == 130
    captured = capsys.readouterr()
    # The page that was asked for as a stream has no events in it.
    assert [json.loads(line)["position"] for line in captured.out.splitlines()] == [7]
    assert "go on with: ampref events --follow --after 7" in captured.err
    assert cli.run(["events", "--follow", "--json=events.json"]) == 2
