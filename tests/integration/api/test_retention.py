"""What is deleted on purpose, over HTTP: the features of archived versions, and clips that nobody needs."""

from __future__ import annotations

from typing import Any

import pytest

from ampref_service.catalog import audit
from ampref_service.garbage import delete_unreferenced

WALK = "/v1/datasets/walk/versions/0.1.0"
FEATURES = f"{WALK}/files/features_v0.1.0.npz"
MANIFEST = f"{WALK}/files/dataset_manifest_v0.1.0.json"


def archive(api: Any, url: str = WALK, **changes: Any) -> Any:
    manifest = api.http.get(url).json()["manifest_sha256"]
    return api.http.post(f"{url}/archive", json={"reason": "replaced", "expected_manifest_sha256": manifest} | changes)


def collect(api: Any) -> None:
    """Delete the blobs that no row names, however young."""
    delete_unreferenced(api.catalog, api.blobs, grace_sec=-1.0)


@pytest.fixture
def clip_id(api: Any) -> str:
    """A clip in two versions of which the first is archived."""
    clip = str(api.scored(1))
    for number in ("0.1.0", "0.2.0"):
        api.lock(version=number)
    assert archive(api).status_code == 200
    return clip


def test_the_features_are_gone_and_all_else_stays(api: Any, clip_id: str) -> None:
    collect(api)
    version = api.http.get(WALK).json()
    assert (version["archived"], version["archived_by"], version["archive_reason"]) == (True, "anonymous", "replaced")
    assert [file["name"] for file in version["files"]][1] == "features_v0.1.0.npz"
    for answer in (api.http.get(FEATURES), api.http.get(FEATURES, headers={"range": "bytes=0-9"})):
        assert answer.status_code == 410
        assert answer.json()["type"] == "urn:ampref:error:gone"
        assert "walk==0.1.0 was archived on 20" in answer.json()["what"]
        assert "by anonymous: replaced" in answer.json()["what"]
        assert "--undo" in answer.json()["remedy"]
    assert api.http.head(FEATURES).status_code == 410
    assert api.http.get(MANIFEST).content.startswith(b"dataset_manifest of walk==0.1.0")
    assert api.http.get(f"{WALK}/verification").status_code == 200
    assert [item["clip_id"] for item in api.http.get(f"{WALK}/members").json()["items"]] == [clip_id]
    with api.catalog.session() as session:
        [event] = [event for event in audit.list_events(session, subject="version:walk==0.1.0") if "archive" in event.action]
    assert event.detail == {"reason": "replaced", "files": {"features_v0.1.0.npz": version["files"][1]["sha256"]}}


def test_the_name_stays_taken_and_latest_goes_on(api: Any, clip_id: str) -> None:
    assert api.http.get("/v1/datasets/walk").json()["latest"] == "0.2.0"
    assert "locked already" in api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0"}).json()["what"]
    alias = api.http.put("/v1/datasets/walk/aliases/best", json={"version": "0.1.0"})
    assert (alias.status_code, "is archived: replaced" in alias.json()["what"]) == (409, True)
    assert archive(api, "/v1/datasets/walk/versions/0.2.0").status_code == 200
    assert api.http.get("/v1/datasets/walk").json()["latest"] is None
    assert "every version of 'walk' is yanked or archived" in api.http.get("/v1/datasets/walk/versions/latest").json()["what"]


def test_its_clips_are_free_once_no_other_version_holds_them(api: Any, clip_id: str) -> None:
    refusal = api.http.delete(f"/v1/clips/{clip_id}")
    assert (refusal.status_code, "walk==0.2.0" in refusal.json()["what"], "0.1.0" in refusal.json()["what"]) == (
        409,
        True,
        False,
    )
    archive(api, "/v1/datasets/walk/versions/0.2.0")
    other = api.scored(2, "squat")
    api.lock(version="0.3.0", clips=["squat"])
    assert api.http.delete(f"/v1/clips/{clip_id}").status_code == 204
    assert [item["clip_id"] for item in api.http.get(f"{WALK}/members").json()["items"]] == [clip_id]
    diff = api.http.get("/v1/datasets/walk/diff", params={"before": "0.1.0", "after": "0.3.0"}).json()
    assert [(item["clip_id"], item["bucket"]) for item in diff["removed"]] == [(clip_id, "purged")]
    assert [item["clip_id"] for item in diff["added"]] == [other]


def test_another_version_than_was_looked_at_is_not_archived(api: Any) -> None:
    api.scored(1)
    api.lock()
    answer = archive(api, expected_manifest_sha256="sha256:" + "0" * 64)
    assert (answer.status_code, answer.json()["key"]) == (409, "expected_manifest_sha256")
    api.http.put("/v1/datasets/walk/aliases/best", json={"version": "0.1.0"})
    for dry_run in (True, False):
        assert "the alias best leads to walk==0.1.0" in archive(api, dry_run=dry_run).json()["what"]
    assert archive(api, reason="").status_code == 422
    assert api.http.get(FEATURES).status_code == 200


def test_a_dry_run_counts_what_would_be_free(api: Any) -> None:
    api.scored(1)
    api.scored(2, "squat")
    api.lock()
    api.lock(version="0.2.0", clips=["squat"])
    shown = archive(api, dry_run=True).json()
    assert (shown["archived"], shown["free_clips"], shown["purgeable_clips"]) == (False, 1, 0)
    assert api.http.get(WALK).json()["archived"] is False
    assert archive(api).json()["archived"] is True
    last = archive(api, "/v1/datasets/walk/versions/0.2.0", dry_run=True).json()
    assert (last["version"], last["free_clips"]) == ("0.2.0", 1)


def test_an_archive_is_taken_back_with_the_same_bytes_alone(api: Any) -> None:
    api.scored(1)
    api.lock()
    content = api.http.get(FEATURES).content
    archive(api)
    assert api.http.post(f"{WALK}/unarchive").json()["archived"] is False
    assert api.http.get(FEATURES).content == content
    archive(api)
    collect(api)
    refusal = api.http.post(f"{WALK}/unarchive")
    assert (refusal.status_code, "the store does not have features_v0.1.0.npz" in refusal.json()["what"]) == (409, True)
    assert api.http.get(FEATURES).status_code == 410
    api.blobs.put_bytes(content)
    assert api.http.post(f"{WALK}/unarchive").status_code == 200
    assert api.http.get(FEATURES).content == content


def test_a_purge_shows_first_what_would_go(api: Any) -> None:
    api.scored(1, "bad", tier=-1)
    api.scored(2, "good")
    body = {"older_than_days": 0}
    shown = api.http.post("/v1/purges", json=body).json()
    assert shown | {"bytes": 0} == {
        **{"dry_run": True, "clips": 1, "rollouts": 1, "bytes": 0, "with_windows": 0, "names": ["bad"], "remaining": 1}
    }
    assert shown["bytes"] > 0
    done = api.http.post("/v1/purges", json=body | {"dry_run": False}).json()
    assert (done["dry_run"], done["clips"], done["bytes"], done["remaining"]) == (False, 1, shown["bytes"], 0)
    assert [item["name"] for item in api.http.get("/v1/clips").json()["items"]] == ["good"]
    assert api.http.post("/v1/purges", json=body | {"limit": 5.0}).status_code == 200
    for wrong in (
        {},
        body | {"limit": 5.5},
        body | {"limit": "5"},
        body | {"tier": "0"},
        body | {"tier": "unscored", "unreferenced_rollouts": True},
    ):
        assert api.http.post("/v1/purges", json=wrong).status_code == 422
