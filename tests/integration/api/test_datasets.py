"""Datasets over HTTP: locking, names that lead to versions, yanking, and serving files."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest


def _slug(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"]).removeprefix("urn:ampref:error:")


def test_locking_a_version(api: Any) -> None:
    for number in range(3):
        api.scored(number, f"walk {number}", tier=0 if number < 2 else -1)
    answer = api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0", "select": {"tier": 0}})
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    assert (job["kind"], job["dataset"], job["version"]) == ("lock", "walk", "0.1.0")
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert api.rung[-1] == job["id"]
    # Invisible until it is whole, and the answer says where to look.
    pending = api.http.get("/v1/datasets/walk/versions/0.1.0")
    assert _slug(pending, 404) == "not-found"
    assert job["id"] in pending.json()["what"]
    assert api.http.get("/v1/datasets").json()["items"] == []
    api.publish(api.claim())
    body = api.http.get("/v1/datasets/walk/versions/0.1.0").json()
    assert (body["num_clips"], body["robot"], body["yanked"]) == (2, "wildrobot", False)
    assert body["aliases"] == ["latest"]
    assert body["readiness"]["checks"][0]["passed"] is True
    assert body["coverage"] == {"seconds": 2.0}
    assert [file["name"] for file in body["files"]] == [
        "dataset_manifest_v0.1.0.json",
        "features_v0.1.0.npz",
        "normalization_stats_v0.1.0.json",
    ]
    assert body["manifest_url"].endswith("dataset_manifest_v0.1.0.json")
    assert [item["name"] for item in api.http.get("/v1/datasets").json()["items"]] == ["walk"]
    assert [item["version"] for item in api.http.get("/v1/datasets/walk").json()["versions"]] == ["0.1.0"]


def test_a_version_is_locked_once(api: Any) -> None:
    api.scored(1)
    body = {"version": "0.1.0"}
    statuses = []

    def post() -> None:
        statuses.append(api.http.post("/v1/datasets/walk/versions", json=body).status_code)

    both = [threading.Thread(target=post) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(statuses) == [202, 409]
    api.publish(api.claim())
    assert _slug(api.http.post("/v1/datasets/walk/versions", json=body), 409) == "conflict"


def test_a_failed_lock_frees_the_version_and_says_why(api: Any) -> None:
    api.scored(1)
    api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0"})
    api.queue.fail(api.claim(), {"type": "conflict", "title": "x", "detail": "the moon was full"}, retry=False)
    answer = api.http.get("/v1/datasets/walk/versions/0.1.0")
    assert _slug(answer, 404) == "not-found"
    assert "the moon was full" in answer.json()["what"]
    assert api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0"}).status_code == 202


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ({"tier": 1}, "empty: walk is Tier 0"),
        ({"tags": ["nope"]}, "empty"),
        ({"clips": ["nope"]}, "nope"),
        ({"mode": "teacher_forced"}, "empty"),
        ({"recipe": "sha256:" + "0" * 64}, "empty"),
        ({"mode": "rollout", "recipe": "sha256:" + "0" * 64}, "both"),
    ],
)
def test_an_empty_selection_is_refused(api: Any, select: dict[str, Any], says: str) -> None:
    api.scored(1, tier=0)
    answer = api.http.post("/v1/datasets/walk/versions", json={"version": "0.1.0", "select": select})
    assert _slug(answer, 422) == "input-refused"
    assert says in answer.json()["what"]
    assert api.http.get("/v1/jobs?kind=lock").json()["items"] == []


def test_a_clip_that_is_named_and_not_scored_yet_stops_a_lock(api: Any) -> None:
    clip_id = api.scored(1, name="walk")
    api.scored(2, name="run", tier=1)

    def lock(*names: str, **select: Any) -> Any:
        body = {"version": "0.1.0", "select": {"clips": names, **select} if names else select}
        return api.http.post("/v1/datasets/walk/versions", json=body)

    assert lock("run").status_code == 422, "nothing is selected at all"
    waiting = api.post(3, name="waiting").json()
    refusal = lock("walk", waiting["clip"]["id"], "run")
    assert _slug(refusal, 409) == "conflict"
    clip = waiting["clip"]["id"]
    assert refusal.json()["what"].endswith(f"can be in it: '{clip}' is queued"), "'run' is of another tier"
    assert _slug(lock("waiting"), 409) == "conflict"
    assert api.http.delete(f"/v1/jobs/{waiting['job']['id']}").status_code == 200
    assert "'waiting' has no result" in lock("walk", "waiting").json()["what"]
    api.post(4, name="later")
    answer = lock()
    assert (answer.json()["pending_clips"], answer.json()["pending_names"]) == (1, ["later"])
    api.publish(api.queue.claim("a test", kinds=("lock",)))
    answer = api.http.post(
        "/v1/datasets/walk/versions", json={"version": "0.2.0", "select": {"clips": [clip_id, "run"], "tier": [0, 1]}}
    )
    assert answer.status_code == 202, answer.text


def test_a_selection_that_is_empty_by_one_profile_says_which_is_not_and_what_lists_it(api: Any) -> None:
    api.scored(1, name="run", tier=1)
    api.scored(1, name="run", tier=0, profile="amp-0.12-dynamic")

    def refusal(**select: Any) -> tuple[str, str]:
        answer = api.http.post("/v1/datasets/run/versions", json={"version": "0.1.0", "select": select})
        assert _slug(answer, 422) == "input-refused"
        return answer.json()["what"], answer.json()["remedy"]

    what, remedy = refusal()
    assert what == "the selection is empty: run is Tier 1 by amp-0.12"
    assert remedy.startswith(
        "Other gate profiles passed some: --profile amp-0.12-dynamic (select.gate_profile). Widen it (--tier, "
    )
    assert "ampref clips --tier 0 --profile amp-0.12 --robot wildrobot (GET /v1/clips?" in remedy
    what, remedy = refusal(gate_profile="amp-0.12-dynamic", tier=1, tags=["a b"], mode="rollout")
    assert what == "the selection is empty"
    command = "ampref clips --tier 1 --profile amp-0.12-dynamic --robot wildrobot --mode rollout --tag 'a b' (GET "
    query = "/v1/clips?tier=1&gate_profile=amp-0.12-dynamic&robot=wildrobot&mode=rollout&tag=a+b"
    assert f"{command}{query}) lists what would go in" in remedy
    assert api.http.get(query).json()["items"] == []
    assert "lists what" not in refusal(recipe="sha256:" + "0" * 64)[1]


def test_a_clip_that_another_profile_judged_too_does_not_stop_a_lock(api: Any) -> None:
    """Before, members of two profiles were refused, and a profile found nothing where another's verdict was the best."""
    api.scored(1, name="walk")
    api.scored(2, name="run", tier=1)
    for number, name in enumerate(("walk", "run"), 1):
        api.scored(number, name=name, profile="amp-0.12-dynamic")
    for version, select, count in (("0.1.0", {}, 1), ("0.2.0", {"gate_profile": "amp-0.12-dynamic"}, 0)):
        locking = api.http.post("/v1/datasets/walk/versions", json={"version": version, "select": select}).json()
        assert (locking["other_profile_clips"], locking["pending_clips"]) == (count, 0)
        api.publish(api.claim())
    names = [
        [member["name"] for member in api.http.get(f"/v1/datasets/walk/versions/{version}/members").json()["items"]]
        for version in ("0.1.0", "0.2.0")
    ]
    assert names == [["walk"], ["run", "walk"]]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("Walk", {"version": "0.1.0"}),
        ("walk..flat", {"version": "0.1.0"}),
        ("walk", {"version": "v0.1.0"}),
        ("walk", {"version": "1"}),
        ("walk", {"version": "0.1.0\n"}),
        ("walk", {"version": "latest"}),
        ("walk", {"version": "0.1.0", "select": {"tier": 7}}),
        ("walk", {"version": "0.1.0", "select": {"tier": "0"}}),
        ("walk", {"version": "0.1.0", "select": {"teir": 0}}),
        ("walk", {"version": "0.1.0", "select": {"tags": ["a\x00b"]}}),
        ("walk", {"version": "0.1.0", "select": {"recipe": "abc"}}),
        ("walk", {}),
    ],
)
def test_a_lock_with_a_mistake_is_refused(idle: Any, name: str, body: dict[str, Any]) -> None:
    assert _slug(idle.http.post(f"/v1/datasets/{name}/versions", json=body), 422) == "parameter-refused"


