"""`ampref api` and `ampref migrate`, and what the verbs that start a process have in common."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.cli.output import Json, Output, Quiet
from amp_core.errors import Unavailable

if TYPE_CHECKING:
    import socket

    from ampref_service.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept; overrides AMPREF_DATA_DIR.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; overrides AMPREF_HOST.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; overrides AMPREF_PORT.")]

TERMINATED = 143


def api(host: Host = None, port: Port = None, as_json: Json = False) -> None:
    """Serve the HTTP API alone; workers run elsewhere. For production, configured by AMPREF_* variables.

    With --json it prints one document (url, pid) when it listens.
    """
    out = Output(as_json=as_json)

    from amp_core.robot import load_robots
    from ampref_service.app import create_app
    from ampref_service.server import listen

    settings = load_settings(out, host=host, port=port)
    configure_logs(settings)
    robots = load_robots(settings.robots)
    checks: dict[str, Any] = {"migrations": schema_check(settings)}
    notify: dict[str, Any] = {}
    if not settings.embedded:
        from ampref_service.broker import check_broker, make_notifier

        notify["notify"] = make_notifier(settings)
        checks["broker"] = lambda: check_broker(settings)
    else:
        out.warn("AMPREF_BROKER_URL is not set, so nothing scores what is uploaded here; `ampref up` would, in one process")
    listener = listen(settings)
    out.document({"url": url_of(listener), "pid": os.getpid()})
    sys.stdout.flush()
    serve(create_app(settings, checks=checks, installed=robots, **notify), settings, listener)


def migrate(
    to: Annotated[str | None, typer.Option(metavar="REVISION", help="Go down to this revision instead; base is empty.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring the catalog's schema up to date. Safe to run twice, and by several at once."""
    out = Output(as_json=as_json, quiet=quiet)

    from ampref_service.catalog import schema

    settings = load_settings(out)
    if to is None and settings.database_url.startswith("sqlite"):
        make_folder(settings.data_dir)
    revision = schema.upgrade(settings.database_url) if to is None else schema.downgrade(settings.database_url, to)
    out.document({"revision": revision})
    out.values([revision])
    out.say(f"the catalog is at revision {revision}")
    if to is None:
        out.say("next: ampref api, and ampref worker on any number of machines")


def load_settings(out: Output | None = None, **overrides: Any) -> Settings:
    """The settings. With `out`, variables that look like settings and are none are told: they would change nothing."""
    from ampref_service.settings import Settings, unknown_variables

    settings = Settings.load(**{name: value for name, value in overrides.items() if value is not None})
    unknown = unknown_variables(os.environ) if out is not None else {}
    if out is not None and unknown:
        named = ", ".join(name + (f" (did you mean {near}?)" if near else "") for name, near in unknown.items())
        out.warn(f"nothing reads the environment variable{'s' if len(unknown) > 1 else ''} {named}; docs/catalog.md lists all")
    return settings


def make_folder(folder: Path) -> None:
    """The data folder, there and writable, or an `Unavailable` that names it before anything else trips over it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Unavailable(
            f"the data folder cannot be written: {error.strerror or error}",
            file=str(folder),
            expected="a folder that this user may write",
            remedy="Choose another with --data-dir or AMPREF_DATA_DIR, or give this one to the user that runs the service",
        ) from None


def tell_missing_tests(out: Output, settings: Settings) -> None:
    """Say it now, not in the checklist of a version that is locked: what needs JAX is skipped where it is not installed."""
    if settings.lock_tests != "none" and any(importlib.util.find_spec(name) is None for name in ("jax", "optax")):
        out.warn(
            "JAX is not installed here: before a lock tests 1A and smoke and the policy's half of the others are skipped, and "
            "no version is ready for training; install ampref[train]"
        )


def configure_logs(settings: Settings, default: str | None = None) -> None:
    """Set up logging; `default` is the level of a process that a person watches, unless AMPREF_LOG_LEVEL says otherwise."""
    from ampref_service import logs

    level = default if default and not os.environ.get("AMPREF_LOG_LEVEL") else settings.log_level
    logs.configure(level, json=settings.log_json)


def schema_check(settings: Settings) -> Any:
    from ampref_service.catalog import Catalog, schema

    catalog = Catalog.open(settings.database_url)
    return lambda: schema.check(catalog)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, settings: Settings, listener: socket.socket) -> None:
    from ampref_service import server

    try:
        server.run(app, settings, listener)
    except SystemExit as stopped:
        # SIGTERM is how a server is meant to be stopped; uvicorn passes it on to us after it has finished.
        if stopped.code != TERMINATED:
            raise
