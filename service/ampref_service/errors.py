"""One shape for every error that the service answers: `application/problem+json` (RFC 9457).

Whatever goes wrong (an unknown route, a motion with NaN in it, a bug), the client reads the same members:

    type        urn:ampref:error:SLUG: stable, made for programs
    title       the kind of error, the same for every occurrence
    status      the HTTP status
    detail      this occurrence, as one readable text
    instance    the path that was asked for
    request_id  also in the X-Request-ID header and in the service's log
    what, file, key, frame, expected, remedy    the facts of `amp_core.errors`, where they are known
    errors      every fault of a query or a body, when there may be several

Values that the client sent are never echoed as JSON values: NaN and lone surrogates among them could not be serialized.
An unexpected exception is logged with its traceback; the client is told the request id and nothing else.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import structlog
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from amp_core.errors import AmprefError, InputRefused, NotFound

log = structlog.get_logger("ampref_service.errors")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ampref:error:"
MAX_FAULTS = 20


class BadRequest(AmprefError):
    """The request cannot be read: broken JSON, a broken multipart body, a malformed header."""

    slug = "bad-request"
    title = "The request cannot be read"
    status = 400


class MethodNotAllowed(AmprefError):
    """The path exists, the method does not."""

    slug = "method-not-allowed"
    title = "Method not allowed"
    status = 405


class RequestTimeout(AmprefError):
    """The client stopped sending before its request was whole."""

    slug = "request-timeout"
    title = "The request did not arrive in time"
    status = 408


class UnsupportedMediaType(AmprefError):
    """The body is not of the type that the endpoint reads."""

    slug = "unsupported-media-type"
    title = "Unsupported content type"
    status = 415


class RangeNotSatisfiable(AmprefError):
    """The byte range lies outside the file."""

    slug = "range-not-satisfiable"
    title = "Range not satisfiable"
    status = 416


class ParameterRefused(InputRefused):
    """A query parameter, path segment or body field is not what the endpoint takes."""

    slug = "parameter-refused"
    title = "A parameter cannot be used"


_BY_STATUS: dict[int, type[AmprefError]] = {
    kind.status: kind for kind in (BadRequest, MethodNotAllowed, RequestTimeout, UnsupportedMediaType, RangeNotSatisfiable)
}


class Fault(BaseModel):
    """One fault of a request that may have several."""

    key: str = Field(description="Where: `query.limit`, `body.select.tier`, …")
    what: str


class Problem(BaseModel):
    """Every error of this service, whatever its status."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:ampref:error:motion-refused",
                "title": "The motion cannot be used",
                "status": 422,
                "detail": "walk.pkl, key 'dof_pos', frame 17: holds NaN; expected finite radians. Remove the frame",
                "instance": "/v1/clips",
                "request_id": "b2f0c6f2a6f94b6c9a3f3d1f6f0e8f55",
                "what": "holds NaN",
                "file": "walk.pkl",
                "key": "dof_pos",
                "frame": 17,
                "expected": "finite radians",
                "remedy": "Remove the frame",
            }
        }
    )

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


def request_id(scope: Mapping[str, Any]) -> str:
    """The id that the middleware gave this request ("" outside of it)."""
    return str(scope.get("ampref.request_id", ""))


