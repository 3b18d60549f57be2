"""Serving a file: validators, ranges, HEAD (RFC 9110 §13–14), over an application of a single route."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from ampref_service.api import problems
from ampref_service.api.files import IMMUTABLE, StoredFile, serve_file
from ampref_service.blobs import open_blobs

DATA = bytes(range(256)) * 9000  # 2.3 MB: more than one chunk
HEX = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{HEX}"'


@pytest.fixture(params=["file", "memory", "s3"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> TestClient:
    url = {"file": (tmp_path / "blobs").as_uri(), "memory": "memory://"}.get(request.param)
    blobs = open_blobs(url or request.getfixturevalue("s3_url"))
    digest = blobs.put_bytes(DATA)
    app = FastAPI(exception_handlers=problems.HANDLERS)

    @app.api_route("/file", methods=["GET", "HEAD"])
    def file(request: Request) -> Response:
        return serve_file(request, blobs, StoredFile(digest, len(DATA), "walk.npz", "application/octet-stream", IMMUTABLE))

    return TestClient(app)


def test_the_whole_file(client: TestClient) -> None:
    answer = client.get("/file")
    assert (answer.status_code, answer.content == DATA) == (200, True)
    assert answer.headers["etag"] == ETAG
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(HEX)).decode()}:"


def test_head_says_the_same_without_a_body(client: TestClient) -> None:
    head, complete = client.head("/file"), client.get("/file")
    assert head.content == b""
    assert dict(head.headers) == dict(complete.headers)
    ranged = client.head("/file", headers={"range": "bytes=0-9"})  # RFC 9110 §14.2: a range is for GET alone.
    assert (ranged.status_code, dict(ranged.headers)) == (200, dict(complete.headers))


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2000000-", 2_000_000, len(DATA)),
        ("bytes=-5", len(DATA) - 5, len(DATA)),
        ("bytes=-99999999", 0, len(DATA)),
        ("bytes=5-99999999", 5, len(DATA)),
        ("Bytes = 3 - 4", 3, 5),
    ],
)
def test_a_range(client: TestClient, header: str, start: int, end: int) -> None:
    answer = client.get("/file", headers={"range": header})
    assert answer.status_code == 206
    assert answer.content == DATA[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert answer.headers["etag"] == ETAG


@pytest.mark.parametrize("header", ["bytes=0-1,3-4", "bytes=5-4", "bytes=-", "bytes=a-b", "lines=1-2", "", "bytes=٣-٤"])
def test_a_range_that_is_none_gets_the_whole_file(client: TestClient, header: str) -> None:
    answer = client.get("/file", headers={"range": header.encode()})
    assert (answer.status_code, len(answer.content)) == (200, len(DATA))


@pytest.mark.parametrize("header", [f"bytes={len(DATA)}-", "bytes=99999999-100000000", "bytes=-0"])
def test_a_range_outside_is_416(client: TestClient, header: str) -> None:
    answer = client.get("/file", headers={"range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"
    assert answer.json()["type"] == "urn:ampref:error:range-not-satisfiable"


@pytest.mark.parametrize("condition", [ETAG, f"W/{ETAG}", "*", f'"other", {ETAG}'])
def test_a_copy_that_is_current_is_304(client: TestClient, condition: str) -> None:
    answer = client.get("/file", headers={"if-none-match": condition, "range": "bytes=0-1"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", ETAG)


def test_another_copy_is_sent_anew(client: TestClient) -> None:
    assert client.get("/file", headers={"if-none-match": '"other"'}).status_code == 200


def test_if_range_guards_a_resumed_download(client: TestClient) -> None:
    matching = client.get("/file", headers={"range": "bytes=5-", "if-range": ETAG})
    stale = client.get("/file", headers={"range": "bytes=5-", "if-range": '"other"'})
    weak = client.get("/file", headers={"range": "bytes=5-", "if-range": f"W/{ETAG}"})
    assert [matching.status_code, stale.status_code, weak.status_code] == [206, 200, 200]


def test_if_match(client: TestClient) -> None:
    assert client.get("/file", headers={"if-match": ETAG}).status_code == 200
    assert client.get("/file", headers={"if-match": f"W/{ETAG}"}).status_code == 412
    assert client.get("/file", headers={"if-match": '"other"'}).json()["status"] == 412
