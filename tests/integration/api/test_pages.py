"""The pages without a browser: what they say, where their forms lead, and that nothing in them runs or comes from elsewhere."""

from __future__ import annotations

import html
import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasetkit import make_bundle
from keykit import add_key, bearer
from sqlalchemy import update

from amp_core.cli.group import load_verbs
from ampref_service import statistics
from ampref_service.catalog import rollouts, tables
from ampref_service.web import assets
from ampref_service.web.clip_view import list_gates
from ampref_service.web.compare import list_differences
from ampref_service.web.formats import format_json_data, format_value
from ampref_service.web.site import open_templates


def text_of(page: str) -> str:
    """The words of a page."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


def names_of(page: str) -> list[str]:
    return re.findall(r'class="clip-name" href="[^"]*">([^<]*)<', page)


@pytest.fixture
def stocked(api: Any) -> Any:
    """A service with a clip of each tier, and one that waits."""
    api.ids = {
        "walk": api.scored(1, name="walk", tags="slow"),
        "hop": api.scored(2, name="hop", tier=1, slip_rate=0.3),
        "fall": api.scored(3, name="fall", tier=-1),
    }
    api.post(4, name="later")
    return api


def test_every_page_loads_from_here_alone_and_runs_nothing_inline(stocked: Any) -> None:
    rollout = stocked.http.get(f"/v1/clips/{stocked.ids['walk']}").json()["rollouts"][0]["id"]
    clip = stocked.ids["walk"]
    stocked.http.delete(f"/v1/jobs/{stocked.claim().job.id}")
    stocked.lock()
    for path in (
        "/clips",
        f"/clips/{clip}",
        f"/compare?rollout={rollout}",
        "/jobs",
        f"/lock?clip={clip}",
        "/login",
        "/clips/none",
        "/datasets",
        "/datasets/walk",
        "/datasets/walk?before=0.1.0&after=0.1.0",
        "/datasets/walk/versions/0.1.0",
    ):
        answer = stocked.http.get(path)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert not re.findall(r"\sstyle=|\son[a-z]+=|<style|javascript:", answer.text), path
        for tag in re.findall(r"<script[^>]*>", answer.text):
            assert "src=" in tag or 'type="application/json"' in tag
        assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', answer.text), path
        assert answer.text.count("<h1>") == 1, path
        assert "<html lang=" in answer.text


def test_the_clips_page_filters_sorts_and_tells_what_waits(stocked: Any) -> None:
    page = stocked.http.get("/clips").text
    assert names_of(page) == ["later", "fall", "hop", "walk"]
    assert "queued" in page
    assert "0 jobs run, 1 wait" in text_of(page)
    assert names_of(stocked.http.get("/clips?tier=0&robot=&min_slip_rate=").text) == ["walk"]
    assert names_of(stocked.http.get("/clips?max_slip_rate=0.2&tier=-1").text) == ["fall"]
    assert names_of(stocked.http.get("/clips?tag=slow").text) == ["walk"]
    assert names_of(stocked.http.get("/clips?sort=-slip_rate").text)[0] == "hop"
    fragment = stocked.http.get("/clips?tier=1", headers={"hx-request": "true"}).text
    assert names_of(fragment) == ["hop"]
    assert "<html" not in fragment
    first = stocked.http.get("/clips?limit=3").text
    following = re.findall(r'href="(\?[^"]*)" rel="next"', first)[0]
    assert names_of(stocked.http.get("/clips" + html.unescape(following)).text) == ["walk"]


def test_the_parts_of_the_filters_have_the_numbers_of_the_api(stocked: Any) -> None:
    part = stocked.http.get("/clips/facets?tier=0").text
    assert "<html" not in part
    counts = re.findall(r'<li>\s*<a href="[^"]*"[^>]*>([^<]*)</a>\s*<span class="count">(\d+)</span>', part)
    facets = stocked.http.get("/v1/clips/facets?tier=0").json()
    assert ("Tier 0", "1") in counts
    assert ("Rejected", "1") in counts
    assert facets["total"] == 1
    part = stocked.http.get("/clips/histogram?metric=slip_rate&tier=").text
    bars = re.findall(r'data-low="([^"]*)" data-high="([^"]*)"><title>[^:]*: (\d+) clips?<', part)
    histogram = stocked.http.get("/v1/clips/histogram?metric=slip_rate").json()
    assert [int(count) for _, _, count in bars] == histogram["counts"]
    assert [float(low) for low, _, _ in bars] == histogram["edges"][:-1]
    assert stocked.http.get("/clips/histogram?metric=nothing").status_code == 422


@pytest.mark.parametrize(
    ("query", "words"),
    [("teir=0", "no such filter teir"), ("tier=7", "tier"), ("max_slip_rate=x", "max_slip_rate"), ("cursor=x", "cursor")],
)
def test_a_filter_that_cannot_be_is_said_on_the_page(stocked: Any, query: str, words: str) -> None:
    answer = stocked.http.get(f"/clips?{query}")
    page = answer.text
    assert answer.status_code == 422
    assert "line-python" not in page, "what nobody can ask for is no line to paste"
    fault = text_of(re.findall(r'<div class="fault".*?</div>', page, re.DOTALL)[0])
    assert all(word in fault for word in words.split())
    assert names_of(page) == []


def test_the_lines_of_a_query_ask_for_the_same(stocked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = stocked.http.get("/clips?tier=1&min_slip_rate=0.1&sort=slip_rate&tag=").text
    lines = {name: html.unescape(text) for name, text in re.findall(r'<pre id="line-(\w+)"[^>]*>(.*?)</pre>', page, re.DOTALL)}
    url = shlex.split(lines["curl"])[-1]
    assert [item["name"] for item in stocked.http.get(url).json()["items"]] == ["hop"]
    assert "iter_clips(tier=1, min_slip_rate=0.1, sort='slip_rate')" in lines["python"]
    compile(lines["python"], "line", "exec")
    assert lines["shell"] == "ampref clips --tier 1 --min slip_rate=0.1 --sort slip_rate --url http://testserver"
    text, _ = add_key(stocked.app, "reader", "clips:read")
    page = html.unescape(stocked.http.get("/clips?tier=1", headers=bearer(text)).text)
    assert 'curl -sS -H "Authorization: Bearer $AMPREF_TOKEN" ' in page
    assert text not in page


def test_the_lines_have_every_tag_and_every_option_of_the_command(stocked: Any) -> None:
    page = stocked.http.get("/clips?tag=slow,fast&min_duration_sec=0.5").text
    lines = {name: html.unescape(text) for name, text in re.findall(r'<pre id="line-(\w+)"[^>]*>(.*?)</pre>', page, re.DOTALL)}
    assert "iter_clips(min_duration_sec=0.5, tag=['fast', 'slow'])" in lines["python"]
    assert stocked.http.get(shlex.split(lines["curl"])[-1]).status_code == 200
    command = next(verb for verb in load_verbs() if verb.name == "clips").load()
    known = {option for param in command.params for option in param.opts}
    assert {word for word in shlex.split(lines["shell"]) if word.startswith("--")} <= known


def test_no_name_of_an_address_gets_into_a_line_to_paste(stocked: Any) -> None:
    for query in ("%29%3A+__import__%28%22os%22%29%23=1", "url=http%3A%2F%2Fevil.example", "min_x%29=1"):
        answer = stocked.http.get(f"/clips?{query}")
        assert answer.status_code == 422
        assert "<pre id=" not in answer.text


def test_an_address_has_what_was_filled_in(stocked: Any) -> None:
    answer = stocked.http.get("/clips?tier=0&name=&min_slip_rate=&sort=slip_rate", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/clips?tier=0&sort=slip_rate")


def test_a_form_that_is_refused_leads_back(stocked: Any) -> None:
    headers = {"referer": "http://testserver/jobs?state=queued"}
    for referer, back in ((headers, 'href="/jobs?state=queued"'), ({"referer": "http://evil.example/clips"}, "")):
        page = stocked.http.post("/jobs/job_none/cancel", headers=referer).text
        assert (">Back<" in page) == bool(back)
        assert back in page
        assert "evil" not in page


def test_a_clip_is_scored_in_other_physics_from_its_page(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    answer = stocked.http.post(f"/clips/{clip}/rollouts", data={"mode": "rollout", "friction": "0.7"}, follow_redirects=False)
    assert answer.status_code == 303
    stocked.claim()  # The clip that waits.
    stocked.finish(stocked.claim())
    assert {item["bucket"] for item in stocked.http.get(f"/v1/clips/{clip}").json()["rollouts"]} == {
        "canonical",
        "friction=0.7",
    }
    refused = stocked.http.post(f"/clips/{clip}/rollouts", data={"mode": "rollout", "mass": "nan"})
    assert refused.status_code == 422


def test_a_key_of_one_robot_learns_of_no_other(stocked: Any) -> None:
    text, _ = add_key(stocked.app, "g1", "clips:read", "jobs:read", robots=("g1",))
    assert stocked.http.get("/v1/clips/facets", headers=bearer(text)).json()["robot"] == []
    for part in ("/clips/facets?robot=wildrobot", "/clips/histogram?metric=slip_rate&robot=wildrobot"):
        assert stocked.http.get(part, headers=bearer(text)).status_code == 403
    assert "wildrobot" not in text_of(stocked.http.get("/clips", headers=bearer(text)).text)


def test_counts_of_the_catalog_have_few_places(stocked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stocked.app.state.services.answers, "_places", threading.BoundedSemaphore(1))
    assert stocked.http.get("/v1/clips/facets").status_code == 200
    stocked.app.state.services.answers._places.acquire()
    answer = stocked.http.get("/v1/clips/facets")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert stocked.http.get("/v1/clips").status_code == 200


def test_what_no_text_can_be_is_refused_by_every_form(stocked: Any) -> None:
    stocked.claim()  # The clip that waits.
    stocked.lock("walk", "0.1.0", tags=["slow"])
    address = "/datasets/walk/versions/0.1.0"
    assert stocked.http.post(f"{address}/yank", data={"reason": "a\0b"}).status_code == 422
    assert stocked.http.post("/datasets/walk/aliases", data={"version": "0.1.0\0", "alias": "best"}).status_code == 422
    assert stocked.http.get(f"/v1{address}").json()["yanked"] is False


def test_a_name_is_text_wherever_it_stands(api: Any) -> None:
    name = "</script><b>walk & 'co'\u2028"
    assert api.post(1, name="<b>walk").status_code == 202
    rollout = api.finish()
    page = api.http.get("/clips").text
    assert "<b>walk" not in page
    assert "&lt;b&gt;walk" in page
    clip = api.http.get(f"/v1/rollouts/{rollout}").json()["clip_id"]
    assert "<b>" not in api.http.get(f"/clips/{clip}").text
    data = str(format_json_data({"name": name}))
    assert "<" not in data
    assert json.loads(data) == {"name": name}


def test_the_page_of_a_clip_has_what_the_api_has(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    rollout = stocked.http.get(f"/v1/clips/{clip}").json()["rollouts"][0]
    page = stocked.http.get(f"/clips/{clip}?f=7").text
    for words in (
        "walk",
        "Tier 0",
        rollout["arrays_digest"],
        rollout["recipe_digest"],
        "slip_rate",
        "≤ 0.2",
        "moved by +2.0 mm",
    ):
        assert words in page
    replay = json.loads(re.findall(r'id="replay-data">(.*?)</script>', page, re.DOTALL)[0])
    assert replay["start_frame"] == 7
    [panel] = replay["rollouts"]
    assert (panel["id"], panel["frames"], panel["control_dt"]) == (rollout["id"], 50, 0.02)
    assert panel["frames_url"] == f"/v1/rollouts/{rollout['id']}/frames"
    assert panel["weight_n"] == pytest.approx(3.4 * 9.81), "of the model that made it, which is not installed"
    other = stocked.http.get(f"/clips/{clip}?rollout=rollout_none")
    assert other.status_code == 404
    assert "no rollout" in other.text
    waiting = stocked.http.get("/clips?name=later").text
    waiting_id = re.findall(r'href="/clips/(clip_\w+)"', waiting)[0]
    assert "has no rollout yet" in stocked.http.get(f"/clips/{waiting_id}").text


def test_no_other_model_of_a_robot_is_drawn_than_made_the_rollout(stocked: Any) -> None:
    made_with = "sha256:" + "3" * 64  # of the stocked rollouts; another one is installed
    page = stocked.http.get(f"/clips/{stocked.ids['walk']}").text
    replay = json.loads(re.findall(r'id="replay-data">(.*?)</script>', page, re.DOTALL)[0])
    assert replay["scene_url"] == f"/v1/robots/wildrobot/scene?digest={made_with}"
    answer = stocked.http.get(replay["scene_url"])
    assert answer.status_code == 404
    assert stocked.app.state.services.robots["wildrobot"].digest in answer.json()["detail"]


def test_a_rollout_of_another_model_is_compared_in_figures_alone(stocked: Any) -> None:
    ids = [stocked.http.get(f"/v1/clips/{stocked.ids[name]}").json()["rollouts"][0]["id"] for name in ("walk", "hop")]
    with stocked.catalog.begin() as session:
        result = rollouts.get(session, ids[1]).result
        result["provenance"]["robot_digest"] = "sha256:" + "4" * 64
        session.execute(update(tables.rollouts).where(tables.rollouts.c.id == ids[1]).values(result=result))
    page = stocked.http.get(f"/compare?rollout={ids[0]}&rollout={ids[1]}").text
    replay = json.loads(re.findall(r'id="replay-data">(.*?)</script>', page, re.DOTALL)[0])
    assert [panel["id"] for panel in replay["rollouts"]] == ids[:1]
    assert "in the figures alone: hop · rollout · canonical" in text_of(page)


def test_a_page_answers_head(stocked: Any) -> None:
    answer = stocked.http.head("/clips")
    assert (answer.status_code, answer.text) == (200, "")


def test_forms_do_what_the_api_does(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    answer = stocked.http.post(f"/clips/{clip}/rollouts", data={"mode": "rollout", "seed": "3"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/clips/{clip}")
    assert len(stocked.http.get(f"/v1/clips/{clip}").json()["jobs"]) == 2
    answer = stocked.http.post(f"/clips/{clip}/variants", data={"frames": "5:40"}, follow_redirects=False)
    assert stocked.http.get("/v1" + answer.headers["location"]).json()["frames_in"] == 35
    answer = stocked.http.post(f"/clips/{clip}/variants", data={"augmentation": "fly"})
    assert answer.status_code == 422
    assert "is no augmentation" in answer.text
    assert "<h1>walk" in answer.text
    assert 'value="fly"' in answer.text, "what was typed stays"
    for augmentation in ("MIRROR", "<script>", "a b", "   "):
        refused = stocked.http.post(f"/clips/{clip}/variants", data={"augmentation": augmentation})
        assert (refused.status_code, "<h1>walk" in refused.text) == (422, True), augmentation
    assert stocked.http.get(f"/clips/{clip}?f=&rollout=").status_code == 200
    for data in ({"mode": "rollout", "seed": "3", "friction": "0.01"}, {"mode": "no_mode"}):
        assert stocked.http.post(f"/clips/{clip}/rollouts", data=data).status_code == 422
    jobs = stocked.http.get("/v1/jobs", params={"state": "queued"}).json()["items"]
    answer = stocked.http.post(f"/jobs/{jobs[0]['id']}/cancel", data={"back": "/jobs?state=queued"}, follow_redirects=False)
    assert answer.headers["location"] == "/jobs?state=queued"
    assert stocked.http.get(f"/v1/jobs/{jobs[0]['id']}").json()["state"] == "cancelled"
    stocked.http.post(f"/jobs/{jobs[0]['id']}/retry")
    assert stocked.http.get("/v1/jobs").json()["items"][0]["state"] == "queued"
    stocked.http.post(f"/clips/{stocked.ids['fall']}/delete")
    assert stocked.http.get(f"/v1/clips/{stocked.ids['fall']}").status_code == 404


def test_a_version_grows_from_a_selection_and_from_a_query(stocked: Any) -> None:
    form = {"name": "walk", "version": "0.1.0", "tier": "0"}
    answer = stocked.http.post("/lock", data=form | {"clip": [stocked.ids["walk"]]}, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/jobs#job_")
    job = stocked.http.get("/v1/jobs?kind=lock").json()["items"][0]
    assert (job["dataset"], job["version"]) == ("walk", "0.1.0")
    answer = stocked.http.post(
        "/lock", data=form | {"version": "0.2.0", "query": "tier=0&max_slip_rate=0.5"}, follow_redirects=False
    )
    assert answer.status_code == 303
    again = stocked.http.post("/lock", data=form | {"query": "tier=0"})
    assert again.status_code == 409
    assert 'value="0.1.0"' in again.text, "what was typed stays"
    for changes, words in (
        ({"name": "Walk"}, "not a dataset name"),
        ({"version": "one"}, "version"),
        ({"tier": ""}, "no tier"),
    ):
        answer = stocked.http.post("/lock", data=form | {"query": "tier=0"} | changes)
        assert answer.status_code == 422
        assert words in answer.text
    assert "No clip is chosen" in stocked.http.get("/lock?name=nothing").text
    assert "No clip is chosen" in stocked.http.get("/lock?chosen=1").text, "nothing ticked is not everything"


def test_a_query_by_mode_locks_and_links_the_rollouts_that_it_lists(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    page = stocked.http.get("/clips?mode=rollout&tier=0").text
    rollout = stocked.http.get(f"/v1/clips/{clip}").json()["rollouts"][0]["id"]
    assert f'class="clip-name" href="/clips/{clip}?rollout={rollout}"' in page
    assert "its best rollout in mode rollout" in text_of(stocked.http.get("/lock?mode=rollout&tier=0").text)
    form = {"name": "walk", "version": "0.1.0", "tier": "0", "query": "mode=rollout&tier=0"}
    stocked.http.post("/lock", data=form)
    stocked.claim()  # The clip that waits.
    select = stocked.claim().job.payload["select"]
    assert (select["mode"], select["clips"]) == ("rollout", [clip])
    both = stocked.http.get(f"/compare?clip={clip}&clip={stocked.ids['hop']}").text
    replay = json.loads(re.findall(r'id="replay-data">(.*?)</script>', both, re.DOTALL)[0])
    assert [panel["label"] for panel in replay["rollouts"]] == ["walk · rollout · canonical", "hop · rollout · canonical"]


def test_a_job_says_what_it_was_asked_for_and_a_lock_leads_to_its_version(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    stocked.http.post(f"/clips/{clip}/rollouts", data={"mode": "tracked", "seed": "3", "friction": "0.7"})
    stocked.http.post("/lock", data={"name": "walk", "version": "0.1.0", "tier": "0", "query": "tier=0"})
    page = stocked.http.get("/jobs").text
    assert "mode tracked, seed 3, friction=0.7 · wildrobot" in text_of(page)
    link = re.findall(r'href="(/datasets/walk[^"]*)"', page)[0]
    assert "its lock job" in stocked.http.get(link).text


def test_the_address_of_a_form_leads_to_its_clip(stocked: Any) -> None:
    for form in ("variants", "rollouts", "delete"):
        answer = stocked.http.get(f"/clips/{stocked.ids['walk']}/{form}", follow_redirects=False)
        assert answer.headers["location"] == f"/clips/{stocked.ids['walk']}"


def test_rollouts_are_compared_with_what_differs_in_their_recipes(stocked: Any) -> None:
    clip = stocked.ids["walk"]
    stocked.http.post(f"/v1/clips/{clip}/rollouts", json={"mode": "rollout", "recipe": {"physics": {"friction": 0.7}}})
    claim = next(claim for claim in iter(stocked.claim, None) if claim.job.clip_id == clip)
    stocked.finish(claim)
    page = stocked.http.get(f"/compare?clip={clip}").text
    replay = json.loads(re.findall(r'id="replay-data">(.*?)</script>', page, re.DOTALL)[0])
    assert [panel["label"] for panel in replay["rollouts"]] == ["rollout · canonical", "rollout · friction=0.7"]
    assert "physics.friction" in page
    assert stocked.http.get("/compare").status_code == 422
    assert list(list_differences([{"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 2}, "d": 3}])) == [
        ("b.c", [1, 2]),
        ("d", [None, 3]),
    ]


def test_whoever_signs_in_comes_back_and_a_form_needs_the_token_of_its_session(stocked: Any) -> None:
    text, _ = add_key(stocked.app, "alice")
    answer = stocked.http.get("/clips?tier=0", follow_redirects=False)
    assert answer.headers["location"] == "/login?next=%2Fclips%3Ftier%3D0"
    part = stocked.http.get("/clips", headers={"hx-request": "true"}, follow_redirects=False)
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login?next=%2Fclips")
    assert 'value="/clips?tier=0"' in stocked.http.get(answer.headers["location"]).text
    for address in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", ""):
        answer = stocked.http.post("/login", data={"key": text, "next": address}, follow_redirects=False)
        assert answer.headers["location"] == "/clips"
    answer = stocked.http.post("/login", data={"key": text, "next": "/clips?tier=0"}, follow_redirects=False)
    assert answer.headers["location"] == "/clips?tier=0"
    clip = stocked.ids["walk"]
    page = stocked.http.get(f"/clips/{clip}").text
    token = re.findall('name="csrf_token" value="([^"]+)"', page)[0]
    for data in ({}, {"csrf_token": "x"}):
        answer = stocked.http.post(f"/clips/{clip}/rollouts", data={"mode": "rollout", "seed": "9"} | data)
        assert answer.status_code == 403
        assert "token of its page" in text_of(answer.text)
    answer = stocked.http.post(
        f"/clips/{clip}/rollouts", data={"mode": "rollout", "seed": "9", "csrf_token": token}, follow_redirects=False
    )
    assert answer.status_code == 303


def test_a_page_offers_what_its_reader_may_do_and_nothing_else(stocked: Any) -> None:
    text, _ = add_key(stocked.app, "reader", "clips:read", "jobs:read")
    stocked.http.post("/login", data={"key": text})
    clip = stocked.ids["walk"]
    for path in ("/clips", f"/clips/{clip}", "/jobs"):
        page = stocked.http.get(path).text
        forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]*)"', page)
        assert forms == ["/logout"], path
        assert "/lock" not in page


@pytest.fixture
def bare(idle: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A service whose scripts were not built."""
    monkeypatch.setattr(assets, "BUILT", tmp_path)
    for cache in (assets.load_assets, open_templates):
        cache.cache_clear()
    yield idle
    for cache in (assets.load_assets, open_templates):
        cache.cache_clear()


