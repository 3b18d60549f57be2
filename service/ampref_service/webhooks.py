"""Delivering events to webhooks: signed, in order, at least once, and to no address inside unless the operator names it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

import structlog

from amp_core.errors import InputRefused
from ampref_service.catalog import Catalog, events, webhooks
from ampref_service.catalog.records import Event, EventGap, WebhookClaim
from ampref_service.event_feed import place_events

log = structlog.get_logger("ampref_service.webhooks")

TIMEOUT_SEC = 10.0
_SECRET_PREFIX = "whsec_"
_SECRET_BYTES = 32
_PAGE = 50
_TURN_SEC = 30.0
"""After this a webhook with many events lets others have their turn."""
_WATCH_SEC = 0.2
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MAX_URL = 2000
_KEY_ENDED = "the key that made it was revoked or has expired; make it anew with another"


def make_secret() -> str:
    """A new webhook's secret."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a delivery, by the scheme of the Standard Webhooks."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def check_url(url: str, allowed_hosts: Collection[str]) -> str:
    """The host of a URL that a webhook may have. What its name leads to is checked at each connection.

    Raises:
      InputRefused: it is none, or names an address inside.
    """
    expected = "https://HOST/PATH or http://HOST/PATH, in ASCII and without a password"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise InputRefused("the URL cannot be read", key="url", expected=expected) from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _MAX_URL
    if not is_plain or parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.fragment:
        raise InputRefused("the URL cannot be used", key="url", expected=expected, remedy="Put a token into its path or query")
    is_inside = host == "localhost" or host.endswith(".localhost")
    with contextlib.suppress(ValueError):
        is_inside = is_inside or not _is_public(host)
    if is_inside and not _is_allowed(host, host, allowed_hosts):
        raise InputRefused(
            f"the host {host} is inside",
            key="url",
            expected="a public address",
            remedy=f"The operator allows it with AMPREF_WEBHOOK_ALLOW={host}, for the API and the workers",
        )
    return host


def _is_public(address: str) -> bool:
    """Whether an IP address is neither this machine's nor of a private, link-local or other special network."""
    number: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if inner is None and number in _NAT64:
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        number = inner or number
    return number.is_global and not number.is_multicast and not number.is_reserved


def _is_allowed(host: str, address: str, allowed_hosts: Collection[str]) -> bool:
    """Whether the operator allows a host by its name, or an address by itself or its network."""
    if host.lower() in allowed_hosts:
        return True
    networks = []
    for entry in allowed_hosts:
        with contextlib.suppress(ValueError):  # The name of a host.
            networks.append(ipaddress.ip_network(entry, strict=False))
    with contextlib.suppress(ValueError):
        return any(ipaddress.ip_address(address.partition("%")[0]) in network for network in networks)
    return False


class DeliveryFailure(Exception):
    """A receiver did not take a message; the text says why, and nothing of what it answered."""


@dataclass(frozen=True)
class Message:
    """What is sent: the event's JSON, and its id."""

    id: str
    body: bytes

    @classmethod
    def of_event(cls, event: Event) -> Message:
        """An event as the stream has it."""
        facts = {name: getattr(event, name) for name in ("position", "dataset", "robot", "data")}
        return cls._make(event.id, event.kind, event.at, **facts)

    @classmethod
    def of_gap(cls, webhook_id: str, gap: EventGap) -> Message:
        """That events are missing."""
        data = {"after": gap.after, "oldest": gap.oldest}
        return cls._make(f"gap_{webhook_id}_{gap.after}_{gap.oldest}", "gap", time.time(), data=data)

    @classmethod
    def of_test(cls, test_id: str, webhook_id: str) -> Message:
        """A test."""
        return cls._make(test_id, "webhook.test", time.time(), data={"webhook_id": webhook_id})

    @classmethod
    def _make(cls, message_id: str, kind: str, at: float, **facts: Any) -> Message:
        time_text = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        document = {"id": message_id, "kind": kind, "at": time_text, **facts}
        return cls(message_id, json.dumps(document, separators=(",", ":"), default=dict).encode())


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed_hosts: Collection[str],
    timeout_sec: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """POST a body and return the status of the answer, of which nothing else is read. Redirects are not followed.

    Args:
      should_stop: is asked five times a second; once it is true the connection is cut.

    Raises:
      DeliveryFailure: there is no answer in time, or the address may not be connected to.
    """
    parts = urlsplit(url)
    with _Watch(time.monotonic() + timeout_sec, should_stop) as watch:
        try:
            connected_socket = _connect(parts, allowed_hosts, watch)
            if parts.scheme == "https":
                context = ssl.create_default_context()
                connected_socket = watch.connection = context.wrap_socket(
                    connected_socket, server_hostname=parts.hostname, do_handshake_on_connect=False
                )
            with contextlib.closing(connected_socket):
                if isinstance(connected_socket, ssl.SSLSocket):
                    connected_socket.do_handshake()
                connection = http.client.HTTPConnection(parts.hostname or "")
                connection.sock = connected_socket
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", target, body, {**headers, "Host": parts.netloc, "Connection": "close"})
                with contextlib.closing(connection.getresponse()) as response:
                    if watch.is_over():  # Headers that were cut off look like whole ones.
                        raise TimeoutError
                    return response.status
        except (OSError, UnicodeError, http.client.HTTPException) as error:  # UnicodeError: of a name that no host can have.
            if watch.is_over():
                raise DeliveryFailure(f"no answer within {timeout_sec:g} s") from error
            # The text of other errors may repeat what was answered.
            reason = error.strerror if isinstance(error, OSError) else None
            raise DeliveryFailure(f"the connection failed: {reason or type(error).__name__}") from error


