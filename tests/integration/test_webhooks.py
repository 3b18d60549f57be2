"""Webhooks: real receivers that fail, hang, redirect and come back; a deliverer that is killed; addresses inside."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from catalogkit import Clock, opened
from clientkit import make_certificate
from keykit import add_key, bearer
from sqlalchemy import select, update
from starlette.testclient import TestClient
from workerkit import settings_for

from amp_core.errors import Conflict, InputRefused
from ampref_service.app import create_app
from ampref_service.catalog import Catalog, audit, events, schema, webhooks
from ampref_service.catalog.records import Bounds, EventFilter, Webhook, WebhookClaim
from ampref_service.catalog.tables import webhooks as webhooks_table
from ampref_service.event_feed import find_start, purge_events
from ampref_service.webhooks import Deliverer, DeliveryFailure, check_url, make_secret, post
from ampref_workers.embedded import EmbeddedWorker

HERE = ("127.0.0.1",)
ROOT = Path(__file__).parents[2]


class Receiver:
    """A real receiver. `answer` gives the status of each delivery; None leaves it without an answer."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[], int | None] = lambda: 204
        self.has_come = threading.Event()
        self.end = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.deliveries.append((dict(self.headers), body))
                receiver.has_come.set()
                status = receiver.answer()
                if status is None:
                    receiver.end.wait(60)
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(b"the receiver's own secret")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def names(self) -> list[str]:
        return [json.loads(body)["data"].get("name", "") for _, body in self.deliveries]

    def ids(self) -> list[str]:
        return [{key.lower(): value for key, value in headers.items()}["webhook-id"] for headers, _ in self.deliveries]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.end.set()
    receiver.server.shutdown()
    receiver.server.server_close()


def add(catalog: Catalog, url: str, criteria: EventFilter | None = None, **options: Any) -> Webhook:
    values: dict[str, Any] = {"owner": "", "key_id": None, "actor": "a test", "host": "a host"} | options
    with catalog.begin() as session:
        return webhooks.add(session, url, make_secret(), criteria or EventFilter(), **values)


def record(catalog: Catalog, *names: str, kind: Any = "clip.deleted", **subject: str) -> None:
    for name in names:
        with catalog.begin() as session:
            events.record(session, kind, {"name": name}, **subject)


def get(catalog: Catalog, webhook: Webhook) -> Webhook:
    with catalog.session() as session:
        return webhooks.get(session, webhook.id)


