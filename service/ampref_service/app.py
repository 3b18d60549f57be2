"""The HTTP application: `create_app(settings)` builds it, its lifespan opens what it serves from.

Importing this module does nothing else. Everything that differs between the embedded service and a cluster is handed in:
`notify` rings whoever runs the jobs, `checks` adds components to `/readyz`, `background` lives as long as the application
(the embedded worker). So this module imports no worker and no broker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import anyio.to_thread
import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import Scope

from amp_core.robot import Robot, load_robots
from amp_core.version import __version__
from ampref_service import errors
from ampref_service.api import clips, datasets, docs_page, faults, health, jobs, robots, rollouts, schema, verification
from ampref_service.api.deps import Notify, Services
from ampref_service.api.middleware import BodyLimits, RequestScope
from ampref_service.api.telemetry import Counts, Telemetry
from ampref_service.blobs import open_blobs
from ampref_service.catalog import Catalog, job_rows
from ampref_service.catalog import clips as clip_rows
from ampref_service.settings import Settings

log = structlog.get_logger("ampref_service.app")

MAX_JSON_BYTES = 1024 * 1024
UPLOAD_OVERHEAD_BYTES = 256 * 1024
"""What the other fields and the framing of a multipart upload may take besides the file."""

_DESCRIPTION = """
Physically grounded reference motions for Adversarial Motion Priors: POST a retargeted clip, workers roll it out in MuJoCo and
score it, query the curriculum, lock a dataset version, pull it on a training node.

Every error, whatever its status, is `application/problem+json` of one shape (the schema `Problem`).
""".strip()


def ring_nothing(_: str) -> None:
    """The doorbell where nobody listens: workers find the job by looking at the table."""


def create_app(
    settings: Settings,
    *,
    notify: Notify = ring_nothing,
    checks: Mapping[str, Callable[[], None]] | None = None,
    background: Callable[[Services], AbstractContextManager[Any]] | None = None,
    installed: Mapping[str, Robot] | None = None,
) -> FastAPI:
    """The application for `settings`; nothing is opened before its lifespan starts.

    Args:
      notify: called with the id of every new job, after its row was committed. Its failure is logged and changes nothing.
      checks: more components for `/readyz`, by name, for example the broker.
      background: entered after everything is open and left before it is closed.
      installed: the robots, where they are loaded already (`amp_core.robot.load_robots`); else the lifespan loads them.
    """
    telemetry = Telemetry()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = await anyio.to_thread.run_sync(open_services, settings, notify, installed)
        app.state.services = opened
        app.state.checks = {"database": opened.catalog.check, "blobs": opened.blobs.check, **(checks or {})}
        telemetry.watch(lambda: _counts(opened))
        try:
            with contextlib.ExitStack() as stack:
                if background is not None:
                    await anyio.to_thread.run_sync(stack.enter_context, background(opened))
                log.info("service_ready", robots=sorted(opened.robots), embedded=settings.embedded)
                yield
        finally:
            opened.catalog.close()

    app = FastAPI(
        title="ampref",
        version=__version__,
        summary="Reference data for training legged robots with Adversarial Motion Priors",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # The framework's pages load their scripts from elsewhere; see ampref_service.api.docs_page.
        redoc_url=None,
        separate_input_output_schemas=False,
        form_limits={"max_files": 1, "max_fields": 128, "max_part_size": 64 * 1024},
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.telemetry = telemetry
    app.state.started = time.monotonic()
    errors.install(app)
    faults.install(app)
    for resource in (clips, rollouts, jobs, datasets, verification, robots, schema):
        app.include_router(resource.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(docs_page.router)

    def body_limit(scope: Scope) -> int:
        if scope["path"] == "/v1/clips" and scope["method"] == "POST":
            return settings.max_upload_bytes + UPLOAD_OVERHEAD_BYTES
        return MAX_JSON_BYTES

    app.add_middleware(BodyLimits, limit=body_limit, timeout_sec=settings.request_timeout_sec)
    app.add_middleware(RequestScope, observe=telemetry.observe)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def open_services(settings: Settings, notify: Notify = ring_nothing, robots: Mapping[str, Robot] | None = None) -> Services:
    """Open the catalog, the blobs and, unless they are given, the robots that `settings` name.

    Raises:
      RobotRefused: a robot cannot be used, or two have one name.
    """
    robots = load_robots(settings.robots) if robots is None else robots
    return Services(settings, Catalog.open(settings.database_url), open_blobs(settings.blob_url), robots, notify)


def _counts(opened: Services) -> tuple[Counts, float]:
    with opened.catalog.session() as session:
        counts = {"ampref_jobs": job_rows.counts(session), "ampref_clips": clip_rows.count(session)}
    return counts, opened.queue.oldest_due()


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            license_info=app.license_info,
            routes=app.routes,
            separate_input_output_schemas=app.separate_input_output_schemas,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        problem = errors.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        _replace_validation_errors(document)
        for field in schemas["ClipForm"]["properties"].values():
            _drop_null(field)
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        app.openapi_schema = document
    return app.openapi_schema


def _replace_validation_errors(document: dict[str, Any]) -> None:
    # FastAPI documents its own 422 body wherever there are parameters; ours is a problem like any other.
    ours = errors.responses(422)[422]
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                _drop_null(parameter["schema"])
            if "422" in operation.get("responses", {}):
                operation["responses"]["422"] = ours
            operation["responses"] = dict(sorted(operation["responses"].items()))


def _drop_null(schema: dict[str, Any]) -> None:
    """A parameter or a form field is left out rather than null: text cannot say null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del schema["anyOf"]
        schema.update(choices[0])
