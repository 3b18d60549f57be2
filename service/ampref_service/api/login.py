"""`/login` and `/logout`: a browser's session for the holder of a key."""

from __future__ import annotations

from html import escape
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from amp_core.errors import Unauthorized
from ampref_service.api.auth import SESSION_COOKIE, SESSION_SEC, check_csrf
from ampref_service.api.deps import AuthenticatorDep
from ampref_service.api.docs_page import SAFE_PAGE
from ampref_service.api.problems import log_refusal

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 32rem; margin: 4rem auto; padding: 0 1rem; }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem; margin: .3rem 0 1rem; }
button { font: inherit; padding: .3rem 1rem; } .error { color: #c4362f; }
"""


@router.get("/login")
async def get_login(request: Request, authenticator: AuthenticatorDep) -> HTMLResponse:
    """The form for a key or, in a session, who is signed in."""
    session = await authenticator.find_session(request)
    if session is None:
        return _show_form()
    try:
        caller = await authenticator.identify(request)
    except Unauthorized as error:
        return _show_form(str(error))
    token = f'<input type="hidden" name="csrf_token" value="{escape(session.csrf_token)}">'
    return _show_page(
        f"<p>Signed in as {escape(caller.name)}. <a href='docs'>To the API</a></p>"
        f'<form method="post" action="logout">{token}<button>Sign out</button></form>'
    )


@router.post("/login")
async def post_login(
    request: Request, authenticator: AuthenticatorDep, key: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Begin a session."""
    try:
        session = await authenticator.open_session(key)
    except Unauthorized as error:
        log_refusal(request.scope, error)
        return _show_form(f"{error.what}", status=401)
    response = RedirectResponse("login", 303, {"cache-control": "no-store"})
    response.set_cookie(
        SESSION_COOKIE,
        session.cookie,
        max_age=SESSION_SEC,
        httponly=True,
        samesite="strict",
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
    response = RedirectResponse("login", 303, {"cache-control": "no-store"})
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


def _show_form(error: str = "", status: int = 200) -> HTMLResponse:
    message = f'<p class="error">{escape(error)}</p>' if error else ""
    return _show_page(
        f'<form method="post" action="login">{message}<label>Key<input name="key" type="password" autocomplete="off" autofocus>'
        "</label><button>Sign in</button></form>",
        status,
    )


def _show_page(body: str, status: int = 200) -> HTMLResponse:
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ampref</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>ampref</h1>{body}</body></html>"
    )
    return HTMLResponse(page, status, SAFE_PAGE | {"cache-control": "no-store"})