def test_events_come_signed_in_order_and_once(database_url: str, receiver: Receiver) -> None:
    with opened(database_url) as catalog:
        record(catalog, "before it was added")
        find_start(catalog, EventFilter(), 0)
        webhook = add(catalog, receiver.url, EventFilter(kinds=("clip.deleted",)))
        with catalog.session() as session:
            key = session.execute(select(webhooks_table.c.secret)).scalar_one()
        record(catalog, "a", "b", robot="wildrobot")
        record(catalog, "of another kind", kind="version.locked")
        record(catalog, "c")
        deliverer = Deliverer(catalog, HERE)
        assert deliverer.deliver_due() == 1
        assert deliverer.deliver_due() == 0
        assert receiver.names == ["a", "b", "c"]
        for headers, body in receiver.deliveries:
            # As any receiver does it, by the description alone.
            fields = {name.lower(): value for name, value in headers.items()}
            text = f"{fields['webhook-id']}.{fields['webhook-timestamp']}.".encode() + body
            mac = hmac.new(base64.b64decode(key.removeprefix("whsec_")), text, hashlib.sha256).digest()
            assert fields["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
            assert abs(int(fields["webhook-timestamp"]) - time.time()) < 60
            assert json.loads(body)["id"] == fields["webhook-id"]
        event = json.loads(receiver.deliveries[0][1])
        assert (event["kind"], event["robot"], event["position"]) == ("clip.deleted", "wildrobot", 2)
        served = get(catalog, webhook)
        assert (served.position, served.pending, served.failures) == (5, 0, 0)


def test_a_receiver_that_fails_and_comes_back_gets_everything_in_order(database_url: str, receiver: Receiver) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        webhook = add(catalog, receiver.url)
        deliverer = Deliverer(catalog, HERE, timeout_sec=0.3)
        record(catalog, "a", "b")
        faults: list[tuple[int | None, str]] = [
            (500, "the receiver answered 500"),
            (302, "the receiver answered 302: redirects are not followed"),
            (None, "no answer within 0.3 s"),
        ]
        for number, (status, detail) in enumerate(faults):
            receiver.answer = lambda status=status: status  # type: ignore[misc]
            assert deliverer.deliver_due() == 1
            assert deliverer.deliver_due() == 0, "the next try is not due"
            failed = get(catalog, webhook)
            assert (failed.failures, failed.last_failure, failed.state) == (number + 1, detail, "active")
            clock.at += webhooks.PAUSES_SEC[number] + 1
        receiver.answer = lambda: 200
        assert deliverer.deliver_due() == 1
        assert receiver.names == ["a", "a", "a", "a", "b"]
        assert len(set(receiver.ids())) == 2
        served = get(catalog, webhook)
        assert (served.failures, served.last_failure, served.pending) == (0, None, 0)
        assert "secret" not in str(served)


def test_a_clock_that_was_set_back_delays_nothing(sqlite_url: str, receiver: Receiver) -> None:
    clock = Clock()
    with opened(sqlite_url, clock) as catalog:
        add(catalog, receiver.url)
        record(catalog, "a")
        receiver.answer = lambda: 500
        Deliverer(catalog, HERE).deliver_due()
        with catalog.begin() as session:
            session.execute(update(webhooks_table).values(lease_until=clock.at + 30))
        clock.at -= 365 * 86400
        receiver.answer = lambda: 200
        assert Deliverer(catalog, HERE).deliver_due() == 1
        assert receiver.names == ["a", "a"]


def test_a_webhook_that_fails_for_a_day_is_quarantined_and_revived(database_url: str, receiver: Receiver) -> None:
    clock = Clock()
    with opened(database_url, clock) as catalog:
        webhook, start = add(catalog, receiver.url), clock.at
        deliverer = Deliverer(catalog, HERE)
        record(catalog, "a", "b")
        receiver.answer = lambda: 503
        while get(catalog, webhook).state == "active":
            clock.at = max(clock.at, get(catalog, webhook).not_before)
            assert deliverer.deliver_due() == 1
        assert 0.9 * 86400 < clock.at - start < 1.1 * 86400
        dead = get(catalog, webhook)
        assert dead.reason == "its next event failed 11 times, the last time: the receiver answered 503"
        with catalog.session() as session:
            assert webhooks.count_states(session) == {"active": 0, "failing": 0, "quarantined": 1}
            assert [event.action for event in audit.list_events(session)] == ["webhook.add", "webhook.quarantine"]
        clock.at += 86400
        assert deliverer.deliver_due() == 0
        receiver.answer = lambda: 200
        with catalog.begin() as session:
            webhooks.retry(session, webhook.id, actor="a test")
        assert deliverer.deliver_due() == 1
        assert receiver.names[-2:] == ["a", "b"]


def test_a_receiver_that_is_gone_is_quarantined_at_once(sqlite_url: str, receiver: Receiver) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, receiver.url)
        record(catalog, "a", "b")
        receiver.answer = lambda: 410
        Deliverer(catalog, HERE).deliver_due()
        gone = get(catalog, webhook)
        assert (gone.state, gone.reason, receiver.names) == ("quarantined", "the receiver answered 410: it is gone", ["a"])


def test_events_that_were_purged_before_they_were_delivered_are_told_of(sqlite_url: str, receiver: Receiver) -> None:
    clock = Clock()
    with opened(sqlite_url, clock) as catalog:
        add(catalog, receiver.url)
        record(catalog, "a", "b")
        clock.at += 31 * 86400
        record(catalog, "c")
        assert purge_events(catalog, days=30) == 2
        Deliverer(catalog, HERE).deliver_due()
        gap, event = (json.loads(body) for _, body in receiver.deliveries)
        assert (gap["kind"], gap["data"]) == ("gap", {"after": 0, "oldest": 3})
        assert event["data"] == {"name": "c"}


KILLED = """
import sys
from ampref_service.catalog import Catalog
from ampref_service.webhooks import Deliverer
Deliverer(Catalog.open(sys.argv[1]), ["127.0.0.1"], timeout_sec=60).deliver_due()
"""


