"""What surrounds every request: its id, its log line, its latency, and the limits of its body.

`observe_requests` is the outermost: it names the request, measures it, and answers with a problem when anything escapes the
handlers. `limit_bodies` counts the body as it streams, so that no more than the limit is ever held, and gives slow senders a
deadline. Both are plain ASGI: a middleware that buffers would break streaming and server-sent events.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amp_core.errors import AmprefError, Busy, TooLarge
from ampref_service.api.guard import list_security_headers
from ampref_service.api.problems import format_traceback, problem
from ampref_service.errors import BadRequest, BrokenAnswer, InternalError, RequestTimeout
from ampref_service.settings import MIB
from ampref_service.spool import Admission

log = structlog.get_logger("ampref_service.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})

# After an early refusal the connection is closed, but not before the client had a moment to read why: closing a socket with
# unread bytes in it makes the kernel throw the answer away.
_LINGER_SEC = 5.0
_STEP_BYTES = MIB  # So many more bytes of a body give it its time anew: a batch may take longer over a slow line.
_LINGER_BYTES = 256 * MIB

Observe = Callable[[str, str, int, float], None]
"""Called with the route's path template, the method, the status and the seconds of every request."""


def observe_requests(app: ASGIApp, observe: Observe) -> ASGIApp:
    """`app`, whose requests are named, logged and measured; the last resort for its exceptions."""

    async def observed_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope["ampref.request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
                message["headers"].extend(list_security_headers(name for name, _ in message["headers"]))
            await send(message)

        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                await app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("client_left", request_id=request_id, path=scope["path"])
        except BrokenAnswer as error:
            log.error("answer_broken_off", request_id=request_id, path=scope["path"], reason=str(error))
        except Exception as error:
            log.error("unhandled_exception", request_id=request_id, path=scope["path"], exception=format_traceback(error))
            if status:
                raise  # Half an answer went out already: only closing the connection can tell the client.
            await problem(scope, InternalError())(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            # The template of the path (`/v1/clips/{clip_id}`) is a label with few values, whatever clients ask for.
            route = getattr(scope.get("route"), "path", "unmatched")
            observe(route, scope["method"], status, seconds)
            (log.debug if route in _PROBES else log.info)(
                "request",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1e3, 2),
                client=(scope.get("client") or ("",))[0],
                caller=getattr(scope.get("ampref.caller"), "name", ""),
            )

    return observed_app


def limit_bodies(app: ASGIApp, limit: Callable[[Scope], int], timeout_sec: float) -> ASGIApp:
    """`app`, whose requests' bodies are counted as they arrive.

    Args:
      limit: gives the bytes that the body of a request may have.
      timeout_sec: a body of which in this time neither the rest nor another `_STEP_BYTES` has arrived is given up (408).
    """

    async def limited_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = _Body(scope, receive, limit(scope), timeout_sec)
        try:
            body.check_declared_size()
        except AmprefError as error:
            await problem(scope, error)(scope, receive, body.wrap_send(send))
        else:
            await app(scope, body.receive, body.wrap_send(send))

    return limited_app


def admit_uploads(app: ASGIApp, admission: Admission, declared_size: Callable[[Scope], int | None]) -> ASGIApp:
    """`app`, whose uploads are answered 503 before their body is read where `admission` has no room for them.

    Args:
      declared_size: gives the bytes that an upload may have; None for a request that is none.
    """

    async def admitting_app(scope: Scope, receive: Receive, send: Send) -> None:
        size = declared_size(scope) if scope["type"] == "http" else None
        if size is None:
            await app(scope, receive, send)
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(admission.admit(size))
            except Busy as error:
                log.info("upload_turned_away", request_id=scope.get("ampref.request_id"), reason=error.what)
                await problem(scope, error)(scope, receive, send)
            else:
                await app(scope, receive, send)

    return admitting_app


class _Body:
    """The body of one request as it arrives."""

    def __init__(self, scope: Scope, receive: Receive, limit: int, timeout_sec: float) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._timeout_sec = timeout_sec
        self._deadline = time.monotonic() + timeout_sec
        self._size = 0
        self._next_step = _STEP_BYTES
        self._declared_size = headers.get("content-length")
        self._complete = (self._declared_size or "0").strip() == "0" and "transfer-encoding" not in headers
        # Whether the client is about to send: not one that waits for a "100 Continue", which the first `receive` sends.
        self._is_coming = headers.get("expect", "").lower() != "100-continue"

    def check_declared_size(self) -> None:
        """Raise `BadRequest` or `TooLarge` for a Content-Length that is no number or over the limit."""
        if self._declared_size is None:
            return
        if not (self._declared_size.isascii() and self._declared_size.isdigit()):
            raise BadRequest("the Content-Length is not a number", key="content-length")
        if len(self._declared_size) > 18 or int(self._declared_size) > self._limit:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        # In whole MiB: what the framing of a form may take besides its file is a detail.
        limit = f"{self._limit // MIB} MiB" if self._limit >= MIB else f"{self._limit:,} bytes"
        return TooLarge(
            "the request body is too large",
            expected=f"at most {limit}",
            remedy="Cut the motion into shorter clips or send fewer at a time, or ask the operator to raise the limit "
            "(AMPREF_MAX_UPLOAD_BYTES, of a batch AMPREF_MAX_BATCH_MB)",
        )

    async def receive(self) -> Message:
        """The next part of the body; raises `TooLarge` and `RequestTimeout`."""
        if self._complete:
            return await self._receive()
        self._is_coming = True
        try:
            message = await self._receive_until(self._deadline)
        except TimeoutError:
            self._is_coming = False
            raise RequestTimeout(
                f"the body was not whole in time: only {self._size:,} bytes came",
                remedy="Send it again over a faster connection, or ask the operator to raise AMPREF_REQUEST_TIMEOUT_SEC",
            ) from None
        if self._size > self._limit:
            raise self._too_large()
        return message

    async def _receive_until(self, deadline: float) -> Message:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0.001)):
            message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size >= self._next_step:
                self._next_step = self._size + _STEP_BYTES
                self._deadline = time.monotonic() + self._timeout_sec
            self._complete = not message.get("more_body", False)
        return message

    def wrap_send(self, send: Send) -> Send:
        """`send`, which closes the connection when the answer is ready before the body has arrived."""
        is_early = False

        async def send_and_close(message: Message) -> None:
            nonlocal is_early
            if message["type"] == "http.response.start" and not self._complete:
                is_early = True
                MutableHeaders(scope=message)["connection"] = "close"
            elif is_early and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._discard_rest()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return send_and_close

    async def _discard_rest(self) -> None:
        deadline, end = time.monotonic() + _LINGER_SEC, self._size + _LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            while self._is_coming and not self._complete and self._size < end:
                if (await self._receive_until(deadline))["type"] != "http.request":
                    return
