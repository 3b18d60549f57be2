"""Hosts, origins, headers for browsers, sessions of browsers, users of a proxy, and signed links."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogkit import make_catalog
from keykit import add_key, bearer
from starlette.testclient import TestClient

from amp_core.errors import InputRefused
from ampref_service.app import create_app
from ampref_service.catalog import keys
from ampref_service.settings import Settings

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@contextlib.contextmanager
def serving(folder: Path, *, client: str = "127.0.0.1", **options: Any) -> Iterator[TestClient]:
    """A service with settings of its own, and a client with an address."""
    settings = Settings.load(data_dir=folder / "data", **options)
    make_catalog(settings.database_url)
    with TestClient(create_app(settings), base_url="http://localhost:8000", client=(client, 5)) as http:
        yield http


def problem_of(answer: Any) -> str:
    return str(answer.json()["type"].rpartition(":")[2])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "app.localhost",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.7.7",
        "api",
        "api:8000",
        "localhost.",
    ],
)
def test_own_hosts(idle: Any, host: str) -> None:
    assert idle.http.get("/v1/robots", headers={"host": host}).status_code == 200
    assert idle.http.get("/v1/robots", headers={"host": socket.gethostname()}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "a b",
        "x@evil.example",
        "[::1",
        "a.b:port",
        "",
        ".",
    ],
)
def test_a_name_that_is_made_to_mean_this_machine_is_refused(idle: Any, host: str) -> None:
    for method, path in (("GET", "/v1/clips"), ("DELETE", "/v1/clips/clip_1"), ("GET", "/healthz"), ("GET", "/docs")):
        answer = idle.http.request(method, path, headers={"host": host})
        assert (answer.status_code, problem_of(answer)) == (421, "host-refused")
        assert "AMPREF_ALLOWED_HOSTS" in answer.json()["detail"]


def test_hosts_that_the_operator_allows(tmp_path: Path) -> None:
    with serving(tmp_path, allowed_hosts="amp.example.org, *.lab.example") as http:
        for host in ("amp.example.org", "AMP.example.org:443", "a.lab.example", "a.b.lab.example"):
            assert http.get("/v1/robots", headers={"host": host}).status_code == 200
        for host in ("lab.example", "xlab.example", "b.amp.example.org"):
            assert http.get("/v1/robots", headers={"host": host}).status_code == 421
    with serving(tmp_path, allowed_hosts="*") as http:
        assert http.get("/v1/robots", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_hosts", "http://amp.example.org"),
        ("allowed_hosts", "a.example:8000"),
        ("trusted_proxies", "nginx"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("proxy_groups", "admins=king"),
        ("proxy_groups", "admins"),
    ],
)
def test_bad_values_stop_the_start(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InputRefused, match=f"AMPREF_{name.upper()}"), serving(tmp_path, **{name: value}):
        pass


def test_another_sites_page_changes_nothing(seeded: Any) -> None:
    (clip,) = seeded.http.get("/v1/clips?name=squat").json()["items"]
    calls = [("DELETE", f"/v1/clips/{clip['id']}"), ("POST", "/v1/clips"), ("POST", f"/v1/clips/{clip['id']}/rollouts")]
    calls += [("POST", "/v1/datasets/walk/versions/0.2.0/unyank"), ("PUT", "/v1/datasets/walk/aliases/x"), ("POST", "/login")]
    for method, path in calls:
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://testserver:81"},
            {"origin": "http://testserver.evil.example"},
            {"sec-fetch-site": "cross-site"},
            {"origin": "http://testserver", "sec-fetch-site": "cross-site"},
        ):
            answer = seeded.http.request(method, path, headers=headers)
            assert (answer.status_code, problem_of(answer)) == (403, "origin-refused"), (path, headers)
    assert seeded.http.get(f"/v1/clips/{clip['id']}", headers={"origin": "http://evil.example"}).status_code == 200
    assert seeded.http.get("/v1/datasets/walk").json()["latest"] == "0.1.0"


def test_an_own_page_and_programs_may(idle: Any) -> None:
    for headers in ({"origin": "http://testserver", "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}):
        assert idle.http.delete("/v1/clips/nope", headers=headers).status_code == 404
    origin = {"host": "amp:8000", "origin": "http://amp:8000"}
    assert idle.http.delete("/v1/clips/nope", headers=origin).status_code == 404


def test_every_answer_has_the_headers_for_browsers(idle: Any) -> None:
    for answer in (
        idle.http.get("/healthz"),
        idle.http.get("/v1/clips/nope"),
        idle.http.get("/nowhere"),
        idle.http.get("/v1/robots", headers={"host": "evil.example"}),
        idle.http.get("/docs"),
        idle.http.get("/login"),
    ):
        # Without any referrer a browser would send the origin `null` with the forms of a page.
        is_page = "text/html" in answer.headers["content-type"]
        headers = HEADERS | ({"referrer-policy": "same-origin"} if is_page else {})
        assert headers.items() <= answer.headers.items()
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


# Sessions of browsers


@pytest.fixture
def browser(api: Any) -> Any:
    """A browser that has signed in with the key `alice`."""
    text, _ = add_key(api.app, "alice")
    answer = api.http.post("/login", data={"key": text}, follow_redirects=False)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie, "a link in a chat leads to the page, not to the login; changes carry a token"
    assert "Secure" not in cookie
    assert text not in cookie
    return api


def test_a_session_reads_with_its_cookie_and_changes_with_its_token(browser: Any) -> None:
    assert browser.http.get("/v1/keys/self").json()["name"] == "key:alice"
    answer = browser.http.delete("/v1/clips/nope")
    assert (answer.status_code, answer.json()["key"]) == (403, "x-csrf-token")
    assert browser.http.delete("/v1/clips/nope", headers={"x-csrf-token": "x"}).status_code == 403
    page = browser.http.get("/login").text
    assert "Signed in as <strong>key:alice</strong>" in page
    token = re.findall('name="csrf_token" value="([^"]+)"', page)[0]
    assert browser.http.delete("/v1/clips/nope", headers={"x-csrf-token": token}).status_code == 404
    assert browser.http.post("/logout", data={"csrf_token": "x"}).status_code == 403
    assert browser.http.get("/v1/keys/self").status_code == 200
    assert browser.http.post("/logout", data={"csrf_token": token}, follow_redirects=False).status_code == 303
    assert browser.http.get("/v1/keys/self").status_code == 401


def test_a_session_ends_with_its_key_and_after_its_time(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with browser.catalog.begin() as session:
        keys.revoke_key(session, keys.get_key(session, "alice").id, actor="operator")
    browser.app.state.authenticator.forget()
    assert "was revoked" in browser.http.get("/v1/keys/self").json()["detail"]
    assert "was revoked" in browser.http.get("/login").text
    later, cookie = time.time() + 12 * 3600 + 1, browser.http.cookies["ampref_session"]
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        # As a browser would that keeps it for longer than it is told.
        answer = browser.http.get("/v1/keys/self", headers={"cookie": f"ampref_session={cookie}"})
        assert "session of this browser is over" in answer.json()["detail"]


def test_a_cookie_that_was_changed_is_none(browser: Any) -> None:
    cookie = browser.http.cookies["ampref_session"]
    browser.http.cookies.clear()
    key_id, expires, rest = cookie.split(".", 2)
    for changed in (
        f"{key_id}.{int(expires) + 9}.{rest}",
        cookie[:-1] + ("A" if cookie[-1] != "A" else "B"),
        "x",
        "a.b.c.d",
        "",
    ):
        assert browser.http.get("/v1/keys/self", headers={"cookie": f"ampref_session={changed}"}).status_code == 401


def test_a_wrong_key_opens_no_session(browser: Any) -> None:
    browser.http.cookies.clear()
    answer = browser.http.post("/login", data={"key": "<b>amp_wrong"})
    assert answer.status_code == 401
    assert "no key" in answer.text
    assert "<b>amp" not in answer.text
    assert "set-cookie" not in answer.headers


# Users of a proxy


PROXY = {
    "trusted_proxies": "10.0.0.0/8,::1",
    "proxy_user_header": "X-Forwarded-User",
    "proxy_groups": "leads=lead,operators=operator,*=reader",
}


def test_a_trusted_proxy_names_users_and_their_groups(tmp_path: Path) -> None:
    with serving(tmp_path, client="10.1.2.3", allowed_hosts="amp.example.org", **PROXY) as http:
        assert http.get("/v1/clips").status_code == 401, "a proxy that names nobody opens nothing, on loopback either"
        alice = {"x-forwarded-user": "alice", "x-forwarded-groups": "staff, leads", "x-forwarded-host": "amp.example.org"}
        answer = http.get("/v1/keys/self", headers=alice).json()
        assert answer["name"] == "user:alice"
        assert "datasets:write" in answer["scopes"]
        assert "keys:write" not in answer["scopes"]
        bob = {"x-forwarded-user": "bob"}
        assert http.get("/v1/clips", headers=bob).status_code == 200
        assert http.delete("/v1/clips/nope", headers=bob).status_code == 403
        assert http.delete("/v1/clips/nope", headers=alice).status_code == 404
        # Nothing that would outlast the person: it ends with a key.
        operator = alice | {"x-forwarded-groups": "operators"}
        answer = http.post("/v1/webhooks", json={"url": "https://hooks.example.org/"}, headers=operator)
        assert answer.status_code == 403
        assert "a webhook ends with the key that made it" in answer.json()["detail"]
        text, _ = add_key(http.app, "alice")  # type: ignore[arg-type]
        answer = http.post("/v1/webhooks", json={"url": "https://hooks.example.org/"}, headers=operator | bearer(text))
        assert answer.status_code == 201
        # A page's origin is the host by which the proxy was asked.
        assert http.delete("/v1/clips/nope", headers=alice | {"origin": "https://amp.example.org"}).status_code == 404
        assert http.delete("/v1/clips/nope", headers=alice | {"origin": "http://localhost:8000"}).status_code == 403
        assert http.get("/v1/clips", headers=alice | {"x-forwarded-host": "evil.example"}).status_code == 421


def test_nobody_else_is_believed(tmp_path: Path) -> None:
    alice = {"x-forwarded-user": "alice", "x-forwarded-groups": "leads", "x-forwarded-host": "amp.example.org"}
    for client in ("127.0.0.1", "11.0.0.1", "testclient"):
        with serving(tmp_path, client=client, **PROXY) as http:
            assert http.get("/v1/clips", headers=alice).status_code == 401


def test_https_ends_at_the_proxy(tmp_path: Path) -> None:
    with serving(tmp_path, client="10.1.2.3", allowed_hosts="amp.example.org", **PROXY) as http:
        text, _ = add_key(http.app, "alice")  # type: ignore[arg-type]
        headers = {"x-forwarded-proto": "https", "x-forwarded-host": "amp.example.org"}
        answer = http.post("/login", data={"key": text}, headers=headers, follow_redirects=False)
        assert "; Secure" in answer.headers["set-cookie"]


# Signed links


def test_a_link_reads_one_file_without_a_key_until_its_key_ends(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_id = api.scored(1)
    api.lock()
    rollout_id = api.http.get(f"/v1/clips/{clip_id}").json()["rollouts"][0]["id"]
    text, key = add_key(api.app, "alice")
    paths = [f"/v1/clips/{clip_id}/file", f"/v1/rollouts/{rollout_id}/arrays"]
    paths.append("/v1/datasets/walk/versions/0.1.0/files/features_v0.1.0.npz")
    links = [api.http.post(f"{path}/link", json={"expires_in_sec": 60}, headers=bearer(text)).json()["url"] for path in paths]
    alias = api.http.post(paths[2].replace("0.1.0/f", "latest/f") + "/link", json={}, headers=bearer(text))
    assert alias.json()["url"].startswith(f"http://testserver{paths[2]}?key={key.id}&expires=")
    for path, link in zip(paths, links, strict=True):
        whole = api.http.get(link)
        assert whole.status_code == 200
        assert whole.content == api.http.get(path, headers=bearer(text)).content
        assert api.http.get(link, headers={"range": "bytes=2-4"}).content == whole.content[2:5]
        assert api.http.head(link).headers["etag"] == whole.headers["etag"]
        query = link.partition("?")[2]
        for other in ("/v1/clips", *paths):
            if other != path:
                assert api.http.get(f"{other}?{query}").status_code in (401, 403)
        assert api.http.delete(f"/v1/clips/{clip_id}?{query}").status_code == 401
        for changed in (link.replace("expires=1", "expires=2"), link[:-1] + ("A" if link[-1] != "A" else "B"), link + "x"):
            answer = api.http.get(changed)
            assert answer.status_code == 403
            assert "not as it was signed" in answer.json()["detail"]
    later = time.time() + 61
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        answer = api.http.get(links[0])
        assert (answer.status_code, "the link expired on 20" in answer.json()["detail"]) == (403, True)
    with api.catalog.begin() as session:
        keys.revoke_key(session, key.id, actor="operator")
    api.app.state.authenticator.forget()
    answer = api.http.get(links[0])
    assert answer.status_code == 403
    assert "the link is no longer valid: the key 'alice' was revoked on " in answer.json()["what"]
    assert answer.json()["remedy"] == "Ask whoever gave you the link for a new one"


def test_a_link_has_the_bounds_and_scopes_of_its_key(api: Any) -> None:
    clip_id = api.scored(1)
    link = api.http.post(f"/v1/clips/{clip_id}/file/link").json()["url"]
    assert api.http.get(link).status_code == 200, "of an open service it is an address like any other"
    text, _ = add_key(api.app, "g1", "clips:read", robots=("g1",))
    assert api.http.post(f"/v1/clips/{clip_id}/file/link", json={}, headers=bearer(text)).status_code == 403
    assert api.http.get(link).status_code == 403, "and of nobody's since there are keys"
    assert api.http.post(f"/v1/clips/{clip_id}/file/link", json={"expires_in_sec": 8 * 86_400}).status_code == 401
