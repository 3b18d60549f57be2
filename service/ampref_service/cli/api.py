"""`ampref api`: the HTTP API alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from amp_core.cli.options import Json
from amp_core.cli.output import Output
from amp_core.robot import load_robots
from ampref_service import logs, server
from ampref_service.app import create_app
from ampref_service.cli.startup import Host, NoAuth, Port, check_blobs, check_keys, ending_on_sigterm, load_settings, url_of


def api(host: Host = None, port: Port = None, no_auth: NoAuth = False, json_out: Json = None) -> None:
    """Serve the HTTP API alone; workers run elsewhere. For production, configured by AMPREF_* variables.

    With --json it prints one document (url, pid) when it listens.
    """
    out = Output(json_out)
    settings = load_settings(out, host=host, port=port, auth="none" if no_auth else None)
    logs.configure(settings.log_level, json=settings.log_json)
    check_keys(out, settings)
    robots = load_robots(settings.robots)
    check_blobs(out, settings)
    checks: dict[str, Callable[[], Any]] = {}
    more: dict[str, Any] = {}
    if settings.embedded:
        out.warn("AMPREF_BROKER_URL is not set, so nothing scores what is uploaded here; `ampref up` would, in one process")
    else:
        from ampref_service.broker import Notifier, check_broker  # noqa: PLC0415 - Celery is optional

        more["notify"] = Notifier(settings)
        checks["broker"] = partial(check_broker, settings)
    listener = server.listen(settings)
    out.print_result({"url": url_of(listener), "pid": os.getpid()})
    sys.stdout.flush()
    with ending_on_sigterm():
        server.run(create_app(settings, checks=checks, robots=robots, **more), settings, listener)
