"""What is wrong with a parameter or a field, in words: what it is, what is expected instead, and what may have been meant.

pydantic says "String should match pattern '^[a-z]…'"; people are better served by "a dataset name: lower-case letters, …, for
example walk". The facts come from the OpenAPI document, so that this text and `/docs` cannot disagree. Nothing that was sent is
repeated: NaN and lone surrogates among it could not be serialized. Only names that the service knows are suggested.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from ampref_service.api import params
from ampref_service.errors import MAX_FAULTS, Fault, ParameterRefused, problem

Json = Mapping[str, Any]

PATTERNS: dict[str, str] = {
    params.ID_PATTERN: "an id as the service gave it, for example clip_01k8m3",
    params.NAME_PATTERN: "a name without slashes, line breaks or control characters, for example walk_slow",
    params.TEXT_PATTERN: "text without line breaks or control characters",
    params.TAG_PATTERN: "a tag of 1 to 64 characters without commas or control characters, for example slow",
    params.MODE_PATTERN: "the name of a mode, for example rollout",
    params.DIGEST_PATTERN: "a digest: sha256: and 64 lower-case hex digits",
    params.CURSOR_PATTERN: "the `next_cursor` of the page before, unchanged",
    params.POSITION_PATTERN: "the `next_cursor` of the page before, unchanged",
    params.DATASET_PATTERN: "a dataset name: 1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a "
    "letter or digit, for example walk",
    params.VERSION_PATTERN: "a version MAJOR.MINOR.PATCH without a leading v, for example 0.11.0 or 0.12.0-rc.1",
    params.ALIAS_PATTERN: "an alias: a lower-case letter, then lower-case letters, digits, '.', '_' or '-', for example "
    "production",
    params.VERSION_OR_ALIAS_PATTERN: "a version such as 0.11.0, `latest`, or an alias such as production",
    params.FILE_PATTERN: "a file's name as the version lists it, for example features_v0.11.0.npz",
}
"""Every pattern of the parameters, as people say it."""

_WRONG = {
    "missing": "it is missing",
    "string_pattern_mismatch": "it is not written as it has to be",
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


def install(app: FastAPI) -> None:
    """Answer what FastAPI finds wrong with a request in these words."""
    app.add_exception_handler(RequestValidationError, _on_validation_error)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`: did you mean a or b?`, or nothing where no known name is near."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=2) or [one for one in names if len(name) > 2 and name in one][:2]
    return f": did you mean {' or '.join(near)}?" if near else ""


def listed(names: Sequence[str]) -> str:
    """`names` for people: a descending twin, or the two bounds of a metric, is told once."""
    plain = [name for name in names if not name.startswith("-")]
    if len(plain) * 2 == len(names) and set(names) == {*plain, *(f"-{name}" for name in plain)}:
        return f"{', '.join(plain)}, each with or without - before it"
    metrics = [name.removeprefix("min_") for name in names if name.startswith("min_") and f"max_{name[4:]}" in names]
    if len(metrics) < 3:
        return ", ".join(names)
    bounds = {f"{side}_{metric}" for side in ("min", "max") for metric in metrics}
    rest = [name for name in names if name not in bounds]
    return f"{', '.join(rest)}, and min_METRIC or max_METRIC with METRIC one of {', '.join(metrics)}"


def _on_validation_error(request: Request, error: Exception) -> Response:
    document = request.app.openapi()
    errors = cast(RequestValidationError, error).errors()
    found = _described(document, _operation(document, request), errors)
    faults = [
        Fault(key=key, what="; ".join(part for part in (what, f"expected {expected}" if expected else "") if part))
        for key, (what, expected, _) in found.items()
    ][:MAX_FAULTS]
    key, (what, expected, remedy) = next(iter(found.items()))
    more = f" (and {len(faults) - 1} more, see `errors`)" if len(faults) > 1 else ""
    return problem(request.scope, ParameterRefused(what + more, key=key, expected=expected, remedy=remedy), faults=faults)


def _operation(document: Json, request: Request) -> Json:
    wanted: Any = getattr(request.scope.get("route"), "name", None)
    for operations in document["paths"].values():
        for operation in operations.values():
            if operation.get("operationId") == wanted:
                return cast(Json, operation)
    return {}


def _described(document: Json, operation: Json, errors: Iterable[Any]) -> dict[str, tuple[str, str | None, str]]:
    """By the place of each fault: what is wrong, what is expected, what to do."""
    found: dict[str, tuple[str, str | None, str]] = {}
    for error in errors:
        loc = tuple(error.get("loc", ())) or ("request",)
        unknown = error.get("type") == "extra_forbidden"
        path, schema, described = _find(document, operation, loc[:-1] if unknown else loc)
        if unknown:
            path = (*path, str(loc[-1])[:64])
        key = ".".join(str(part)[:64] for part in path)
        if key not in found:  # The alternatives of one value are one fault.
            found[key] = _explain(document, error, schema, described, str(loc[-1]))
    return found


def _explain(document: Json, error: Any, schema: Json, described: str, name: str) -> tuple[str, str | None, str]:
    kind, see = str(error.get("type")), "See /docs for what this endpoint takes"
    if _is_file(schema):
        what = "it is missing" if kind == "missing" else "it is a text field, not a file"
        return what, "a motion file", f"Send it as a file: curl -F {name}=@walk.npz"
    if kind == "extra_forbidden":
        known = sorted(schema.get("properties", {}))
        near = suggestion(name, known)
        return (
            f"there is no such field{near}",
            f"only {listed(known)}" if known else None,
            f"Correct its name or leave it out. {see}",
        )
    expected = _expected(document, schema) or None
    remedy = f"/docs says of it: {described.rstrip('.')}" if described else see
    if kind == "value_error":
        return str(error.get("msg", "")).removeprefix("Value error, ")[:300], expected, remedy
    what = _WRONG.get(kind, "it is of another type than expected" if expected else "it is not valid")
    if kind == "string_too_long" and (longest := schema.get("maxLength")):
        what += f" (at most {longest:,} characters)"
    if kind == "literal_error" and isinstance(error.get("input"), str):
        what += suggestion(error["input"][:64], [str(one) for one in schema.get("enum", ())])
    return what, expected, remedy


def _find(document: Json, operation: Json, loc: Sequence[Any]) -> tuple[tuple[Any, ...], Json, str]:
    """As much of `loc` as the document knows, the schema there, and the description of the innermost name."""
    place, rest = str(loc[0]), list(loc[1:])
    path: list[Any] = [place]
    schema: Json = {}
    described = ""
    if place == "body":
        content = operation.get("requestBody", {}).get("content", {})
        schema = next((one["schema"] for one in content.values()), {})
    elif rest:
        name = str(rest.pop(0)).replace("_", "-") if place == "header" else str(rest.pop(0))
        path.append(name)
        for parameter in operation.get("parameters", ()):
            if (parameter["in"], parameter["name"]) == (place, name):
                schema, described = parameter["schema"], parameter.get("description", "")
    for part in rest:
        schema = _plain(document, schema)
        if isinstance(part, int):
            path.append(part)
            schema = next((one["items"] for one in (schema, *schema.get("anyOf", ())) if "items" in one), {})
        elif part in schema.get("properties", {}):
            path.append(part)
            schema = schema["properties"][part]
            described = schema.get("description", "")
    return tuple(path), _plain(document, schema), described


def _plain(document: Json, schema: Json) -> Json:
    """`schema` without a reference, and without the null that stands for something left out."""
    while True:
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
            continue
        choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
        if len(choices) != 1:
            return schema
        schema = choices[0]


def _is_file(schema: Json) -> bool:
    return "contentMediaType" in schema or schema.get("format") == "binary"


def _expected(document: Json, schema: Json) -> str:
    schema = _plain(document, schema)
    if "anyOf" in schema:
        return " or ".join(
            part for part in (_expected(document, one) for one in schema["anyOf"] if one != {"type": "null"}) if part
        )
    if "enum" in schema:
        return f"one of {listed([str(one) for one in schema['enum']])}"
    if schema.get("pattern") in PATTERNS:
        return PATTERNS[schema["pattern"]]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        entries = f" (at most {schema['maxItems']:,})" if "maxItems" in schema else ""
        return f"a list{entries}, each entry {_expected(document, schema.get('items', {})) or 'as described'}"
    if kind == "object":
        known = sorted(schema.get("properties", {}))
        return f"an object with only {', '.join(known)}" if known else "an object"
    if kind == "string":
        longest = schema.get("maxLength")
        return f"text of {schema.get('minLength', 0)} to {longest:,} characters" if longest else "text"
    return "true or false" if kind == "boolean" else ""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _range(schema: Json) -> str:
    low, high = (_whole(schema.get(name)) for name in ("minimum", "maximum"))
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if "exclusiveMinimum" in schema:
        return f" above {_whole(schema['exclusiveMinimum'])}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""