def test_without_scripts_a_page_says_so_and_the_api_is_served(bare: Any) -> None:
    page = bare.http.get("/clips").text
    assert "scripts of these pages were not built" in text_of(page)
    assert "<script" not in page
    style = re.findall(r'rel="stylesheet" href="([^"]*)"', page)[0]
    assert bare.http.get(style).headers["content-type"].startswith("text/css")
    assert bare.http.get("/v1/clips").status_code == 200


def test_margins_say_how_far_a_value_is_within_its_threshold() -> None:
    def gate(op: str, value: Any, threshold: Any) -> dict[str, Any]:
        return {"name": op, "op": op, "value": value, "threshold": threshold, "tier": 0, "passed": True}

    gates = [gate(">=", 0.9, 0.85), gate("<=", 0.3, 0.1), gate("in", 0.4, [0.3, 0.95]), gate("==", 0, 0), gate("<=", None, 1.0)]
    margins = {row.name: row.margin for row in list_gates(gates[:4])}
    assert margins == {">=": pytest.approx(0.05), "<=": pytest.approx(-0.2), "in": pytest.approx(0.1), "==": 0}
    assert list_gates(gates[4:])[0].margin is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98765, "0.988"),
        (12.3456, "12.3"),
        (0.000123, "0.000123"),
        (1234567, "1 234 567"),
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (1e-9, "1.00e-09"),
    ],
)
def test_numbers_are_written_for_people(value: Any, text: str) -> None:
    assert format_value(value).replace("\u202f", " ") == text


