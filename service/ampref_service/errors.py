"""The errors that only HTTP has, beside those of `amp_core.errors`; `ampref_service.api.problems` writes all of them."""

from __future__ import annotations

from amp_core.errors import AmprefError, InputRefused


class BadRequest(AmprefError):
    """The request cannot be read: broken JSON, a broken multipart body, a malformed header."""

    slug, title, status = "bad-request", "The request cannot be read", 400


class OriginRefused(AmprefError):
    """A page of another site asks for a change."""

    slug, title, status = "origin-refused", "Asked by a page of another site", 403


class HostRefused(AmprefError):
    """The request is for a host that is not this service's."""

    slug, title, status = "host-refused", "Not for this host", 421


class MethodNotAllowed(AmprefError):
    """The path exists, the method does not."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405


class RequestTimeout(AmprefError):
    """The client stopped sending before its request was complete."""

    slug, title, status = "request-timeout", "The request did not arrive in time", 408


class PreconditionFailed(AmprefError):
    """If-Match names other bytes than those that are stored."""

    slug, title, status = "precondition-failed", "Other bytes than expected", 412


class UnsupportedMediaType(AmprefError):
    """The body is not of the type that the endpoint reads."""

    slug, title, status = "unsupported-media-type", "Unsupported content type", 415


class RangeNotSatisfiable(AmprefError):
    """The byte range lies outside the file."""

    slug, title, status = "range-not-satisfiable", "Range not satisfiable", 416


class ParameterRefused(InputRefused):
    """A query parameter, path segment or body field is not what the endpoint takes."""

    slug, title = "parameter-refused", "A parameter cannot be used"


class InternalError(AmprefError):
    """A fault of the service. It says nothing of the exception but where to look for it."""

    slug, title = "internal", "Internal error"

    def __init__(self) -> None:
        super().__init__(
            "the service failed to answer this request; it is a fault of the service, not of the request",
            remedy="Quote the request id to the operator, who finds the traceback in the service's log under it",
        )


class BrokenAnswer(Exception):
    """An answer cannot be sent to its end, and only the end of the connection can tell the client. It was reported already."""