def test_a_robot_that_is_not_installed(idle: Any) -> None:
    body = {"version": "0.1.0", "select": {"robot": "atlas"}}
    assert _slug(idle.http.post("/v1/datasets/walk/versions", json=body), 404) == "not-found"


def test_latest_and_aliases(api: Any) -> None:
    api.scored(1)
    for version in ("0.1.0", "0.10.0", "0.9.0", "1.0.0-rc.1"):
        api.lock(version=version)
    get = api.http.get
    assert get("/v1/datasets/walk/versions/latest").json()["version"] == "0.10.0"
    assert get("/v1/datasets/walk/versions/latest").json()["asked_for"] == "latest"
    alias = api.http.put("/v1/datasets/walk/aliases/production", json={"version": "0.1.0"})
    assert (alias.status_code, alias.json()["version"]) == (200, "0.1.0")
    assert get("/v1/datasets/walk/versions/production").json()["version"] == "0.1.0"
    api.http.put("/v1/datasets/walk/aliases/production", json={"version": "0.9.0"})
    assert get("/v1/datasets/walk").json()["aliases"] == {"production": "0.9.0"}
    assert _slug(api.http.put("/v1/datasets/walk/aliases/latest", json={"version": "0.1.0"}), 409) == "conflict"
    assert _slug(api.http.put("/v1/datasets/walk/aliases/production", json={"version": "7.0.0"}), 404) == "not-found"
    assert api.http.delete("/v1/datasets/walk/aliases/production").status_code == 204
    assert _slug(api.http.delete("/v1/datasets/walk/aliases/production"), 404) == "not-found"
    assert _slug(get("/v1/datasets/walk/versions/production"), 404) == "not-found"


