"""Clips over HTTP: what is accepted, what is refused and leaves nothing behind, and the curriculum query."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from amp_core import Robot, read_motion
from amp_core.motion import check_clip
from amp_core.motions import bundled_motions
from amp_core.recipe import Recipe
from ampref_service import answers
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.settings import Settings


def _problem(answer: Any, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:ampref:error:{slug}", body
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    return dict(body)


def _nothing_stored(api: Any) -> None:
    assert api.http.get("/v1/clips").json()["items"] == []
    assert api.http.get("/v1/jobs").json()["items"] == []
    assert list(api.blobs.iter_digests()) == []
    assert api.rung == []


# Uploading


def test_a_clip_is_accepted_with_its_job(api: Any, motion: Any) -> None:
    data = motion(1)
    answer = api.post(data=data, name="walk 01", tags="gait:walk, slow")
    assert answer.status_code == 202, answer.text
    body = answer.json()
    clip, job = body["clip"], body["job"]
    assert clip["name"] == "walk 01"
    assert clip["source_digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (clip["robot"], clip["source_format"], clip["frames_in"], clip["fps_in"]) == ("wildrobot", "json", 51, 50.0)
    assert clip["tags"] == ["gait:walk", "slow"]
    assert (job["state"], job["kind"], job["clip_id"]) == ("queued", "rollout", clip["id"])
    assert job["recipe_digest"] == Recipe.for_mode("auto").digest
    assert body["rollout"] is None
    assert answer.headers["location"] == f"/v1/clips/{clip['id']}"
    assert api.rung == [job["id"]]
    assert api.blobs.read_bytes(clip["source_digest"]) == data


def test_known_bytes_are_not_added_twice(api: Any) -> None:
    first = api.post(1)
    repeated = api.post(1, name="another name")
    assert (first.status_code, repeated.status_code) == (202, 200)
    assert repeated.json()["clip"]["id"] == first.json()["clip"]["id"]
    assert repeated.json()["job"]["id"] == first.json()["job"]["id"]
    assert len(api.rung) == 1
    rollout = api.finish()
    scored = api.post(1)
    assert scored.status_code == 200
    assert scored.json()["rollout"]["id"] == rollout


def test_a_recipe_may_be_the_part_that_differs(api: Any) -> None:
    heavier = {"physics": {"mass": 1.01}}
    for number, (fields, document) in enumerate(
        [({}, {"mode": "auto"}), ({"mode": "teacher_forced", "seed": "3"}, {"mode": "teacher_forced", "seed": 3})]
    ):
        answer = api.post(number, recipe=json.dumps(heavier), **fields)
        assert answer.status_code == 202, answer.text
        assert answer.json()["job"]["recipe_digest"] == Recipe.from_dict(document | heavier).digest
    repeated = api.http.post(f"/v1/clips/{answer.json()['clip']['id']}/rollouts", json={"recipe": heavier})
    assert repeated.json()["job"]["recipe_digest"] == Recipe.from_dict({"mode": "auto"} | heavier).digest


def test_a_motion_in_centimetres_is_refused_at_once(api: Any, motion: Any) -> None:
    body = _problem(api.post(data=motion(0, root_pos=[[0.0, 0.0, 45.0]] * 51)), 422, "motion-refused")
    assert (body["key"], body["file"]) == ("root_pos", "walk.json")
    assert "right in centimetres" in body["detail"]


def test_what_the_checks_refuse_is_refused_with_their_words(api: Any) -> None:
    walk = read_motion(next(path for path in bundled_motions() if path.stem == "walk_long_stride"))
    joints = np.array(walk.dof_pos)
    joints[:, 2] *= -1  # The left knee.
    clip = replace(walk, dof_pos=joints)
    finding = check_clip(clip, Robot.load("wildrobot")).refusal
    assert finding is not None
    arrays = {key: getattr(clip, key).tolist() for key in ("root_pos", "root_rot", "dof_pos")}
    body = _problem(api.post(data=json.dumps({"fps": 50.0, **arrays}).encode()), 422, "motion-refused")
    assert finding.code == "joint_sign"
    assert (body["what"], body["remedy"], body["key"]) == (finding.message, finding.remedy, "dof_pos")
    assert "left_knee_pitch" in body["what"]


def test_a_robot_that_only_the_catalog_knows_can_be_asked_for(api: Any) -> None:
    """Its clips are there after the operator took it out."""
    api.post(1)
    with api.catalog.begin() as session:
        session.execute(text("update clips set robot = 'retired'"))
    assert api.http.get("/v1/clips?robot=retired").status_code == 200
    assert "retired, wildrobot" in _problem(api.http.get("/v1/clips?robot=nope"), 422, "parameter-refused")["expected"]


@pytest.mark.parametrize(
    ("method", "url", "body", "key", "says"),
    [
        ("POST", "/v1/datasets/walk/versions", {"version": "v1"}, "body.version", "without a leading v, for example 0.11.0"),
        ("POST", "/v1/datasets/Walk/versions", {"version": "0.1.0"}, "path.name", "lower-case letters"),
        ("PUT", "/v1/datasets/walk/aliases/Best", {"version": "0.1.0"}, "path.alias", "for example production"),
        (
            "POST",
            "/v1/datasets/walk/versions",
            {"version": "0.1.0", "select": {"tagz": ["a"]}},
            "body.select.tagz",
            "there is no such field: did you mean tags?",
        ),
        ("POST", "/v1/datasets/walk/versions", {"version": "0.1.0", "select": {"tier": 7}}, "body.select.tier", "one of 0, 1"),
        ("POST", "/v1/datasets/walk/versions", {"select": {}}, "body.version", "it is missing; expected a version MAJOR"),
        ("POST", "/v1/datasets/walk/versions", [], "body", "an object with only priority, select, version"),
        ("GET", "/v1/jobs?state=finished", None, "query.state", "one of queued, running"),
    ],
)
def test_what_a_parameter_should_be_is_said_in_words(idle: Any, method: str, url: str, body: Any, key: str, says: str) -> None:
    problem = _problem(idle.http.request(method, url, json=body), 422, "parameter-refused")
    assert problem["key"] == key
    assert says in problem["detail"]
    assert "^" not in problem["detail"]
    assert "Input should" not in str(problem)
    assert len(problem["errors"]) == 1


@pytest.mark.parametrize(
    ("fields", "key", "says"),
    [({"nme": "x"}, "body.nme", "did you mean name?"), ({"name": "a/b"}, "body.name", "a name without slashes")],
)
def test_what_a_form_field_should_be_is_said_in_words(idle: Any, fields: Any, key: str, says: str) -> None:
    problem = _problem(idle.post(**fields), 422, "parameter-refused")
    assert problem["key"] == key
    assert says in problem["detail"]


def test_another_recipe_is_another_job(api: Any) -> None:
    api.post(1)
    second = api.post(1, mode="teacher_forced")
    assert second.status_code == 202
    recipe = Recipe.from_dict({"mode": "rollout", "physics": {"friction": 0.5}})
    third = api.post(1, recipe=json.dumps(recipe.to_dict()))
    assert third.status_code == 202
    assert third.json()["job"]["recipe_digest"] == recipe.digest
    assert len(api.http.get("/v1/jobs").json()["items"]) == 3
    assert len(api.http.get("/v1/clips").json()["items"]) == 1


def test_a_broken_doorbell_does_not_fail_the_upload(settings: Settings, motion: Any) -> None:
    def broken(_: str) -> None:
        raise ConnectionError("the broker is away")

    schema.upgrade(settings.database_url)
    with TestClient(create_app(settings, notify=broken)) as http:
        answer = http.post("/v1/clips", files={"file": ("a.json", motion(1))})
        assert answer.status_code == 202
        assert http.get(f"/v1/jobs/{answer.json()['job']['id']}").json()["state"] == "queued"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("../../etc/passwd.json", "passwd"),
        ("C:\\motions\\walk.JSON", "walk"),
        ("步行.json", "步行"),
        (".json", "json"),
        ("a.b.json", "a.b"),
        ("x" * 300 + ".json", "x" * 120),
        ("new\u202eline.json", "newline"),
        ("walk .json", "walk"),
        ("-walk.json", "-walk"),
        ("راه\u200cرفتن.json", "راه\u200cرفتن"),
        ("walk👩\u200d🦰.json", "walk👩\u200d🦰"),
        ("wa\u200dlk.json", "walk"),
    ],
)
def test_a_file_name_is_never_trusted(api: Any, motion: Any, filename: str, name: str) -> None:
    answer = api.http.post("/v1/clips", files={"file": (filename, motion(1))}, data={"format": "json"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["clip"]["name"] == name
    listed = api.http.get("/v1/clips", params={"name": name}).json()["items"]
    assert answer.json()["clip"]["id"] in [clip["id"] for clip in listed]


@pytest.mark.parametrize(
    ("data", "filename", "says"),
    [
        (b"", "walk.json", "empty"),
        (b"\x00" * 1000, "walk.pkl", "empty"),
        (b"PK\x03\x04 garbage", "walk.npz", ""),
        (b"\x80\x04garbage", "walk.pkl", ""),
        (b"cos\nsystem\n(S'id'\ntR.", "walk.pkl", ""),
        (b'{"fps": NaN}', "walk.json", ""),
        (b"[" * 100_000, "walk.json", ""),
    ],
)
def test_a_file_that_is_no_motion_is_refused(idle: Any, data: bytes, filename: str, says: str) -> None:
    answer = idle.http.post("/v1/clips", files={"file": (filename, data)})
    body = _problem(answer, 422, "motion-refused")
    assert body["file"] == filename
    assert says in body["what"]
    _nothing_stored(idle)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": 1e6}, "fps"),
        ({"dof_pos": [[0.0] * 7] * 51}, "dof_pos"),
        ({"root_rot": [[1.0, 2.0, 3.0, 4.0]] * 51}, "root_rot"),
        ({"root_pos": [[0.0, 0.0, 0.45]] * 50 + [[90.0, 0.0, 0.45]]}, "root_pos"),
        ({"dof_pos": [[0.0] * 8] * 50}, None),
    ],
)
def test_a_motion_that_cannot_be_meant_is_refused(idle: Any, motion: Any, changes: dict[str, Any], key: str | None) -> None:
    body = _problem(idle.post(data=motion(1, **changes)), 422, "motion-refused")
    assert body["expected"]
    assert body["remedy"]
    if key:
        assert body["key"] == key
    _nothing_stored(idle)


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"fps": "nan"}, "body.fps"),
        ({"fps": "-1"}, "body.fps"),
        ({"fps": "fast"}, "body.fps"),
        ({"seed": "-1"}, "body.seed"),
        ({"seed": "9" * 400}, "body.seed"),
        ({"format": "exe"}, "body.format"),
        ({"quat_order": "zyxw"}, "body.quat_order"),
        ({"name": "a/b"}, "body.name"),
        ({"name": "a%5Cb\\"}, "body.name"),
        ({"name": "x" * 500}, "body.name"),
        ({"mode": "Rollout!"}, "body.mode"),
        ({"nme": "walk"}, "body.nme"),
    ],
)
def test_a_field_that_cannot_be_used_is_refused(idle: Any, fields: dict[str, str], key: str) -> None:
    body = _problem(idle.post(1, **fields), 422, "parameter-refused")
    assert body["key"] == key
    assert [fault["key"] for fault in body["errors"]] == [key]
    _nothing_stored(idle)


@pytest.mark.parametrize(
    ("fields", "status", "slug"),
    [
        ({"robot": "atlas"}, 404, "not-found"),
        ({"mode": "fly"}, 422, "recipe-refused"),
        ({"mode": "rollout", "recipe": '{"planner": {"samples": 64}}'}, 422, "recipe-refused"),
        ({"mode": "tracked", "recipe": '{"harness": {"force_cap": 4, "height_kp": 60}}'}, 422, "recipe-refused"),
        ({"recipe": "{"}, 400, "bad-request"),
        ({"recipe": '{"mode": "rollout", "seed": NaN}'}, 400, "bad-request"),
        ({"recipe": '{"mode": "rollout", "speed": 1}'}, 422, "recipe-refused"),
        ({"recipe": '{"mode": "rollout", "seed": 2}', "seed": "1"}, 422, "recipe-refused"),
        ({"recipe": '{"mode": "rollout"}', "mode": "teacher_forced"}, 422, "recipe-refused"),
        ({"recipe": "[]"}, 422, "recipe-refused"),
        ({"recipe": '{"gate_profile": "lax"}'}, 422, "recipe-refused"),
        ({"recipe": '{"generator_version": "0.1"}'}, 422, "recipe-refused"),
        ({"tags": "ok," + "x" * 65}, 422, "input-refused"),
        ({"tags": ",".join(f"t{i}" for i in range(60))}, 422, "input-refused"),
        ({"format": "pkl"}, 422, "motion-refused"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(idle: Any, fields: dict[str, str], status: int, slug: str) -> None:
    _problem(idle.post(1, **fields), status, slug)
    _nothing_stored(idle)


def test_there_must_be_a_file(idle: Any) -> None:
    as_text = idle.http.post("/v1/clips", files={"name": (None, "walk"), "file": (None, "text")})
    problem = _problem(as_text, 422, "parameter-refused")
    assert (problem["key"], problem["expected"]) == ("body.file", "a motion file")
    assert "a text field, not a file" in problem["detail"]
    assert "UploadFile" not in json.dumps(problem)
    assert "curl -F file=@" in problem["remedy"]
    none = idle.http.post("/v1/clips", files={"name": (None, "walk")})
    assert _problem(none, 422, "parameter-refused")["key"] == "body.file"
    empty = idle.http.post("/v1/clips")
    assert _problem(empty, 422, "parameter-refused")["key"] == "body.file"


def test_only_one_file(idle: Any, motion: Any) -> None:
    files = [("file", ("a.json", motion(1))), ("file", ("b.json", motion(2)))]
    problem = _problem(idle.http.post("/v1/clips", files=files), 400, "bad-request")
    assert (problem["key"], problem["expected"]) == ("body", "one file a request")
    _nothing_stored(idle)


@pytest.mark.parametrize(
    ("name", "filename", "status", "expected"),
    [
        ("x" * 200_000, "walk.json", 400, "at most 120 characters"),
        ("x" * 50_000, "walk.json", 422, "120 characters"),
        ("walk", "x" * 100_000 + ".json", 400, "headers of at most 4 kB"),
    ],
)
def test_a_huge_name_is_refused_with_what_to_do(
    idle: Any, motion: Any, name: str, filename: str, status: int, expected: str
) -> None:
    answer = idle.http.post("/v1/clips", files={"file": (filename, motion(1)), "name": (None, name)})
    problem = _problem(answer, status, "bad-request" if status == 400 else "parameter-refused")
    assert expected in problem["expected"] + problem["detail"]
    assert problem["remedy"]
    assert len(answer.content) < 2000
    _nothing_stored(idle)


def test_a_field_that_stands_twice_is_refused(idle: Any, motion: Any) -> None:
    files = [("file", ("a.json", motion(1))), ("mode", (None, "rollout")), ("mode", (None, "tracked"))]
    assert _problem(idle.http.post("/v1/clips", files=files), 422, "parameter-refused")["key"] == "body.mode"
    _nothing_stored(idle)
    tags = [*files[:1], ("tags", (None, "slow")), ("tags", (None, "old")), ("mode", (None, "fly"))]
    _problem(idle.http.post("/v1/clips", files=tags), 422, "recipe-refused")  # tags may; the mode is what is wrong.


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_the_wrong_content_type_is_415(idle: Any, kind: str) -> None:
    answer = idle.http.post("/v1/clips", content=b"{}", headers={"content-type": kind})
    problem = _problem(answer, 415, "unsupported-media-type")
    assert problem["expected"] == "multipart/form-data"
    assert "curl -F file=@walk.npz" in problem["remedy"]


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n", b"garbage", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"]
)
def test_a_broken_multipart_body_is_400_or_says_what_is_missing(idle: Any, body: bytes) -> None:
    answer = idle.http.post("/v1/clips", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_multipart_body_without_boundary_is_400(idle: Any) -> None:
    answer = idle.http.post("/v1/clips", content=b"x", headers={"content-type": "multipart/form-data"})
    assert "boundary=" in _problem(answer, 400, "bad-request")["expected"]


def test_a_file_over_the_limit_is_413(idle: Any) -> None:
    limit = idle.settings.max_upload_bytes
    body = _problem(idle.post(data=b" " * (limit + 1)), 413, "too-large")
    assert f"{limit:,}" in body["expected"]
    _problem(idle.post(data=b" " * (4 * limit)), 413, "too-large")
    _nothing_stored(idle)


def test_a_body_over_the_limit_is_413_without_a_declared_length(idle: Any) -> None:
    count = 0

    def chunks() -> Any:
        nonlocal count
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n\r\n'
        for _ in range(1000):
            count += 1
            yield b" " * 65536

    answer = idle.http.post("/v1/clips", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"})
    _problem(answer, 413, "too-large")
    _nothing_stored(idle)


# The curriculum


def test_the_curriculum_query(api: Any) -> None:
    for number, (tier, load) in enumerate([(0, 0.9), (0, 0.97), (1, 0.7), (-1, 0.2)]):
        tags = "slow" if number % 2 else "fast"
        api.scored(number, f"walk {number}", tier, tags, mean_sum_fn_over_mg=load, slip_rate=number / 10)
    api.post(9, name="not yet scored")

    def names(query: str) -> list[str]:
        answer = api.http.get(f"/v1/clips?{query}")
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    assert names("") == ["not yet scored", "walk 3", "walk 2", "walk 1", "walk 0"]
    assert names("tier=0&sort=-mean_sum_fn_over_mg") == ["walk 1", "walk 0"]
    assert names("tier=-1") == ["walk 3"]
    assert names("tag=slow&sort=slip_rate") == ["walk 1", "walk 3"]
    assert names("tag=slow&tag=fast") == []
    assert names("max_slip_rate=0.15&min_mean_sum_fn_over_mg=0.95") == ["walk 1"]
    assert names("min_duration_sec=5") == []
    assert names("min_fell_at_frame=1e19") == names("max_fell_at_frame=-1e300") == []
    assert len(names("robot=wildrobot")) == 5
    assert names("mode=teacher_forced") == []
    assert names("name=WALK%202") == ["walk 2"]
    item = api.http.get("/v1/clips?tier=1").json()["items"][0]
    assert item["rollout"]["tier"] == 1
    assert item["rollout"]["quality_metrics"]["mean_sum_fn_over_mg"] == 0.7
    assert item["rollout"]["quality_metrics"]["fell_at_frame"] is None


def test_pages_follow_one_another(api: Any) -> None:
    for number in range(5):
        api.scored(number, f"walk {number}", slip_rate=number / 10)
    collected, url = [], "/v1/clips?sort=slip_rate&limit=2"
    while url:
        answer = api.http.get(url)
        collected += [item["name"] for item in answer.json()["items"]]
        link = answer.headers.get("link", "")
        assert bool(link) == (answer.json()["next_cursor"] is not None)
        url = link.removeprefix("<").removesuffix('>; rel="next"')
    assert collected == [f"walk {number}" for number in range(5)]


@pytest.mark.parametrize(
    ("query", "key", "says"),
    [
        ("tier=2", "query.tier", "too large; expected a whole number from -1 to 1. /docs says of it: 0, 1, or -1 for Rejected"),
        ("tier=zero", "query.tier", ""),
        ("min_slip_rte=1", "query.min_slip_rte", "did you mean min_slip_rate or"),
        ("foo=1", "query.foo", ""),
        ("min_slip_rate=nan", "query.min_slip_rate", ""),
        ("min_slip_rate=inf", "query.min_slip_rate", ""),
        ("min_slip_rate=0.5&max_slip_rate=0.1", "query.min_slip_rate", ""),
        ("sort=colour", "query.sort", "one of created_at, duration_sec"),
        ("sort=slip", "query.sort", "did you mean slip_rate"),
        ("sort=foo", "query.sort", "'foo' is none of the values that there are; expected one of created_at"),
        ("min_slip=1", "query.min_slip", "query parameter: did you mean min_slip_rate"),
        ("mode=fly", "query.mode", "one of rollout, teacher_forced"),
        ("mode=rolout", "query.mode", "did you mean rollout?"),
        ("robot=nope", "query.robot", "one of g1, wildrobot"),
        ("robot=wildrobt", "query.robot", "did you mean wildrobot?"),
        ("limit=0", "query.limit", ""),
        ("limit=501", "query.limit", ""),
        ("limit=" + "9" * 5000, "query.limit", ""),
        ("limit=1&limit=2", "query.limit", ""),
        ("robot=a%00b", "query.robot", ""),
        ("tag=%00", "query.tag.0", ""),
        ("cursor=%F0%9F%92%A9", "query.cursor", ""),
    ],
)
def test_a_query_with_a_mistake_is_refused(idle: Any, query: str, key: str, says: str) -> None:
    body = _problem(idle.http.get(f"/v1/clips?{query}"), 422, "parameter-refused")
    assert body["key"] == key
    assert says in body["detail"]
    assert "…" not in body["detail"]


@pytest.mark.parametrize("cursor", ["x", "AAAA", "e30", "bnVsbA"])
def test_a_cursor_of_another_list_is_refused(idle: Any, cursor: str) -> None:
    _problem(idle.http.get(f"/v1/clips?cursor={cursor}"), 422, "input-refused")


# One clip


def test_a_clip_with_its_rollouts(api: Any) -> None:
    clip = api.scored(1)
    api.post(1, mode="teacher_forced")
    body = api.http.get(f"/v1/clips/{clip}").json()
    assert [rollout["mode"] for rollout in body["rollouts"]] == ["rollout"]
    assert [job["state"] for job in body["jobs"]] == ["queued", "succeeded"]


def test_scoring_again_with_another_recipe(api: Any) -> None:
    clip = api.scored(1)
    repeated = api.http.post(f"/v1/clips/{clip}/rollouts", json={"mode": "teacher_forced"})
    assert repeated.status_code == 202
    assert api.rung[-1] == repeated.json()["job"]["id"]
    assert api.http.post(f"/v1/clips/{clip}/rollouts", json={"mode": "teacher_forced"}).status_code == 200
    repeated_default = api.http.post(f"/v1/clips/{clip}/rollouts", json={})
    assert repeated_default.status_code == 200
    assert repeated_default.json()["rollout"]["tier"] == 0
    custom = api.http.post(f"/v1/clips/{clip}/rollouts", json={"recipe": {"mode": "rollout", "seed": 7}})
    assert custom.status_code == 202


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b'{"mode": "rollout", "mode": "teacher_forced"}', 400, "bad-request"),
        (b'{"seed": NaN}', 400, "bad-request"),
        (b'{"seed": 1e400}', 400, "bad-request"),
        (b'{"seed": 1.5}', 422, "parameter-refused"),
        (b'{"seed": true}', 422, "parameter-refused"),
        (b'{"seed": "1"}', 422, "parameter-refused"),
        (b'{"sead": 1}', 422, "parameter-refused"),
        (b'{"recipe": ' + b"[" * 1000 + b"}", 400, "bad-request"),
        (b'{"recipe": {"mode": "\\ud800"}}', 400, "bad-request"),
        (b'{"recipe": {"mode": "fly"}}', 422, "recipe-refused"),
        (b'{"recipe": {"gate_profile": "lax"}}', 422, "recipe-refused"),
        (b'{"recipe": {"generator_version": "0.1"}}', 422, "recipe-refused"),
        (b"", 422, "parameter-refused"),
        (b"[]", 422, "parameter-refused"),
    ],
)
def test_a_body_that_is_not_meant_is_refused(api: Any, content: bytes, status: int, slug: str) -> None:
    clip = api.scored(1)
    answer = api.http.post(f"/v1/clips/{clip}/rollouts", content=content, headers={"content-type": "application/json"})
    _problem(answer, status, slug)
    assert len(api.http.get("/v1/jobs").json()["items"]) == 1


def test_deleting(api: Any) -> None:
    clip = api.scored(1)
    assert api.http.delete(f"/v1/clips/{clip}").status_code == 204
    _problem(api.http.get(f"/v1/clips/{clip}"), 404, "not-found")
    _problem(api.http.delete(f"/v1/clips/{clip}"), 404, "not-found")


def test_deleting_what_a_locked_version_holds_is_refused(api: Any) -> None:
    clip = api.scored(1)
    api.lock()
    body = _problem(api.http.delete(f"/v1/clips/{clip}"), 409, "conflict")
    assert "walk==0.1.0" in body["what"]
    assert api.http.get(f"/v1/clips/{clip}").status_code == 200


@pytest.mark.parametrize("name", ["nope", "clip_00000000000000000000000000", "x" * 64])
def test_there_is_no_such_clip(idle: Any, name: str) -> None:
    _problem(idle.http.get(f"/v1/clips/{name}"), 404, "not-found")
    _problem(idle.http.post(f"/v1/clips/{name}/rollouts", json={}), 404, "not-found")


@pytest.mark.parametrize("name", ["a%00b", "%FF%FE", "x" * 5000, "%F0%9F%92%A9", "%ED%A0%80"])
def test_an_id_that_no_clip_can_have(idle: Any, name: str) -> None:
    assert idle.http.get(f"/v1/clips/{name}").status_code == 422


# One rollout


def test_a_rollout_that_exploded_says_where_and_why(api: Any) -> None:
    failure = {"frame": 12, "reason": "MuJoCo warned at frame 12: BADQACC", "warnings": {"BADQACC": 1}}
    api.post(1)
    assert api.http.get(f"/v1/rollouts/{api.finish(tier=-1, failure=failure)}").json()["failure"] == failure
    api.post(2)
    assert api.http.get(f"/v1/rollouts/{api.finish()}").json()["failure"] is None


def test_a_rollout_that_is_not_tier_0_says_why(api: Any) -> None:
    finding = {"code": "fell", "severity": "failed", "message": "falls forward at 0.82 s", "frames": [13, 42]}
    diagnosis = {"findings": [finding], "suggestions": [{"code": "use_tracked", "because": ["fell"]}]}
    api.post(1)
    assert api.http.get(f"/v1/rollouts/{api.finish(tier=-1, diagnosis=diagnosis)}").json()["diagnosis"] == diagnosis
    api.post(2)
    assert api.http.get(f"/v1/rollouts/{api.finish()}").json()["diagnosis"] is None


def test_contact_agreement_is_a_filter_like_any_metric(api: Any) -> None:
    for number, agreement in ((1, 0.6), (2, 0.9), (3, None)):
        api.post(number)
        api.finish(contact_agreement=agreement)
    items = api.http.get("/v1/clips", params={"min_contact_agreement": 0.7}).json()["items"]
    assert [item["rollout"]["quality_metrics"]["contact_agreement"] for item in items] == [0.9]


def test_a_rollout_and_its_arrays(api: Any) -> None:
    api.post(1)
    rollout = api.finish()
    body = api.http.get(f"/v1/rollouts/{rollout}").json()
    assert body["gates"][0]["name"] == "slip_rate"
    assert body["segments"][0]["end"] == 50
    assert body["recipe"] == Recipe.for_mode("rollout").to_dict()
    assert body["ingest"]["fps_in"] == 50.0
    arrays = api.http.get(body["arrays_url"])
    assert "sha256:" + hashlib.sha256(arrays.content).hexdigest() == body["arrays_digest"]
    assert len(arrays.content) == body["arrays_size"]
    assert arrays.headers["etag"] == '"' + body["arrays_digest"].removeprefix("sha256:") + '"'
    part = api.http.get(body["arrays_url"], headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, arrays.content[10:20])
    assert api.http.head(body["arrays_url"]).headers["content-length"] == str(body["arrays_size"])
    assert api.http.get(body["arrays_url"], headers={"if-none-match": arrays.headers["etag"]}).status_code == 304
    _problem(api.http.get("/v1/rollouts/nope"), 404, "not-found")
    _problem(api.http.get("/v1/rollouts/nope/arrays"), 404, "not-found")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_arrays_whose_blob_is_damaged_are_a_problem_and_no_body(api: Any, damage: str) -> None:
    api.post(1)
    rollout = api.finish()
    body = api.http.get(f"/v1/rollouts/{rollout}").json()
    path = api.blobs.local_path(body["arrays_digest"])
    path.chmod(0o644)
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    for headers in ({}, {"range": "bytes=0-9"}):
        problem = _problem(api.http.get(body["arrays_url"], headers=headers), 500, "integrity")
        assert problem["file"] == f"{rollout}.npz"
        assert body["arrays_digest"] in problem["expected"]
        assert f"rollout {rollout} of clip" in problem["what"]
        assert "ampref fsck --repair --from" in problem["remedy"]
    assert api.http.head(body["arrays_url"]).status_code == 500
    assert api.http.get(f"/v1/rollouts/{rollout}").status_code == 200  # The catalog still tells what it was.


# Histograms and facets


def test_a_metric_is_shown_as_a_histogram_of_what_the_other_filters_leave(api: Any) -> None:
    for number in range(6):
        api.scored(number, tier=number % 2, slip_rate=number / 10)
    body = api.http.get("/v1/clips/histogram?metric=slip_rate&bins=5&tier=0&max_slip_rate=0.1").json()
    assert body == {
        "metric": "slip_rate",
        "unit": "1",
        "edges": [0.0, 0.1, 0.2, 0.3, 0.4],
        "counts": [1, 0, 1, 1],
        "below": 0,
        "above": 0,
        "missing": 0,
        "total": 3,
        "low": 0.0,
        "high": 0.4,
    }
    assert api.http.get("/v1/clips/histogram?metric=duration_sec").json()["unit"] == "s"
    for query, key in (
        ("", "query.metric"),
        ("metric=created_at", "query.metric"),
        ("metric=slip_rate&bins=4", "query.bins"),
        ("metric=slip_rate&sort=slip_rate", "query.sort"),
        ("metric=slip_rate&robot=none", "query.robot"),
        ("metric=slip_rate&min_slip_rate=1&max_slip_rate=0", "query.min_slip_rate"),
    ):
        assert _problem(api.http.get(f"/v1/clips/histogram?{query}"), 422, "parameter-refused")["key"] == key


def test_facets_say_how_many_clips_each_filter_would_leave(api: Any) -> None:
    for number in range(5):
        api.scored(number, tier=(0, 0, 1, -1, 1)[number], tags="slow,walk" if number < 3 else "walk")
    api.post(5)
    body = api.http.get("/v1/clips/facets?tier=0&tag=slow").json()
    assert body["total"] == 2
    assert body["tier"] == [{"value": 0, "clips": 2}, {"value": 1, "clips": 1}, *({"value": v, "clips": 0} for v in (-1, None))]
    assert body["tag"] == [{"value": "slow", "clips": 2}, {"value": "walk", "clips": 2}]
    assert body["robot"] == [{"value": "wildrobot", "clips": 2}]
    assert body["mode"] == [{"value": "rollout", "clips": 2}]
    everything = api.http.get("/v1/clips/facets").json()
    assert (everything["total"], everything["tier"][-1]) == (6, {"value": None, "clips": 1})
    assert everything["tag"] == [{"value": "walk", "clips": 5}, {"value": "slow", "clips": 3}]


def test_numbers_that_took_long_are_kept_for_some_seconds(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at = 1000.0
    monkeypatch.setattr(answers, "read_clock", lambda: at)

    def total() -> int:
        return int(api.http.get("/v1/clips/facets").json()["total"])

    api.post(0)
    assert total() == 1
    api.post(1)
    assert total() == 2, "what is quick is computed anew"
    monkeypatch.setattr(answers, "SLOW_SEC", 0.0)
    assert total() == 2
    api.post(2)
    assert total() == 2
    at += answers.KEEP_SEC
    assert total() == 3
