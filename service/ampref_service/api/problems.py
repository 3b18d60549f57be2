"""One shape for every error that the service answers: `application/problem+json` (RFC 9457).

Whatever goes wrong (an unknown route, a motion with NaN in it, a bug), the client reads the same members:

    type        urn:ampref:error:SLUG: stable, made for programs
    title       the kind of error, the same for every occurrence
    status      the HTTP status
    detail      this occurrence, as one readable text
    instance    the path of the request
    request_id  also in the X-Request-ID header and in the service's log
    what, file, key, frame, expected, remedy    the facts of `amp_core.errors`, where they are known
    errors      every fault of a query or a body, when there may be several

Values that the client sent are never echoed as JSON values: NaN and lone surrogates among them could not be serialized.
An unexpected exception is logged with its traceback; the client reads the request id and no more. What is away or full, and who
is refused (401, 403, 429), is logged as a line, at most once a second for each type and caller.
"""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from amp_core.errors import AmprefError, Busy, MotionRefused, NotFound, QuotaExceeded
from amp_core.strict_json import format_json
from ampref_service import errors
from ampref_service.logs import RepeatingLog

log = structlog.get_logger("ampref_service.errors")
_repeating_log = RepeatingLog(log)

MEDIA_TYPE = "application/problem+json"
_BUSY_RETRY_SEC = (2, 8)
_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})
_HEADERS: Mapping[int, Mapping[str, str]] = {
    HTTPStatus.UNAUTHORIZED: {"www-authenticate": 'Bearer realm="ampref"'},
    HTTPStatus.SERVICE_UNAVAILABLE: {"retry-after": "5"},
}
"""By status, what goes with the problem."""


def format_problem(scope: Mapping[str, Any], error: AmprefError) -> dict[str, Any]:
    """The members of the problem that `error` is, in the request of an ASGI `scope`."""
    return error.to_dict() | {
        "type": f"urn:ampref:error:{error.slug}",
        "title": error.title,
        "status": error.status,
        "instance": str(scope.get("path", "")),
        "request_id": str(scope.get("ampref.request_id", "")),
    }


_EXAMPLE = format_problem(
    {"path": "/v1/clips", "ampref.request_id": "b2f0c6f2a6f94b6c9a3f3d1f6f0e8f55"},
    MotionRefused("holds NaN", file="walk.pkl", key="dof_pos", frame=17, expected="finite radians", remedy="Remove the frame"),
)


class Fault(BaseModel):
    """One fault of a request that may have several."""

    key: str = Field(description="Where: `query.limit`, `body.select.tier`, …")
    what: str


class Problem(BaseModel):
    """Every error of this service, whatever its status."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    type: str = Field(description="`urn:ampref:error:SLUG`, stable: decide by this, not by the texts.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="The same as the X-Request-ID header; quote it in a bug report.")
    what: str | None = None
    file: str | None = None
    key: str | None = None
    frame: int | None = None
    expected: str | None = None
    remedy: str | None = None
    errors: list[Fault] | None = None


def problem(
    scope: Mapping[str, Any], error: AmprefError, *, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """The response for `error`; `scope` is the ASGI scope of the request, or empty where it could not be read."""
    body = format_problem(scope, error)
    if telemetry := getattr(getattr(scope.get("app"), "state", None), "telemetry", None):
        telemetry.count_problem(error.slug)
    log_refusal(scope, error)
    if faults:
        body["errors"] = [fault.model_dump() for fault in faults]
    # A lone surrogate, which a path or a file name may hold, becomes the escape that JSON has for it.
    content = format_json(body).encode("utf-8", "backslashreplace")
    all_headers = {**_HEADERS.get(error.status, {}), **(headers or {}), "cache-control": "no-store"}
    if isinstance(error, Busy):
        # Those who were turned away together would come back together.
        all_headers["retry-after"] = str(random.randint(*_BUSY_RETRY_SEC))
    return Response(content, error.status, all_headers, MEDIA_TYPE)


def log_refusal(scope: Mapping[str, Any], error: AmprefError) -> None:
    """Log who was refused what, for want of a key, a right or a quota; a refused request leaves no other trace."""
    if error.status not in _REFUSALS:
        return
    caller = getattr(scope.get("ampref.caller"), "name", "")
    _repeating_log.warning(
        "request_refused",
        f"{error.slug} {caller}",
        status=error.status,
        caller=caller,
        client=(scope.get("client") or ("",))[0],
        method=scope.get("method"),
        path=scope.get("path"),
        reason=error.what,
    )


def format_traceback(error: BaseException) -> str:
    """A traceback without local variables: they hold what was uploaded, and take seconds to print."""
    return "".join(traceback.format_exception(error))


def _on_ampref_error(request: Request, error: AmprefError) -> Response:
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE or error.slug == "integrity":
        # For the operator to mend; where in the code it was met says no more about it.
        _repeating_log.error("request_failed", error.slug, slug=error.slug, detail=str(error))
    elif error.status >= 500:
        log.error("request_failed", slug=error.slug, detail=str(error), exception=format_traceback(error))
    headers = {"retry-after": str(math.ceil(error.retry_after_sec))} if isinstance(error, QuotaExceeded) else None
    return problem(request.scope, error, headers=headers)


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    if isinstance(error.__cause__, AmprefError):  # FastAPI wraps whatever is raised while it reads a body.
        return _on_ampref_error(request, error.__cause__)
    path, headers = str(request.scope.get("path", "")), error.headers
    result: AmprefError
    if error.status_code == HTTPStatus.NOT_FOUND:
        result = NotFound(f"there is nothing at {path}", remedy="See /docs for the paths that there are")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The router names only the methods of the first route with this path. Another template may match it as well.
        routes = [route for route in request.app.state.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = ", ".join(sorted({method for route in routes if route.path == routes[0].path for method in route.methods}))
        result, headers = (
            errors.MethodNotAllowed(f"{path} does not answer {request.method}", expected=methods),
            {"allow": methods},
        )
    elif error.status_code == HTTPStatus.BAD_REQUEST:
        result = errors.BadRequest(error.detail)
    else:
        result = AmprefError(error.detail)
        result.slug, result.title = f"http-{error.status_code}", HTTPStatus(error.status_code).phrase
        result.status = error.status_code
    return problem(request.scope, result, headers=headers)


def _on_exception(request: Request, error: Exception) -> Response:
    log.error("unhandled_exception", path=request.scope.get("path"), exception=format_traceback(error))
    return problem(request.scope, errors.InternalError())


HANDLERS: dict[int | type[Exception], Any] = {
    AmprefError: _on_ampref_error,
    HTTPException: _on_http_exception,
    Exception: _on_exception,
}
"""FastAPI's `exception_handlers`; `ampref_service.api.faults` has that of parameters and fields."""


_DESCRIPTIONS = {
    400: "The request cannot be read",
    401: "No valid key",
    403: "The key does not permit it",
    404: "No such thing",
    408: "The body did not arrive in time",
    409: "In conflict with what is there",
    410: "No longer kept",
    412: "If-Match names other bytes",
    413: "Over a limit",
    415: "Wrong content type",
    416: "The range lies outside the file",
    421: "Not for this host",
    422: "The input cannot be used",
    429: "Over a quota",
    500: "A fault of the service",
    503: "The database, the blobs or the broker cannot be reached, a disk is full, or there is too much at once",
}

BODY_STATUSES = (400, 408, 413, 415)
"""What an endpoint that reads a body may answer."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries for the problems that an endpoint may answer; 422, 500 and 503 are always among them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _DESCRIPTIONS[status], "content": content} for status in sorted({*statuses, 422, 500, 503})}