def test_a_yanked_version_stays_readable_with_a_warning(api: Any) -> None:
    api.scored(1)
    api.lock(version="0.1.0")
    api.lock(version="0.2.0")
    reason = 'the left foot\nis "swapped" — see №5'
    yanked = api.http.post("/v1/datasets/walk/versions/0.2.0/yank", json={"reason": "the left foot is swapped"})
    assert (yanked.status_code, yanked.json()["yanked"]) == (200, True)
    assert api.http.get("/v1/datasets/walk/versions/latest").json()["version"] == "0.1.0"
    exact = api.http.get("/v1/datasets/walk/versions/0.2.0")
    assert exact.json()["yank_reason"] == "the left foot is swapped"
    assert "the left foot is swapped" in exact.headers["warning"]
    file = api.http.get(exact.json()["files"][0]["url"])
    assert file.status_code == 200
    assert file.headers["warning"].startswith("299 ")
    assert _slug(api.http.post("/v1/datasets/walk/versions/0.2.0/yank", json={"reason": reason}), 422) == "parameter-refused"
    odd = reason.replace("\n", " ")
    assert api.http.post("/v1/datasets/walk/versions/0.2.0/yank", json={"reason": odd}).status_code == 200
    assert api.http.get("/v1/datasets/walk/versions/0.2.0").headers["warning"].isascii()
    back = api.http.post("/v1/datasets/walk/versions/0.2.0/unyank")
    assert (back.json()["yanked"], "warning" in back.headers) == (False, False)
    assert _slug(api.http.post("/v1/datasets/walk/versions/9.9.9/yank", json={"reason": "x"}), 404) == "not-found"


