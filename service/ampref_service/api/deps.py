"""What endpoints depend on: the open services, and who the caller is.

`get_caller` is the one place that will know about keys: today everybody is `anonymous` with every scope. Each endpoint names
the scope that it needs, so that keys change this function and no endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import BackgroundTasks, Depends, Request, Response, Security
from fastapi.security import SecurityScopes

from ampref_service.catalog.records import Job, JobTerms
from ampref_service.errors import Forbidden
from ampref_service.services import Services

SCOPES = ("clips:read", "clips:write", "jobs:read", "jobs:write", "datasets:read", "datasets:write")


@dataclass(frozen=True)
class Caller:
    """The caller of an endpoint and what it may do.

    Args:
      owner: whose jobs its jobs are, which take turns with those of others.
      can_prioritize: whether it may queue jobs with a priority above 0.
    """

    name: str = "anonymous"
    owner: str = ""
    can_prioritize: bool = True
    scopes: frozenset[str] = frozenset(SCOPES)


async def get_services(request: Request) -> Services:
    """What `create_app` opened."""
    return cast(Services, request.app.state.services)


async def get_caller(request: Request, security: SecurityScopes) -> Caller:
    """The caller; raises `Forbidden` where it lacks a scope that the endpoint needs."""
    caller = Caller()
    missing = [scope for scope in security.scopes if scope not in caller.scopes]
    if missing:
        raise Forbidden(f"this key lacks the scope {', '.join(missing)}", remedy="Ask the operator for a key that has it")
    return caller


def needs(scope: str) -> Any:
    """The dependency of an endpoint that needs a scope; its value is the `Caller`."""
    return Security(get_caller, scopes=[scope])


def job_terms(services: Services, caller: Caller, priority: int = 0) -> JobTerms:
    """What a caller's job is queued with; raises `Forbidden` for a priority that it may not ask for."""
    if priority > 0 and not caller.can_prioritize:
        raise Forbidden(
            "this key may not queue jobs before others of its own",
            key="priority",
            expected="at most 0",
            remedy="Leave the priority out, or ask the operator for a key that may",
        )
    return services.job_terms(owner=caller.owner, priority=priority)


ServicesDep = Annotated[Services, Depends(get_services)]


@dataclass(frozen=True)
class Announcer:
    """Announces what a request has queued: to the workers, and to the client in the answer's headers."""

    services: ServicesDep
    response: Response
    background: BackgroundTasks

    def ring(self, job: Job) -> None:
        """Wake a worker after the answer, so that a slow broker does not delay it; the job's row is what counts."""
        self.background.add_task(self.services.ring, job.id)

    def announce(self, job: Job) -> None:
        """Wake a worker, and name the job's address in Location."""
        self.ring(job)
        self.response.headers["location"] = f"/v1/jobs/{job.id}"


AnnouncerDep = Annotated[Announcer, Depends()]
