"""Specs, addresses, problems and the calls of `ApiClient`, over a transport that is a function."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from answerkit import CLIP, JOB, SUBMISSION

import amp_core.client
from amp_core.client import ApiClient, Retry, Spec, parse_spec, pull
from amp_core.client.http import resolve_url
from amp_core.errors import (
    AmprefError,
    Conflict,
    InputRefused,
    IntegrityError,
    MotionRefused,
    NotFound,
    RecipeRefused,
    TooLarge,
    Unavailable,
)

QUICK = Retry(attempts=3, timeout=10, wait_initial=0.001, wait_max=0.002)
Answer = Callable[[httpx2.Request], httpx2.Response]


def api(answer: Answer) -> ApiClient:
    return ApiClient("http://service/base", retry=QUICK, transport=httpx2.MockTransport(answer))


def test_everything_public_is_there() -> None:
    assert all(hasattr(amp_core.client, name) for name in amp_core.client.__all__)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("walk==0.11.0", Spec("walk", "0.11.0", None)),
        (" walk == 0.11.0 ", Spec("walk", "0.11.0", None)),
        ("walk@production", Spec("walk", None, "production")),
        ("walk", Spec("walk", None, "latest")),
    ],
)
def test_specs(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("walk>=0.11.0", "pinned exactly"),
        ("walk=0.11.0", "pinned exactly"),
        ("walk~=0.11", "pinned exactly"),
        ("walk==", "not a version"),
        ("walk==v0.11.0", "without the v"),
        ("walk==latest", "walk@latest"),
        ("walk==best", "walk@best"),
        ("==0.11.0", "not a dataset name"),
        ("Walk", "not a dataset name"),
        ("../walk", "not a dataset name"),
        ("walk@", "not an alias"),
        ("walk@0.11.0", "not an alias"),
        ("", "not a dataset name"),
        (None, "NoneType names no dataset"),
    ],
)
def test_bad_specs_say_what_was_expected(text: Any, words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        parse_spec(text)


@pytest.mark.parametrize("digest", ["", "abc", "sha256:" + "g" * 64, "md5:" + "0" * 64, "0" * 63])
def test_a_bad_pin_is_refused_before_anything_is_asked(digest: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="64 hex digits"):
        pull("walk==1.0.0", url="http://service", manifest_sha256=digest, cache_dir=tmp_path)


def test_where_the_service_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMPREF_URL", raising=False)
    assert resolve_url(None) == "http://127.0.0.1:8000"
    monkeypatch.setenv("AMPREF_URL", "https://amp.example/base/")
    assert resolve_url(None) == "https://amp.example/base"
    assert resolve_url("http://here:1") == "http://here:1"


@pytest.mark.parametrize("url", ["here:8000", "ftp://here", "http://", "http://a b", "file:///etc/passwd"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputRefused, match="not the address of a service"):
        resolve_url(url)


@pytest.mark.parametrize(
    ("status", "slug", "kind"),
    [
        (422, "motion-refused", MotionRefused),
        (422, "recipe-refused", RecipeRefused),
        (404, "not-found", NotFound),
        (409, "conflict", Conflict),
        (413, "too-large", TooLarge),
        (422, "of-a-later-release", InputRefused),
        (409, "of-a-later-release", Conflict),
        (501, "of-a-later-release", Unavailable),
    ],
)
def test_problems_become_the_exceptions_that_they_stand_for(status: int, slug: str, kind: type[AmprefError]) -> None:
    facts = {"what": "it leaps", "file": "a.pkl", "key": "root_pos", "frame": 7, "expected": "steps", "remedy": "Trim it."}
    problem = {"type": f"urn:ampref:error:{slug}", "title": "T", "status": status, **facts}
    with pytest.raises(kind) as caught:
        api(lambda request: httpx2.Response(status, json=problem)).get_clip("c")
    assert type(caught.value) is kind
    assert {key: getattr(caught.value, key) for key in facts} == facts


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"what": 5, "frame": "x"}', b"[" * 100_000, b"\xff" * 2_000_000])
def test_errors_that_are_no_problems_are_told_by_their_status(body: bytes) -> None:
    with pytest.raises(NotFound, match="http://service/base/v1/clips/c answered 404"):
        api(lambda request: httpx2.Response(404, content=body)).get_clip("c")


def test_ids_stay_one_segment_of_the_path() -> None:
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.raw_path.decode())
        return httpx2.Response(200, json=CLIP | {"rollouts": [], "jobs": []})

    api(answer).get_clip("../jobs/x?y#z")
    assert seen == ["/base/v1/clips/..%2Fjobs%2Fx%3Fy%23z"]
    with pytest.raises(InputRefused):
        api(answer).get_clip("..")


def test_a_submission_is_repeated_whole_after_a_failure(tmp_path: Path) -> None:
    motion = tmp_path / "walk.pkl"
    motion.write_bytes(b"motion" * 50_000)
    bodies: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(request.read())
        return httpx2.Response(503 if len(bodies) == 1 else 202, json=SUBMISSION)

    made = api(answer).submit_clip(motion, robot="wildrobot", mode="rollout", tags=["a", "b"], fps=30.0, recipe=None)
    assert made == SUBMISSION | {"known": False}
    assert all(body.count(b"motion" * 50_000) == 1 for body in bodies)
    assert len(bodies) == 2
    text = bodies[1].decode()
    assert 'filename="walk.pkl"' in text
    assert text.count('name="tags"') == 2
    assert 'name="recipe"' not in text


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"nothing\.pkl: the file cannot be read"):
        api(lambda request: httpx2.Response(500)).submit_clip(tmp_path / "nothing.pkl")


def test_pages_are_walked_to_the_end() -> None:
    first, last = (CLIP | {"id": name, "rollout": None} for name in ("clip_1", "clip_2"))
    pages = {
        None: {"items": [first], "next_cursor": "x"},
        "x": {"items": [], "next_cursor": "y"},
        "y": {"items": [last], "next_cursor": None},
    }

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.params["tier"] == "0"
        assert "robot" not in request.url.params
        return httpx2.Response(200, json=pages[request.url.params.get("cursor")])

    assert [clip["id"] for clip in api(answer).iter_clips(tier=0, robot=None)] == ["clip_1", "clip_2"]
    pages["y"]["next_cursor"] = "y"
    with pytest.raises(Unavailable, match="the same page again"):
        list(api(answer).iter_clips(tier=0))


def test_a_lock_is_not_asked_for_twice_when_its_answer_was_lost() -> None:
    asked = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal asked
        asked += 1
        raise httpx2.ReadTimeout("lost")

    with pytest.raises(Unavailable, match="lost"):
        api(answer).lock_version("walk", "1.0.0", select={"tier": 0})
    assert asked == 1


def test_a_service_that_comes_up_late_is_waited_for() -> None:
    tries = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(202, json={"job": JOB, "pending_clips": 0})

    assert api(answer).lock_version("walk", "1.0.0")["job"] == JOB


def job(state: str, progress: float = 0.0) -> dict[str, Any]:
    return JOB | {"id": "j", "state": state, "progress": progress}


def test_tries_are_told_to_logging_and_never_to_stdout() -> None:
    """In a process of its own, with nothing configured, as in somebody's training script that prints JSON."""
    code = (
        "from amp_core.client import ApiClient, Retry\n"
        "from amp_core.errors import Unavailable\n"
        "try:\n"
        "    ApiClient('http://127.0.0.1:9', retry=Retry(attempts=3, wait_initial=0.01)).list_robots()\n"
        "except Unavailable:\n"
        "    print('the result')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the result\n"
    assert done.stderr.count("trying again in") == 2


def test_a_job_is_followed_by_its_events() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/events"):
            events = [("progress", job("running", 0.5)), ("done", job("succeeded", 1.0))]
            text = ": ping\n\n" + "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events)
            return httpx2.Response(200, text=text, headers={"content-type": "text/event-stream"})
        return httpx2.Response(200, json=job("queued"))

    seen: list[str] = []
    assert api(answer).wait_for_job("j", progress=lambda now: seen.append(now["state"])) == job("succeeded", 1.0)
    assert seen == ["queued", "running", "succeeded"]


@pytest.mark.parametrize("status", [200, 204, 404, 502])
def test_a_job_is_polled_where_events_do_not_come_through(status: int) -> None:
    states = iter([job("queued"), job("running", 0.5), job("failed")])

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/events"):
            return httpx2.Response(status, stream=httpx2.ByteStream(b"no events"))
        return httpx2.Response(200, json=next(states))

    assert api(answer).wait_for_job("j", poll=0.001)["state"] == "failed"


def test_a_job_that_takes_too_long() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404) if request.url.path.endswith("/events") else httpx2.Response(200, json=job("running"))

    with pytest.raises(Unavailable, match=r"has not finished within 0\.01 s.*goes on"):
        api(answer).wait_for_job("j", timeout=0.01, poll=0.005)


def test_arrays_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    saved = api(lambda request: httpx2.Response(200, content=b"npz")).download_arrays("r", tmp_path / "r.npz")
    assert saved.read_bytes() == b"npz"
    with pytest.raises(NotFound):
        api(lambda request: httpx2.Response(404)).download_arrays("r", tmp_path / "other.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]


def test_readiness() -> None:
    assert api(lambda request: httpx2.Response(200, json={})).ready()
    assert not api(lambda request: httpx2.Response(503)).ready()


def test_a_damaged_blob_is_asked_for_once() -> None:
    asked: list[str] = []

    def damaged(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(
            500, json={"type": "urn:ampref:error:integrity", "what": "the stored bytes are not what they were"}
        )

    with pytest.raises(IntegrityError, match="not what they were"):
        api(damaged).get_clip("clip_1")
    assert len(asked) == 1
