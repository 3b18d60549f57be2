"""Pages: items, the cursor to the next ones, and the Link header with the same (RFC 8288)."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Request, Response
from pydantic import BaseModel, Field

from ampref_service.api.problems import responses
from ampref_service.catalog.records import Page

T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")

_LINK = {"description": '`<…>; rel="next"` while there are more items.', "schema": {"type": "string"}}


class PageView(BaseModel, Generic[T]):
    """Some items. The end is where `next_cursor` is null, not where a page is short."""

    items: list[T]
    next_cursor: str | None = Field(
        description="Give it back as `cursor`, with the same filters and sort, for the items after these."
    )


def page_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an endpoint that answers with a page, or with one of these problems."""
    return {200: {"headers": {"Link": _LINK}}, **responses(*statuses)}


def link_next(request: Request, response: Response, page: Page[R]) -> Page[R]:
    """`page`, whose next one is named in a Link header: this request with another cursor."""
    if page.next_cursor is not None:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
        response.headers["link"] = f'<{request.url.path}?{urlencode([*query, ("cursor", page.next_cursor)])}>; rel="next"'
    return page
