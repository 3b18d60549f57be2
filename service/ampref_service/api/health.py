"""Is it alive, is it ready, what does it measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from amp_core.errors import AmprefError
from ampref_service.api.strict import StrictRoute
from ampref_service.api.telemetry import Telemetry
from ampref_service.errors import responses, traceback_text

log = structlog.get_logger("service.health")

router = APIRouter(route_class=StrictRoute, tags=["health"])

Checks = Mapping[str, Callable[[], None]]
"""By component: a function that returns when it works and raises when it does not."""


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str
    uptime_sec: float


class Component(BaseModel):
    """One thing that the service cannot do without."""

    name: Annotated[str, Field(description="`database`, `migrations`, `blobs` or `broker`")]
    ok: bool
    detail: str | None = Field(None, description="What is wrong, and what to do.")
    ms: float


class Ready(BaseModel):
    """Whether requests can be served, and which component is down."""

    status: Literal["ready", "not-ready"]
    components: list[Component]


def liveness(request: Request) -> Alive:
    """The process is alive. Asks nothing of the database: restart the process when this fails, not when it is not ready."""
    state = request.app.state
    return Alive(version=request.app.version, uptime_sec=round(time.monotonic() - state.started, 3))


def readiness(request: Request, response: Response) -> Ready:
    """Every component is tried; 503 when one is down, with its name."""
    components = [_try(name, check) for name, check in request.app.state.checks.items()]
    ready = all(component.ok for component in components)
    response.status_code = 200 if ready else 503
    return Ready(status="ready" if ready else "not-ready", components=components)


def _try(name: str, check: Callable[[], None]) -> Component:
    started = time.perf_counter()
    try:
        check()
        detail = None
    except AmprefError as error:
        detail = str(error)
    except Exception as error:
        # What a driver says may hold a URL with its password: it belongs into the log.
        log.error("readiness_check_failed", component=name, exception=traceback_text(error))
        detail = f"{type(error).__name__}: see the service's log"
    return Component(name=name, ok=detail is None, detail=detail, ms=round((time.perf_counter() - started) * 1e3, 2))


def metrics(request: Request) -> Response:
    """Prometheus: request latencies, jobs by kind and state, rollouts by tier."""
    telemetry: Telemetry = request.app.state.telemetry
    return Response(telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


_TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "A component is down"}}

for prefix in ("", "/v1"):
    suffix = "" if not prefix else "_v1"
    router.add_api_route(f"{prefix}/healthz", liveness, response_model=Alive, name="healthz" + suffix, responses=responses())
    router.add_api_route(
        f"{prefix}/readyz", readiness, response_model=Ready, name="readyz" + suffix, responses={**responses(), **_NOT_READY}
    )
    router.add_api_route(
        f"{prefix}/metrics",
        metrics,
        response_class=Response,
        name="metrics" + suffix,
        responses={**responses(), 200: {"description": "The metrics", "content": _TEXT}},
    )
