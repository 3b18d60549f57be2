"""Where the client finds a key, and to whom it sends it."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
import pytest

from amp_core.client import ApiClient, Retry
from amp_core.client.http import Connection, hide_password, resolve_token
from amp_core.errors import Forbidden, InputRefused, Unauthorized, Unavailable

QUICK = Retry(attempts=1, timeout=5, wait_initial=0.001, wait_max=0.002)
SERVICE = "http://service.example/base"


@pytest.fixture
def token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("AMPREF_TOKEN", raising=False)
    path = tmp_path / "ampref" / "token"
    path.parent.mkdir()
    path.touch(mode=0o600)
    return path


def test_an_argument_wins_over_the_variable_and_that_over_the_file(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_token(None, SERVICE) is None
    token_file.write_text("amp_file\n")
    assert resolve_token(None, SERVICE) == "amp_file"
    monkeypatch.setenv("AMPREF_TOKEN", " amp_variable\n")
    assert resolve_token(None, SERVICE) == "amp_variable"
    assert resolve_token("amp_argument", SERVICE) == "amp_argument"


def test_a_file_of_several_services_has_a_line_for_each(token_file: Path) -> None:
    token_file.write_text("# mine\nhttp://127.0.0.1:8000 amp_local\n\nhttps://service.example:443/base amp_remote\n")
    assert resolve_token(None, "http://127.0.0.1:8000") == "amp_local"
    assert resolve_token(None, "https://service.example") == "amp_remote"
    assert resolve_token(None, SERVICE) is None


def test_no_file_is_no_error(token_file: Path) -> None:
    token_file.unlink()
    assert resolve_token(None, SERVICE) is None


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused(token_file: Path, mode: int) -> None:
    token_file.write_text("amp_secret\n")
    token_file.chmod(mode)
    with pytest.raises(InputRefused, match="chmod 600") as refused:
        resolve_token(None, SERVICE)
    assert "amp_secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["a b c\n", "one\ntwo\n"])
def test_a_file_that_cannot_be_read_is_refused(token_file: Path, text: str) -> None:
    token_file.write_text(text)
    with pytest.raises(InputRefused, match="one key, or lines"):
        resolve_token(None, SERVICE)


@pytest.mark.parametrize("text", ["amp_a\nb", "amp_ä", "a b"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputRefused, match="cannot be sent") as refused:
        resolve_token(text, SERVICE)
    assert text not in str(refused.value)


def test_the_key_goes_to_its_service_alone() -> None:
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, json={})

    connection = Connection(SERVICE, token="amp_key", retry=QUICK, transport=httpx2.MockTransport(answer))
    connection.json("GET", "v1/clips")
    for path in ("http://evil.example/v1/clips", "http://service.example:81/v1/clips", "https://service.example/x"):
        with pytest.raises(Unavailable, match="names"):
            connection.json("GET", path)
    assert [request.headers.get("authorization") for request in requests] == ["Bearer amp_key"]


def test_the_key_goes_before_a_password_of_the_address() -> None:
    headers: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        headers.append(request.headers.get("authorization"))
        return httpx2.Response(200, json={"items": []})

    url = "http://alice:hunter2@service.example"
    with ApiClient(url, token="amp_key", retry=QUICK, transport=httpx2.MockTransport(answer)) as api:
        api.list_datasets()
    assert headers == ["Bearer amp_key"]


def test_an_allowed_redirect_of_a_download_does_not_get_the_key() -> None:
    headers: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        headers.append(request.headers.get("authorization"))
        if request.url.host == "service.example":
            return httpx2.Response(307, headers={"location": "http://store.example/file"})
        return httpx2.Response(200, content=b"x")

    connection = Connection(SERVICE, token="amp_key", retry=QUICK, transport=httpx2.MockTransport(answer))
    with connection.stream("GET", "v1/file", retry=QUICK, origin="http://store.example") as response:
        assert response.status_code == 200
    assert headers == ["Bearer amp_key", None]


def test_a_redirect_elsewhere_does_not_get_the_key() -> None:
    keys: dict[str, str | None] = {}

    def answer(request: httpx2.Request) -> httpx2.Response:
        keys[request.url.host] = request.headers.get("authorization")
        return httpx2.Response(302, headers={"location": "http://evil.example/v1/clips"})

    connection = Connection(SERVICE, token="amp_key", retry=QUICK, transport=httpx2.MockTransport(answer))
    with pytest.raises(Unavailable):
        connection.json("GET", "v1/clips")
    assert keys["service.example"] == "Bearer amp_key"
    assert keys.get("evil.example") is None


def test_a_password_of_the_address_is_sent_and_never_printed() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["authorization"].startswith("Basic ")
        raise httpx2.ConnectError("refused")

    with ApiClient("http://alice:hunter2@service.example", retry=QUICK, transport=httpx2.MockTransport(answer)) as api:
        assert api.url == "http://service.example"
        assert api.address == "http://alice:hunter2@service.example"
        with pytest.raises(Unavailable) as failed:
            api.list_datasets()
    assert "hunter2" not in str(failed.value)
    with pytest.raises(InputRefused) as refused:
        ApiClient("ftp://alice:hunter2@service.example")
    assert "hunter2" not in str(refused.value)


def test_addresses_without_user_and_password() -> None:
    assert hide_password("http://a:b@host:1/x@y") == "http://host:1/x@y"
    assert hide_password("http://a:b@c@host") == "http://host"
    assert hide_password("https://host/x") == "https://host/x"
    assert hide_password("a:b@host") == "host"


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (403, Forbidden)])
def test_refusals_are_exceptions_of_their_own(status: int, kind: type[Exception]) -> None:
    for body in ({}, {"type": f"urn:ampref:error:{kind.slug}", "what": "no", "remedy": "Set AMPREF_TOKEN"}):  # type: ignore[attr-defined]
        transport = httpx2.MockTransport(lambda request, body=body: httpx2.Response(status, json=body))  # type: ignore[misc]
        with pytest.raises(kind), ApiClient(SERVICE, retry=QUICK, transport=transport) as api:
            api.list_datasets()