class _Watch:
    """Cuts a connection at a time or once it should stop, whatever trickles on it.

    Attributes:
      connection: what to cut; None as long as there is none.
    """

    def __init__(self, end: float, should_stop: Callable[[], bool]) -> None:
        self.connection: socket.socket | None = None
        self._end = end
        self._should_stop = should_stop
        self._exit_event = threading.Event()

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._watch, name="webhook watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_event.set()

    def is_over(self) -> bool:
        """Whether the time is over, or it should stop."""
        return time.monotonic() >= self._end or self._should_stop()

    def left(self) -> float:
        """s that are left."""
        return max(self._end - time.monotonic(), 0.01)

    def _watch(self) -> None:
        while not self._exit_event.wait(min(_WATCH_SEC, self.left())):
            if self.is_over() and self.connection is not None:
                with contextlib.suppress(OSError):
                    # Of the socket under TLS, whose own method would wait for the other side.
                    socket.socket.shutdown(self.connection, socket.SHUT_RDWR)


def _connect(parts: SplitResult, allowed_hosts: Collection[str], watch: _Watch) -> socket.socket:
    """A connection to the first address of the URL's host that answers; each is checked before, and no name is asked twice."""
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    failure: Exception | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not (_is_public(str(address[0])) or _is_allowed(host, str(address[0]), allowed_hosts)):
            failure = DeliveryFailure(f"{host} leads to an address inside; the operator allows it with AMPREF_WEBHOOK_ALLOW")
            continue
        watch.connection = connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(watch.left())
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure or DeliveryFailure(f"{host} has no address")


class Deliverer:
    """Delivers what is due, from any number of threads and processes: each webhook is one deliverer's at a time.

    Args:
      allowed_hosts: names, addresses and networks inside that webhooks may lead to.
    """

    def __init__(self, catalog: Catalog, allowed_hosts: Collection[str], *, timeout_sec: float = TIMEOUT_SEC) -> None:
        self._catalog = catalog
        self._allowed_hosts = allowed_hosts
        self._timeout_sec = timeout_sec

    def deliver_due(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Serve webhooks as long as one is due; returns how many turns there were. An idle look writes nothing."""
        turns = 0
        while not should_stop():
            with self._catalog.session() as session:
                if not webhooks.has_active(session):
                    break
            place_events(self._catalog)
            with self._catalog.session() as session:
                if not webhooks.is_due(session):
                    break
            with self._catalog.begin() as session:
                claim = webhooks.claim(session)
            if claim is None:
                break
            self._serve(claim, should_stop)
            turns += 1
        return turns

    def _serve(self, claim: WebhookClaim, should_stop: Callable[[], bool]) -> None:
        """Send a test that was asked for, then events in order, until one fails, none is left or the turn is over."""
        webhook, end = claim.webhook, time.monotonic() + _TURN_SEC
        with self._catalog.session() as session:
            is_key_valid = webhooks.is_key_valid(session, claim)
        if not is_key_valid:
            self._fail(claim, _KEY_ENDED, is_final=True)
        if claim.test_id is not None:
            message = Message.of_test(claim.test_id, webhook.id)
            detail = self._send(claim, message, should_stop)[0] if is_key_valid else _KEY_ENDED
            if detail is None or not should_stop():
                with self._catalog.begin() as session:
                    webhooks.end_test(session, claim, detail)
        position, is_active = webhook.position, is_key_valid and webhook.state == "active"
        while is_active and not should_stop() and time.monotonic() < end:
            with self._catalog.session() as session:
                page = events.list_page(session, webhook.criteria, after=position, limit=_PAGE)
            if page.gap is not None:
                message = Message.of_gap(webhook.id, page.gap)
                is_active = self._deliver(claim, message, page.gap.oldest - 1, should_stop)
            for event in page.items:
                message = Message.of_event(event)
                is_active = is_active and not should_stop() and self._deliver(claim, message, event.position, should_stop)
            if not is_active or page.next_after == position:
                break
            position = page.next_after
            if not page.items or page.items[-1].position < position:
                with self._catalog.begin() as session:
                    is_active = webhooks.advance(session, claim, position)
        with self._catalog.begin() as session:
            webhooks.release(session, claim)

    def _deliver(self, claim: WebhookClaim, message: Message, position: int, should_stop: Callable[[], bool]) -> bool:
        """Send a message and keep how it went; False where this turn is over. What was cut by a stop is no failure."""
        detail, is_gone = self._send(claim, message, should_stop)
        if detail is not None:
            if not should_stop():
                self._fail(claim, detail, is_final=is_gone)
            return False
        with self._catalog.begin() as session:
            return webhooks.advance(session, claim, position, is_delivery=True)

    def _send(self, claim: WebhookClaim, message: Message, should_stop: Callable[[], bool]) -> tuple[str | None, bool]:
        """What failed, None where nothing did, and whether the receiver wants nothing any more."""
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "ampref",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(claim.secret, message.id, timestamp, message.body),
        }
        options: dict[str, Any] = {
            "allowed_hosts": self._allowed_hosts,
            "timeout_sec": self._timeout_sec,
            "should_stop": should_stop,
        }
        try:
            status = post(claim.webhook.url, headers, message.body, **options)
        except DeliveryFailure as failure:
            return str(failure), False
        if 200 <= status < 300:
            return None, False
        note = ": redirects are not followed" if 300 <= status < 400 else ": it is gone" if status == 410 else ""
        return f"the receiver answered {status}{note}", status == 410

    def _fail(self, claim: WebhookClaim, detail: str, *, is_final: bool) -> None:
        with self._catalog.begin() as session:
            reason = webhooks.fail(session, claim, detail, is_final=is_final)
        if reason is None:
            log.warning("webhook_failed", webhook=claim.webhook.id, reason=detail)
        else:
            log.error("webhook_quarantined", webhook=claim.webhook.id, reason=reason)
