"""Jobs over HTTP: polling, server-sent events, cancelling, retrying."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from amp_core.errors import PhysicsFailed
from ampref_service.catalog import worker_rows
from ampref_service.catalog.records import Bounds, Worker


def _events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if fields:
            events.append(fields | {"data": json.loads(fields["data"])})
    return events


def _fail(api: Any, times: int = 1) -> None:
    for _ in range(times):
        claim = api.claim()
        api.queue.fail(claim, PhysicsFailed("the child was killed"))
        # The pause before the next attempt is not what is tested here.
        with api.catalog.begin() as session:
            session.exec_driver_sql("UPDATE jobs SET not_before = 0")


def test_polling(api: Any) -> None:
    job = api.post(1).json()["job"]["id"]
    url = f"/v1/jobs/{job}"
    queued = api.http.get(url).json()
    assert (queued["state"], queued["eta_sec"]) == ("queued", None)
    claim = api.claim()
    api.queue.heartbeat(claim, 0.5, "simulating")
    running = api.http.get(url).json()
    # Half is done: the other half takes as long.
    elapsed = time.time() - datetime.fromisoformat(running["started_at"]).timestamp()
    assert 0 <= running["eta_sec"] <= elapsed + 1
    assert (running["state"], running["progress"], running["message"]) == ("running", 0.5, "simulating")
    rollout = api.finish(claim)
    last = api.http.get(url).json()
    assert (last["state"], last["progress"], last["result"]) == ("succeeded", 1.0, {"rollout_id": rollout, "tier": 0})
    assert last["finished_at"] >= last["started_at"] >= last["created_at"]


def test_events_from_the_first_to_done(api: Any) -> None:
    job = api.post(1).json()["job"]["id"]

    def work() -> None:
        claim = api.claim()
        for step in (0.25, 0.5, 0.75):
            time.sleep(0.1)
            api.queue.heartbeat(claim, step, "simulating")
        time.sleep(0.1)
        api.finish(claim)

    worker = threading.Thread(target=work)
    worker.start()
    answer = api.http.get(f"/v1/jobs/{job}/events")
    worker.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = _events(answer.text)
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
    assert (events[-1]["event"], events[-1]["data"]["state"]) == ("done", "succeeded")
    progress = [event["data"]["progress"] for event in events if event["data"]["state"] == "running"]
    assert progress == sorted(progress)
    assert len(progress) >= 3
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))


def test_events_resume_after_the_last_one(api: Any) -> None:
    job = api.post(1).json()["job"]["id"]
    api.finish()
    url = f"/v1/jobs/{job}/events"
    [last] = _events(api.http.get(url).text)
    assert last["event"] == "done"
    resumed = api.http.get(url, headers={"last-event-id": "1"})
    assert [event["id"] for event in _events(resumed.text)] == [last["id"]]
    over = api.http.get(url, headers={"last-event-id": last["id"]})
    assert (over.status_code, over.content) == (204, b"")
    assert api.http.get(url, headers={"last-event-id": "999"}).status_code == 204
    assert api.http.get("/v1/jobs/nope/events").status_code == 404


def test_events_end_when_the_clip_is_deleted(api: Any) -> None:
    posted = api.post(1).json()
    timer = threading.Timer(0.2, lambda: api.http.delete(f"/v1/clips/{posted['clip']['id']}"))
    timer.start()
    events = _events(api.http.get(f"/v1/jobs/{posted['job']['id']}/events").text)
    timer.join()
    assert events[-1]["data"]["state"] == "cancelled"


def test_listing_by_state_in_pages(api: Any) -> None:
    for number in range(3):
        api.post(number)
    api.finish()
    assert len(api.http.get("/v1/jobs").json()["items"]) == 3
    assert len(api.http.get("/v1/jobs?state=queued").json()["items"]) == 2
    assert len(api.http.get("/v1/jobs?state=succeeded&kind=rollout").json()["items"]) == 1
    assert api.http.get("/v1/jobs?kind=lock").json()["items"] == []
    first = api.http.get("/v1/jobs?limit=2")
    rest = api.http.get(first.headers["link"].split(">")[0].removeprefix("<"))
    assert len(first.json()["items"] + rest.json()["items"]) == 3
    assert rest.json()["next_cursor"] is None
    assert api.http.get("/v1/jobs?state=lost").status_code == 422
    assert api.http.get("/v1/jobs?cursor=nope").status_code == 422


def test_cancelling(api: Any) -> None:
    queued = api.post(1).json()["job"]["id"]
    assert api.http.delete(f"/v1/jobs/{queued}").json()["state"] == "cancelled"
    running = api.post(2).json()["job"]["id"]
    claim = api.claim()
    answer = api.http.delete(f"/v1/jobs/{running}").json()
    assert (answer["state"], answer["cancel_requested"]) == ("running", True)
    assert api.queue.heartbeat(claim) is False
    finished = api.post(3).json()["job"]["id"]
    api.finish()
    refused = api.http.delete(f"/v1/jobs/{finished}")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:ampref:error:conflict")
    assert api.http.delete("/v1/jobs/nope").status_code == 404


def test_a_quarantined_job_says_why_and_can_be_retried(api: Any) -> None:
    job = api.post(1).json()["job"]["id"]
    _fail(api, 3)
    dead = api.http.get(f"/v1/jobs/{job}").json()
    assert (dead["state"], dead["attempts"]) == ("quarantined", 3)
    assert dead["error"]["type"] == "physics-failed"
    assert [item["id"] for item in api.http.get("/v1/jobs?state=quarantined").json()["items"]] == [job]
    retried = api.http.post(f"/v1/jobs/{job}/retry")
    assert retried.status_code == 202
    fresh = retried.json()
    assert (fresh["state"], fresh["attempts"]) == ("queued", 0)
    assert retried.headers["location"] == f"/v1/jobs/{fresh['id']}"
    assert api.rung[-1] == fresh["id"]
    assert api.http.post(f"/v1/jobs/{fresh['id']}/retry").status_code == 409
    assert api.http.post("/v1/jobs/nope/retry").status_code == 404


def test_the_limit_of_a_job_is_known_beforehand(api: Any) -> None:
    settings = api.app.state.services.settings
    clip = api.post(1, mode="rollout").json()
    assert clip["job"]["limit_sec"] == settings.job_timeout_sec
    url = f"/v1/clips/{clip['clip']['id']}/rollouts"
    planned = api.http.post(url, json={"mode": "tracked"}).json()["job"]
    duration_sec = clip["clip"]["duration_sec"]
    assert planned["limit_sec"] == settings.job_timeout_sec + settings.plan_timeout_factor * duration_sec * 7
    for planner in ({"samples": 4096}, {"step_sec": 0.0005}):
        refused = api.http.post(url, json={"recipe": {"mode": "tracked", "planner": planner}})
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:ampref:error:recipe-refused")
        assert "plans of the usual size" in refused.json()["what"]
        assert "at most 32; the usual recipe of mode tracked asks for 7" in refused.json()["expected"]


def test_priorities_and_workers_are_shown(api: Any) -> None:
    first, urgent = api.post(1).json()["job"], api.post(2, priority=3).json()["job"]
    assert (first["priority"], urgent["priority"], urgent["robot"]) == (0, 3, "wildrobot")
    assert api.claim().job.id == urgent["id"]
    assert "no live one is known" in api.http.get(f"/v1/jobs/{first['id']}").json()["message"]
    assert api.http.get("/v1/workers").json() == {"items": []}
    worker = Worker("worker_1", "h:1", "h", "m", 1, "0", {"wildrobot": first["robot_digest"]}, 2, "paused", "no disk")
    with api.catalog.begin() as session:
        worker_rows.save(session, worker)
    (shown,) = api.http.get("/v1/workers").json()["items"]
    assert (shown["state"], shown["reason"], shown["live"], shown["robots"]) == ("paused", "no disk", True, worker.robots)
    with api.catalog.begin() as session:
        assert worker_rows.list_workers(session, Bounds(robots=("g1",))) == []
        worker_rows.save(session, replace(worker, robots=worker.robots | {"g1": "sha256:" + "1" * 64}))
        assert worker_rows.list_workers(session, Bounds(robots=("wildrobot",)))[0].robots == worker.robots
    components = {row["name"]: row for row in api.http.get("/readyz").json()["components"]}
    assert [(components[name]["ok"], components[name]["needed"]) for name in ("workers", "queue")] == [(False, False)] * 2
    assert "no disk" in components["queue"]["detail"]
    assert 'ampref_workers{state="paused"} 1.0' in api.http.get("/metrics").text


def test_a_retry_of_a_deleted_clips_job_is_refused(api: Any) -> None:
    made = api.post(1).json()
    assert api.http.delete(f"/v1/clips/{made['clip']['id']}").status_code == 204
    refused = api.http.post(f"/v1/jobs/{made['job']['id']}/retry")
    assert (refused.status_code, "was deleted" in refused.json()["what"]) == (409, True)
