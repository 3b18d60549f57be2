"""Keys over HTTP: when they are asked for, what is no key, and what a key that is bound does not reach."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import structlog
from keykit import add_key, bearer
from sqlalchemy import update

from amp_core.errors import Unavailable
from ampref_service.api import auth, problems
from ampref_service.catalog import audit, keys
from ampref_service.catalog.tables import clips, curriculum, jobs
from ampref_service.keys import PREFIX, SCOPES, make_token
from ampref_service.logs import RepeatingLog


def refuses(answer: Any, words: str, status: int = 401) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


def test_a_service_is_open_until_the_first_key_and_never_again(api: Any) -> None:
    assert api.http.get("/v1/clips").status_code == 200
    assert api.http.get("/v1/clips", headers=bearer("whatever a client has set")).status_code == 200
    text, key = add_key(api.app, "first")
    refuses(api.http.get("/v1/clips"), "asks for a key")
    assert api.http.get("/v1/clips", headers=bearer(text)).status_code == 200
    with api.catalog.begin() as session:
        keys.revoke_key(session, key.id, actor="operator")
    api.app.state.authenticator.forget()
    refuses(api.http.get("/v1/clips"), "asks for a key")
    refuses(api.http.get("/v1/clips", headers=bearer(text)), "the key 'first' was revoked on 20")


def test_keys_of_another_process_count_within_seconds(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(auth, "read_clock", lambda: clock[0])
    assert api.http.get("/v1/clips").status_code == 200
    text, key = add_key(api.app, "node", tell=False)
    clock[0] += auth.REMEMBER_SEC
    refuses(api.http.get("/v1/clips"), "asks for a key")
    assert api.http.get("/v1/clips", headers=bearer(text)).status_code == 200
    with api.catalog.begin() as session:
        keys.revoke_key(session, key.id, actor="operator")
    clock[0] += auth.REMEMBER_SEC
    refuses(api.http.get("/v1/clips", headers=bearer(text)), "was revoked")


def test_the_metrics_are_read_while_the_catalog_is_away(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(auth, "read_clock", lambda: clock[0])
    text, _ = add_key(api.app, "prometheus", "metrics:read", "clips:read")
    stranger, _ = add_key(api.app, "stranger", "metrics:read", tell=False)
    assert api.http.get("/metrics", headers=bearer(text)).status_code == 200

    def go_away() -> Any:
        raise Unavailable("the database cannot be used", remedy="Try again")

    monkeypatch.setattr(api.catalog, "session", go_away)
    clock[0] += 200.0
    assert "ampref_" in api.http.get("/metrics", headers=bearer(text)).text
    assert api.http.get("/v1/clips", headers=bearer(text)).status_code == 503
    assert api.http.get("/metrics", headers=bearer(stranger)).status_code == 503
    clock[0] += 200.0
    assert api.http.get("/metrics", headers=bearer(text)).status_code == 503


def test_a_key_that_expires_is_not_remembered_for_longer(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000.0]
    monkeypatch.setattr(auth, "read_clock", lambda: clock[0])
    api.catalog._clock = lambda: clock[0]
    text, _ = add_key(api.app, "short", expires_in_sec=0.5)
    assert api.http.get("/v1/clips", headers=bearer(text)).status_code == 200
    clock[0] += 0.6
    refuses(api.http.get("/v1/clips", headers=bearer(text)), "the key 'short' expired on 2023-11-14 22:13 UTC")


def test_its_last_use_is_recorded(api: Any) -> None:
    text, key = add_key(api.app, "node")
    assert key.last_used_at is None
    api.http.get("/v1/clips", headers=bearer(text))
    api.app.state.authenticator.close()  # Waits for what it has begun.
    with api.catalog.session() as session:
        assert keys.get_key(session, "node").last_used_at is not None


@pytest.fixture(scope="module")
def texts(fresh: Any) -> dict[str, str]:
    """Keys of a service with clips, jobs and versions of two robots."""
    ids = [fresh.scored(number, name) for number, name in enumerate(("mine", "theirs"), 1)]
    for name, clip in (("walk", "mine"), ("walk-fast", "mine"), ("run", "theirs")):
        fresh.lock(name, "0.1.0", clips=[clip])
    with fresh.catalog.begin() as session:  # As if it were of the other robot.
        session.execute(update(jobs).where(jobs.c.clip_id == ids[1]).values(robot="g1"))
        session.execute(update(clips).where(clips.c.id == ids[1]).values(robot="g1"))
        session.execute(update(curriculum).where(curriculum.c.clip_id == ids[1]).values(robot="g1"))
    bounds: dict[str, Any] = {"walk": {"datasets": ("walk*",)}, "g1": {"robots": ("g1",)}, "all": {}}
    return {name: add_key(fresh.app, name, **options)[0] for name, options in bounds.items()}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "cannot be read"),
        ("Bearer", "no key"),
        ("Bearer amp_short", "expected amp_ and 38 letters and digits"),
        ("Bearer " + "x" * 42, "no key"),
        ("Bearer " + PREFIX + "é" * 38, "no key"),
        ("Digest x", "expected Bearer and a key"),
        ("Basic !!!", "cannot be read"),
        ("Basic \xe9\xe9", "cannot be read"),
        ("Basic " + base64.b64encode(b"user:hunter2").decode(), "no key"),
        pytest.param(f"Bearer {make_token()}", "there is no such key", id="unknown"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(fresh: Any, texts: dict[str, str], header: str, words: str) -> None:
    answer = fresh.http.get("/v1/clips", headers={"authorization": header.encode("latin-1")})
    refuses(answer, words)
    assert header.partition(" ")[2][:20] not in answer.text or len(header) < 12
    assert "hunter2" not in answer.text


def test_a_typing_error_is_named_without_a_look_at_the_catalog(fresh: Any, texts: dict[str, str]) -> None:
    text = texts["all"]
    for wrong in (text[:9] + ("a" if text[9] != "a" else "b") + text[10:], text[:-1] + ("a" if text[-1] != "a" else "b")):
        refuses(fresh.http.get("/v1/clips", headers=bearer(wrong)), "its checksum does not fit")


def test_two_headers_are_refused(fresh: Any, texts: dict[str, str]) -> None:
    headers = [("authorization", f"Bearer {texts['all']}"), ("authorization", f"Bearer {texts['g1']}")]
    refuses(fresh.http.get("/v1/clips", headers=headers), "more than once")


def test_basic_has_the_key_as_password(fresh: Any, texts: dict[str, str]) -> None:
    assert fresh.http.get("/v1/clips", auth=("anybody", texts["all"])).status_code == 200


def test_lists_leave_out_what_is_out_of_reach(fresh: Any, texts: dict[str, str]) -> None:
    def names(path: str, key: str, field: str = "name") -> list[Any]:
        answer = fresh.http.get(path, headers=bearer(texts[key]))
        assert answer.status_code == 200, answer.text
        return [item[field] for item in answer.json()["items"]]

    assert names("/v1/datasets", "all") == ["run", "walk", "walk-fast"]
    assert names("/v1/datasets", "walk") == ["walk", "walk-fast"]
    assert names("/v1/datasets", "g1") == []
    assert names("/v1/clips", "all") == ["theirs", "mine"]
    assert names("/v1/clips", "g1") == ["theirs"]
    assert names("/v1/clips?limit=1&sort=duration_sec", "g1") == ["theirs"]
    assert names("/v1/jobs", "all", "kind") == ["lock"] * 3 + ["rollout"] * 2
    assert names("/v1/jobs", "walk", "dataset") == ["walk-fast", "walk", None, None]
    assert names("/v1/jobs", "g1", "kind") == ["rollout"]
    assert names("/v1/robots", "g1") == ["g1"]
    assert names("/v1/robots", "walk") == ["g1", "wildrobot"]


def test_a_key_counts_the_clips_of_its_robots(fresh: Any, texts: dict[str, str]) -> None:
    def count(path: str, key: str) -> int:
        return int(fresh.http.get(f"/v1/clips/{path}", headers=bearer(texts[key])).json()["total"])

    for path in ("facets", "histogram?metric=duration_sec"):
        assert (count(path, "all"), count(path, "g1")) == (2, 1)
        refuses(
            fresh.http.get(f"/v1/clips/{path}{'&' if '?' in path else '?'}robot=wildrobot", headers=bearer(texts["g1"])),
            "not for the robot",
            403,
        )


def test_a_cursor_belongs_to_the_list_of_its_key(fresh: Any, texts: dict[str, str]) -> None:
    page = fresh.http.get("/v1/clips?limit=1", headers=bearer(texts["all"])).json()
    answer = fresh.http.get(f"/v1/clips?limit=1&cursor={page['next_cursor']}", headers=bearer(texts["g1"]))
    assert answer.status_code == 422


def test_who_is_refused_is_logged_as_a_warning(fresh: Any, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_repeating_log", RepeatingLog(problems.log))
    with structlog.testing.capture_logs() as lines:
        for header in ({}, {}, bearer(texts["walk"])):
            fresh.http.get("/v1/datasets/run", headers=header)
    lines = [line for line in lines if line["event"] == "request_refused"]
    assert [(line["log_level"], line["status"], line["caller"]) for line in lines] == [
        ("warning", 401, ""),
        ("warning", 403, "key:walk"),
    ]
    assert (lines[1]["path"], "'run'" in lines[1]["reason"]) == ("/v1/datasets/run", True)


def test_what_is_out_of_reach_is_forbidden_by_its_name(fresh: Any, texts: dict[str, str]) -> None:
    ask = fresh.http.request
    refuses(ask("GET", "/v1/datasets/run", headers=bearer(texts["walk"])), "not for the dataset 'run'", 403)
    refuses(ask("GET", "/v1/datasets/nothing", headers=bearer(texts["walk"])), "not for the dataset 'nothing'", 403)
    assert ask("GET", "/v1/datasets/walk-none", headers=bearer(texts["walk"])).status_code == 404
    refuses(ask("GET", "/v1/datasets/walk", headers=bearer(texts["g1"])), "not for the robot 'wildrobot'", 403)
    refuses(ask("GET", "/v1/clips?robot=wildrobot", headers=bearer(texts["g1"])), "not for the robot", 403)
    body = {"version": "0.2.0", "select": {"robot": "wildrobot"}}
    refuses(ask("POST", "/v1/datasets/new/versions", json=body, headers=bearer(texts["g1"])), "not for the robot", 403)


def test_a_waiver_needs_its_own_scope(fresh: Any, texts: dict[str, str]) -> None:
    text, _ = add_key(fresh.app, "no-waivers", "datasets:write")
    body = {"version": "0.9.0", "waivers": [{"test": "6", "reason": "for the tests"}]}
    answer = fresh.http.post("/v1/datasets/walk/versions", json=body, headers=bearer(text))
    refuses(answer, "lacks the scope datasets:waive", 403)


def test_the_remedy_for_a_missing_scope_is_a_role_that_can_follow_its_jobs(fresh: Any) -> None:
    text, _ = add_key(fresh.app, "reading", "clips:read")
    answer = fresh.http.post("/v1/clips", headers=bearer(text))
    command = "ampref token create NAME --role engineer (or --scope clips:write, which is that alone)"
    refuses(answer, f"Ask the operator for a key that has it: {command}", 403)
    answer = fresh.http.get("/metrics", headers=bearer(text))
    refuses(answer, "ampref token create NAME --scope metrics:read", 403)
    assert "--role" not in answer.text, "an operator's would be too much"


def test_the_header_of_a_key_is_called_what_it_is_and_the_answer_is_utf_8(fresh: Any, texts: dict[str, str]) -> None:
    answer = fresh.http.get("/v1/clips")
    refuses(answer, "the Authorization header: this service asks for a key")
    assert answer.json()["key"] == "authorization"
    assert "Authorization: Bearer amp_…".encode() in answer.content
    strange = fresh.http.get("/v1/clips/%ED%B0%80", headers=bearer(texts["all"]))
    assert strange.status_code in (404, 422)


def test_the_audit_log_names_the_key(fresh: Any, texts: dict[str, str]) -> None:
    clip = fresh.http.post(
        "/v1/clips", files={"file": ("stand.json", json.dumps(STANDING))}, headers=bearer(texts["all"])
    ).json()["clip"]
    with fresh.catalog.session() as session:
        (event,) = audit.list_events(session, subject=f"clip:{clip['id']}")
        created = [event for event in audit.list_events(session, limit=1000) if event.action == "key.create"]
    assert event.actor == "key:all"
    assert [event.detail["name"] for event in created][:3] == ["walk", "g1", "all"]
    assert created[2].detail["scopes"] == list(SCOPES)
    assert not [event for event in created if texts["all"] in str(event)]


def test_nothing_of_a_body_is_read_without_a_key(fresh: Any, texts: dict[str, str]) -> None:
    """A client that waits for `100 Continue` is never told to send."""
    messages: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        messages.append(message)

    headers = {"host": "testserver", "content-type": "multipart/form-data; boundary=x"}
    headers |= {"content-length": "1000", "expect": "100-continue"}
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/clips", "raw_path": b"/v1/clips"},
        **{"query_string": b"", "root_path": "", "scheme": "http", "client": ("127.0.0.1", 5), "server": ("testserver", 80)},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    fresh.http.portal.call(fresh.app, scope, receive, send)
    assert messages[0]["status"] == 401


STANDING = {
    "fps": 50.0,
    "root_pos": [[0.0, 0.0, 0.45]] * 51,
    "root_rot": [[0.0, 0.0, 0.0, 1.0]] * 51,
    "dof_pos": [[0.0] * 8] * 51,
}


def test_a_key_tells_about_itself(fresh: Any, texts: dict[str, str]) -> None:
    own = fresh.http.get("/v1/keys/self", headers=bearer(texts["walk"])).json()
    assert (own["name"], own["datasets"], own["robots"]) == ("key:walk", ["walk*"], None)
    assert own["key"]["state"] == "valid"
    assert "digest" not in str(own)


def test_a_key_makes_keys_with_no_more_rights_than_its_own(fresh: Any, texts: dict[str, str]) -> None:
    def make(text: str, **body: Any) -> Any:
        return fresh.http.post("/v1/keys", json=body, headers=bearer(text))

    maker, _ = add_key(
        fresh.app, "maker", "keys:write", "clips:read", "datasets:read", datasets=("walk*",), expires_in_sec=1000.0
    )
    child = make(maker, name="child", scopes=["clips:read"], datasets=["walk-fast"], expires_in_sec=500)
    assert child.status_code == 201
    assert fresh.http.get("/v1/keys/self", headers=bearer(child.json()["token"])).json()["name"] == "key:child"
    limits: dict[str, Any] = {"datasets": ["walk"], "expires_in_sec": 500}
    refuses(make(maker, name="x", scopes=["clips:write"], **limits), "lacks the scope clips:write", 403)
    refuses(make(maker, name="x", roles=["lead"], **limits), "lacks the scope", 403)
    refuses(make(maker, name="x", scopes=["clips:read"], expires_in_sec=500), "other datasets", 403)
    refuses(make(maker, name="x", scopes=["clips:read"], datasets=["w*"], expires_in_sec=500), "other datasets", 403)
    refuses(make(maker, name="x", scopes=["clips:read"], datasets=["walk"]), "a longer life", 403)
    refuses(make(maker, name="x", scopes=["king"], **limits), "no scope 'king'", 422)
    bounded, _ = add_key(fresh.app, "with-quota", max_queued=3)
    refuses(make(bounded, name="x"), "a quota beside its maker's", 403)

    items = fresh.http.get("/v1/keys", headers=bearer(maker)).json()["items"]
    assert {item["name"] for item in items} >= {"maker", "child"}
    assert "all" not in {item["name"] for item in items}
    delete = fresh.http.delete
    refuses(delete(f"/v1/keys/{items[0]['id']}x", headers=bearer(maker)), "no key", 404)
    refuses(delete("/v1/keys/all", headers=bearer(maker)), "more rights than key:maker", 403)
    assert delete(f"/v1/keys/{child.json()['id']}", headers=bearer(maker)).json()["state"] == "revoked"
    refuses(fresh.http.get("/v1/keys/self", headers=bearer(child.json()["token"])), "was revoked")


def test_a_key_can_end_itself(fresh: Any, texts: dict[str, str]) -> None:
    text, _ = add_key(fresh.app, "seen-by-somebody", "clips:read")
    assert fresh.http.delete("/v1/keys/self", headers=bearer(text)).json()["state"] == "revoked"
    refuses(fresh.http.get("/v1/clips", headers=bearer(text)), "was revoked")


def test_every_name_that_a_key_may_have_reaches_that_key_alone(fresh: Any, texts: dict[str, str]) -> None:
    headers = bearer(texts["all"])
    refuses(fresh.http.post("/v1/keys", json={"name": "self"}, headers=headers), "not self", 422)
    for name in ("al@x", "a._-@b"):
        answer = fresh.http.post("/v1/keys", json={"name": name, "max_queued": 7.0}, headers=headers)
        assert (answer.status_code, answer.json()["max_queued"]) == (201, 7), "7.0 is an integer to JSON Schema"
        assert fresh.http.delete(f"/v1/keys/{name}", headers=headers).json()["name"] == name
    assert fresh.http.get("/v1/keys/self", headers=headers).status_code == 200


def test_the_audit_log_is_read_in_pages_and_by_filters(fresh: Any, texts: dict[str, str]) -> None:
    def read(key: str = "all", **params: Any) -> Any:
        return fresh.http.get("/v1/audit", params=params, headers=bearer(texts[key]))

    first = read(limit=3).json()
    assert [event["id"] for event in first["items"]] == [1, 2, 3]
    assert read(limit=3, cursor=first["next_cursor"]).json()["items"][0]["id"] == 4
    created = read(action="key.create").json()
    assert created["next_cursor"] is None
    assert {event["actor"] for event in created["items"]} >= {"operator"}
    subject = created["items"][0]["subject"]
    assert [event["action"] for event in read(subject=subject).json()["items"]] == ["key.create"]
    assert read(actor="nobody").json()["items"] == []
    refuses(read("g1"), "bound to a part of it", 403)


def test_a_quota_is_a_429_that_says_how_much(fresh: Any, texts: dict[str, str]) -> None:
    text, _ = add_key(fresh.app, "small", "clips:write", max_bytes=10, max_queued=5)
    answer = fresh.http.post("/v1/clips", files={"file": ("s.json", json.dumps(STANDING | {"n": 2}))}, headers=bearer(text))
    refuses(answer, "the key 'small' is at its quota: its clips would have", 429)
    assert (answer.json()["type"], answer.headers["retry-after"]) == ("urn:ampref:error:quota", "86400")
    own = fresh.http.get("/v1/keys/self", headers=bearer(text)).json()
    assert own["usage"] == {"bytes": 0, "queued": 0, "planning_sec": 0.0}
    assert own["key"]["max_bytes"] == 10
