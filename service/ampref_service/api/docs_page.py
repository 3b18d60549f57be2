"""`/docs`: the OpenAPI document as a page for people, with nothing to fetch from elsewhere and no script.

Clusters have no internet, and the framework's own pages are blank there. Everything shown comes from `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

Json = Mapping[str, Any]

# Nothing may be loaded and nothing may run, whatever a description would come to hold.
_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "no-cache"}

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); text-transform: capitalize; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
summary { padding: .5rem .8rem; cursor: pointer; }
details > div { padding: 0 .8rem .8rem; overflow-x: auto; }
code { font: 14px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; }
.get, .head { color: #2774c9; } .post, .put { color: #23883f; } .delete { color: #c4362f; }
table { border-collapse: collapse; width: 100%; margin: .3rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-top: 1px solid var(--soft); }
th { font-weight: 600; } h3 { font-size: 1rem; margin: .8rem 0 .2rem; } .must { color: #c4362f; }
"""


@router.get("/")
def root() -> RedirectResponse:
    """Whoever opens the service in a browser wants to read."""
    return RedirectResponse("docs")


@router.get("/docs")
def docs(request: Request) -> HTMLResponse:
    """Every operation with its parameters and answers."""
    return HTMLResponse(render(request.app.openapi()), headers=_HEADERS)


def render(document: Json) -> str:
    """The page for an OpenAPI 3.1 document."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = next(iter(operation.get("tags", ())), "other")
            groups.setdefault(tag, []).append(_operation(document, path, method, operation))
    names = " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    body = "".join(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>\n{"".join(parts)}' for tag, parts in groups.items())
    schemas = "".join(_schema(document, name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(info.get('summary', ''))}</p>{_paragraphs(info.get('description', ''))}"
        f'<p>For programs: <a href="openapi.json">/openapi.json</a> · {names} · <a href="#schemas">schemas</a></p>'
        f'{body}<h2 id="schemas">Schemas</h2>{schemas}</body></html>'
    )


def _operation(document: Json, path: str, method: str, operation: Json) -> str:
    rows = [
        (parameter["name"], parameter["in"], _type(parameter["schema"]), parameter.get("required"), _told(parameter))
        for parameter in operation.get("parameters", ())
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolve(document, content["schema"])
        must = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            rows.append((name, f"body ({media})", _type(field), name in must, _told({"schema": field} | field)))
    told = _table(("name", "in", "type", "meaning"), (_parameter(*row) for row in rows)) if rows else ""
    answers = _table(("status", "meaning", "body"), (_answer(status, one) for status, one in operation["responses"].items()))
    summary = operation.get("summary") or operation.get("operationId", "")
    return (
        f'<details id="{escape(str(operation.get("operationId", "")))}"><summary>'
        f'<code class="method {method}">{method.upper()}</code> <code>{escape(path)}</code> {escape(summary)}</summary>'
        f"<div>{_paragraphs(operation.get('description', ''))}{'<h3>Parameters</h3>' if rows else ''}{told}"
        f"<h3>Answers</h3>{answers}</div></details>\n"
    )


def _parameter(name: str, where: str, kind: str, must: bool, told: str) -> tuple[str, ...]:
    star = ' <span class="must">required</span>' if must else ""
    return f"<code>{escape(name)}</code>{star}", escape(where), kind, told


def _answer(status: str, answer: Json) -> tuple[str, ...]:
    bodies = [f"{_type(content.get('schema', {}))} as {escape(media)}" for media, content in answer.get("content", {}).items()]
    return f"<code>{escape(status)}</code>", escape(answer.get("description", "")), ", ".join(bodies)


def _schema(document: Json, name: str, schema: Json) -> str:
    fields = schema.get("properties", {})
    rows = [(f"<code>{escape(key)}</code>", _type(field), _told({"schema": field} | field)) for key, field in fields.items()]
    body = _table(("name", "type", "meaning"), rows) if rows else _type(schema)
    return (
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div>{_paragraphs(schema.get('description', ''))}{body}</div></details>\n"
    )


def _told(parameter: Json) -> str:
    default = parameter["schema"].get("default")
    tail = f"Default <code>{escape(str(default))}</code>." if default not in (None, [], {}) else ""
    return " ".join(part for part in (escape(parameter.get("description", "")), tail) if part)


def _type(schema: Json) -> str:
    """A schema in a few words, as HTML; named ones are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#schema-{name}">{name}</a>'
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(_type(one) for one in schema[key])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(" ".join([str(kind), *_bounds(schema)]))


def _bounds(schema: Json) -> Iterator[str]:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxLength": "length ≤", "format": "as"}
    return (f"{word} {schema[key]}" for key, word in words.items() if key in schema)


def _resolve(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part.strip())


def _table(head: tuple[str, ...], rows: Any) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"
