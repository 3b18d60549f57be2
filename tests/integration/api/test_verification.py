"""Waivers, the readiness checklist, the report and the members of a version, and a clip's own bytes, over HTTP."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

VERSION = "/v1/datasets/walk/versions/0.1.0"


@pytest.fixture
def locked(api: Any) -> Any:
    """A version of two clips."""
    api.scored(1, "walk")
    api.scored(2, "squat")
    api.lock(version="0.1.0")
    return api


def test_waivers_go_with_the_job(api: Any) -> None:
    api.scored(1)
    waivers = [{"test": "smoke", "reason": "a tiny set"}, {"test": "6", "reason": "  two clips\t only"}]
    answer = api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0", "waivers": waivers[:1]})
    assert answer.status_code == 202, answer.text
    assert api.claim().job.payload["waivers"] == waivers[:1]


@pytest.mark.parametrize(
    ("waivers", "key"),
    [
        ([{"test": "8", "reason": "x"}], "waivers.0.test"),
        ([{"test": 6, "reason": "x"}], "waivers.0.test"),
        ([{"test": "6"}], "waivers.0.reason"),
        ([{"test": "6", "reason": ""}], "waivers.0.reason"),
        ([{"test": "6", "reason": "   "}], "waivers.reason"),
        ([{"test": "6", "reason": "x" * 501}], "waivers.0.reason"),
        ([{"test": "6", "reason": "x\ny"}], "waivers.0.reason"),
        ([{"test": "6", "reason": "x", "by": "me"}], "waivers.0.by"),
        ([{"test": "6", "reason": "x"}, {"test": "6", "reason": "y"}], "waivers"),
        ([{"test": "6", "reason": "x"}] * 11, "waivers"),
        ({"6": "x"}, "waivers"),
    ],
)
def test_a_waiver_that_means_nothing_is_refused_and_locks_nothing(api: Any, waivers: Any, key: str) -> None:
    api.scored(1)
    answer = api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0", "waivers": waivers})
    assert answer.status_code == 422, answer.text
    assert answer.json()["key"].removeprefix("body.") == key
    # The name is still free.
    assert api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0"}).status_code == 202


def test_a_version_shows_its_checklist(locked: Any) -> None:
    body = locked.http.get(VERSION).json()
    readiness = body["readiness"]
    assert [group["name"] for group in readiness["groups"]][-1] == "Artifacts locked"
    assert readiness["tests"] == [
        {"id": "6", "name": "6 distribution sanity", "status": "WARN", "reason": "look at <walk>"},
    ]
    assert readiness["ready"] is False
    assert body["verification_url"] == f"{VERSION}/verification"
    assert len(body["files"]) == 3


def test_the_report_is_served_as_json_and_as_a_page(locked: Any) -> None:
    answer = locked.http.get(f"{VERSION}/verification")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert "immutable" in answer.headers["cache-control"]
    assert "accept" in answer.headers["vary"].lower()
    assert answer.json()["tests"][0]["figures"] == {"loss": [2.0, 1.0, 0.5]}
    repeated = locked.http.get(f"{VERSION}/verification", headers={"if-none-match": answer.headers["etag"]})
    assert repeated.status_code == 304
    for request in ({"params": {"format": "html"}}, {"headers": {"accept": "text/html,*/*;q=0.8"}}):
        page = locked.http.get(f"{VERSION}/verification", **request)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "look at &lt;walk&gt;" in page.text
    both = {"params": {"format": "json"}, "headers": {"accept": "text/html"}}
    assert locked.http.get(f"{VERSION}/verification", **both).json() == answer.json()
    assert locked.http.get(f"{VERSION}/verification", params={"format": "pdf"}).status_code == 422
    latest = locked.http.get("/v1/datasets/walk/versions/latest/verification")
    assert "immutable" not in latest.headers["cache-control"]


def test_a_yanked_version_warns_beside_its_report(locked: Any) -> None:
    locked.http.post(f"{VERSION}/yank", json={"reason": "for the tests"})
    assert "for the tests" in locked.http.get(f"{VERSION}/verification").headers["warning"]


def test_a_version_that_is_older_than_the_tests_has_no_report(locked: Any) -> None:
    from ampref_service.catalog.tables import version_files

    with locked.app.state.services.catalog.begin() as session:
        # A locked version never changes, so one of an earlier release is made by hand.
        session.exec_driver_sql("DROP TRIGGER IF EXISTS version_files_fixed_delete")
        for trigger in session.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all():
            session.exec_driver_sql(f'DROP TRIGGER "{trigger}"')
        session.execute(version_files.delete().where(version_files.c.name.startswith("verification")))
    answer = locked.http.get(f"{VERSION}/verification")
    assert answer.status_code == 404
    assert "ampref verify walk==0.1.0" in answer.json()["remedy"]
    assert locked.http.get(VERSION).json()["verification_url"] is None


def test_the_report_is_not_collected_as_garbage(locked: Any) -> None:
    from ampref_service.catalog import blob_refs

    digest = "sha256:" + locked.http.get(f"{VERSION}/verification").headers["etag"].strip('"')
    with locked.app.state.services.catalog.session() as session:
        assert blob_refs.unreferenced(session, [digest]) == set()


def test_the_members_of_a_version_come_in_pages(locked: Any) -> None:
    full = locked.http.get(f"{VERSION}/members").json()
    assert [item["name"] for item in full["items"]] == ["squat", "walk"]
    assert full["next_cursor"] is None
    first = full["items"][0]
    assert (first["position"], first["start"], first["end"], first["tier"]) == (0, 0, 50, 0)
    assert locked.http.get(f"/v1/rollouts/{first['rollout_id']}").json()["clip_id"] == first["clip_id"]
    page = locked.http.get(f"{VERSION}/members", params={"limit": 1})
    assert 'rel="next"' in page.headers["link"]
    rest = locked.http.get(f"{VERSION}/members", params={"limit": 1, "cursor": page.json()["next_cursor"]}).json()
    assert page.json()["items"] + rest["items"] == full["items"]
    assert locked.http.get(f"{VERSION}/members", params={"cursor": "abc"}).status_code == 422
    assert locked.http.get("/v1/datasets/none/versions/0.1.0/members").status_code == 404


def test_a_clips_file_is_what_was_uploaded(api: Any, motion: Any) -> None:
    clip = api.post(1).json()["clip"]
    answer = api.http.get(f"/v1/clips/{clip['id']}/file")
    assert answer.status_code == 200
    assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == clip["source_digest"]
    assert answer.content == motion(1)
    assert answer.headers["etag"].strip('"') == clip["source_digest"].removeprefix("sha256:")
    assert clip["id"] in answer.headers["content-disposition"]
    part = api.http.get(f"/v1/clips/{clip['id']}/file", headers={"range": "bytes=1-4"})
    assert (part.status_code, part.content) == (206, answer.content[1:5])
    head = api.http.head(f"/v1/clips/{clip['id']}/file")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(clip["size"])
    assert api.http.get("/v1/clips/clip_none/file").status_code == 404
