"""What endpoints depend on: the open services, and who the caller is.

Each endpoint names the scope that it needs. `StrictRoute` asks for the key and compares before anything of the body is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from fastapi import BackgroundTasks, Depends, Query, Request, Response, Security
from fastapi.security import HTTPBearer

from ampref_service.api.auth import Authenticator
from ampref_service.catalog.records import Job, JobTerms
from ampref_service.keys import Caller
from ampref_service.services import Services

_CALLER = "ampref.caller"


async def get_services(request: Request) -> Services:
    """What `create_app` opened."""
    return cast(Services, request.app.state.services)


async def get_authenticator(request: Request) -> Authenticator:
    """What identifies callers."""
    return cast(Authenticator, request.app.state.authenticator)


async def accept_link(
    key: Annotated[str | None, Query(description="Of a signed link: the key that made it.")] = None,
    expires: Annotated[str | None, Query(description="Of a signed link: epoch seconds.")] = None,
    signature: Annotated[str | None, Query(description="Of a signed link; with it no key is needed.")] = None,
) -> None:
    """What makes an endpoint take a signed link in the place of a key; `authorize` reads it."""


_SCHEME = HTTPBearer(scheme_name="key", description="`amp_…`; see docs/keys.md.", auto_error=False)


async def get_caller(request: Request, _: Annotated[object, Security(_SCHEME)]) -> Caller:
    """Who the request is from; `authorize` has checked it."""
    return cast(Caller, request.scope[_CALLER])


def needs(*scopes: str) -> Any:
    """The dependency of an endpoint that needs a caller with these scopes; its value is the `Caller`."""
    return Security(get_caller, scopes=scopes)


def accepts_link(dependant: Any) -> bool:
    """Whether an endpoint takes a signed link in the place of a key, by FastAPI's description of what it depends on."""
    return any(dependency.call is accept_link for dependency in dependant.dependencies)


def list_scopes(dependant: Any) -> list[str] | None:
    """The scopes that an endpoint needs, by FastAPI's description of what it depends on; None where it needs no caller."""
    scopes: list[str] | None = None
    for dependency in dependant.dependencies:
        nested_scopes = list_scopes(dependency)
        if dependency.call is get_caller:
            nested_scopes = list(dependency.own_oauth_scopes or ())
        if nested_scopes is not None:
            scopes = (scopes or []) + nested_scopes
    return scopes


async def authorize(request: Request, scopes: list[str], *, may_be_link: bool = False, csrf_token: str | None = None) -> None:
    """Let a request pass whose caller has the scopes, and whose address is within the caller's bounds.

    Args:
      may_be_link: whether a signed link in the query may stand for a key.
      csrf_token: as in `Authenticator.identify`.

    Raises:
      Unauthorized: there is no valid key.
      Forbidden: it lacks a scope, or is bound to other datasets or robots.
    """
    authenticator = await get_authenticator(request)
    caller = request.scope[_CALLER] = await authenticator.identify(request, accepts_link=may_be_link, csrf_token=csrf_token)
    caller.check_scope(*scopes)
    await authenticator.check_place(caller, request.path_params)


def job_terms(services: Services, caller: Caller, priority: int = 0) -> JobTerms:
    """What a caller's job is queued with; raises `Forbidden` for a priority that it may not ask for."""
    if priority > 0:
        caller.check_scope("clips:priority")
    return replace(services.job_terms(owner=caller.owner, priority=priority), key=caller.key)


AuthenticatorDep = Annotated[Authenticator, Depends(get_authenticator)]
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
CallerDep = Annotated[Caller, needs()]
"""The caller, of whom no scope is needed besides those that the endpoint names elsewhere."""
