"""`ampref worker`: a process that scores for the API."""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated

from typer import Option

from amp_core.cli.options import Json
from amp_core.cli.output import Output
from amp_core.robot import load_robots
from ampref_service import logs
from ampref_service.cli.startup import check_blobs, ending_on_sigterm, load_settings, warn_missing_tests
from ampref_service.settings import Settings
from ampref_workers.app import check_workers, main


def worker(
    check: Annotated[
        bool, Option("--check", help="Ask whether this machine's worker answers, and exit with 0 if it does.")
    ] = False,
    json_out: Json = None,
) -> None:
    """Score clips and lock versions for the API; any number may run. For production, configured by AMPREF_* variables."""
    out = Output(json_out)
    if check:
        # It runs every few seconds as a health check, so that it warns of nothing.
        answers = check_workers(Settings.load(), hostname=platform.node())
        out.print_result({"answers": answers})
        out.print(f"answers: {', '.join(answers)}")
        return
    settings = load_settings(out)
    logs.configure(settings.log_level, json=settings.log_json)
    warn_missing_tests(out, settings)
    load_robots(settings.robots)
    check_blobs(out, settings)
    out.print_result({"pid": os.getpid()})
    sys.stdout.flush()
    with ending_on_sigterm():
        main(settings)
