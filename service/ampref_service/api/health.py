"""Is it alive, is it ready, what does it measure."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, cast

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from amp_core.errors import AmprefError
from ampref_service.api.deps import needs
from ampref_service.api.problems import responses
from ampref_service.api.strict import StrictRoute
from ampref_service.api.telemetry import Telemetry
from ampref_service.logs import RepeatingLog

_log = RepeatingLog(structlog.get_logger("ampref_service.health"))

router = APIRouter(route_class=StrictRoute, tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
    version: str
    uptime_sec: float


class Component(BaseModel):
    """One thing that the service needs, or that its jobs do."""

    name: Annotated[str, Field(description="`database` (and its schema), `blobs`, `uploads`, `broker`, `workers` or `queue`")]
    ok: bool
    needed: Annotated[bool, Field(description="Whether requests cannot be served without it.")]
    detail: str | None = Field(None, description="What is wrong, and what to do.")
    ms: float


class Ready(BaseModel):
    """Whether requests can be served, and which component is down."""

    status: Literal["ready", "not-ready"]
    components: list[Component]


async def get_liveness(request: Request) -> Alive:
    """The process is alive. Asks nothing of the database: restart the process when this fails, not when it is not ready."""
    return Alive(version=request.app.version, uptime_sec=round(time.monotonic() - request.app.state.started, 3))


def get_readiness(request: Request, response: Response) -> Ready:
    """Every component is tried; 503 when one that is needed is down, with its name."""
    components = []
    state = request.app.state
    for name, check in {**state.optional_checks, **state.checks}.items():
        start, detail = time.perf_counter(), None
        try:
            check()
        except AmprefError as error:
            detail = str(error)
        except Exception as error:
            # The message of a driver may hold a URL with its password: it belongs into the log.
            _log.error("readiness_check_failed", name, component=name, error=f"{type(error).__name__}: {error}")
            detail = f"{type(error).__name__}: see the service's log"
        milliseconds = round((time.perf_counter() - start) * 1e3, 2)
        components.append(Component(name=name, ok=detail is None, needed=name in state.checks, detail=detail, ms=milliseconds))
    is_ready = all(component.ok or not component.needed for component in components)
    response.status_code = 200 if is_ready else 503
    return Ready(status="ready" if is_ready else "not-ready", components=components)


def get_metrics(request: Request) -> Response:
    """Prometheus: request latencies, jobs by kind and state, rollouts by tier."""
    telemetry = cast(Telemetry, request.app.state.telemetry)
    return Response(telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


_READINESS: dict[int | str, dict[str, Any]] = responses() | {503: {"model": Ready, "description": "A component is down"}}
_METRICS = responses() | {200: {"description": "The metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}

for prefix, suffix in (("", ""), ("/v1", "_v1")):
    router.add_api_route(f"{prefix}/healthz", get_liveness, name=f"healthz{suffix}", responses=responses())
    router.add_api_route(f"{prefix}/readyz", get_readiness, name=f"readyz{suffix}", responses=_READINESS)
    router.add_api_route(
        f"{prefix}/metrics",
        get_metrics,
        name=f"metrics{suffix}",
        response_class=Response,
        responses=_METRICS,
        dependencies=[needs("metrics:read")],
    )
