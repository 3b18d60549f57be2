"""What is wrong with a parameter or a field, in words: what it is, what is expected instead, and what may have been meant.

pydantic says "String should match pattern '^[a-z]…'"; people are better served by "a dataset name: lower-case letters, …, for
example walk". What is wrong comes from the type of pydantic's error, what is expected from the schema in the OpenAPI document,
so that this text and `/docs` cannot disagree. Nothing that was sent is repeated but a printable name that is none of a few: NaN
and lone surrogates could not be serialized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from ampref_service.api.problems import Fault, problem
from ampref_service.api.wording import Json, describe_schema, join_names, resolve_schema, suggest_names
from ampref_service.errors import ParameterRefused

_MAX_FAULTS = 20
_SEE_DOCS = "See /docs for what it takes"
_MEANINGS = {
    "missing": "it is missing",
    "string_pattern_mismatch": "it does not have the form that is needed",
    "string_too_short": "it is too short",
    "string_too_long": "it is too long",
    "too_long": "it has too many entries",
    "too_short": "it has too few entries",
    "less_than_equal": "it is too large",
    "less_than": "it is too large",
    "greater_than_equal": "it is too small",
    "greater_than": "it is too small",
    "finite_number": "it is not a finite number",
    "literal_error": "it is none of the values that there are",
}
"""By the type of a pydantic error."""


def find_operation(request: Request) -> Json:
    """The operation of the OpenAPI document that a request is for."""
    return cast(Json, request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()])


def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    document, operation = request.app.openapi(), find_operation(request)
    refusals: dict[str, ParameterRefused] = {}
    for detail in error.errors():
        refusal = _explain(document, operation, detail)
        refusals.setdefault(cast(str, refusal.key), refusal)  # The alternatives of one value are one fault.
    faults = [
        Fault(key=key, what=refusal.what + (f"; expected {refusal.expected}" if refusal.expected else ""))
        for key, refusal in refusals.items()
    ][:_MAX_FAULTS]
    first = next(iter(refusals.values()))
    if len(faults) > 1:
        first.what += f" (and {len(faults) - 1} more, see `errors`)"
    return problem(request.scope, first, faults=faults)


HANDLERS: dict[int | type[Exception], Any] = {RequestValidationError: _on_validation_error}
"""FastAPI's `exception_handlers` for what it finds wrong with a request."""


def _explain(document: Json, operation: Json, error: Json) -> ParameterRefused:
    kind, location = error["type"], tuple(error["loc"])
    name = str(location[-1])
    if kind == "extra_forbidden":
        path, schema, _ = _find_place(document, operation, location[:-1])
        names = sorted(schema.get("properties", {}))
        return ParameterRefused(
            f"there is no such field{suggest_names(name, names)}",
            key=_format_key((*path, name)),
            expected=f"only {join_names(names)}" if names else None,
            remedy=f"Correct its name or leave it out. {_SEE_DOCS}",
        )
    path, schema, description = _find_place(document, operation, location)
    key = _format_key(path)
    if "contentMediaType" in schema or schema.get("format") == "binary":
        return ParameterRefused(
            _MEANINGS["missing"] if kind == "missing" else "it is a text field, not a file",
            key=key,
            expected="a motion file",
            remedy=f"Send it as a file: curl -F {name}=@walk.npz",
        )
    expected = describe_schema(document, schema) or None
    if kind == "value_error":
        message = str(error["ctx"]["error"])[:300]
    else:
        message = _MEANINGS.get(kind, "it is of another type than expected" if expected else "it is not valid")
    if kind == "string_too_long":
        message += f" (at most {error['ctx']['max_length']:,} characters)"
    if kind == "literal_error" and isinstance(error["input"], str):
        value = error["input"]
        if value.isprintable() and len(value) <= 64:
            message = f"{value!r} is none of the values that there are"
        message += suggest_names(value[:64], [str(name) for name in schema.get("enum", ())])
    remedy = f"/docs says of it: {description.rstrip('.')}" if description else _SEE_DOCS
    if isinstance(path[-1], int) and "enum" in schema:  # What is said of the list does not help to mend an entry.
        remedy = _SEE_DOCS
    return ParameterRefused(message, key=key, expected=expected, remedy=remedy)


def _format_key(path: Sequence[str | int]) -> str:
    return ".".join(str(part)[:64] for part in path)


def _find_place(document: Json, operation: Json, location: Sequence[str | int]) -> tuple[tuple[str | int, ...], Json, str]:
    """As much of an error's location as the document has, the schema there, and the description of the innermost name."""
    place, *names = location
    if place == "body":
        content = operation.get("requestBody", {}).get("content", {})
        schema: Any = next((media["schema"] for media in content.values()), {})
    else:
        parameters = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == place]
        schema = {"properties": {parameter["name"]: parameter["schema"] for parameter in parameters}}
    path, description = [place], ""
    for name in names:
        schema = resolve_schema(document, schema)
        if isinstance(name, int):
            lists = [choice["items"] for choice in (schema, *schema.get("anyOf", ())) if "items" in choice]
            schema = lists[0] if lists else {}
        elif name in schema.get("properties", {}):
            schema = schema["properties"][name]
            description = schema.get("description", "")
        else:
            continue  # The name of an alternative in a union.
        path.append(name)
    return tuple(path), resolve_schema(document, schema), description
