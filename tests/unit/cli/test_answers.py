"""A service that answers JSON of another shape is refused by every verb that talks to one, never with a traceback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from answerkit import CLIP, COVERAGE, JOB, MANIFEST, READINESS, ROLLOUT, SUBMISSION, SUMMARY, VERSION

from amp_core.cli import main as cli

SHAPES: list[Any] = [[], {}, None, "x", 1, {"items": 3}, {"items": [None]}, {"items": [{"id": 1, "rollout": {"id": []}}]}]
SHAPES += [{"clip": None, "job": 3, "rollout": "x"}]
VERBS = [
    "submit FILE", "submit FILE --wait", "clips", "clips --json", "clips --fetch OUT", "clip clip_0", "clip clip_0 --delete",
    "clip clip_0 --score rollout", "augment --clip clip_0 --mirror", "jobs", "job job_1", "job job_1 --wait",
    "job job_1 --cancel", "job job_1 --retry", "dataset lock walk 1.0.0", "dataset lock walk 1.0.0 --no-wait", "dataset list",
    "dataset show walk", "dataset show walk 1.0.0", "dataset show walk 1.0.0 --json", "dataset diff walk 1.0.0 2.0.0",
    "dataset alias walk production 1.0.0", "dataset alias walk production --delete", "dataset yank walk 1.0.0 --reason no",
    "events", "events --follow", "webhook add https://hooks.example.org/", "webhook list", "webhook remove webhook_1",
    "webhook test webhook_1 --timeout 0", "webhook retry webhook_1",
    "dataset yank walk 1.0.0 --undo", "dataset archive walk 1.0.0 --undo",
    "dataset archive walk 1.0.0 --reason old", "purge --older-than 9d",
    "pull walk", "pull walk==1.0.0", "verify walk==1.0.0", "verify --all",
]  # fmt: skip

RATED = ROLLOUT | {
    "tier": -1,
    "segments": [{"start": 0, "end": 9}],
    "contact_warnings": [{"message": "always on"}],
    "ingest": {"notes": ["Ground: it floats."]},
    "diagnosis": {"findings": [{"severity": "note", "message": "it slides"}], "suggestions": [{"message": "trim it"}]},
}
WAITING = JOB | {"kind": "rollout", "message": "at work", "result": {"rollout_id": "rollout_0"}, "error": {"detail": "no"}}
LISTED = CLIP | {"rollout": SUMMARY}
TAKEN = {"name": "walk", "bucket": "canonical", "frames": 9}
BUCKETS = [{"name": "canonical", "num_clips": 1, "num_frames": 1}, {"name": "friction=0.7", "num_clips": 1, "num_frames": 1}]
COMPLETE_VERSION = VERSION | {
    "readiness": READINESS,
    "coverage": COVERAGE,
    "buckets": BUCKETS,
    "files": [{"name": "a", "sha256": "sha256:0", "size": 9, "url": "/v1/manifest"}],
}
DATASET = {"name": "walk", "latest": "1.0.0", "aliases": {"best": "1.0.0"}, "versions": [VERSION]}
ARCHIVE = VERSION | {"archived": False, "archive_reason": None, "free_clips": 1, "purgeable_clips": 0}
VARIANT = SUBMISSION | {"augmentation": "mirror", "seam": {"residual": 0.1}}
ROBOT = {"name": "r", "control_dt": 0.02}
EVENT = {
    "position": 1,
    "kind": "clip.scored",
    "at": "now",
    "dataset": None,
    "data": {"name": "walk", "tier": 0, "mode": "auto"},
}
FAILED = EVENT | {"kind": "job.failed", "data": {"job_id": "job_1", "reason": "its knee is a hinge"}}
WEBHOOK = {
    **{"id": "webhook_1", "url": "https://hooks.example.org/", "kinds": ["clip.scored"], "dataset": "walk", "robot": None},
    **{"state": "quarantined", "reason": "it is gone", "pending": 1, "failures": 11, "last_failure": "no answer"},
    "test": {"state": "delivered", "detail": None},
}
# A verb, and what each address that it asks answers.
CALLS: dict[str, dict[str, Any]] = {
    "clips": {"/v1/clips": {"items": [LISTED], "next_cursor": None}, "/v1/robots/r": ROBOT},
    "clips --fetch OUT": {"/v1/clips": {"items": [LISTED], "next_cursor": None}},
    "clip clip_0": {"/v1/clips/clip_0": CLIP | {"rollouts": [SUMMARY], "jobs": [WAITING], "augmentation": "mirror"}},
    "submit FILE --wait": {
        "/v1/clips": SUBMISSION | {"job": WAITING},
        "/v1/jobs/job_1": WAITING,
        "/v1/rollouts/rollout_0": RATED,
    },
    "jobs": {"/v1/jobs": {"items": [WAITING], "next_cursor": None}},
    "job job_1": {"/v1/jobs/job_1": WAITING},
    "events": {"/v1/events": {"items": [EVENT], "next_after": 1, "gap": {"after": 0, "oldest": 1}}},
    "events --after 0": {"/v1/events": {"items": [FAILED], "next_after": 1, "gap": {"after": 0, "oldest": 1}}},
    "webhook add https://hooks.example.org/": {"/v1/webhooks": WEBHOOK | {"secret": "whsec_1"}},
    "webhook list": {"/v1/webhooks": {"items": [WEBHOOK]}},
    "webhook test webhook_1 --timeout 0": {"/v1/webhooks/webhook_1/test": WEBHOOK, "/v1/webhooks/webhook_1": WEBHOOK},
    "webhook retry webhook_1": {"/v1/webhooks/webhook_1/retry": WEBHOOK},
    "augment --clip clip_0 --mirror": {
        "/v1/clips/clip_0": CLIP | {"rollouts": [], "jobs": []},
        "/v1/clips/clip_0/augment": {"parent": CLIP, "variants": [VARIANT]},
    },
    "dataset lock walk 1.0.0": {
        "/v1/datasets/walk/versions": {"job": JOB, "pending_clips": 1, "other_profile_clips": 1},
        "/v1/jobs/job_1": JOB,
        "/v1/datasets/walk/versions/1.0.0": VERSION,
        "/v1/manifest": MANIFEST,
    },
    "dataset list": {
        "/v1/datasets": {"items": [{"name": "walk", "latest": "1.0.0", "aliases": {"best": "1.0.0"}, "num_versions": 1}]}
    },
    "dataset show walk": {"/v1/datasets/walk": DATASET},
    "dataset show walk 1.0.0": {"/v1/datasets/walk/versions/1.0.0": COMPLETE_VERSION, "/v1/manifest": MANIFEST},
    "dataset diff walk 1.0.0 2.0.0": {
        "/v1/datasets/walk/diff": {
            **{"before": "1.0.0", "after": "2.0.0", "same_features": False, "unchanged": 1},
            **{"added": [TAKEN], "removed": [TAKEN], "changed": [{"before": TAKEN, "after": TAKEN}]},
        }
    },
    "dataset yank walk 1.0.0 --reason no": {"/v1/datasets/walk/versions/1.0.0/yank": VERSION | {"yanked": True}},
    "dataset archive walk 1.0.0 --reason old": {
        "/v1/datasets/walk/versions/1.0.0": COMPLETE_VERSION,
        "/v1/datasets/walk/versions/1.0.0/archive": ARCHIVE,
    },
    "pull walk": {"/v1/datasets/walk": DATASET, "/v1/datasets/walk/versions/1.0.0": COMPLETE_VERSION},
}


class Service:
    """Answers each address as `answers` says, `other` where it says nothing."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.other: Any = None
        self.url = ""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # Head and body in one packet: the second of two waits 40 ms for the first one's acknowledgement.

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            data = json.dumps(state.answers.get(self.path.partition("?")[0], state.other)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the standard library's names

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _environment(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPREF_URL", service.url)
    monkeypatch.setenv("AMPREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walk.npz").touch()
    service.answers, service.other = {}, None


def run(verb: str) -> int:
    return cli.run(verb.replace("FILE", "walk.npz").split())


@pytest.mark.parametrize("verb", VERBS)
def test_an_answer_of_another_shape_is_refused(verb: str, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in SHAPES:
        if verb in ("dataset alias walk production --delete", "webhook remove webhook_1") and shape is None:
            continue  # What it should be.
        service.other = shape
        assert run(verb) == 1, shape
        error = capsys.readouterr().err
        words = ("error: http://127.0.0.1:", "gives no manifest digest", "has no version called", "does not list the digests")
        assert any(word in error for word in words), error


def replace_each(value: Any) -> Iterator[Any]:
    """`value` with each of its parts missing or replaced by one of another type, one at a time."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield {other: entry for other, entry in value.items() if other != key}
            yield from ({**value, key: replacement} for replacement in replace_each(item))
    elif isinstance(value, list) and value:
        yield from ([replacement, *value[1:]] for replacement in replace_each(value[0]))
    yield "x" if value is None else None
    if isinstance(value, list | dict):
        yield "x"


@pytest.mark.parametrize("verb", CALLS)
def test_no_part_of_an_answer_leads_to_a_traceback(verb: str, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb reads its whole answers, and refuses or gets along with every part that is not as it should be."""
    service.answers = dict(CALLS[verb])
    codes = set()
    for path, answer in CALLS[verb].items():
        for replacement in replace_each(answer):
            service.answers[path] = replacement
            codes.add(run(verb))
            text = capsys.readouterr()
            assert "Traceback" not in text.err
        service.answers[path] = answer
    assert codes <= {0, 1}
    assert 1 in codes


def test_a_dry_run_of_an_archive_says_which_clips_are_free(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers = CALLS["dataset archive walk 1.0.0 --reason old"]
    assert run("dataset archive walk 1.0.0 --reason old") == 0
    out = capsys.readouterr().out
    assert "1 clip of 2, which no other version holds, may be deleted afterwards; ampref purge takes 0 of them" in out
    assert "nothing was done" in out


@pytest.mark.parametrize(
    ("facts", "states", "remedy"),
    [
        ([{"archived": True}, {"archived": True}], "of its 2, 2 are archived", "has no features any more: lock one anew"),
        (
            [{"archived": True}, {"yanked": True, "archived": False}],
            "of its 2, 1 is archived and 1 is yanked",
            "walk==0.1.1 can be pulled by its exact name",
        ),
    ],
)
def test_a_dataset_without_latest_says_what_its_versions_are(
    facts: list[dict[str, Any]], states: str, remedy: str, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = [VERSION | {"version": f"0.1.{number}"} | fact for number, fact in enumerate(facts)]
    service.answers = {"/v1/datasets/walk": {"name": "walk", "latest": None, "aliases": {}, "versions": versions}}
    assert run("pull walk") == 1
    error = capsys.readouterr().err
    assert (states in error, remedy in error) == (True, True), error


def test_a_query_that_matches_nothing_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    service.answers = {"/v1/clips": {"items": [], "next_cursor": None}}
    assert run("clips --fetch out --pin list.json") == 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "list.json").exists()
