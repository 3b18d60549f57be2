"""The HTTP application: `create_app(settings)` builds it, its lifespan opens what it serves from.

Importing this module does nothing else. Everything that differs between the embedded service and a cluster is an argument:
`notify` wakes the workers, `checks` adds components to `/readyz`, `background` lives as long as the application
(the embedded worker). So this module imports no worker and no broker.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import anyio.to_thread
import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Scope

from amp_core.robot import Robot
from ampref_service.api import faults, openapi, problems
from ampref_service.api.auth import Authenticator
from ampref_service.api.guard import guard_requests
from ampref_service.api.middleware import admit_uploads, limit_bodies, observe_requests
from ampref_service.api.telemetry import Telemetry
from ampref_service.catalog.schema import check as check_schema
from ampref_service.event_feed import EventFeed
from ampref_service.job_feed import JobFeed
from ampref_service.keys import parse_groups
from ampref_service.pulls import PullCounter
from ampref_service.readers import ReaderPool
from ampref_service.services import Notify, Services, open_services
from ampref_service.settings import MIB, Settings
from ampref_service.spool import Admission, Spool
from ampref_service.statistics import StatisticsMaker
from ampref_service.web import routes as web

log = structlog.get_logger("ampref_service.app")

MAX_JSON_BYTES = 1024 * 1024
UPLOAD_OVERHEAD_BYTES = 256 * 1024
"""What the other fields and the framing of a multipart upload may take besides the file."""


def create_app(
    settings: Settings,
    *,
    notify: Notify = lambda _: None,
    checks: Mapping[str, Callable[[], None]] | None = None,
    background: Callable[[Services], AbstractContextManager[Any]] | None = None,
    robots: Mapping[str, Robot] | None = None,
    open_readers: Callable[[Settings, Spool], ReaderPool] = ReaderPool,
) -> FastAPI:
    """The application for `settings`; nothing is opened before its lifespan starts.

    Args:
      notify: called with the id of every new job, after its row was committed. Its failure is logged and changes nothing.
        Without it, workers find the job by looking at the table.
      checks: more components for `/readyz`, by name, for example the broker.
      background: entered after everything is open and left before it is closed.
      robots: the robots, where they are loaded already (`amp_core.robot.load_robots`); else the lifespan loads them.
      open_readers: makes the readers of uploads, which are closed at the end.
    """
    parse_groups(settings.proxy_groups)  # What cannot be used is refused before anything is opened.
    telemetry = Telemetry()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await anyio.to_thread.run_sync(open_services, settings, notify, robots, open_readers)
        app.state.services = services
        app.state.authenticator = Authenticator(services.catalog, settings)
        app.state.checks = {
            "database": functools.partial(check_schema, services.catalog),
            "blobs": services.blobs.check,
            "uploads": services.spool.check,
            **(checks or {}),
        }
        # What they tell of keeps jobs waiting, and no request.
        app.state.optional_checks = {"workers": services.check_workers, "queue": services.check_queue}
        app.state.pulls = pulls = PullCounter(services.catalog)
        app.state.statistics = statistics = StatisticsMaker(services)
        telemetry.watch(services)
        app.state.event_feed = feed = EventFeed(
            services.catalog, every_sec=settings.sse_interval_sec, max_followers=settings.max_streams
        )
        app.state.job_feed = job_feed = JobFeed(
            services.catalog, every_sec=settings.sse_interval_sec, max_followers=settings.max_streams
        )
        try:
            with contextlib.ExitStack() as stack:
                if background is not None:
                    await anyio.to_thread.run_sync(stack.enter_context, background(services))
                log.info("service_ready", robots=sorted(services.robots), workers="here" if background else "elsewhere")
                yield
        finally:
            app.state.authenticator.close()
            await feed.close()
            await job_feed.close()
            statistics.close()
            await anyio.to_thread.run_sync(pulls.close)
            await anyio.to_thread.run_sync(services.close)

    upload_limits = {
        "/v1/clips": settings.max_upload_bytes + UPLOAD_OVERHEAD_BYTES,
        "/v1/clips:batch": settings.max_batch_mb * MIB,
    }

    def is_upload(scope: Scope) -> bool:
        return scope["method"] == "POST" and scope["path"] in upload_limits

    def body_limit(scope: Scope) -> int:
        return upload_limits[scope["path"]] if is_upload(scope) else MAX_JSON_BYTES

    def upload_size(scope: Scope) -> int | None:
        # A length that is no number, or over the limit, was refused by `limit_bodies`.
        return int(Headers(scope=scope).get("content-length", body_limit(scope))) if is_upload(scope) else None

    app = FastAPI(
        **openapi.INFO,
        lifespan=lifespan,
        exception_handlers=problems.HANDLERS | faults.HANDLERS,
        redirect_slashes=False,
        docs_url=None,  # The framework's pages load their scripts from elsewhere; see ampref_service.api.docs_page.
        redoc_url=None,
    )
    app.openapi = openapi.build_document  # type: ignore[method-assign]
    app.state.telemetry = telemetry
    app.state.routes = (*openapi.ROUTES, *web.ROUTES)
    app.state.admission = Admission(settings)
    app.state.started = time.monotonic()
    # As they are, and not included once more, which would prepare every route anew for each application.
    app.router.routes.extend([*openapi.router.routes, *web.router.routes])
    app.add_middleware(admit_uploads, admission=app.state.admission, declared_size=upload_size)
    app.add_middleware(guard_requests, settings=settings)
    app.add_middleware(limit_bodies, limit=body_limit, timeout_sec=settings.request_timeout_sec)
    app.add_middleware(observe_requests, observe=telemetry.observe)
    return app