# Datasets


@pytest.fixture
def shelf(stocked: Any) -> Any:
    """Two versions of `walk`, the second with a clip more, and an alias to the first."""
    stocked.http.delete(f"/v1/jobs/{stocked.claim().job.id}")
    stocked.lock(version="0.1.0", tier=0)
    stocked.lock(version="0.2.0", tier=[0, 1])
    assert stocked.http.put("/v1/datasets/walk/aliases/production", json={"version": "0.1.0"}).status_code == 200
    return stocked


VERSION = "/datasets/walk/versions/0.2.0"


def test_datasets_are_listed_with_what_their_names_mean(api: Any, shelf: Any) -> None:
    page = shelf.http.get("/datasets").text
    assert f'href="{VERSION}"' in page
    assert "production → 0.1.0" in text_of(page)
    one = text_of(shelf.http.get("/datasets/walk").text)
    assert "2 locked versions · latest 0.2.0" in one
    for path in ("/datasets/run", "/datasets/walk/versions/9.0.0", "/datasets/walk?before=0.1.0&after=9.0.0"):
        answer = shelf.http.get(path)
        assert answer.status_code == 404
        assert "text/html" in answer.headers["content-type"]


def test_no_dataset_yet_is_said(api: Any) -> None:
    assert "No version was locked yet" in api.http.get("/datasets").text


