"""The errors that only HTTP has, beside those of `amp_core.errors`; `ampref_service.api.problems` writes all of them."""

from __future__ import annotations

from amp_core.errors import AmprefError, InputRefused


class BadRequest(AmprefError):
    """The request cannot be read: broken JSON, a broken multipart body, a malformed header."""

    slug = "bad-request"
    title = "The request cannot be read"
    status = 400


class Forbidden(AmprefError):
    """The caller's key does not have the scope."""

    slug = "forbidden"
    title = "Not allowed"
    status = 403


class MethodNotAllowed(AmprefError):
    """The path exists, the method does not."""

    slug = "method-not-allowed"
    title = "Method not allowed"
    status = 405


class RequestTimeout(AmprefError):
    """The client stopped sending before its request was complete."""

    slug = "request-timeout"
    title = "The request did not arrive in time"
    status = 408


class PreconditionFailed(AmprefError):
    """If-Match names other bytes than those that are stored."""

    slug = "precondition-failed"
    title = "Other bytes than expected"
    status = 412


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


class InternalError(AmprefError):
    """A fault of the service. It says nothing of the exception but where to look for it."""

    slug = "internal"
    title = "Internal error"

    def __init__(self) -> None:
        super().__init__(
            "the service failed to answer this request; it is a fault of the service, not of the request",
            remedy="Quote the request id to the operator, who finds the traceback in the service's log under it",
        )
