"""Running the API under uvicorn, with the deadlines that uvicorn does not set itself.

    headers   have to arrive within `request_timeout_sec` of the connection's (or the last answer's) end, or it is closed
    bodies    have the same time again (`ampref_service.api.middleware.BodyLimits`)
    idle      connections are closed after `keep_alive_sec`
    stopping  open requests have `shutdown_grace_sec`; event streams end at once

What it cannot bound is a client that reads its answer slowly; a proxy in front does (docs/http.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from amp_core.errors import Unavailable
from ampref_service.errors import BadRequest, problem
from ampref_service.settings import Settings

MAX_HEADER_BYTES = 32 * 1024


class DeadlineProtocol(H11Protocol):
    """Closes connections whose request line and headers do not arrive in time."""

    header_timeout_sec = 30.0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        # What is no HTTP has no path and no id, but its answer has the one shape of all errors.
        error = BadRequest(
            "this is no HTTP request that can be read", expected=f"HTTP/1.1, headers of at most {MAX_HEADER_BYTES:,} bytes"
        )
        answer = problem({}, error)
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_headers(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_sec, self._give_up)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        # A connection that waits for its next request is the keep-alive timer's business.
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.transport.close()


def listen(settings: Settings) -> socket.socket:
    """A bound socket on `host:port`; port 0 takes a free one, which `getsockname()` then tells.

    Raises:
      Unavailable: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the socket names its protocol. With it on, the second write of an answer
    # (its body) waits for the client's delayed acknowledgement of the first: 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            remedy="Stop what uses it, or choose another with AMPREF_PORT (0 takes a free one)",
        ) from error
    listener.set_inheritable(True)
    return listener


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A uvicorn server for `app`; start it with `server.run(sockets=[listen(settings)])`."""
    protocol = type("_Protocol", (DeadlineProtocol,), {"header_timeout_sec": settings.request_timeout_sec})
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,  # structlog has configured logging; see ampref_service.logs
        access_log=False,  # our own line has the request id and the latency
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_sec,
        timeout_graceful_shutdown=settings.shutdown_grace_sec,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=512,
    )
    return uvicorn.Server(config)


def run(app: FastAPI, settings: Settings, listener: socket.socket | None = None, **_: Any) -> None:
    """Serve until SIGINT or SIGTERM, and return when the last request has ended."""
    # What start-up made stays for good. Without this every full collection looks through all of it, 40 to 70 ms in which no
    # request is answered.
    gc.collect()
    gc.freeze()
    with contextlib.closing(listener or listen(settings)) as bound:
        make_server(app, settings).run(sockets=[bound])
