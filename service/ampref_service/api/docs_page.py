"""The OpenAPI document as a reference for people, with nothing to fetch from elsewhere.

Clusters have no internet, and the framework's own pages are blank there. Everything shown comes from `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ampref_service.api.wording import Json, resolve_schema

SAFE_PAGE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
}
"""Headers of a page on which nothing may be loaded and nothing may run, whatever a text in it would come to hold."""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxLength": "length ≤", "format": "as"}


def format_reference(document: Json) -> str:
    """The reference of an OpenAPI 3.1 document, as HTML within a page."""
    info = document["info"]
    operations: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            operations.setdefault(operation["tags"][0], []).append(_format_operation(document, path, method, operation))
    links = " · ".join(f'<a href="#{tag}">{tag}</a>' for tag in operations)
    sections = "".join(f'<h2 id="{tag}">{tag}</h2>\n{"".join(parts)}' for tag, parts in operations.items())
    schemas = "".join(_format_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['summary'])}</p>"
        f"{_format_paragraphs(info['description'])}"
        f'<p>For programs: <a href="openapi.json">/openapi.json</a> · {links} · <a href="#schemas">schemas</a></p>'
        f'{sections}<h2 id="schemas">Schemas</h2>{schemas}'
    )


def _format_operation(document: Json, path: str, method: str, operation: Json) -> str:
    fields = [(field, field["in"], field["schema"], field["required"]) for field in operation.get("parameters", ())]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = resolve_schema(document, content["schema"])
        if "properties" not in schema:
            body = {"name": "body", "description": operation["requestBody"]["description"]}
            fields.append((body, f"body ({media_type})", schema, True))
        for name, field in schema.get("properties", {}).items():
            fields.append(({"name": name} | field, f"body ({media_type})", field, name in schema.get("required", ())))
    star = ' <span class="must">required</span>'
    rows = [
        (f"<code>{escape(field['name'])}</code>{star * must}", place, _format_type(schema), _format_meaning(field, schema))
        for field, place, schema, must in fields
    ]
    parameters = f"<h3>Parameters</h3>{_format_table(('name', 'in', 'type', 'meaning'), rows)}" if rows else ""
    answers = [
        (
            f"<code>{status}</code>",
            escape(answer["description"]),
            ", ".join(
                f"{_format_type(body['schema'])} as {media_type}" for media_type, body in answer.get("content", {}).items()
            ),
        )
        for status, answer in operation["responses"].items()
    ]
    return (
        f'<details id="{operation["operationId"]}"><summary>'
        f'<code class="method {method}">{method.upper()}</code> <code>{escape(path)}</code> {escape(operation["summary"])}'
        f"</summary><div>{_format_paragraphs(operation['description'])}{parameters}"
        f"<h3>Answers</h3>{_format_table(('status', 'meaning', 'body'), answers)}</div></details>\n"
    )


def _format_schema(name: str, schema: Json) -> str:
    rows = [
        (f"<code>{escape(key)}</code>", _format_type(field), _format_meaning(field, field))
        for key, field in schema.get("properties", {}).items()
    ]
    body = _format_table(("name", "type", "meaning"), rows) if rows else _format_type(schema)
    return (
        f'<details id="schema-{name}"><summary><code>{name}</code></summary>'
        f"<div>{_format_paragraphs(schema.get('description', ''))}{body}</div></details>\n"
    )


def _format_meaning(field: Json, schema: Json) -> str:
    default = schema.get("default")
    tail = f" Default <code>{escape(str(default))}</code>." if default not in (None, [], {}) else ""
    return (escape(field.get("description", "")) + tail).strip()


def _format_type(schema: Json) -> str:
    """A schema in a few words, as HTML; one that has a name is a link."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_format_type(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_format_type(schema.get('items', {}))}"
    bounds = (f"{words} {schema[key]}" for key, words in _BOUNDS.items() if key in schema)
    return escape(" ".join([schema.get("type", "any"), *bounds]))


def _format_paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part.strip())


def _format_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"
