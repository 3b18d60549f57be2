"""The client stays with its service: what a redirect may lead to, and what goes along."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest
from clientkit import QUICK, same_files
from datasetkit import Site, redirect, send_json, serving

from amp_core.client import ApiClient
from amp_core.client.http import Connection
from amp_core.errors import Unavailable


@pytest.fixture
def elsewhere() -> Iterator[Site]:
    with serving(Site()) as running:
        yield running


def test_a_redirect_to_another_host_is_refused(site: Site, elsewhere: Site, small: Any, get: Any) -> None:
    site.add(small)
    elsewhere.add(small)
    site.before = lambda handler: redirect(handler, f"{elsewhere.url}{handler.path}", 302)
    with pytest.raises(Unavailable, match=rf"{site.url}/v1/datasets/\S+ redirects to {elsewhere.url}/v1/datasets/"):
        get()
    assert not elsewhere.requests


def test_a_file_is_not_taken_from_elsewhere_unless_the_service_named_the_place(
    site: Site, elsewhere: Site, small: Any, get: Any
) -> None:
    site.add(small)
    elsewhere.add(small)
    site.before = lambda handler: "/files/" in handler.path and redirect(handler, f"{elsewhere.url}{handler.path}?signature=s")
    with pytest.raises(Unavailable, match="redirects to"):
        get()
    assert not elsewhere.requests
    site.download_origin = elsewhere.url
    assert same_files(get(), small)
    assert {path.rpartition("?")[2] for _, path, _ in elsewhere.requests} == {"signature=s"}


def test_a_file_from_elsewhere_is_resumed_there(site: Site, elsewhere: Site, large: Any, get: Any) -> None:
    site.add(large)
    elsewhere.add(large)
    site.download_origin = elsewhere.url
    elsewhere.break_after = [5_000_000]
    site.before = lambda handler: "/files/" in handler.path and redirect(handler, f"{elsewhere.url}{handler.path}")
    assert same_files(get(), large)
    assert [given is not None for name, given in elsewhere.file_requests if name == large.features.name] == [False, True]


def test_credentials_stay_with_the_service(site: Site, elsewhere: Site, small: Any, get: Any) -> None:
    seen: dict[str, set[str]] = {"site": set(), "elsewhere": set()}

    def note(name: str, handler: BaseHTTPRequestHandler) -> bool:
        seen[name] |= {key.lower() for key in handler.headers}
        return False

    site.add(small)
    elsewhere.add(small)
    site.download_origin = elsewhere.url
    site.before = lambda handler: (
        note("site", handler) or ("/files/" in handler.path and redirect(handler, f"{elsewhere.url}{handler.path}"))
    )
    elsewhere.before = lambda handler: note("elsewhere", handler)
    get(url=site.url.replace("//", "//user:secret@"))
    assert "authorization" in seen["site"]
    assert seen["elsewhere"] <= {"host", "user-agent", "accept", "accept-encoding"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_upload_follows_no_redirect(site: Site, elsewhere: Site, tmp_path: Path, status: int) -> None:
    motion = tmp_path / "walk.pkl"
    motion.write_bytes(b"motion" * 1000)
    for target in (elsewhere.url, site.url):
        site.requests.clear()
        site.before = lambda handler, target=target: redirect(handler, f"{target}/elsewhere", status)  # type: ignore[misc]
        with ApiClient(site.url, retry=QUICK) as api, pytest.raises(Unavailable, match="redirects what a POST sends to"):
            api.submit_clip(motion)
        assert [path for _, path, _ in site.requests] == ["/v1/clips"]
    assert not elsewhere.requests


def test_a_redirect_within_the_service_is_followed_a_few_times(site: Site) -> None:
    def move_once(handler: BaseHTTPRequestHandler) -> bool:
        if handler.path.endswith("moved"):
            send_json(handler, {"items": []})
            return True
        return redirect(handler, "/moved", 302)

    site.before = move_once
    with ApiClient(site.url, retry=QUICK) as api:
        assert api.list_robots() == []
        site.before = lambda handler: redirect(handler, handler.path)
        with pytest.raises(Unavailable, match="redirects more than 5 times"):
            api.list_robots()


@pytest.mark.parametrize(
    ("url", "target", "is_followed"),
    [
        ("http://service", "https://service/x", True),
        ("http://service", "https://service:443/x", True),
        ("http://service:80", "https://service/x", True),
        ("http://service", "https://service:8443/x", False),
        ("http://service:8000", "https://service/x", False),
        ("https://service", "http://service/x", False),
        ("http://service", "http://service:8000/x", False),
        ("http://service", "//other/x", False),
        ("http://service", "file:///etc/passwd", False),
    ],
)
def test_which_addresses_are_the_services_own(url: str, target: str, is_followed: bool) -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(200, json={}) if len(asked) > 1 else httpx2.Response(302, headers={"location": target})

    with closing(Connection(url, retry=QUICK, transport=httpx2.MockTransport(answer))) as connection:
        if is_followed:
            assert connection.json("GET", "v1/x") == (200, {})
        else:
            with pytest.raises(Unavailable, match="redirects to"):
                connection.json("GET", "v1/x")
    assert len(asked) == 1 + is_followed


def test_an_address_elsewhere_in_an_answer_is_not_asked(site: Site, elsewhere: Site) -> None:
    """Such as a version's `manifest_url`."""
    with (
        closing(Connection(site.url, retry=QUICK)) as connection,
        pytest.raises(Unavailable, match=f"names {elsewhere.url}/manifest"),
    ):
        connection.json("GET", f"{elsewhere.url}/manifest")
    assert not elsewhere.requests


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[2001:db8::5]", "2001:db8::5", 80),
        ("https://[2001:db8::5]", "2001:db8::5", 443),
        ("http://[2001:db8::a1]", "2001:db8::a1", 80),
        ("http://[2001:db8::5]:8000", "2001:db8::5", 8000),
        ("http://[fe80::1%25x]", "fe80::1%x", 80),
    ],
)
def test_an_ipv6_address_is_taken_as_it_is(url: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        addresses.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with (
        closing(Connection(url, retry=QUICK.impatient())) as connection,
        pytest.raises(Unavailable, match=r"cannot be reached \(refused\)"),
    ):
        connection.json("GET", "v1/x")
    assert addresses == [(host, port)]