def test_what_changed_between_two_versions_links_to_the_clips(shelf: Any) -> None:
    page = shelf.http.get("/datasets/walk?before=0.1.0&after=0.2.0").text
    assert "1 added, 0 removed, 0 changed, 1 unchanged" in text_of(page)
    assert f'href="/clips/{shelf.ids["hop"]}?rollout=' in page
    assert 'class="added"' in page


def test_a_version_says_what_a_lead_asks_before_training(shelf: Any) -> None:
    shelf.http.get("/v1/datasets/walk/versions/0.2.0/files/features_v0.2.0.npz", headers={"user-agent": "ampref/0.12.0"})
    api_view = shelf.http.get("/v1/datasets/walk/versions/0.2.0").json()
    end = time.monotonic() + 10
    while "ampref/0.12.0" not in (page := shelf.http.get(VERSION).text) and time.monotonic() < end:
        time.sleep(0.1)
    text = text_of(page)
    assert api_view["manifest_sha256"] in text
    assert f"ampref pull walk==0.2.0 --url http://testserver --manifest-sha256 {api_view['manifest_sha256']}" in text
    assert "anonymous ampref/0.12.0 1" in text
    assert "look at <walk>" in text, "the reason of a test"
    assert "not ready for training" in text
    assert [f"/clips/{shelf.ids[name]}?rollout=" in page for name in ("walk", "hop", "fall")] == [True, True, False]
    for file in api_view["files"]:
        assert file["url"] in page
    script = re.search(r'id="line-python"[^>]*>(.*?)</pre>', page, re.DOTALL)
    assert script is not None
    compile(html.unescape(script[1]), "line", "exec")
    assert shelf.http.get("/datasets/walk/versions/production").text.count("walk==0.1.0") > 1


