"""JSON schemas of the OpenAPI document in words, and names that a misspelt one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

EXPECTED = "x-expected"
"""The key of a schema that holds its pattern in words."""


def suggest_names(name: str, names: Iterable[str]) -> str:
    """`: did you mean a or b?`, or nothing where no name is near. Only names that the service knows are repeated."""
    names = list(names)
    near = difflib.get_close_matches(name.lower(), names, n=2)
    near = near or [candidate for candidate in names if len(name) > 3 and name in candidate][:2]
    return f": did you mean {' or '.join(near)}?" if near else ""


def join_names(names: Sequence[str]) -> str:
    """`names` in one text, where a name and its descending twin, or the two bounds of a metric, are one."""
    ascending = [name for name in names if not name.startswith("-")]
    if set(names) == {*ascending, *(f"-{name}" for name in ascending)}:
        return f"{', '.join(ascending)}, each with or without - before it"
    metrics = [name.removeprefix("min_") for name in names if name.startswith("min_") and f"max_{name[4:]}" in names]
    if len(metrics) < 3:
        return ", ".join(names)
    bounds = {f"{side}_{metric}" for side in ("min", "max") for metric in metrics}
    rest = [name for name in names if name not in bounds]
    return f"{', '.join(rest)}, and min_METRIC or max_METRIC with METRIC one of {', '.join(metrics)}"


def resolve_schema(document: Json, schema: Json) -> Json:
    """`schema` without a reference, and without the null that stands for a value that is left out."""
    while True:
        choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        elif len(choices) == 1:
            schema = choices[0]
        else:
            return schema


def describe_schema(document: Json, schema: Json) -> str:
    """What a value of `schema` is, in a few words; empty where it may be anything."""
    schema = resolve_schema(document, schema)
    if "anyOf" in schema:
        choices = (describe_schema(document, choice) for choice in schema["anyOf"] if choice != {"type": "null"})
        return " or ".join(filter(None, choices))
    if "enum" in schema:
        return f"one of {join_names([str(value) for value in schema['enum']])}"
    if EXPECTED in schema:
        return str(schema[EXPECTED])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _describe_range(schema)
        case "number":
            return "a number" + _describe_range(schema)
        case "array":
            count = f" (at most {schema['maxItems']:,})" if "maxItems" in schema else ""
            return f"a list{count}, each entry {describe_schema(document, schema.get('items', {})) or 'as described'}"
        case "object":
            names = sorted(schema.get("properties", {}))
            return f"an object with only {', '.join(names)}" if names else "an object"
        case "string" if "maxLength" in schema:
            return f"text of {schema.get('minLength', 0)} to {schema['maxLength']:,} characters"
        case "string":
            return "text"
        case "boolean":
            return "true or false"
        case _:
            return ""


def _describe_range(schema: Json) -> str:
    low, above, high = (
        None if (bound := schema.get(name)) is None else f"{bound:.16g}" for name in ("minimum", "exclusiveMinimum", "maximum")
    )
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if above is not None:
        return f" above {above}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""
