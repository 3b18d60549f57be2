"""The verbs that the workers bring to the command."""

from __future__ import annotations

import typer

from ampref_workers.cli import demo, serve


def register(app: typer.Typer) -> None:
    """Add the workers' verbs."""
    app.command("up")(serve.up)
    app.command("worker")(serve.worker)
    app.command("demo")(demo.demo)
