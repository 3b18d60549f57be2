"""Strict JSON for request bodies.

The standard parser accepts NaN, 1e400, duplicate keys and lone surrogates, dies on deep nesting and takes very long over
integers of thousands of digits. `loads` refuses them all with a 400 that says which.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_origin

from fastapi import params
from fastapi._compat import ModelField
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from ampref_service.api.faults import listed, suggestion
from ampref_service.errors import BadRequest, ParameterRefused, UnsupportedMediaType

MAX_DEPTH = 32
MAX_DIGITS = 30


def loads(data: bytes, *, what: str = "the body") -> Any:
    """The value of the JSON text `data`.

    Raises:
      BadRequest: it is not JSON, or JSON that two readers could understand differently.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what} is not UTF-8 (byte {error.start})", expected="JSON in UTF-8") from None
    _check_depth(text, what)
    try:
        value = json.loads(text, parse_constant=_constant, parse_int=_integer, parse_float=_number, object_pairs_hook=_object)
    except BadRequest:
        raise
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", expected="one JSON object"
        ) from None
    except (ValueError, RecursionError):
        raise BadRequest(f"{what} is not JSON", expected="one JSON object") from None
    if "\\u" in text or not text.isascii():
        _check_text(value, what)
    return value


def _check_depth(text: str, what: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, inside, escaped = 0, False, False
    for char in text:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequest(f"{what} is nested more than {MAX_DEPTH} deep", expected="a flat JSON object")
        elif char in "]}":
            depth -= 1


def _check_text(value: Any, what: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequest(f"{what} holds a lone surrogate, which is no text", expected="whole characters") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, what)
            _check_text(item, what)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, what)


def _constant(name: str) -> Any:
    raise BadRequest(f"{name} is not JSON", expected="finite numbers")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadRequest(f"an integer of {len(digits)} digits", expected=f"at most {MAX_DIGITS} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadRequest("a number that is too large for a double", expected="finite numbers")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest("a key stands twice in one object", key=twice[:64], expected="every key once")
    return value


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
