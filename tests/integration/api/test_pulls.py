"""Who pulled a version: what counts, that it costs an answer nothing, and that none fails for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from keykit import add_key, bearer

from amp_core.errors import Unavailable
from amp_core.version import __version__
from ampref_service import pulls as pull_counter
from ampref_service.catalog import pulls

FILES = "/v1/datasets/walk/versions/0.1.0/files"
PULLS = "/v1/datasets/walk/versions/0.1.0/pulls"
FEATURES, MANIFEST = "features_v0.1.0.npz", "dataset_manifest_v0.1.0.json"


def list_pulls(api: Any, expected: int, **options: Any) -> list[dict[str, Any]]:
    """The rows, once they count so many pulls."""
    end = time.monotonic() + 10
    while True:
        rows: list[dict[str, Any]] = api.http.get(PULLS, **options).json()["items"]
        if sum(row["pulls"] for row in rows) >= expected or time.monotonic() > end:
            return rows
        time.sleep(0.05)


def test_a_pull_is_counted_once_whatever_comes_after_its_first_byte(api: Any) -> None:
    api.scored(0)
    api.lock()
    features, stats, manifest = (f"{FILES}/{name}" for name in (FEATURES, "normalization_stats_v0.1.0.json", MANIFEST))
    assert api.http.get(PULLS).json() == {"items": []}
    etag = api.http.head(features).headers["etag"]
    assert api.http.get(features, headers={"user-agent": f"ampref/{__version__}"}).status_code == 200
    assert api.http.get(features, headers={"range": "bytes=0-99", "user-agent": "curl/8"}).status_code == 206
    for headers, status in (
        ({"range": "bytes=100-"}, 206),
        ({"range": "bytes=0-0"}, 206),
        ({"if-none-match": etag}, 304),
        ({"if-match": '"another"'}, 412),
    ):
        assert api.http.get(features, headers=headers).status_code == status
    for other in (stats, manifest):
        assert api.http.get(other).status_code == 200
    assert api.http.get(f"/v1/datasets/walk/versions/latest/files/{FEATURES}").status_code == 200
    rows = list_pulls(api, 3)
    assert {(row["caller"], row["client"], row["pulls"]) for row in rows} == {
        ("anonymous", f"ampref/{__version__}", 1),
        ("anonymous", "other", 2),
    }
    assert all(row["first_at"] <= row["last_at"] for row in rows)


def test_pulls_name_the_key_and_the_client(fresh: Any) -> None:
    fresh.scored(0)
    fresh.lock()
    path = f"{FILES}/{FEATURES}"
    text, _ = add_key(fresh.app, "node-7", "datasets:read")
    agents = ["ampref", "ampref/0.14.0", "ampref/0.14.0 (linux)", "amprefix/1", "ampref/" + "1" * 99, ""]
    for agent in agents:
        assert fresh.http.get(path, headers=bearer(text) | {"user-agent": agent}).status_code == 200
    link = fresh.http.post(f"{path}/link", json={}, headers=bearer(text)).json()["url"]
    assert fresh.http.get(link, headers={"user-agent": "ampref/0.14.0"}).status_code == 200
    rows = list_pulls(fresh, 7, headers=bearer(text))
    assert {(row["caller"], row["client"]): row["pulls"] for row in rows} == {
        ("key:node-7", "ampref"): 1,
        ("key:node-7", "ampref/0.14.0"): 3,
        ("key:node-7", "other"): 3,
    }


def test_no_answer_waits_or_fails_for_the_count(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api.scored(0)
    api.lock()
    is_away = True

    def add_or_refuse(*arguments: Any) -> None:
        if is_away:
            raise Unavailable("the database is away")
        original(*arguments)

    original = pulls.add_pulls
    monkeypatch.setattr(pulls, "add_pulls", add_or_refuse)
    monkeypatch.setattr(pull_counter, "BATCH_SEC", 0.01)
    for _ in range(3):
        assert api.http.get(f"{FILES}/{FEATURES}").status_code == 200
        time.sleep(0.05)
    assert api.http.get(PULLS).json() == {"items": []}
    is_away = False
    assert api.http.get(f"{FILES}/{FEATURES}").status_code == 200
    assert [row["pulls"] for row in list_pulls(api, 4)] == [4]