def test_a_deliverer_that_is_killed_loses_nothing_and_repeats_with_the_same_id(database_url: str, receiver: Receiver) -> None:
    with opened(database_url) as catalog:
        webhook = add(catalog, receiver.url)
        record(catalog, "a", "b", "c")
        answers = iter([204, None])
        receiver.answer = lambda: next(answers)
        with subprocess.Popen([sys.executable, "-c", KILLED, database_url], cwd=ROOT) as process:
            while len(receiver.deliveries) < 2:
                assert process.poll() is None
                assert receiver.has_come.wait(60)
                time.sleep(0.01)
            # In the middle of the second delivery, which the receiver has seen and not answered.
            process.kill()
        receiver.answer = lambda: 204
        assert Deliverer(catalog, HERE).deliver_due() == 0, "its lease has not ended"
        with opened(database_url, lambda: time.time() + webhooks.LEASE_SEC + 5) as later:  # type: ignore[arg-type]
            assert Deliverer(later, HERE).deliver_due() == 1
        assert receiver.names == ["a", "b", "b", "c"]
        ids = receiver.ids()
        assert ids[1] == ids[2]
        assert len(set(ids)) == 3
        assert get(catalog, webhook).pending == 0


def test_a_receiver_that_hangs_does_not_keep_a_worker_from_stopping(sqlite_url: str, receiver: Receiver) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, receiver.url)
        record(catalog, "a")
        receiver.answer = lambda: None
        stop = threading.Event()
        deliverer = Deliverer(catalog, HERE, timeout_sec=600)
        thread = threading.Thread(target=deliverer.deliver_due, args=(stop.is_set,), daemon=True)
        thread.start()
        assert receiver.has_come.wait(60)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert get(catalog, webhook).failures == 0
        receiver.answer = lambda: 204
        assert Deliverer(catalog, HERE).deliver_due() == 1, "its lease was given back"


def test_two_deliverers_never_serve_one_webhook_at_a_time(database_url: str, receiver: Receiver) -> None:
    with opened(database_url) as catalog:
        add(catalog, receiver.url)
        record(catalog, *map(str, range(12)))
        threads = [threading.Thread(target=Deliverer(catalog, HERE).deliver_due) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert receiver.names == list(map(str, range(12)))


def test_a_deliverer_that_was_slow_after_its_look_at_the_clock_takes_no_lease_away(pg_url: str, receiver: Receiver) -> None:
    """A lease that a rival got meanwhile ends later than any of that moment, which is not a clock that was set back."""
    with opened(pg_url) as rival:
        webhook = add(rival, receiver.url)
        record(rival, "a")
        find_start(rival, EventFilter(), 0)
        rivals_claims: list[WebhookClaim | None] = []

        def look_slowly() -> float:
            at = time.time()
            if not rivals_claims:
                time.sleep(0.01)
                with rival.begin() as session:
                    rivals_claims.append(webhooks.claim(session))
            return at

        with opened(pg_url, look_slowly) as slow, slow.begin() as session:  # type: ignore[arg-type]
            assert webhooks.claim(session) is None
        assert [claim and claim.webhook.id for claim in rivals_claims] == [webhook.id]


def test_a_deliverer_whose_lease_was_taken_writes_nothing(sqlite_url: str, receiver: Receiver) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, receiver.url)
        record(catalog, "a", "b")

        def lose_lease() -> int:
            with catalog.begin() as session:
                session.execute(update(webhooks_table).values(token=webhooks_table.c.token + 1))
            return 204

        receiver.answer = lose_lease
        # Its write is refused, and the lease, which is another's, keeps it from a second turn.
        assert Deliverer(catalog, HERE).deliver_due() == 1
        assert receiver.names == ["a"]
        assert get(catalog, webhook).position == 0


def test_a_test_is_sent_also_to_what_is_quarantined(sqlite_url: str, receiver: Receiver) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, receiver.url)
        with catalog.begin() as session:
            session.execute(update(webhooks_table).values(state="quarantined"))
            webhooks.request_test(session, webhook.id)
        assert Deliverer(catalog, HERE).deliver_due() == 1
        assert Deliverer(catalog, HERE).deliver_due() == 0
        answered = get(catalog, webhook).test
        assert answered is not None
        assert (answered["state"], answered["id"]) == ("delivered", receiver.ids()[0])
        assert json.loads(receiver.deliveries[0][1])["kind"] == "webhook.test"
        with catalog.begin() as session:
            webhooks.request_test(session, webhook.id)
        receiver.answer = lambda: 401
        Deliverer(catalog, HERE).deliver_due()
        answered = get(catalog, webhook).test
        assert answered is not None
        assert (answered["state"], answered["detail"]) == ("failed", "the receiver answered 401")


