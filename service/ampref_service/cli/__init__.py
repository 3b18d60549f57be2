"""The verbs that the service brings to the command."""

from __future__ import annotations

import typer

from ampref_service.cli import serve


def register(app: typer.Typer) -> None:
    """Add the service's verbs."""
    app.command("api")(serve.api)
    app.command("migrate")(serve.migrate)
