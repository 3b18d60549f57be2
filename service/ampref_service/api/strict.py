"""Requests are taken as the OpenAPI document has them: strict JSON, one content type, and no parameter that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from amp_core.strict_json import JsonFault, read_json
from ampref_service.api.deps import accepts_link, authorize, list_scopes
from ampref_service.api.faults import find_operation
from ampref_service.api.forms import read_form
from ampref_service.api.wording import Json, join_names, suggest_names
from ampref_service.errors import BadRequest, ParameterRefused, UnsupportedMediaType

_FORM = "multipart/form-data"


def parse_body(data: bytes, *, subject: str = "the body") -> Any:
    """The value of the JSON text `data`; errors call it `subject`.

    Raises:
      BadRequest: it is not JSON, or JSON that two readers could understand differently.
    """
    try:
        return read_json(data)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{subject} is not UTF-8 (byte {error.start})", expected="JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"{subject} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", expected="one JSON object"
        ) from None
    except JsonFault as fault:
        key = ".".join(str(part) for part in fault.place)[:64] or None
        raise BadRequest(f"{subject} cannot be read: {fault.what}", key=key, expected=fault.expected) from None


class StrictRequest(Request):
    """A request whose JSON is read by `parse_body`, and whose form by `read_form`."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override] # It is only ever awaited.
        """The form, whose limits are those of `read_form`."""
        if not hasattr(self, "_spooled_form"):
            self._spooled_form = await read_form(self, self.app.state.services.spool)
        return self._spooled_form

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_body(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that takes what it documents and nothing else, from callers that have its scopes.

    The key is checked before anything of the body is read.

    Bodies are strict JSON (or the form that the endpoint declares), any other type is a 415; a query parameter that it
    does not have is refused with those that it has, because a filter with a typing error would silently filter nothing.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        scopes, may_be_link = list_scopes(self.dependant), accepts_link(self.dependant)

        async def handle_strictly(request: Request) -> Response:
            if scopes is not None:
                await authorize(request, scopes, may_be_link=may_be_link)
            operation = find_operation(request)
            _check_query(request, operation.get("parameters", ()))
            for media_type in operation.get("requestBody", {}).get("content", ()):
                _check_media_type(request, media_type)
                request = StrictRequest(request.scope, request.receive)
            return await handle(request)

        return handle_strictly


def make_router(noun: str, **options: Any) -> APIRouter:
    """The router of the endpoints under `/v1/{noun}`."""
    return APIRouter(prefix=f"/v1/{noun}", route_class=StrictRoute, tags=[noun], **options)


def _check_query(request: Request, parameters: Sequence[Json]) -> None:
    schemas = {parameter["name"]: parameter["schema"] for parameter in parameters if parameter["in"] == "query"}
    for name in request.query_params:
        if name not in schemas:
            raise ParameterRefused(
                f"there is no such query parameter{suggest_names(name[:64], schemas)}",
                key=f"query.{name[:64]}",
                expected=f"only {join_names(list(schemas))}" if schemas else "no query parameters",
                remedy="Correct its name or leave it out",
            )
        if schemas[name].get("type") != "array" and len(request.query_params.getlist(name)) > 1:
            raise ParameterRefused("it is given more than once", key=f"query.{name}", expected="one value")


def _check_media_type(request: Request, expected: str) -> None:
    """Raise `UnsupportedMediaType` unless the body is `expected`. Without body and type, what is missing is named later."""
    headers = request.headers
    media_type = headers.get("content-type")
    if media_type is None and headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    if (media_type or "").split(";")[0].strip().lower() != expected:
        raise UnsupportedMediaType(
            f"the body is sent as {media_type[:100]!r}" if media_type else "the body has no Content-Type",
            key="content-type",
            expected=expected,
            remedy="Send a form: curl -F file=@walk.npz"
            if expected == _FORM
            else f"Send it with the header Content-Type: {expected}",
        )
