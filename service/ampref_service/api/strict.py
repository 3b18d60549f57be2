"""Request bodies as strict JSON: what it is not is refused with a 400 that says where and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_origin

from fastapi import params
from fastapi._compat import ModelField
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from amp_core.strict_json import JsonFault, read_json
from ampref_service.api.faults import listed, suggestion
from ampref_service.errors import BadRequest, ParameterRefused, UnsupportedMediaType


def loads(data: bytes, *, what: str = "the body") -> Any:
    """The value of the JSON text `data`.

    Raises:
      BadRequest: it is not JSON, or JSON that two readers could understand differently.
    """
    try:
        return read_json(data)
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what} is not UTF-8 (byte {error.start})", expected="JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", expected="one JSON object"
        ) from None
    except JsonFault as fault:
        key = ".".join(str(part) for part in fault.place)[:64] or None
        raise BadRequest(f"{what} cannot be read: {fault.what}", key=key, expected=fault.expected) from None


class StrictRequest(Request):
    """A request whose JSON is read by `loads`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that takes what it documents and nothing else.

    Bodies are strict JSON (or the form that the endpoint declares), any other type is a 415; a query parameter that it
    does not have is refused with those that it has, because a filter with a typing error would silently filter nothing.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        field = self.body_field
        wanted = None
        if field is not None:
            wanted = "multipart/form-data" if isinstance(field.field_info, params.Form) else "application/json"
        query = {param.alias: _repeatable(param) for param in get_flat_params(self.dependant) if _is_query(param)}

        async def handler(request: Request) -> Response:
            _check_query(request, query)
            if wanted is not None:
                require_type(request, wanted)
                request = StrictRequest(request.scope, request.receive)
            return await inner(request)

        return handler


def _is_query(param: ModelField) -> bool:
    return getattr(param.field_info, "in_", params.ParamTypes.query) == params.ParamTypes.query


def _repeatable(param: ModelField) -> bool:
    return get_origin(param.field_info.annotation) is list


def _check_query(request: Request, known: Mapping[str, bool]) -> None:
    for name in request.query_params:
        if name not in known:
            raise ParameterRefused(
                f"there is no such query parameter{suggestion(name[:64], known)}",
                key=f"query.{name[:64]}",
                expected=f"only {listed(list(known))}" if known else "no query parameters",
                remedy="Correct its name or leave it out",
            )
        if not known[name] and len(request.query_params.getlist(name)) > 1:
            raise ParameterRefused("it is given more than once", key=f"query.{name}", expected="one value")


def require_type(request: Request, wanted: str) -> None:
    """415 unless the body is of the type `wanted`; no body and no type passes (what is missing is told by name later)."""
    given = request.headers.get("content-type")
    if given is None and request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return
    if (given or "").split(";")[0].strip().lower() != wanted:
        form = wanted == "multipart/form-data"
        raise UnsupportedMediaType(
            f"the body is sent as {given[:100]!r}" if given else "the body has no Content-Type",
            key="content-type",
            expected=wanted,
            remedy="Send a form: curl -F file=@walk.npz" if form else f"Send it with the header Content-Type: {wanted}",
        )


def fields_once(*repeatable: str) -> Callable[[Request], Coroutine[Any, Any, None]]:
    """A dependency that refuses a form in which a field stands twice, of which the last would be taken silently."""

    async def check(request: Request) -> None:
        seen: set[str] = set()
        for name, _ in (await request.form()).multi_items():
            if name in seen and name not in repeatable:
                raise ParameterRefused("it is given more than once", key=f"body.{name[:64]}", expected="one value")
            seen.add(name)

    return check