def problem(
    scope: Mapping[str, Any], error: AmprefError, *, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """The response for `error`."""
    body: dict[str, Any] = error.to_dict()
    body |= {
        "type": TYPE_PREFIX + error.slug,
        "title": error.title,
        "status": error.status,
        "instance": str(scope.get("path", "")),
        "request_id": request_id(scope),
    }
    if faults:
        body["errors"] = [fault.model_dump() for fault in faults]
    # Escaped ASCII can carry anything that a path or a file name held, lone surrogates included.
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    return Response(content, error.status, dict(headers or {}) | {"cache-control": "no-store"}, MEDIA_TYPE)


def internal_error(scope: Mapping[str, Any]) -> Response:
    """The response for a bug: nothing of the exception, only where to look."""
    error = AmprefError(
        "the service failed to answer this request; it is a fault of the service, not of the request",
        remedy="Quote the request id to the operator, who finds the traceback in the service's log under it",
    )
    error.slug, error.title = "internal", "Internal error"
    return problem(scope, error)


def traceback_text(error: BaseException) -> str:
    """A plain traceback. Never one with local variables: they hold what was uploaded, and take seconds to print."""
    return "".join(traceback.format_exception(error))


def _on_ampref_error(request: Request, error: Exception) -> Response:
    error = cast(AmprefError, error)
    if error.status >= 500:
        # Damaged bytes are for the operator to mend, and where they were read tells nothing about it.
        shown = {} if error.slug == "integrity" else {"exception": traceback_text(error)}
        log.error("request_failed", slug=error.slug, detail=str(error), **shown)
    headers = {"retry-after": "5"} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return problem(request.scope, error, headers=headers | getattr(error, "headers", {}))


def _on_http_exception(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    cause = error.__cause__
    if isinstance(cause, AmprefError):  # FastAPI wraps whatever happens while it reads a body
        return _on_ampref_error(request, cause)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"allow": _allowed(request)}
    return problem(request.scope, _described(request, error), headers=headers)


def _allowed(request: Request) -> str:
    # The router names the methods of the first route with this path, and there may be several.
    path = str(request.scope.get("path", ""))
    found = set()
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template)), path):
            found |= {method.upper() for method in operations}
    return ", ".join(sorted(found))


def _described(request: Request, error: HTTPException) -> AmprefError:
    path, method = str(request.scope.get("path", "")), request.method
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"there is nothing at {path}", remedy="See /docs for the paths that there are")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{path} does not answer {method}", expected=_allowed(request))
    if isinstance(error.__context__, MultiPartException):
        return _of_form(error.detail)
    kind = _BY_STATUS.get(error.status_code)
    if kind is not None:
        return kind(error.detail)
    other = AmprefError(error.detail)
    other.slug = f"http-{error.status_code}"
    other.title = HTTPStatus(error.status_code).phrase
    other.status = error.status_code
    return other


def _of_form(said: str) -> BadRequest:
    """What the multipart parser found, with what to do; its own words where it is something else."""
    known = (
        ("Part exceeded", "a text field is too long", "text fields of at most 64 kB: a name has at most 120 characters"),
        ("Too many files", "there is more than one file", "one file a request"),
        ("Too many fields", "there are too many fields", "at most 128 text fields"),
        ("Missing boundary", "the Content-Type names no boundary", "multipart/form-data; boundary=…"),
        ("Invalid multipart", "the form cannot be read", "multipart/form-data, whose parts have headers of at most 4 kB"),
    )
    what, expected = next(
        ((what, expected) for start, what, expected in known if said.startswith(start)), (said, "multipart/form-data")
    )
    remedy = "Let a client build the form, one file a request: curl -F file=@walk.npz -F name=walk"
    return BadRequest(what, key="body", expected=expected, remedy=remedy)


def _on_anything(request: Request, error: Exception) -> Response:
    log.error("unhandled_exception", path=request.scope.get("path"), exception=traceback_text(error))
    return internal_error(request.scope)


def install(app: FastAPI) -> None:
    """Render every error of `app` as a problem; `ampref_service.api.faults` adds those of parameters and fields."""
    app.add_exception_handler(AmprefError, _on_ampref_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_anything)


_DESCRIPTIONS = {
    400: "The request cannot be read",
    404: "No such thing",
    405: "Method not allowed",
    408: "The body did not arrive in time",
    409: "In conflict with what is there",
    413: "Over a limit",
    415: "Wrong content type",
    416: "The range lies outside the file",
    422: "The input cannot be used",
    500: "A fault of the service",
    503: "The database, the blobs or the broker cannot be reached",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries for the problems that an endpoint may answer; 422, 500 and 503 are always among them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _DESCRIPTIONS[status], "content": content} for status in sorted({*statuses, 422, 500, 503})}
