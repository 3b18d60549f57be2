"""What endpoints are given: the open service, and who is asking.

`caller` is the one place that will know about keys: today everybody is `anonymous` with every scope. Each endpoint names
the scope that it needs, so switching keys on changes this function and no endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import SecurityScopes

from amp_core.errors import AmprefError, NotFound
from amp_core.robot import Robot
from ampref_service.blobs import BlobStore
from ampref_service.catalog import Catalog
from ampref_service.jobs import JobQueue
from ampref_service.settings import Settings

SCOPES = ("clips:read", "clips:write", "jobs:read", "jobs:write", "datasets:read", "datasets:write")

Notify = Callable[[str], None]
"""Rings the doorbell for a job id. It may fail or be lost: the job table is the queue, and the sweeper rings again."""


@dataclass(frozen=True)
class Services:
    """Everything that was opened at start-up."""

    settings: Settings
    catalog: Catalog
    blobs: BlobStore
    robots: Mapping[str, Robot]
    notify: Notify

    @property
    def queue(self) -> JobQueue:
        """The job queue with this service's settings."""
        return JobQueue(self.catalog, lease_sec=self.settings.lease_sec, max_attempts=self.settings.max_attempts)

    def robot(self, name: str) -> Robot:
        """The installed robot `name`; `NotFound` lists those that there are."""
        try:
            return self.robots[name]
        except KeyError:
            raise NotFound(
                f"no robot {name!r} is installed here",
                key="robot",
                expected=f"one of {', '.join(sorted(self.robots))}",
                remedy="The operator installs robots with AMPREF_ROBOTS; they are never taken over HTTP",
            ) from None


@dataclass(frozen=True)
class Caller:
    """Who is asking, and what they may do."""

    name: str = "anonymous"
    scopes: frozenset[str] = frozenset(SCOPES)


class Forbidden(AmprefError):
    """The caller's key does not have the scope."""

    slug = "forbidden"
    title = "Not allowed"
    status = 403


async def services(request: Request) -> Services:
    """What `create_app` opened."""
    opened: Services = request.app.state.services
    return opened


async def caller(request: Request, needed: SecurityScopes) -> Caller:
    """Who is asking; refuses who lacks a scope that the endpoint needs."""
    who = Caller()
    missing = [scope for scope in needed.scopes if scope not in who.scopes]
    if missing:
        raise Forbidden(f"this key lacks the scope {', '.join(missing)}", remedy="Ask the operator for a key that has it")
    return who


def needs(*scopes: str) -> Any:
    """The dependency of an endpoint that needs `scopes`; its value is the `Caller`."""
    return Security(caller, scopes=list(scopes))


Service = Annotated[Services, Depends(services)]
