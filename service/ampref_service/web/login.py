"""`/login` and `/logout`: a browser's session for the holder of a key."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Query, Request
from starlette.responses import RedirectResponse, Response

from amp_core.errors import Unauthorized
from ampref_service.api.auth import SESSION_COOKIE, SESSION_SEC, check_csrf
from ampref_service.api.deps import AuthenticatorDep
from ampref_service.api.problems import log_refusal
from ampref_service.web.site import make_page_router, own_address, render_page

router = make_page_router()

_NO_STORE = {"cache-control": "no-store"}


@router.get("/login")
async def get_login(
    request: Request, authenticator: AuthenticatorDep, next: Annotated[str, Query(max_length=4000)] = ""
) -> Response:
    """The form for a key or, in a session, who is signed in."""
    session = await authenticator.find_session(request)
    if session is None:
        return _show_form(request, next)
    try:
        caller = await authenticator.identify(request)
    except Unauthorized as error:
        return _show_form(request, next, str(error))
    values = {"title": "Sign in", "section": "", "caller": caller, "session": session}
    return render_page(request, "login.html", values, headers=_NO_STORE)


@router.post("/login")
async def post_login(
    request: Request,
    authenticator: AuthenticatorDep,
    key: Annotated[str, Form(max_length=200)] = "",
    next: Annotated[str, Form(max_length=4000)] = "",
) -> Response:
    """Begin a session, and go on to the page that asked for it."""
    try:
        session = await authenticator.open_session(key)
    except Unauthorized as error:
        log_refusal(request.scope, error)
        return _show_form(request, next, error.what, status=401)
    response = RedirectResponse(own_address(request, next, "/clips"), 303, _NO_STORE)
    response.set_cookie(
        SESSION_COOKIE,
        session.cookie,
        max_age=SESSION_SEC,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
async def post_logout(
    request: Request, authenticator: AuthenticatorDep, csrf_token: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """End the browser's session."""
    session = await authenticator.find_session(request)
    if session is not None:
        check_csrf(session, csrf_token)
    response = RedirectResponse("login", 303, _NO_STORE)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="lax", secure=request.url.scheme == "https")
    return response


def _show_form(request: Request, address: str, error: str = "", status: int = 200) -> Response:
    values = {"title": "Sign in", "section": "", "caller": None, "session": None, "next": address, "error": error}
    return render_page(request, "login.html", values, status=status, headers=_NO_STORE)
