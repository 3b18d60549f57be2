"""`ampref up`: the whole service in one process."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Option

from amp_core.children import signal_at_end_of_input
from amp_core.cli.options import Json, Quiet
from amp_core.cli.output import Output
from amp_core.robot import load_robots
from ampref_service import logs, server
from ampref_service.app import create_app
from ampref_service.catalog import schema
from ampref_service.cli.startup import (
    Host,
    NoAuth,
    Port,
    check_blobs,
    check_keys,
    ending_on_sigterm,
    has_catalog,
    load_settings,
    make_folder,
    url_of,
    warn_missing_tests,
)
from ampref_service.services import Services
from ampref_workers.embedded import EmbeddedWorker


def up(
    data_dir: Annotated[Path | None, Option(help="Where everything is kept; overrides AMPREF_DATA_DIR.")] = None,
    host: Host = None,
    port: Port = None,
    no_auth: NoAuth = False,
    workers: Annotated[int | None, Option(min=1, help="Clips scored at a time; overrides AMPREF_WORKER_CONCURRENCY.")] = None,
    stop_with_parent: Annotated[bool, Option("--stop-with-parent", hidden=True, help="Stop when standard input ends.")] = False,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Start the whole service in this process: migrated catalog, API and workers, with nothing else to install.

    It runs until Ctrl-C or SIGTERM and then stops within seconds; what was being scored is taken up at the next start.
    With --json it prints one document (url, data_dir, pid) when it is ready.
    """
    out = Output(json_out, quiet=quiet)
    settings = load_settings(
        out,
        data_dir=data_dir,
        host=host,
        port=port,
        auth="none" if no_auth else None,
        worker_concurrency=workers,
        broker_url="",
    )
    # A person watches this process: the log is for trouble alone, unless it is asked for.
    logs.configure(settings.log_level if os.environ.get("AMPREF_LOG_LEVEL") else "warning", json=settings.log_json)
    warn_missing_tests(out, settings)
    robots = load_robots(settings.robots)  # Before anything is started; the server would refuse them with a traceback.
    is_new = not has_catalog(settings)
    if is_new:
        check_keys(out, settings)  # A refusal leaves no folder behind.
    make_folder(settings.data_dir)
    check_blobs(out, settings)
    schema.upgrade(settings.database_url)
    if not is_new:
        check_keys(out, settings)
    listener = server.listen(settings)
    # From this line on connections wait for the application instead of being refused.
    if stop_with_parent:
        signal_at_end_of_input(signal.SIGTERM)
    worker = EmbeddedWorker(settings, robots={robot.name: robot.digest for robot in robots.values()})

    @contextlib.contextmanager
    def background(services: Services) -> Iterator[None]:
        url = url_of(listener)
        with worker.running(services):
            out.print_result({"url": url, "data_dir": str(settings.data_dir), "pid": os.getpid()}, [url])
            out.print(f"ampref is up at {url}")
            out.print(f"  data       {settings.data_dir}")
            out.print(f"  workers    {settings.worker_concurrency} in this process")
            out.print(f"  pages      {url}/")
            out.print(f"  API        {url}/docs")
            export = "" if url == "http://127.0.0.1:8000" else f"export AMPREF_URL={url}; "
            out.print(f"\nnext, in another shell: {export}ampref submit MOTION... --wait")
            out.print("stop with Ctrl-C")
            sys.stdout.flush()
            yield

    checks = {"workers": worker.check}
    app = create_app(settings, notify=worker.notify, checks=checks, background=background, robots=robots)
    with ending_on_sigterm():
        server.run(app, settings, listener)
