"""A rollout's thumbnail over HTTP."""

from __future__ import annotations

from typing import Any

from ampref_service.catalog import thumbnails
from ampref_service.catalog.thumbnails import Thumbnail

WEBP = b"RIFF....WEBP"


def draw(api: Any, rollout_id: str) -> str:
    digest = api.blobs.put_bytes(WEBP)
    with api.catalog.begin() as session:
        thumbnails.finish(session, rollout_id, Thumbnail(digest, len(WEBP)))
    return str(digest)


def test_it_is_there_once_it_was_drawn(api: Any) -> None:
    clip_id = api.scored(1)
    path = f"/v1/clips/{clip_id}"
    [rollout] = api.http.get(path).json()["rollouts"]
    url = f"/v1/rollouts/{rollout['id']}/thumbnail"
    assert rollout["thumbnail_url"] is None
    assert api.http.get("/v1/clips").json()["items"][0]["rollout"]["thumbnail_url"] is None
    missing = api.http.get(url)
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")
    assert "[render]" in missing.json()["remedy"]
    draw(api, rollout["id"])
    answer = api.http.get(url)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, WEBP, "image/webp")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert api.http.get(url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert api.http.head(url).headers["content-length"] == str(len(WEBP))
    for query in ("", "?mode=rollout", "?gate_profile=amp-0.12", "?mode=rollout&gate_profile=amp-0.12"):
        assert api.http.get(f"/v1/clips{query}").json()["items"][0]["rollout"]["thumbnail_url"] == url
    assert api.http.get(path).json()["rollouts"][0]["thumbnail_url"] == url
    assert api.http.get(f"/v1/rollouts/{rollout['id']}").json()["thumbnail_url"] == url


def test_a_lost_one_is_made_again(api: Any) -> None:
    clip_id = api.scored(1)
    [rollout] = api.http.get(f"/v1/clips/{clip_id}").json()["rollouts"]
    digest = draw(api, rollout["id"])
    api.blobs.delete(digest)
    url = f"/v1/rollouts/{rollout['id']}/thumbnail"
    assert api.http.get(url).status_code == 500
    assert api.http.get(url).status_code == 404
    with api.catalog.session() as session:
        assert thumbnails.is_due(session)


def test_there_is_no_such_rollout(api: Any) -> None:
    assert api.http.get("/v1/rollouts/rollout_1/thumbnail").status_code == 404
