"""`ampref up, api, worker, migrate`: the processes of the service, put together here and nowhere else."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amp_core.errors import Unavailable
from service.cli.output import Json, Output, Quiet

if TYPE_CHECKING:
    import socket

    from service.api.deps import Services
    from service.settings import Settings

DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept; overrides AMPREF_DATA_DIR.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; overrides AMPREF_HOST.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; overrides AMPREF_PORT.")]

TERMINATED = 143


def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Clips scored at a time; overrides AMPREF_WORKER_CONCURRENCY.")
    ] = None,
    stop_with_parent: Annotated[
        bool, typer.Option("--stop-with-parent", hidden=True, help="Stop when standard input ends.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start the whole service in this process: migrated catalog, API and workers, with nothing else to install.

    It runs until Ctrl-C or SIGTERM and then stops within seconds; what was being scored is taken up at the next start.
    With --json it prints one document (url, data_dir, pid) when it is ready.
    """
    out = Output(as_json=as_json, quiet=quiet)

    from service.app import create_app
    from service.catalog import schema
    from service.robots import load_robots
    from service.server import listen
    from workers.embedded import EmbeddedWorker

    settings = _settings(out, data_dir=data_dir, host=host, port=port, worker_concurrency=workers, broker_url="")
    _log(settings, default="warning")
    _tell_missing_tests(out, settings)
    robots = load_robots(settings)  # Before anything is started; the server would refuse them with a traceback.
    _make_folder(settings.data_dir)
    schema.upgrade(settings.database_url)
    listener = listen(settings)
    # From now on connections wait for the application instead of being refused.
    listener.listen()
    if stop_with_parent:
        threading.Thread(target=_stop_at_end_of_input, name="parent", daemon=True).start()
    worker = EmbeddedWorker(settings)

    @contextlib.contextmanager
    def background(opened: Services) -> Iterator[None]:
        with worker.running(opened):
            _announce(out, settings, url_of(listener))
            yield

    checks = {"migrations": _check_schema(settings)}
    app = create_app(settings, notify=worker.notify, checks=checks, background=background, installed=robots)
    _serve(app, settings, listener)


def _stop_at_end_of_input() -> None:
    """Whoever started us holds the other end of our standard input; when it is gone, however it went, so are we."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _announce(out: Output, settings: Settings, url: str) -> None:
    out.document({"url": url, "data_dir": str(settings.data_dir), "pid": os.getpid()})
    out.values([url])
    out.say(f"ampref is up at {url}")
    out.say(f"  data       {settings.data_dir}")
    out.say(f"  workers    {settings.worker_concurrency} in this process")
    out.say(f"  API        {url}/docs")
    other = "" if url == "http://127.0.0.1:8000" else f"export AMPREF_URL={url}; "
    out.say(f"\nnext, in another shell: {other}ampref submit MOTION... --wait")
    out.say("stop with Ctrl-C")
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        out.warn(f"it listens on {settings.host}, and there are no keys yet: whoever reaches it may do everything")
    sys.stdout.flush()


def api(host: Host = None, port: Port = None, as_json: Json = False) -> None:
    """Serve the HTTP API alone; workers run elsewhere. For production, configured by AMPREF_* variables.

    With --json it prints one document (url, pid) when it listens.
    """
    out = Output(as_json=as_json)

    from service.app import create_app
    from service.robots import load_robots
    from service.server import listen

    settings = _settings(out, host=host, port=port)
    _log(settings)
    robots = load_robots(settings)
    checks: dict[str, Any] = {"migrations": _check_schema(settings)}
    notify: dict[str, Any] = {}
    if not settings.embedded:
        from workers.app import check_broker, make_notifier

        notify["notify"] = make_notifier(settings)
        checks["broker"] = lambda: check_broker(settings)
    else:
        out.warn("AMPREF_BROKER_URL is not set, so nothing scores what is uploaded here; `ampref up` would, in one process")
    listener = listen(settings)
    out.document({"url": url_of(listener), "pid": os.getpid()})
    sys.stdout.flush()
    _serve(create_app(settings, checks=checks, installed=robots, **notify), settings, listener)


def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Ask whether this machine's worker answers, and exit with 0 if it does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score clips and lock versions for the API; any number may run. For production, configured by AMPREF_* variables."""
    out = Output(as_json=as_json)

    from workers.app import check_workers, main

    if check:
        settings = _settings()
        answering = check_workers(settings, hostname=platform.node())
        out.document({"answers": answering})
        out.say(f"answers: {', '.join(answering)}")
        return
    from service.robots import load_robots

    settings = _settings(out)
    _log(settings)
    _tell_missing_tests(out, settings)
    load_robots(settings)
    out.document({"pid": os.getpid()})
    sys.stdout.flush()
    try:
        main(settings)
    except SystemExit as stopped:
        # Celery ends this way when it was asked to stop, which is what was wanted.
        if stopped.code not in (None, 0, TERMINATED):
            raise


def migrate(
    to: Annotated[str | None, typer.Option(metavar="REVISION", help="Go down to this revision instead; base is empty.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring the catalog's schema up to date. Safe to run twice, and by several at once."""
    out = Output(as_json=as_json, quiet=quiet)

    from service.catalog import schema

    settings = _settings(out)
    if to is None and settings.database_url.startswith("sqlite"):
        _make_folder(settings.data_dir)
    revision = schema.upgrade(settings.database_url) if to is None else schema.downgrade(settings.database_url, to)
    out.document({"revision": revision})
    out.values([revision])
    out.say(f"the catalog is at revision {revision}")
    if to is None:
        out.say("next: ampref api, and ampref worker on any number of machines")


def _settings(out: Output | None = None, **overrides: Any) -> Settings:
    """The settings. With `out`, variables that look like settings and are none are told: they would change nothing."""
    from service.settings import Settings, unknown_variables

    settings = Settings.load(**{name: value for name, value in overrides.items() if value is not None})
    unknown = unknown_variables(os.environ) if out is not None else {}
    if out is not None and unknown:
        named = ", ".join(name + (f" (did you mean {near}?)" if near else "") for name, near in unknown.items())
        out.warn(f"nothing reads the environment variable{'s' if len(unknown) > 1 else ''} {named}; docs/catalog.md lists all")
    return settings


def _make_folder(folder: Path) -> None:
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


def _tell_missing_tests(out: Output, settings: Settings) -> None:
    """Say it now, not in the checklist of a version that is locked: what needs JAX is skipped where it is not installed."""
    if settings.lock_tests != "none" and any(importlib.util.find_spec(name) is None for name in ("jax", "optax")):
        out.warn(
            "JAX is not installed here: before a lock tests 1A and smoke and the policy's half of the others are skipped, and "
            "no version is ready for training; install ampref[train]"
        )


def _log(settings: Settings, default: str | None = None) -> None:
    """Set up logging; `default` is the level of a process that a person watches, unless AMPREF_LOG_LEVEL says otherwise."""
    from service import logs

    level = default if default and not os.environ.get("AMPREF_LOG_LEVEL") else settings.log_level
    logs.configure(level, json=settings.log_json)


def _check_schema(settings: Settings) -> Any:
    from service.catalog import Catalog, schema

    catalog = Catalog.open(settings.database_url)
    return lambda: schema.check(catalog)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _serve(app: Any, settings: Settings, listener: socket.socket) -> None:
    from service import server

    try:
        server.run(app, settings, listener)
    except SystemExit as stopped:
        # SIGTERM is how a server is meant to be stopped; uvicorn passes it on to us after it has finished.
        if stopped.code != TERMINATED:
            raise
