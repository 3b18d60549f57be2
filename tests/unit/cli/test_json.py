"""`--json` means the same in every verb: one document on stdout or in a file, and an error is a document as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from amp_core.cli import main as cli
from amp_core.cli.group import load_verbs
from amp_core.client import ApiClient, Retry
from amp_core.errors import NotFound
from amp_core.formats import read_motion
from amp_core.motions import bundled_motions
from amp_core.robot import Robot
from ampref_service.catalog import keys

EXAMPLES = Path(__file__).parents[3] / "examples"
JOB = {
    **{"id": "job_1", "kind": "rollout", "state": "succeeded", "progress": 1.0, "message": None, "error": None},
    **{"attempts": 1, "max_attempts": 3, "result": {"rollout_id": "rollout_1"}},
}
ROLLOUT = {
    **{"id": "rollout_1", "clip_name": "walk", "mode": "rollout", "tier": 0, "tier_reason": "all gates passed"},
    **{"bucket": "canonical", "frames": 20, "duration_sec": 0.4, "quality_metrics": {}, "segments": [], "ingest": {}},
    **{"gate_profile": "amp-0.12", "recipe_digest": "sha256:3", "arrays_digest": "sha256:4", "recipe": {}, "provenance": {}},
}
CLIP = {
    **{"id": "clip_1", "name": "walk", "robot": "wildrobot", "source_digest": "sha256:1", "source_format": "npz"},
    **{"frames_in": 20, "fps_in": 50.0, "duration_sec": 0.4, "tags": [], "created_at": "now", "augmentation": None},
    **{"lineage": "sha256:1", "read_options": {}},
    **{"rollout": ROLLOUT, "rollouts": [ROLLOUT], "jobs": [JOB]},
}
VERSION = {
    **{"dataset": "walk", "version": "1.0.0", "robot": "wildrobot", "num_clips": 1, "num_frames": 20, "yanked": False},
    **{"yank_reason": None, "locked_at": "now", "dataset_hash": "sha256:1", "manifest_sha256": "sha256:2", "aliases": []},
    **{"readiness": None, "files": [], "manifest_url": "/v1/manifest"},
}
EVENT = {
    **{"id": "event_1", "position": 1, "kind": "clip.deleted", "at": "now", "dataset": None, "robot": "wildrobot"},
    "data": {"clip_id": "clip_1", "name": "walk"},
}
WEBHOOK = {
    **{"id": "webhook_1", "url": "https://hooks.example.org/", "kinds": [], "dataset": None, "robot": None, "pending": 0},
    **{"state": "active", "reason": None, "failures": 0, "last_failure": None, "secret": "whsec_1"},
    "test": {"id": "event_1", "state": "delivered", "detail": None, "at": "now"},
}
DATASET = {"name": "walk", "latest": "1.0.0", "num_versions": 1, "aliases": {}, "versions": [VERSION]}
ANSWERS = {
    "POST /v1/clips": {"clip": CLIP, "job": JOB, "rollout": None},
    "GET /v1/clips": {"items": [CLIP], "next_cursor": None},
    "GET /v1/clips/clip_1": CLIP,
    "GET /v1/jobs": {"items": [JOB], "next_cursor": None},
    "GET /v1/jobs/job_1": JOB,
    "GET /v1/events": {"items": [EVENT], "next_after": 1, "gap": None},
    "POST /v1/webhooks": WEBHOOK,
    "GET /v1/webhooks": {"items": [WEBHOOK]},
    "DELETE /v1/webhooks/webhook_1": None,
    "POST /v1/webhooks/webhook_1/test": WEBHOOK,
    "POST /v1/webhooks/webhook_1/retry": WEBHOOK,
    "GET /v1/rollouts/rollout_1": ROLLOUT,
    "GET /v1/robots/wildrobot": {"name": "wildrobot", "control_dt": 0.02},
    "POST /v1/datasets/walk/versions": {"job": JOB, "pending_clips": 0},
    "GET /v1/datasets": {"items": [DATASET], "next_cursor": None},
    "GET /v1/datasets/walk": DATASET,
    "GET /v1/datasets/walk/versions/1.0.0": VERSION,
    "PUT /v1/datasets/walk/aliases/best": VERSION,
    "GET /v1/datasets/walk/diff": {
        **{"before": "1.0.0", "after": "1.0.0", "added": [], "removed": [], "changed": [], "unchanged": 1},
        **{"same_features": True},
    },
    "POST /v1/datasets/walk/versions/1.0.0/unyank": VERSION,
    "POST /v1/datasets/walk/versions/1.0.0/archive": VERSION
    | {"archived": True, "archive_reason": "old", "free_clips": 1, "purgeable_clips": 0},
    "POST /v1/purges": {
        **{"clips": 2, "rollouts": 2, "bytes": 2000, "with_windows": 1, "names": ["walk"], "remaining": 2, "dry_run": True},
    },
    "GET /v1/manifest": {
        "gates": {"clips_by_tier": {"0": 1}, "frames_by_tier": {"0": 20}},
        "clips": [{"recipe_digest": "sha256:3"}],
    },
}

LIST, OBJECT = list, dict
_TOKEN_VERBS = ("token create", "token list", "token revoke")
SHAPES = {
    "score": (LIST, ["MOTION", "--mode", "rollout"]),
    "verify": (OBJECT, ["MOTION", "--mode", "rollout", "--only", "7"]),
    "buckets": (OBJECT, ["MOTION", "--mode", "rollout", "--friction", "0.7"]),
    "check": (LIST, ["MOTION"]),
    "cut": (LIST, ["MOTION", "--frames", "0:10"]),
    "evaluate": (LIST, ["EXPORTS/walk.npz"]),
    "augment": (LIST, ["MOTION", "--mirror", "--out", "FOLDER"]),
    "track": (OBJECT, ["MOTION", "--policy", "POLICY", "--spec", "SPEC", "--out", "RECORDING"]),
    "view": (OBJECT, ["EXPORTS/walk.npz", "--no-browser"]),
    "render": (OBJECT, ["EXPORTS/walk.npz", "--out", "PICTURE", "--count", "1", "--size", "64x64"]),
    "robots": (LIST, []),
    "robot init": (OBJECT, ["MODEL", "--out", "ROBOT", "--force"]),
    "robot check": (OBJECT, ["wildrobot"]),
    "submit": (LIST, ["MOTION", "--wait"]),
    "clips": (LIST, []),
    "clip": (OBJECT, ["clip_1"]),
    "jobs": (LIST, []),
    "job": (OBJECT, ["job_1", "--wait"]),
    "events": (OBJECT, []),
    "webhook add": (OBJECT, ["https://hooks.example.org/"]),
    "webhook list": (LIST, []),
    "webhook remove": (OBJECT, ["webhook_1"]),
    "webhook test": (OBJECT, ["webhook_1"]),
    "webhook retry": (OBJECT, ["webhook_1"]),
    "dataset lock": (OBJECT, ["walk", "1.0.0"]),
    "dataset build": (OBJECT, ["EXPORTS", "--out", "FOLDER"]),
    "dataset list": (LIST, []),
    "dataset show": (OBJECT, ["walk==1.0.0"]),
    "dataset diff": (OBJECT, ["walk", "1.0.0", "1.0.0"]),
    "dataset alias": (OBJECT, ["walk", "best", "1.0.0"]),
    "dataset yank": (OBJECT, ["walk", "1.0.0", "--undo"]),
    "dataset archive": (OBJECT, ["walk", "1.0.0", "--reason", "old", "--yes"]),
    "pull": (OBJECT, ["walk==1.0.0"]),
    "purge": (OBJECT, ["--older-than", "90d"]),
    "api": (OBJECT, ["--port", "0"]),
    "migrate": (OBJECT, []),
    "fsck": (OBJECT, []),
    "backup": (OBJECT, ["BACKUP"]),
    "restore": (OBJECT, ["BACKUP"]),
    "token create": (OBJECT, ["node"]),
    "token list": (LIST, []),
    "token revoke": (OBJECT, ["node"]),
    "up": (OBJECT, ["--port", "0"]),
    "worker": (OBJECT, []),
    "demo": (OBJECT, []),
}
"""Every verb with arguments that let it succeed, and the shape of its document: a list where it lists, else one object."""


def test_every_verb_is_walked() -> None:
    names = []
    for verb in load_verbs():
        inner = getattr(verb.load(), "commands", None)
        names += [f"{verb.name} {name}" for name in inner] if inner else [verb.name]
    assert sorted(names) == sorted(SHAPES)


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first moments of the bundled walk."""
    walk = read_motion(next(path for path in bundled_motions() if path.stem == "walk"), name="walk")
    path = tmp_path_factory.mktemp("motions") / "walk.npz"
    np.savez(path, fps=walk.fps, **{key: np.asarray(getattr(walk, key))[:20] for key in ("root_pos", "root_rot", "dof_pos")})
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, motion: Path) -> Path:
    """A folder with the export of that motion."""
    folder = tmp_path_factory.mktemp("exports")
    assert cli.run(["score", str(motion), "--mode", "rollout", "--export", str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, motion: Path, exports: Path) -> Callable[..., int]:
    """Run a verb with its arguments from `SHAPES` and more, in a world in which it succeeds."""
    monkeypatch.setenv("AMPREF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("AMPREF_URL", raising=False)
    monkeypatch.setattr("ampref_service.logs.configure", lambda *_, **__: None)

    def serve(app: Any, _settings: object, listener: Any) -> None:
        with listener, TestClient(app):
            pass

    monkeypatch.setattr("ampref_service.server.run", serve)
    monkeypatch.setattr("ampref_service.cli.view.serve", lambda _, listener: listener.close())
    monkeypatch.setattr("ampref_workers.cli.worker.main", lambda _: None)
    _answer(monkeypatch, lambda request: httpx2.Response(200, json=ANSWERS[f"{request.method} {request.url.path}"]))
    pulled = SimpleNamespace(
        **{"downloaded_bytes": 0, "num_clips": 1, "num_frames": 20, "name": "walk", "version": "1.0.0"},
        **{
            "files": [motion],
            "shards": (motion,),
            "wait_for_disk": lambda: None,
            "training_config": lambda: "",
            "to_dict": lambda: DATASET,
        },
    )
    monkeypatch.setattr("amp_core.cli.pull.pull_version", lambda *_, **__: pulled)
    file = SimpleNamespace(path=motion, sha256="sha256:2", to_dict=dict)
    bundle = SimpleNamespace(
        **{"num_clips": 1, "num_frames": 20, "dataset_hash": "sha256:1", "manifest": file, "duplicates": (), "files": [file]},
    )
    report = {"ready": True, "checks": [], "groups": [], "waivers": []}
    monkeypatch.setattr("amp_core.cli.build.build_version", lambda *_, **__: (bundle, report))
    demo = "ampref_workers.cli.demo"
    monkeypatch.setattr(f"{demo}._run_service", lambda *_: nullcontext("http://service"))
    monkeypatch.setattr(f"{demo}._score_motions", lambda *_: [ROLLOUT])
    monkeypatch.setattr(f"{demo}._lock_version", lambda *_: VERSION)
    monkeypatch.setattr(f"{demo}._pull_version", lambda *_: {"manifest_sha256": "sha256:2"})

    def run(verb: str, *more: str) -> int:
        words = {"MOTION": str(motion), "FOLDER": str(tmp_path / "variants"), "EXPORTS": str(exports)}
        words["BACKUP"] = str(tmp_path / "backup")
        words["MODEL"], words["ROBOT"] = str(Robot.load("wildrobot").model_path), str(tmp_path / "robot.yaml")
        words["PICTURE"] = str(tmp_path / "strip.png")
        words["POLICY"], words["SPEC"] = (str(EXAMPLES / f"walk_tracker.{suffix}") for suffix in ("onnx", "yaml"))
        words["RECORDING"] = str(tmp_path / "recording.npz")
        words["EXPORTS/walk.npz"] = str(exports / "walk.npz")
        return cli.run([*verb.split(), *(words.get(word, word) for word in SHAPES[verb][1]), *more])

    return run


def _answer(monkeypatch: pytest.MonkeyPatch, handle: Callable[[httpx2.Request], httpx2.Response]) -> None:
    @contextmanager
    def connect(*_: Any, **__: Any) -> Any:
        with ApiClient("http://service", retry=Retry(attempts=1), transport=httpx2.MockTransport(handle)) as api:
            yield api

    for module in ("augment", "clips", "dataset", "events", "jobs", "purge", "submit", "webhook", "verify"):
        monkeypatch.setattr(f"amp_core.cli.{module}.connect", connect)


@pytest.mark.parametrize("verb", SHAPES)
def test_a_verb_prints_or_writes_one_document(
    verb: str,
    call: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = SHAPES[verb][0]
    if verb in ("api", "fsck", "backup", "restore"):
        assert cli.run(["migrate", "-q"]) == 0
        capsys.readouterr()
    if verb == "restore":
        assert call("backup", "-q") == 0
        monkeypatch.setattr("ampref_service.backup.restore_backup", lambda *_, **__: [])  # It would succeed only once.
        capsys.readouterr()
    if verb.startswith("token"):
        assert call("token create", "-q") == 0
        # They would succeed only once.
        monkeypatch.setattr(keys, "add_key", lambda session, *_, **__: keys.get_key(session, "node"))
        monkeypatch.setattr(keys, "revoke_key", lambda session, key_id, **_: keys.get_key(session, key_id))
        capsys.readouterr()
    for options in (["--json"], ["--json", "-"], ["--json=-", *(["-q"] if verb not in ("api", "worker") else [])]):
        assert call(verb, *options) == 0
        assert isinstance(json.loads(capsys.readouterr().out), shape)
    target = tmp_path / "document.json"
    # The second time it overwrites what it wrote.
    for options in ([f"--json={target}"], ["--json", str(target)]):
        assert call(verb, *options) == 0
        printed = capsys.readouterr().out
        assert isinstance(json.loads(target.read_text()), shape)
        with pytest.raises(ValueError, match="Expecting"):
            json.loads(printed)
    assert call(verb, f"--json={tmp_path / 'none' / 'document.json'}") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no such folder" in captured.err


@pytest.mark.parametrize("verb", SHAPES)
def test_a_verb_that_fails_prints_its_error_as_the_document(
    verb: str,
    call: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem = {"type": "not-found", "title": "Not found", "what": "it is not there", "detail": "it is not there"}
    _answer(monkeypatch, lambda _: httpx2.Response(404, json=problem))
    monkeypatch.setenv("AMPREF_ROBOTS", str(tmp_path / "none.yaml"))
    (tmp_path / "file").touch()

    def refuse(*_: Any, **__: Any) -> None:
        raise NotFound("it is not there")

    more = {
        **{
            name: ["--robot", "nobody"]
            for name in ("score", "verify", "buckets", "check", "augment", "evaluate", "view", "render", "track")
        },
        "dataset build": ["--robot", "nobody"],
        "submit": ["--recipe", str(tmp_path / "none.json")],
        "migrate": ["--to", "nonsense"],
        **{verb: ["--data-dir", str(tmp_path / "file" / "data")] for verb in ("up", *_TOKEN_VERBS)},
    }
    if verb == "robots":
        monkeypatch.setattr("amp_core.cli.robots.bundled_robots", refuse)
    elif verb in ("robot init", "robot check"):
        monkeypatch.setattr("amp_core.cli.robot.draft_robot", refuse)
        monkeypatch.setattr("amp_core.cli.robot.inspect_robot", refuse)
    elif verb == "cut":
        monkeypatch.setattr("amp_core.cli.cut.limits_of", refuse)
    elif verb == "pull":
        monkeypatch.setattr("amp_core.cli.pull.pull_version", refuse)
    elif verb == "migrate":
        monkeypatch.setattr("ampref_service.catalog.schema.downgrade", refuse)
    elif verb == "demo":
        monkeypatch.setattr("ampref_workers.cli.demo._score_motions", refuse)
    assert call(verb, *more.get(verb, []), "--json") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert {"type", "title", "detail", "what"} <= document.keys()
    assert "error: " in captured.err
    assert document["what"] in captured.err

    target = tmp_path / "document.json"
    assert call(verb, *more.get(verb, []), f"--json={target}") == 1
    assert "error: " in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize("verb", ["score", "verify", "buckets"])
def test_the_word_after_json_is_its_file_where_it_always_was(
    verb: str, call: Callable[..., int], tmp_path: Path, motion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "results"
    assert call(verb, "--json", str(target), "-q") == 0
    assert isinstance(json.loads(target.read_text()), SHAPES[verb][0])
    content = motion.read_bytes()
    assert cli.run([verb, "--json", str(motion), str(motion), "--mode", "rollout"]) == cli.USAGE
    assert "is a motion file and would be overwritten" in capsys.readouterr().err
    assert motion.read_bytes() == content


@pytest.mark.parametrize("verb", ["score", "verify", "buckets"])
def test_a_motion_or_an_input_is_never_overwritten_by_the_document(
    verb: str, tmp_path: Path, motion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, extra = tmp_path / "squat.json", tmp_path / "walk"
    with np.load(motion) as arrays:
        clip.write_text(json.dumps({key: arrays[key].tolist() for key in arrays}))
    extra.write_bytes(motion.read_bytes())
    contents = {path: path.read_bytes() for path in (clip, extra)}
    for words, reason in (
        (["--json", str(clip), str(motion)], "is a motion file"),
        ([str(motion), str(clip), "--json", str(clip)], "is an input"),
        ([str(motion), str(extra), f"--json={tmp_path / '.' / 'walk'}"], "is an input"),
    ):
        assert cli.run([verb, *words, "--mode", "rollout"]) == cli.USAGE
        assert f"{reason} and would be overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in contents} == contents


@pytest.mark.parametrize("verb", ["submit", "augment"])
def test_a_motion_after_a_bare_json_is_a_motion(
    verb: str, call: Callable[..., int], tmp_path: Path, motion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "squat.json"
    with np.load(motion) as arrays:
        clip.write_text(json.dumps({key: arrays[key].tolist() for key in arrays}))
    assert call(verb, "--json", str(clip)) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    # What lacks something of a motion was meant to be one all the same.
    clip.write_text('{"root_pos": []}')
    call(verb, "--json", str(clip))
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert clip.read_text() == '{"root_pos": []}'
