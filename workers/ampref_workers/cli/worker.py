"""`ampref worker`: a process that scores for the API."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from types import SimpleNamespace
from typing import Annotated, Any

from typer import Option

from amp_core.cli.options import Json
from amp_core.cli.output import Output
from amp_core.errors import AmprefError
from amp_core.robot import load_robots
from ampref_service import logs
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog, schema, worker_rows
from ampref_service.cli.startup import (
    check_blobs,
    check_catalog_is_there,
    ending_on_sigterm,
    load_settings,
    warn_missing_tests,
)
from ampref_service.damage import CatalogDamageLog
from ampref_service.settings import Settings
from ampref_workers.app import check_workers, main
from ampref_workers.embedded import EmbeddedWorker


def worker(
    check: Annotated[
        bool, Option("--check", help="Ask whether this machine's worker answers, and exit with 0 if it does.")
    ] = False,
    until_empty: Annotated[
        bool,
        Option(
            "--until-empty",
            help="Take jobs from the table, without a broker, until none is queued or runs; for batch systems such as Slurm.",
        ),
    ] = False,
    json_out: Json = None,
) -> None:
    """Score clips and lock versions for the API; any number may run. For production, configured by AMPREF_* variables."""
    out = Output(json_out)
    if check:
        # It runs every few seconds as a health check, so that it warns of nothing.
        settings = Settings.load()
        logs.configure("warning", json=settings.log_json)
        answers = check_workers(settings, hostname=platform.node())
        states = _list_states(settings)
        out.print_result({"answers": answers, "workers": states})
        out.print(f"answers: {', '.join(answers)}")
        for row in states:
            out.print(f"  {row['name']} is {row['state']}" + (f": {row['reason']}" if row["reason"] else ""))
        return
    settings = load_settings(out)
    logs.configure(settings.log_level, json=settings.log_json)
    warn_missing_tests(out, settings)
    robots = {robot.name: robot.digest for robot in load_robots(settings.robots).values()}
    if until_empty or not settings.embedded:
        check_catalog_is_there(settings)
    if until_empty:
        with ending_on_sigterm(), contextlib.closing(Catalog.open(settings.database_url)) as catalog:
            schema.check(catalog)
            check_blobs(out, settings)
            out.print_result({"pid": os.getpid()})
            sys.stdout.flush()
            blobs = open_blobs(settings.blob_url, CatalogDamageLog(catalog))
            EmbeddedWorker(settings, robots=robots).run_until_empty(SimpleNamespace(catalog=catalog, blobs=blobs))
        return
    check_blobs(out, settings)
    out.print_result({"pid": os.getpid()})
    sys.stdout.flush()
    with ending_on_sigterm():
        main(settings)


def _list_states(settings: Settings) -> list[dict[str, Any]]:
    """This machine's live workers; none where the catalog cannot be read, which is no fault of theirs."""
    try:
        check_catalog_is_there(settings)
        with contextlib.closing(Catalog.open(settings.database_url)) as catalog, catalog.session() as session:
            rows = [row for row in worker_rows.list_workers(session) if row.live and row.host == platform.node()[:200]]
    except (AmprefError, OSError):
        return []
    return [{"name": row.name, "state": row.state, "reason": row.reason} for row in rows]