def test_files_are_served_with_their_digest(api: Any) -> None:
    api.scored(1)
    api.lock()
    version = api.http.get("/v1/datasets/walk/versions/0.1.0").json()
    for file in version["files"]:
        answer = api.http.get(file["url"])
        assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == '"' + file["sha256"].removeprefix("sha256:") + '"'
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"].startswith(file["media_type"])
        head = api.http.head(file["url"])
        assert (head.content, head.headers["content-length"]) == (b"", str(file["size"]))
        cached = api.http.get(file["url"], headers={"if-none-match": answer.headers["etag"]})
        assert (cached.status_code, cached.content) == (304, b"")
        rest = api.http.get(file["url"], headers={"range": "bytes=7-", "if-range": answer.headers["etag"]})
        assert (rest.status_code, rest.content) == (206, answer.content[7:])
        outside = api.http.get(file["url"], headers={"range": f"bytes={file['size']}-"})
        assert _slug(outside, 416) == "range-not-satisfiable"
    # An alias may mean something else tomorrow.
    moving = api.http.get(f"/v1/datasets/walk/versions/latest/files/{version['files'][0]['name']}")
    assert "immutable" not in moving.headers["cache-control"]
    assert _slug(api.http.get("/v1/datasets/walk/versions/0.1.0/files/nope"), 404) == "not-found"
    assert _slug(api.http.get("/v1/datasets/walk/versions/0.1.0/files/..%2F..%2Fetc%2Fpasswd"), 404) == "not-found"


def test_what_changed_between_two_versions(api: Any) -> None:
    stays = api.scored(1, "stays")
    changes = api.scored(2, "changes", tier=1)
    goes = api.scored(3, "goes")
    api.lock(version="0.1.0", tier=[0, 1])
    api.http.post(f"/v1/clips/{changes}/rollouts", json={"seed": 5})
    api.finish(tier=0)
    comes = api.scored(4, "comes")
    api.lock(version="0.2.0", clips=["stays", "changes", comes])
    body = api.http.get("/v1/datasets/walk/diff?before=0.1.0&after=latest").json()
    assert (body["before"], body["after"], body["same_features"]) == ("0.1.0", "0.2.0", False)
    assert [share["clip_id"] for share in body["added"]] == [comes]
    assert [share["clip_id"] for share in body["removed"]] == [goes]
    assert [(share["before"]["tiers"], share["after"]["tiers"]) for share in body["changed"]] == [([1], [0])]
    assert body["unchanged"] == 1
    equal = api.http.get("/v1/datasets/walk/diff?before=0.2.0&after=0.2.0").json()
    assert (equal["same_features"], equal["added"], equal["unchanged"]) == (True, [], 3)
    assert stays
    assert _slug(api.http.get("/v1/datasets/walk/diff?before=0.1.0"), 422) == "parameter-refused"


@pytest.mark.parametrize("path", ["/v1/datasets/nope", "/v1/datasets/nope/versions/latest", "/v1/datasets/nope/versions/0.1.0"])
def test_there_is_no_such_dataset(idle: Any, path: str) -> None:
    assert _slug(idle.http.get(path), 404) == "not-found"


@pytest.mark.parametrize("path", ["/v1/datasets/a%00b", "/v1/datasets/UPPER", "/v1/datasets/walk/versions/%F0%9F%92%A9"])
def test_a_name_that_no_dataset_can_have(idle: Any, path: str) -> None:
    assert _slug(idle.http.get(path), 422) == "parameter-refused"


def test_a_version_whose_blob_is_missing_says_so(api: Any) -> None:
    api.scored(1)
    version = api.lock()
    file = next(file for file in version.files if file.name.startswith("features"))
    api.blobs.delete(file.digest)
    answer = api.http.get(f"/v1/datasets/walk/versions/0.1.0/files/{file.name}")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["type"] == "urn:ampref:error:integrity"
    assert (answer.json()["file"], answer.headers.get("etag")) == (file.name, None)
    assert "no-store" in answer.headers["cache-control"]
