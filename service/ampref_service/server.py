"""Running the API under uvicorn, with the deadlines that uvicorn does not set itself.

    headers   have to arrive within `request_timeout_sec` of the connection's beginning, or of their own first byte after an
              answer, or the connection is closed
    bodies    have the same time again (`ampref_service.api.middleware.BodyLimits`)
    idle      connections are closed after `keep_alive_sec`
    stopping  open requests have `shutdown_grace_sec`; event streams end at once

What it cannot bound is a client that reads its answer slowly; a proxy in front does (docs/http.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amp_core.errors import Unavailable
from ampref_service.api.problems import problem
from ampref_service.errors import BadRequest
from ampref_service.settings import Settings

MAX_HEADER_BYTES = 32 * 1024

_STATE_KEY = "ampref.connection"


class Connection(asyncio.Protocol):
    """One connection: uvicorn's protocol with a deadline for headers, and with our answer to what is no HTTP.

    It stands between the transport and uvicorn's protocol and relies on nothing of either but asyncio's interfaces. That the
    headers of a request are complete is known from the application, which is called then: `mark_requests` finds the connection
    in the state that uvicorn hands to every request.

    Args:
      protocol_class: makes uvicorn's protocol, from `app_state` and `options`.
      header_timeout_sec: how long headers may take.
    """

    def __init__(self, protocol_class: Any, header_timeout_sec: float, app_state: dict[str, Any], **options: Any) -> None:
        self._protocol: asyncio.Protocol = protocol_class(app_state={**app_state, _STATE_KEY: self}, **options)
        self._transport = asyncio.Transport()  # Until there is one.
        self._header_timeout_sec = header_timeout_sec
        self._timer: asyncio.TimerHandle | None = None
        self._request: object | None = None
        self._is_answering = False
        self._is_refused = False

    def __getattr__(self, name: str) -> Any:
        """Of the transport, what this class does not have: uvicorn's protocol sees the connection as its transport."""
        return getattr(self._transport, name)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.connection_made(cast(asyncio.Transport, self))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._request is None:
            self._start_timer()
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def write(self, data: bytes) -> None:
        """Send what uvicorn's protocol writes, but for its own answer to what is no HTTP."""
        if not self._is_answering and data.startswith(b"HTTP/1.1 400 "):
            self._is_refused = True
            self._transport.write(_format_bad_request())
            self._transport.close()
        elif not self._is_refused:
            self._transport.write(data)

    def begin_request(self, request: object) -> None:
        """The headers of `request` have arrived."""
        self._request = request
        self._is_answering = True
        self._stop_timer()

    def end_answer(self) -> None:
        """The rest of an answer is about to be sent, and with it what uvicorn makes of bytes that wait behind the request."""
        self._is_answering = False

    def end_request(self, request: object) -> None:
        """The answer to `request` was sent; another may have begun before."""
        if self._request is request:
            self._request = None
            self._is_answering = False

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._header_timeout_sec, self._transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def mark_requests(app: ASGIApp) -> ASGIApp:
    """`app`, which says to each request's `Connection` when the request begins and when its answer ends."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get("state", {}).pop(_STATE_KEY, None)
        if connection is None:
            await app(scope, receive, send)
            return
        request = object()

        async def send_and_mark(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last:
                connection.end_answer()
            await send(message)
            if is_last:
                connection.end_request(request)

        connection.begin_request(request)
        try:
            await app(scope, receive, send_and_mark)
        finally:
            connection.end_request(request)

    return marked


def _format_bad_request() -> bytes:
    # What is no HTTP has no path and no id, but its answer has the one shape of all errors.
    expected = f"HTTP/1.1, headers of at most {MAX_HEADER_BYTES:,} bytes"
    response = problem({}, BadRequest("this is no HTTP request that can be read", expected=expected))
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", bytes(response.body)]
    return b"\r\n".join(lines)


class _Config(uvicorn.Config):
    """uvicorn's configuration, with its HTTP protocol behind a `Connection`."""

    def __init__(self, app: FastAPI, header_timeout_sec: float, **options: Any) -> None:
        super().__init__(mark_requests(app), **options)
        self._header_timeout_sec = header_timeout_sec

    def load(self) -> None:
        super().load()
        self.http_protocol_class = functools.partial(  # type: ignore[assignment]
            Connection, self.http_protocol_class, self._header_timeout_sec
        )


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
    config = _Config(
        app,
        settings.request_timeout_sec,
        host=settings.host,
        port=settings.port,
        http="h11",
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


def run(app: FastAPI, settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until SIGINT or SIGTERM, and return when the last request has ended."""
    # What start-up made stays for good. Without this every full collection looks through all of it, 40 to 70 ms in which no
    # request is answered.
    gc.collect()
    gc.freeze()
    with contextlib.closing(listener or listen(settings)) as bound:
        make_server(app, settings).run(sockets=[bound])
