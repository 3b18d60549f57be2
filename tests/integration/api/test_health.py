"""Liveness, readiness and metrics."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from amp_core.errors import Unavailable


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_alive_and_ready(idle: Any, prefix: str) -> None:
    assert idle.http.get(f"{prefix}/healthz").json()["status"] == "ok"
    ready = idle.http.get(f"{prefix}/readyz").json()
    needed = [component["ok"] for component in ready["components"] if component["needed"]]
    assert (ready["status"], needed) == ("ready", [True, True, True])


def test_what_is_down_is_named(api: Any) -> None:
    def broken() -> None:
        raise ConnectionError("redis://:secret@host")

    api.app.state.checks["broker"] = broken
    answer = api.http.get("/readyz")
    assert answer.status_code == 503
    assert [component["name"] for component in answer.json()["components"] if not component["ok"] and component["needed"]] == [
        "broker"
    ]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/v1/jobs", "GET"),
        ("PUT", "/v1/clips", "GET, POST"),
        ("PATCH", "/v1/clips/clip_0", "DELETE, GET"),
        ("POST", "/v1/clips/clip_0/file", "GET, HEAD"),
    ],
)
def test_what_an_address_does_not_answer_it_says(idle: Any, method: str, path: str, allowed: str) -> None:
    answer = idle.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_metrics_have_few_labels(api: Any) -> None:
    clip = api.scored(1)
    api.http.get(f"/v1/clips/{clip}")
    api.http.get("/nothing/here")
    text = api.http.get("/metrics").text
    assert 'ampref_http_requests_total{method="POST",route="/v1/clips",status="202"} 1.0' in text
    assert 'route="/v1/clips/{clip_id}"' in text
    assert 'route="unmatched",status="404"' in text
    assert clip not in text
    assert 'ampref_jobs{state="succeeded"} 1.0' in text
    assert 'ampref_clips{tier="0"} 1.0' in text


def test_metrics_tell_how_long_the_oldest_job_waits(api: Any) -> None:
    def waiting() -> float:
        line = next(
            line for line in api.http.get("/metrics").text.splitlines() if line.startswith("ampref_oldest_due_job_seconds ")
        )
        return float(line.split()[1])

    assert waiting() == 0.0
    api.post(1)
    created_at = api.http.get("/v1/jobs").json()["items"][0]["created_at"]
    assert created_at
    first = waiting()
    assert 0.0 < first < 600.0
    assert waiting() > first
    api.finish()
    assert waiting() == 0.0


def test_a_bug_tells_nothing_and_has_an_id(api: Any) -> None:
    def bug() -> None:
        raise RuntimeError("the password is swordfish")

    api.app.add_api_route("/bug", bug)
    answer = api.http.get("/bug", headers={"x-request-id": "trace-7"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "trace-7"
    assert "swordfish" not in answer.text


def test_what_is_away_is_logged_as_a_line_now_and_then(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise Unavailable("the database cannot be used", remedy="Try again")

    monkeypatch.setattr(api.app.state.services.catalog, "session", away)
    with structlog.testing.capture_logs() as lines:
        assert {api.http.get("/v1/clips").status_code for _ in range(50)} == {503}
    lines = [line for line in lines if line["event"] == "request_failed"]
    assert 1 <= len(lines) < 25
    assert sum(1 + line.get("repeats", 0) for line in lines) <= 50
    assert not any("exception" in line for line in lines)
    monkeypatch.undo()
    assert 'ampref_http_problems_total{slug="unavailable"} 50.0' in api.http.get("/metrics").text


def test_a_bug_is_logged_with_its_traceback_each_time(api: Any) -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    api.app.add_api_route("/bug", bug)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            api.http.get("/bug")
    tracebacks = [line["exception"] for line in lines if line["event"] == "unhandled_exception"]
    assert ["RuntimeError: a bug" in text for text in tracebacks] == [True] * 3
