"""`/`, the reference of the API, and the files that pages load."""

from __future__ import annotations

import functools

from fastapi import Request
from markupsafe import Markup
from starlette.responses import RedirectResponse, Response

from amp_core.errors import NotFound
from ampref_service.api.docs_page import format_reference
from ampref_service.api.openapi import build_document
from ampref_service.web.assets import load_assets
from ampref_service.web.site import make_page_router, render_page

router = make_page_router()


@router.get("/")
def get_root() -> RedirectResponse:
    """A browser that opens the service is led to its clips."""
    return RedirectResponse("clips")


@router.get("/docs")
def get_docs(request: Request) -> Response:
    """Every operation of the API with its parameters and answers."""
    return render_page(request, "reference.html", {"title": "API", "section": "docs", "reference": _format_document()})


@functools.cache
def _format_document() -> Markup:
    return Markup(format_reference(build_document()))


@router.get("/assets/{asset}")
def get_asset(asset: str) -> Response:
    """A style sheet, a script or a picture of the pages; its name holds the hash of its content."""
    file = load_assets().by_name.get(asset)
    if file is None:
        raise NotFound(f"there is no asset {asset[:80]!r}", remedy="Load the page again: the service has another release now")
    caching = "public, max-age=31536000, immutable" if asset != "LICENSES.txt" else "no-cache"
    return Response(file.content, headers={"cache-control": caching, "content-type": file.media_type})
