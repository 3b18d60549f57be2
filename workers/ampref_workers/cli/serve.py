"""`ampref up` and `ampref worker`: the processes that score."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from amp_core.cli.output import Json, Output, Quiet
from ampref_service.cli.serve import (
    TERMINATED,
    DataDir,
    Host,
    Port,
    configure_logs,
    load_settings,
    make_folder,
    schema_check,
    serve,
    tell_missing_tests,
    url_of,
)

if TYPE_CHECKING:
    from ampref_service.services import Services
    from ampref_service.settings import Settings


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

    from amp_core.robot import load_robots
    from ampref_service.app import create_app
    from ampref_service.catalog import schema
    from ampref_service.server import listen
    from ampref_workers.embedded import EmbeddedWorker

    settings = load_settings(out, data_dir=data_dir, host=host, port=port, worker_concurrency=workers, broker_url="")
    configure_logs(settings, default="warning")
    tell_missing_tests(out, settings)
    robots = load_robots(settings.robots)  # Before anything is started; the server would refuse them with a traceback.
    make_folder(settings.data_dir)
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

    checks = {"migrations": schema_check(settings)}
    app = create_app(settings, notify=worker.notify, checks=checks, background=background, installed=robots)
    serve(app, settings, listener)


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


def worker(
    check: Annotated[
        bool, typer.Option("--check", help="Ask whether this machine's worker answers, and exit with 0 if it does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score clips and lock versions for the API; any number may run. For production, configured by AMPREF_* variables."""
    out = Output(as_json=as_json)

    from ampref_workers.app import check_workers, main

    if check:
        settings = load_settings()
        answering = check_workers(settings, hostname=platform.node())
        out.document({"answers": answering})
        out.say(f"answers: {', '.join(answering)}")
        return
    from amp_core.robot import load_robots

    settings = load_settings(out)
    configure_logs(settings)
    tell_missing_tests(out, settings)
    load_robots(settings.robots)
    out.document({"pid": os.getpid()})
    sys.stdout.flush()
    try:
        main(settings)
    except SystemExit as stopped:
        # Celery ends this way when it was asked to stop, which is what was wanted.
        if stopped.code not in (None, 0, TERMINATED):
            raise
