"""What every page has: its route, its headers, its frame, and an error as a page.

A page is made for whoever may see it: without a key it leads to `/login` and comes back, and a form carries the token of the
browser's session. Its scripts, styles and data come from this service alone, which the content security policy holds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from amp_core.errors import AmprefError, Unauthorized
from amp_core.version import __version__
from ampref_service.api.auth import CSRF_HEADER
from ampref_service.api.deps import authorize, get_authenticator, list_scopes
from ampref_service.api.guard import SAFE_METHODS
from ampref_service.api.problems import log_refusal
from ampref_service.errors import ParameterRefused
from ampref_service.web.assets import load_assets
from ampref_service.web.formats import FILTERS

CONTENT_SECURITY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY,
    "cache-control": "private, no-cache",
    # Without any referrer a browser sends the origin `null` with a form, which the guard of changes refuses.
    "referrer-policy": "same-origin",
}
CSRF_FIELD = "csrf_token"
_SESSION = "ampref.session"

NAVIGATION = (("clips", "/clips", "Clips"), ("jobs", "/jobs", "Jobs"), ("datasets", "/datasets", "Datasets"))


@functools.cache
def open_templates() -> jinja2.Environment:
    """The templates of the package. A value that a template names and nobody gave is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ampref_service.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.globals |= {"assets": load_assets(), "release": __version__, "navigation": NAVIGATION}
    return environment


def render_page(
    request: Request,
    template: str,
    values: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """The page that a template makes of `values`.

    Every template has `root` (before each address, where a proxy serves this below a path), `caller` (None before one is
    known), `session` (of a browser that has signed in, else None), `here` (this page's own path and query) and `assets`.
    """
    query = f"?{request.url.query}" if request.url.query else ""
    frame = {
        "root": own_path(request, ""),
        "caller": request.scope.get("ampref.caller"),
        "session": request.scope.get(_SESSION),
        "here": request.url.path + query,
    }
    html = open_templates().get_template(template).render(frame | dict(values))
    return HTMLResponse(html, status, HEADERS | dict(headers or {}))


def is_fragment(request: Request) -> bool:
    """Whether a script asks for a part of the page alone, to put it in the place of the one that is there."""
    return request.headers.get("hx-request") == "true"


class PageRoute(APIRoute):
    """A route whose answers are pages, errors included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.methods is not None and "GET" in self.methods:
            self.methods.add("HEAD")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        scopes = list_scopes(self.dependant)

        async def handle_page(request: Request) -> Response:
            try:
                if scopes is not None:
                    await _identify(request, scopes)
                return await handle(request)
            except Unauthorized as error:
                return lead_to_login(request, error)
            except RequestValidationError as error:
                faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()[:5]]
                place = "the address of this page" if request.method in SAFE_METHODS else "what was filled in"
                return render_error(request, ParameterRefused("; ".join(faults), remedy=f"Correct {place}"))
            except AmprefError as error:
                log_refusal(request.scope, error)
                return render_error(request, error)

        return handle_page


def make_page_router(*, dependencies: Sequence[Any] = ()) -> APIRouter:
    """A router of pages."""
    return APIRouter(include_in_schema=False, route_class=PageRoute, dependencies=list(dependencies))


async def _identify(request: Request, scopes: list[str]) -> None:
    """Find out who asks, with the token of a form in the place of the header that scripts send; raises as `authorize`."""
    authenticator = await get_authenticator(request)
    session, csrf_token = await authenticator.find_session(request), None
    if session is not None:
        request.scope[_SESSION] = session
        if request.method not in SAFE_METHODS and CSRF_HEADER not in request.headers:
            csrf_token = str((await request.form()).get(CSRF_FIELD, ""))
    await authorize(request, scopes, csrf_token=csrf_token)


def lead_to_login(request: Request, error: Unauthorized) -> Response:
    """The way to `/login` and back; a script that asks for a part of a page is told to go there."""
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    address = own_path(request, "/login") + f"?{urlencode({'next': back if request.method == 'GET' else '/'})}"
    if is_fragment(request):
        return Response(status_code=401, headers={"hx-redirect": address})
    log_refusal(request.scope, error)
    return RedirectResponse(address, 303, {"cache-control": "no-store"})


def render_error(request: Request, error: AmprefError) -> Response:
    """An error as a page: what was wrong, where, what was expected, what to do."""
    if is_fragment(request):
        return HTMLResponse(open_templates().get_template("fault.html").render(error=error), error.status, HEADERS)
    # A form that was refused leads back to where it was filled in.
    origin = f"{request.url.scheme}://{request.url.netloc}"
    referer = request.headers.get("referer", "").removeprefix(origin)
    back = own_address(request, referer, "") if request.method == "POST" else ""
    values = {"title": error.title, "error": error, "section": "", "back": back}
    return render_page(request, "error.html", values, status=error.status)


def refuse_fields(fault: ValidationError) -> ParameterRefused:
    """The refusal of what a form has in the fields of a request of the API."""
    first = fault.errors()[0]
    return ParameterRefused(str(first["msg"]), key=".".join(map(str, first["loc"])), remedy="Correct what was filled in")


def own_path(request: Request, path: str) -> str:
    """`path` as a browser asks for it, where a proxy serves the pages below another one."""
    return str(request.scope.get("root_path", "")) + path


def lead_to(request: Request, path: str) -> Response:
    """The answer to a form: go to a page."""
    return RedirectResponse(own_path(request, path), 303)


def own_address(request: Request, address: str, default: str) -> str:
    """`address` where it is a path of this service, else `default`: no link or form leads elsewhere."""
    is_own = re.fullmatch(r"/(?![/\\])[!-~]*", address) and "\\" not in address
    return address if is_own else own_path(request, default)


def change_params(params: Sequence[tuple[str, str]], changes: Mapping[str, Any]) -> str:
    """The query string of `params` with other values; None takes a name out. Another list begins at its first page."""
    rest = [(name, value) for name, value in params if name not in changes and name != "cursor"]
    return "?" + urlencode([*rest, *((name, value) for name, value in changes.items() if value is not None)])
