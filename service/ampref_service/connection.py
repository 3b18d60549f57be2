"""What stands between a socket and uvicorn's HTTP protocol.

It has a deadline for headers, our answer to what is no HTTP, and ASGI's extension `http.response.zerocopysend`, by which the
kernel sends parts of files itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import IO, Any, cast

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ampref_service.api.files import ZERO_COPY
from ampref_service.api.guard import list_security_headers
from ampref_service.api.problems import problem
from ampref_service.errors import BadRequest

MAX_HEADER_BYTES = 32 * 1024
"""How many bytes the request line and the headers may have."""

_LINGER_SEC = 5.0  # How long a client may take to close a connection whose last byte it was sent.
_STATE_KEY = "ampref.connection"
# What is no HTTP has no path and no id, but its answer has the one shape of all errors.
_PROBLEM = problem(
    {},
    BadRequest("this is no HTTP request that can be read", expected=f"HTTP/1.1, headers of at most {MAX_HEADER_BYTES:,} bytes"),
)
_HEADERS = [*_PROBLEM.raw_headers, (b"connection", b"close"), *list_security_headers(())]
_BAD_REQUEST = b"\r\n".join(
    [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in _HEADERS), b"", bytes(_PROBLEM.body)]
)


class Connection(asyncio.Protocol):
    """The protocol of a transport, and the transport of uvicorn's protocol; of both it needs asyncio's interfaces alone.

    The headers of a request are complete when the application is called: `mark_requests` marks this on the connection, which it
    finds in the state that uvicorn passes with every request.

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
        """Whatever else uvicorn's protocol asks of its transport."""
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
            self._transport.write(_BAD_REQUEST)
            self._transport.close()
        elif not self._is_refused:
            self._transport.write(data)

    async def send_file(self, file: IO[bytes], offset: int, count: int, receive: Receive) -> None:
        """Send a part of a file; `ClientDisconnect` where nobody takes it."""
        try:
            await asyncio.get_running_loop().sendfile(self._transport, file, offset, count)
        except (ConnectionError, RuntimeError) as error:  # RuntimeError: the transport is being closed.
            await self.abort(receive)
            raise ClientDisconnect from error

    async def abort(self, receive: Receive) -> None:
        """Cut the connection."""
        self._transport.abort()
        await _wait_for_disconnect(receive)

    async def end_file(self, receive: Receive) -> None:
        """End the connection after its last byte, once the client has closed it or some seconds are over.

        The client first: unread bytes of its next request would make the kernel throw away what is on the way.
        """
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._transport.write_eof()
            async with asyncio.timeout(_LINGER_SEC):
                await _wait_for_disconnect(receive)
        self._transport.close()
        await _wait_for_disconnect(receive)

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


async def _wait_for_disconnect(receive: Receive) -> None:
    """uvicorn takes an application that ends before it has seen the end of its connection for a faulty one."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse_headers(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 400, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": bytes(_PROBLEM.body)})


def mark_requests(app: ASGIApp) -> ASGIApp:
    """`app`, which marks the beginning of each request and the end of its answer on the request's `Connection`."""

    async def marked_app(scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get("state", {}).pop(_STATE_KEY, None)
        if connection is None:
            await app(scope, receive, send)
            return
        request, has_begun, has_ended = object(), False, False

        async def send_and_mark(message: Message) -> None:
            nonlocal has_begun, has_ended
            has_begun = True
            has_ended = is_last = message["type"] in ("http.response.body", ZERO_COPY) and not message.get("more_body", False)
            if is_last:
                connection.end_answer()
            if message["type"] == ZERO_COPY:
                await connection.send_file(message["file"], message["offset"], message["count"], receive)
                if is_last:
                    await connection.end_file(receive)
            else:
                await send(message)
            if is_last:
                connection.end_request(request)

        connection.begin_request(request)
        scope = {**scope, "extensions": {**scope.get("extensions", {}), ZERO_COPY: {}}}
        # What arrives at once is complete before uvicorn looks at its limit.
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        try:
            await (_refuse_headers if size > MAX_HEADER_BYTES else app)(scope, receive, send_and_mark)
            if has_begun and not has_ended:  # What it was was logged.
                await connection.abort(receive)
        except asyncio.CancelledError:
            # The server stops, and the client has not taken its answer within the time that was left: no fault to trace back.
            await connection.abort(receive)
        finally:
            connection.end_request(request)

    return marked_app
