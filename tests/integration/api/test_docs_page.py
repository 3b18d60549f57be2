"""`/docs`: the OpenAPI document as a page that needs nothing from elsewhere."""

from __future__ import annotations

import re
from html import escape
from typing import Any


def test_the_page_shows_every_operation_and_schema_and_loads_nothing(idle: Any) -> None:
    answer = idle.http.get("/docs")
    document = idle.http.get("/openapi.json").json()
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert f'<code class="method {method}">{method.upper()}</code> <code>{escape(path)}</code>' in page
            for parameter in operation.get("parameters", ()):
                assert f"<code>{escape(parameter['name'])}</code>" in page
    for name in document["components"]["schemas"]:
        assert f'id="schema-{name}"' in page
    reference = page[page.index('<div class="reference">') : page.index("</main>")]
    assert re.findall(r"<(?:script|link|img|iframe)\b|\bsrc=|@import|url\(", reference) == []
    assert {link for link in re.findall(r'href="([^"]*)"', reference) if not link.startswith("#")} == {"openapi.json"}


def test_links_within_the_page_lead_somewhere(idle: Any) -> None:
    page = idle.http.get("/docs").text
    links = set(re.findall(r'href="#([^"]*)"', page))
    assert {"schema-Problem", "content"} <= links
    assert links <= set(re.findall(r'id="([^"]*)"', page))


def test_whoever_opens_the_service_in_a_browser_reads(idle: Any) -> None:
    answer = idle.http.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "clips")
    assert "<h1>Clips</h1>" in idle.http.get("/").text
