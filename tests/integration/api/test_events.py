"""Events over HTTP: pages, and a stream that goes on where it was after the service was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from amp_core.client import ApiClient, Retry
from ampref_service.catalog import Catalog, events
from ampref_service.catalog.records import EventFilter
from ampref_service.event_feed import find_start
from bench.servers import free_port

STREAM = {"accept": "text/event-stream"}


class Server:
    """The API as a process, which can be stopped and started again on the same catalog and port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        self.catalog = Catalog.open(f"sqlite:///{folder / 'catalog.sqlite3'}")

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("server.py")), str(self.folder)]
        settings = [f"port={self.port}", "max_streams=2", "sse_interval_sec=0.02"]
        self.process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert int(self.process.stdout.readline()) == self.port
        self.process.stdout.close()
        with ApiClient(self.url, retry=Retry(attempts=600, timeout=60, wait_initial=0.05, wait_max=0.1)) as api:
            api.list_robots()

    def stop(self, *, kill: bool) -> None:
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(30)

    def record(self, *names: str, **subject: Any) -> int:
        """The position of the last."""
        for name in names:
            with self.catalog.begin() as session:
                events.record(session, "clip.deleted", {"name": name}, **subject)
        return find_start(self.catalog, EventFilter(), 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("events"))
    try:
        yield server
    finally:
        server.stop(kill=True)
        server.catalog.close()


def follow(url: str, count: int, **headers: str) -> list[httpx2.ServerSentEvent]:
    """The first events with data of a stream."""
    result: list[httpx2.ServerSentEvent] = []
    with httpx2.stream("GET", url, headers=STREAM | headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in httpx2.EventSource(answer):
            if event.data:
                result.append(event)
            if len(result) == count:
                break
    return result


def test_a_stream_goes_on_without_a_gap_after_the_service_was_killed(server: Server) -> None:
    last = server.record("a", "b", robot="wildrobot")
    url = f"{server.url}/v1/events?after={last - 2}"
    first = follow(url, 2)
    assert [(event.id, event.event, json.loads(event.data)["data"]["name"]) for event in first] == [
        (str(last - 1), "clip.deleted", "a"),
        (str(last), "clip.deleted", "b"),
    ]
    server.stop(kill=True)
    server.record("c")  # By another process, while this one is away.
    server.start()
    # The position that a browser sends wins over the address, which is the same at each of its tries.
    [second] = follow(url, 1, **{"last-event-id": first[-1].id})
    assert (second.id, json.loads(second.data)["position"]) == (str(last + 1), last + 1)
    [gap] = follow(f"{server.url}/v1/events?after=1000", 1)
    assert (gap.event, gap.id, json.loads(gap.data)) == ("gap", "0", {"after": 1000, "oldest": 1})


def test_a_client_follows_over_a_restart_and_streams_are_bounded(server: Server) -> None:
    last = server.record("a", robot="wildrobot")
    with ApiClient(server.url, retry=Retry(attempts=600, timeout=60, wait_initial=0.05, wait_max=0.1)) as api:
        stream = api.follow_events(after=last - 1, robot="wildrobot")
        assert next(stream)["data"] == {"name": "a"}
        server.record("of no robot")
        server.record("b", robot="wildrobot")
        assert next(stream)["position"] == last + 2
        with httpx2.stream("GET", f"{server.url}/v1/events", headers=STREAM, timeout=30) as other:
            assert other.status_code == 200
            lines = other.iter_lines()  # Closes the answer when it is forgotten.
            assert next(lines) == f"id: {last + 2}"
            refused = httpx2.get(f"{server.url}/v1/events", headers=STREAM)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["expected"] == "at most 2 (AMPREF_MAX_STREAMS)"
            assert httpx2.get(f"{server.url}/v1/events").status_code == 200
            server.stop(kill=False)  # Open streams do not keep the service from stopping.
        server.record("c", robot="wildrobot")
        server.start()
        assert next(stream)["data"] == {"name": "c"}


def test_a_kind_that_is_none_is_named_with_those_that_there_are(seeded: Any) -> None:
    for answer in (
        seeded.http.get("/v1/events?kind=nope"),
        seeded.http.post("/v1/webhooks", json={"url": "https://hooks.example.org/", "kinds": ["nope"]}),
    ):
        body = answer.json()
        assert (answer.status_code, body["what"]) == (422, "'nope' is none of the values that there are")
        assert body["expected"].startswith("one of clip.scored, clip.deleted, version.locked, ")
        assert body["remedy"] == "See /docs for what it takes"
    long = seeded.http.get(f"/v1/events?kind={'x' * 65}").json()
    assert long["what"] == "it is none of the values that there are"


def test_pages(seeded: Any) -> None:
    http: TestClient = seeded.http
    page = http.get("/v1/events").json()
    assert [event["kind"] for event in page["items"]] == [
        *("clip.scored", "clip.scored", "version.locked", "version.locked", "version.yanked"),
    ]
    assert (page["next_after"], page["gap"]) == (5, None)
    locked = page["items"][2]
    assert (locked["dataset"], locked["robot"], locked["data"]["version"]) == ("walk", "wildrobot", "0.1.0")
    two = http.get("/v1/events", params={"kind": ["version.locked", "version.yanked"], "limit": 2}).json()
    assert [event["position"] for event in two["items"]] == [3, 4]
    assert two["next_after"] == 4
    assert [event["position"] for event in http.get("/v1/events?last=2").json()["items"]] == [4, 5]
    assert http.get("/v1/events?last=0").json() == {"items": [], "next_after": 5, "gap": None}
    assert http.get("/v1/events?after=99").json()["gap"] == {"after": 99, "oldest": 1}
    for query, key in (("kind=clip.eaten", "query.kind.0"), ("after=1&last=1", "query.last"), ("after=-1", "query.after")):
        refused = http.get(f"/v1/events?{query}")
        assert (refused.status_code, refused.json()["key"]) == (422, key), refused.text