def test_members_come_in_pages(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ampref_service.web.versions._MEMBERS", 1)
    first = shelf.http.get(VERSION).text
    following = re.findall(r'rel="next" href="(\?[^"#]*)', first)[0]
    second = shelf.http.get(VERSION + html.unescape(following)).text
    pages = [re.findall(r'<tr><td class="n">(\d+)</td><td><a href="/clips/', page) for page in (first, second)]
    assert pages == [["0"], ["1"]]
    assert 'rel="next"' not in second


def test_a_version_is_yanked_aliased_and_archived_by_forms(shelf: Any) -> None:
    def post(path: str, **fields: str) -> Any:
        return shelf.http.post(path, data=fields, follow_redirects=False)

    def view() -> dict[str, Any]:
        return dict(shelf.http.get("/v1/datasets/walk/versions/0.2.0").json())

    answer = post(f"{VERSION}/yank", reason="the knees")
    assert (answer.status_code, answer.headers["location"]) == (303, VERSION)
    assert view()["yank_reason"] == "the knees"
    assert "Yanked" in shelf.http.get(VERSION).text
    assert post(f"{VERSION}/unyank").status_code == 303
    assert not view()["yanked"]
    refusal = post(f"{VERSION}/yank", reason=" ")
    assert refusal.status_code == 422
    assert "without a reason" in text_of(refusal.text)
    assert "walk==0.2.0" in refusal.text, "it is said on the version's page"

    assert post("/datasets/walk/aliases", alias="best", version="0.2.0", back=VERSION).headers["location"] == VERSION
    assert "best" in view()["aliases"]
    refusal = post(f"{VERSION}/archive", reason="old", manifest_sha256=view()["manifest_sha256"])
    assert refusal.status_code == 409
    assert "the alias best" in text_of(refusal.text)
    assert post("/datasets/walk/aliases", alias="latest", version="0.2.0").status_code == 409
    assert (
        post("/datasets/walk/aliases", alias="x", version="0.2.0", back="//elsewhere").headers["location"] == "/datasets/walk"
    )
    for alias in ("best", "x"):
        assert post(f"/datasets/walk/aliases/{alias}/remove").status_code == 303
    assert post(f"{VERSION}/archive", reason="old", manifest_sha256="sha256:" + "0" * 64).status_code == 409
    assert post(f"{VERSION}/archive", reason="old", manifest_sha256=view()["manifest_sha256"]).status_code == 303
    page = shelf.http.get(VERSION).text
    assert "Archived" in page
    assert "not kept" in page
    assert post(f"{VERSION}/unarchive").status_code == 303
    assert not view()["archived"]


def test_only_who_may_change_a_version_has_the_forms(fresh: Any) -> None:
    fresh.scored(0)
    fresh.lock(version="0.2.0")
    reader, _ = add_key(fresh.app, "reader", "datasets:read")
    lead, _ = add_key(fresh.app, "lead", "datasets:read", "datasets:write")
    for path in (VERSION, "/datasets/walk"):
        assert 'method="post" action="/datasets' not in fresh.http.get(path, headers=bearer(reader)).text
        assert 'method="post" action="/datasets' in fresh.http.get(path, headers=bearer(lead)).text
    assert fresh.http.post(f"{VERSION}/yank", data={"reason": "x"}, headers=bearer(reader)).status_code == 403


def test_statistics_are_a_part_of_the_page_once_they_are_there(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        api.scored(number, name=f"clip{number}", tags="<slow>")
    api.http.post("/v1/datasets/walk/versions", json={"version": "0.2.0", "select": {}})
    api.publish(api.claim(), make_bundle(tmp_path, version="0.2.0"), ((0, 25), (26, 50)))
    page = api.http.get(VERSION).text
    assert f'hx-get="{VERSION}/statistics"' in page
    go_on, original = threading.Event(), statistics.compute_statistics

    def compute_slowly(*arguments: Any) -> dict[str, Any]:
        assert go_on.wait(30)
        return original(*arguments)

    monkeypatch.setattr("amp_core.dataset.spread.OUTLIER_Z", 2.0)
    monkeypatch.setattr(statistics, "compute_statistics", compute_slowly)
    monkeypatch.setattr("ampref_service.web.versions._WAIT_SEC", 0.1)
    busy = api.http.get(f"{VERSION}/statistics", headers={"hx-request": "true"}).text
    assert "They are being computed" in busy
    assert "<html" not in busy
    go_on.set()
    monkeypatch.setattr("ampref_service.web.versions._WAIT_SEC", 30.0)
    alone = api.http.get(f"{VERSION}/statistics").text
    assert alone.count("<h1>") == 1
    within = api.http.get(VERSION).text
    for text in (alone, within):
        assert "double support" in text
        assert "<svg" in text
        assert "&lt;slow&gt;" in text
        assert not re.findall(r"\sstyle=|\son[a-z]+=", text)
    outlier = api.http.get("/v1/datasets/walk/versions/0.2.0/statistics").json()["features"][0]["outliers"][0]
    assert f"/clips/{outlier['clip_id']}?rollout={outlier['rollout_id']}&amp;f={outlier['frame']}" in within