def test_a_webhook_has_the_bounds_of_its_key_and_ends_with_it(sqlite_url: str, receiver: Receiver) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, receiver.url, EventFilter(bounds=Bounds(robots=("wildrobot",))))
        record(catalog, "seen", robot="wildrobot")
        record(catalog, "hidden", robot="g1")
        Deliverer(catalog, HERE).deliver_due()
        assert receiver.names == ["seen"]
        with catalog.begin() as session:
            session.execute(update(webhooks_table).values(key_id="key_that_is_gone"))
            webhooks.request_test(session, webhook.id)
        record(catalog, "more", robot="wildrobot")
        Deliverer(catalog, HERE).deliver_due()
        ended = get(catalog, webhook)
        assert ended.state == "quarantined"
        assert "revoked or has expired" in str(ended.reason)
        assert receiver.names == ["seen"]


INSIDE = [
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
    *("::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused_by_itself_and_at_the_connection(
    address: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InputRefused, match="is inside"):
        check_url(f"http://{host}/hook", ())
    assert check_url(f"http://{host}/hook", (address,)) == address
    # A name that leads there: nothing tells before the connection.
    port = receiver.server.server_port
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", (address, port))])
    assert check_url(f"http://public.example.org:{port}/", ()) == "public.example.org"
    with pytest.raises(DeliveryFailure, match="leads to an address inside"):
        post(f"http://public.example.org:{port}/", {}, b"", allowed_hosts=(), timeout_sec=5)
    assert receiver.deliveries == []


def test_what_the_operator_allows_is_reached(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    port = receiver.server.server_port
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    for allowed_hosts in (("hooks.lab",), ("127.0.0.0/8",), ("127.0.0.1",)):
        assert post(f"http://hooks.lab:{port}/a?b=1", {}, b"{}", allowed_hosts=allowed_hosts, timeout_sec=5) == 204
    assert receiver.deliveries[0][0]["Host"] == f"hooks.lab:{port}"
    for allowed_hosts in (("other.lab",), ("10.0.0.0/8",)):
        with pytest.raises(DeliveryFailure):
            post(f"http://hooks.lab:{port}/", {}, b"", allowed_hosts=allowed_hosts, timeout_sec=5)


def test_a_receiver_behind_tls_must_have_a_certificate_of_its_name(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.server.server_port
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    certificate, context = make_certificate(tmp_path, "DNS:hooks.lab")
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)

    def send(host: str) -> int:
        return post(f"https://{host}:{port}/", {}, b"{}", allowed_hosts=("127.0.0.1",), timeout_sec=5)

    with pytest.raises(DeliveryFailure, match=r"the connection failed: .*CERTIFICATE_VERIFY_FAILED"):
        send("hooks.lab")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert send("hooks.lab") == 204
    with pytest.raises(DeliveryFailure, match=r"the connection failed: .*CERTIFICATE_VERIFY_FAILED"):
        send("other.lab")
    assert len(receiver.deliveries) == 1


@pytest.mark.parametrize(
    "url", ["ftp://a.org/", "http://", "http://u:p@a.org/", "http://a.org/\nb", "http://ä.org/", "http://[1/"]
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InputRefused, match="the URL cannot be"):
        check_url(url, ())


def test_an_answer_that_trickles_ends_by_the_deadline() -> None:
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not end.wait(0.02):
                    connection.sendall(b"X-A: b\r\n")

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(DeliveryFailure, match="no answer within"):
            post(url, {}, b"{}", allowed_hosts=HERE, timeout_sec=0.3)
        end.set()
        thread.join(30)
        assert not thread.is_alive()


def test_there_is_a_bound_of_webhooks(sqlite_url: str) -> None:
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, "https://hooks.example.org/")
        with catalog.begin() as session:
            row = dict(session.execute(select(webhooks_table)).mappings().one())
            rows = [row | {"id": f"webhook_{i}"} for i in range(webhooks.MAX_WEBHOOKS - 1)]
            session.execute(webhooks_table.insert(), rows)
        with pytest.raises(Conflict, match="100 webhooks"):
            add(catalog, "https://hooks.example.org/")
        with catalog.begin() as session:
            webhooks.remove(session, webhook.id, actor="a test")
        add(catalog, "https://hooks.example.org/")


def test_the_receiver_of_the_docs_works(sqlite_url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/events.md").read_text()
    [program] = re.findall(r"### A receiver\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "receiver.py").write_text(program)
    with opened(sqlite_url) as catalog:
        webhook = add(catalog, "http://127.0.0.1:1/")
        with catalog.session() as session:
            secret = session.execute(select(webhooks_table.c.secret)).scalar_one()
        command = [sys.executable, str(tmp_path / "receiver.py"), "0"]
        with subprocess.Popen(
            command, env=os.environ | {"WEBHOOK_SECRET": secret}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}/"
            forged = {"webhook-id": "event_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
            assert httpx2.post(url, content=b"{}", headers=forged).status_code == 401
            with catalog.begin() as session:
                session.execute(update(webhooks_table).values(url=url))
            record(catalog, "walk")
            assert Deliverer(catalog, HERE).deliver_due() == 1
            assert process.stdout.readline() == "clip.deleted {'name': 'walk'}\n"
            process.send_signal(signal.SIGKILL)
        assert get(catalog, webhook).failures == 0


def test_an_embedded_worker_delivers_and_the_secret_is_shown_once(tmp_path: Path, receiver: Receiver) -> None:
    settings = settings_for(tmp_path, webhook_allow=HERE)
    schema.upgrade(settings.database_url)
    app = create_app(settings, background=EmbeddedWorker(settings).running)
    with TestClient(app) as http:
        posted = http.post("/v1/webhooks", json={"url": receiver.url, "kinds": ["clip.deleted"]})
        assert posted.status_code == 201
        made = posted.json()
        assert made["secret"].startswith("whsec_")
        assert posted.headers["location"] == f"/v1/webhooks/{made['id']}"
        assert "secret" not in http.get(posted.headers["location"]).json()
        assert "whsec" not in http.get("/v1/webhooks").text
        record(app.state.services.catalog, "walk")
        assert receiver.has_come.wait(60)
        assert receiver.names == ["walk"]
        assert http.post(f"/v1/webhooks/{made['id']}/retry").json()["state"] == "active"
        refused = http.post("/v1/webhooks", json={"url": "http://10.0.0.1/"}).json()
        assert "AMPREF_WEBHOOK_ALLOW=10.0.0.1" in refused["remedy"]
        assert 'ampref_webhooks{state="active"} 1.0' in http.get("/metrics").text
        assert http.delete(posted.headers["location"]).status_code == 204
        assert http.get(posted.headers["location"]).status_code == 404


def test_a_key_with_bounds_sees_its_own_webhooks_alone(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    schema.upgrade(settings.database_url)
    app = create_app(settings)
    with TestClient(app) as http:
        bound = bearer(add_key(app, "bound", "webhooks:write", datasets=("walk*",))[0])
        lead = bearer(add_key(app, "lead", "webhooks:write")[0])
        of_lead = http.post("/v1/webhooks", json={"url": "https://a.example.org/"}, headers=lead).json()["id"]
        assert http.get("/v1/webhooks", headers=bound).json() == {"items": []}
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/retry")):
            assert http.request(method, f"/v1/webhooks/{of_lead}{path}", headers=bound).status_code == 404
        body = {"url": "https://b.example.org/", "dataset": "run"}
        assert http.post("/v1/webhooks", json=body, headers=bound).status_code == 403
        of_bound = http.post("/v1/webhooks", json=body | {"dataset": "walk"}, headers=bound).json()["id"]
        assert [row["id"] for row in http.get("/v1/webhooks", headers=bound).json()["items"]] == [of_bound]
        assert len(http.get("/v1/webhooks", headers=lead).json()["items"]) == 2
        with app.state.services.catalog.session() as session:
            webhook = webhooks.get(session, of_bound)
        assert webhook.criteria.bounds == Bounds(datasets=("walk*",))
        assert webhook.key_id == webhook.owner
