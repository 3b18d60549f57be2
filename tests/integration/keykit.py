"""Keys for tests, made in the catalog as `ampref token` does."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ampref_service.catalog import keys
from ampref_service.catalog.records import Key
from ampref_service.keys import SCOPES, make_bounds, make_key


def add_key(
    app: FastAPI,
    name: str,
    *scopes: str,
    datasets: tuple[str, ...] = (),
    robots: tuple[str, ...] = (),
    revoked: bool = False,
    tell: bool = True,
    **options: Any,
) -> tuple[str, Key]:
    """A key of an application that runs: its text and its row; without scopes it has all.

    Args:
      tell: whether the application looks at once, as it does for keys that it makes itself.
    """
    text, new = make_key(name, scopes or tuple(SCOPES), make_bounds(datasets, robots), **options)
    with app.state.services.catalog.begin() as session:
        key = keys.add_key(session, new, actor="operator")
        if revoked:
            keys.revoke_key(session, key.id, actor="operator")
    if tell:
        app.state.authenticator.forget()
    return text, key


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}
