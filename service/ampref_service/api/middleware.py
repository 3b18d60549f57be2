"""What surrounds every request: its id, its log line, its latency, and the limits of its body.

`RequestScope` is the outermost: it names the request, measures it, and answers with a problem when anything escapes the
handlers. `BodyLimits` counts the body as it streams, so that nothing above a limit is ever held, and gives slow senders a
deadline. Both are plain ASGI: a middleware that buffers would break streaming and server-sent events.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amp_core.errors import AmprefError, TooLarge
from ampref_service.errors import BadRequest, RequestTimeout, internal_error, problem, traceback_text
from ampref_service.settings import MIB

log = structlog.get_logger("service.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# After an early refusal the connection is closed, but not before the client had a moment to read why: closing a socket with
# unread bytes in it makes the kernel throw the answer away.
LINGER_SEC = 5.0
LINGER_BYTES = 256 * 1024 * 1024

Observe = Callable[[str, str, int, float], None]
"""Called with the route's path template, the method, the status and the seconds of every request."""


class RequestScope:
    """Names, logs and measures every request; the last resort for exceptions."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        identity = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope["ampref.request_id"] = identity
        started, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = identity
                headers.setdefault("x-content-type-options", "nosniff")
            await send(message)

        try:
            with structlog.contextvars.bound_contextvars(request_id=identity):
                await self._app(scope, receive, send_named)
        except ClientDisconnect:
            log.info("client_left", request_id=identity, path=scope["path"])
        except Exception as error:
            log.error("unhandled_exception", request_id=identity, path=scope["path"], exception=traceback_text(error))
            if status:
                raise  # Half an answer went out already: only closing the connection can tell the client.
            await internal_error(scope)(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - started
            route = _route(scope)
            self._observe(route, scope["method"], status, seconds)
            quiet = route in {"/healthz", "/readyz", "/metrics"}
            (log.debug if quiet else log.info)(
                "request",
                request_id=identity,
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1e3, 2),
                client=(scope.get("client") or ("",))[0],
            )


def _route(scope: MutableMapping[str, Any]) -> str:
    """The template of the path (`/v1/clips/{clip_id}`): a label with few values, whatever is asked for."""
    template = getattr(scope.get("route"), "path", None)
    if not template:
        return "unmatched"
    # The framework leaves out the prefix under which a router was included.
    return f"/v1{template}" if scope["path"].startswith("/v1/") and not template.startswith("/v1/") else str(template)


class BodyLimits:
    """Counts bodies as they arrive.

    Args:
      limit: gives the bytes that the body of this request may have.
      timeout_sec: a body that has not arrived after this is given up (408).
    """

    def __init__(self, app: ASGIApp, limit: Callable[[Scope], int], timeout_sec: float) -> None:
        self._app = app
        self._limit = limit
        self._timeout_sec = timeout_sec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, self._limit(scope), self._timeout_sec)
        try:
            body.check_declared()
        except AmprefError as error:
            await problem(scope, error)(scope, receive, body.closing(send))
            return
        await self._app(scope, body.receive, body.closing(send))


def _readable(limit: int) -> str:
    """A limit in whole MiB: what the framing of a form may take besides its file is nobody's business."""
    return f"{limit // MIB} MiB" if limit >= MIB else f"{limit:,} bytes"


class _Body:
    def __init__(self, scope: Scope, receive: Receive, limit: int, timeout_sec: float) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        self._limit = limit
        self._deadline = time.monotonic() + timeout_sec
        self._seen = 0
        self._started = False
        self._gave_up = False
        self._declared = headers.get("content-length")
        self._continue = headers.get("expect", "").lower() == "100-continue"
        self._whole = (self._declared is None or self._declared.strip() == "0") and "transfer-encoding" not in headers

    def check_declared(self) -> None:
        if self._declared is None:
            return
        if not (self._declared.isascii() and self._declared.isdigit()):
            raise BadRequest("the Content-Length is not a number", key="content-length")
        if len(self._declared) > 18 or int(self._declared) > self._limit:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(
            "the request body is too large",
            expected=f"at most {_readable(self._limit)}",
            remedy="Cut the motion into shorter clips, or ask the operator to raise AMPREF_MAX_UPLOAD_BYTES",
        )

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        self._started = True
        patience = self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(patience, 0.001)):
                message = await self._receive()
        except TimeoutError:
            self._gave_up = True
            raise RequestTimeout(
                f"the body was not whole in time: only {self._seen:,} bytes came",
                remedy="Send it again over a faster connection, or ask the operator to raise AMPREF_REQUEST_TIMEOUT_SEC",
            ) from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._seen > self._limit:
                raise self._too_large()
        return message

    def closing(self, send: Send) -> Send:
        """`send`, which closes the connection when the answer is ready before the body has arrived."""
        early = False

        async def send_closing(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and not self._whole:
                early = True
                MutableHeaders(scope=message)["connection"] = "close"
            elif early and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return send_closing

    async def _linger(self) -> None:
        if self._gave_up or (self._continue and not self._started):
            return  # Nothing is coming; in the second case the client waits for our word.
        deadline, drained = time.monotonic() + LINGER_SEC, 0
        while not self._whole and drained < LINGER_BYTES:
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.001)):
                    message = await self._receive()
            except TimeoutError:
                return
            if message["type"] != "http.request":
                return
            drained += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
